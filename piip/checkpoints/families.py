"""Conversion of the authors' settings of one branch to a `BranchConfig`, one function per family.

Facts: the authors' public release, code state of 2025-08-05; in our words in `docs/official.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from piip.branches import is_network
from piip.config import BranchConfig

Settings = Mapping[str, Any]
DEFAULT_WINDOW = 14
FAMILIES = {"deit": "deit", "beit": "beit", "perceiver": "uni_perceiver", "convnext": "convnext"}
MODEL_TYPES = {  # by code base; the first is the default
    "classification": {"deit": "deit", "augreg": "intern_vit"},
    "llava": {"clip_hf": "clip", "convnext_timm": "timm_convnext"},
}
KNOWN_FAMILIES: Mapping[
    str, tuple[str, ...]
] = {  # of each class, in the order in which the released code looks for them
    "vit_models": (),
    "PIIPTwoBranch": ("deit",),
    "PIIPThreeBranch": ("deit", "beit", "perceiver", "convnext"),
    "PIIPFourBranch": (),
    "InternViT6B": (),
    "ConvNextHFWrapper": ("convnext",),
}
# sizes of networks that the released configurations name without describing them
HF_CONVNEXTS: Mapping[str, Settings] = {
    "facebook/convnext-tiny-224": {"depths": (3, 3, 9, 3), "hidden_sizes": (96, 192, 384, 768)},
    "facebook/convnext-small-224": {"depths": (3, 3, 27, 3), "hidden_sizes": (96, 192, 384, 768)},
    "facebook/convnext-base-224": {"depths": (3, 3, 27, 3), "hidden_sizes": (128, 256, 512, 1024)},
    "facebook/convnext-large-224": {"depths": (3, 3, 27, 3), "hidden_sizes": (192, 384, 768, 1536)},
}
CLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIPS: Mapping[str, Settings] = {
    "openai/clip-vit-base-patch16": {**CLIP_BASE, "image_size": 224},
    "OpenGVLab/clip-vit-large-patch14to16-224": {**CLIP_LARGE, "image_size": 224},
    "OpenGVLab/clip-vit-large-patch14to16-336": {**CLIP_LARGE, "image_size": 336},
}


def family_of(branch: Settings, code_base: str, official_class: str) -> str:
    """Return the family of a branch by the rules of the released classes.

    Args:
        branch: Its settings.
        code_base: Which of the authors' code bases it belongs to: those for dense tasks go by the name of the
            pretrained file, the others by `model_type`.
        official_class: The class; the single ones and the four-branch detector know one family only, the two-branch
            class takes everything but DeiT for InternViT-like.

    Returns:
        "deit", "beit", "uni_perceiver", "convnext", "intern_vit", or of multimodal models "clip", "timm_convnext".

    Raises:
        ValueError: The `model_type` is unknown.
    """
    if code_base in MODEL_TYPES:
        kinds = MODEL_TYPES[code_base]
        kind = branch.get("model_type", next(iter(kinds)))
        if kind not in kinds:
            raise ValueError(f"model_type of a {code_base} branch is {kind!r}, expected {' or '.join(kinds)}.")
        return kinds[kind]
    if official_class in ("vit_models", "PIIPFourBranch"):
        return "deit"
    tag = str(branch.get("pretrained") or "")
    found = next((part for part in KNOWN_FAMILIES[official_class] if part in tag), None)
    return FAMILIES[found] if found else "intern_vit"


def with_sizes(branch: Settings, family: str, archs: Mapping[str, Settings]) -> dict[str, Any]:
    """Return a branch's settings with the sizes of its network, if the configuration has only its name.

    Args:
        branch: Its settings.
        family: See `family_of`.
        archs: Sizes by the name of the network (`convnext_arch`, `clip_arch`, `timm_convnext_arch`).

    Raises:
        ValueError: The sizes of the network are neither given nor known.
    """
    if family not in ("convnext", "clip", "timm_convnext"):
        return dict(branch)
    name = str(branch.get("pretrained"))
    known: dict[str, Mapping[str, Settings]] = {"convnext": HF_CONVNEXTS, "clip": CLIPS}
    arch: Settings | None = archs.get(name) or known.get(family, {}).get(name)
    if arch is None and family == "timm_convnext" and is_network(name):
        arch = {"arch": name}
    if arch is None:
        raise ValueError(f"The sizes of {name!r} are not known; give them as an entry of {family}_arch.")
    if family == "clip":
        arch = {
            **arch,
            "embed_dim": arch["hidden_size"],
            "depth": arch["num_hidden_layers"],
            "num_heads": arch["num_attention_heads"],
            "mlp_ratio": arch["intermediate_size"] / arch["hidden_size"],
            "pretrain_img_size": arch["image_size"],
        }
    return {**branch, **arch, "pretrained": name}


def branch_config(branch: Settings, family: str, *, code_base: str, final_norm: bool) -> BranchConfig:
    """Translate the settings of one branch.

    Args:
        branch: Settings with sizes.
        family: See `family_of`.
        code_base: Which of the authors' code bases it belongs to.
        final_norm: Whether the network's final norm is applied.

    Raises:
        ValueError: The released code does not support the settings for this family.
    """
    if family in ("convnext", "timm_convnext"):
        return _convnext(branch, image_size=_image_size(branch, code_base))
    make = {"deit": _deit, "intern_vit": _intern_vit, "beit": _beit, "uni_perceiver": _uni_perceiver, "clip": _clip}
    network, fields, timm_args = make[family](branch, code_base == "classification")
    # parity: classifiers have a class token by default, towers do not
    has_class = bool(branch.get("use_cls_token", code_base == "classification")) and code_base in MODEL_TYPES
    return BranchConfig(
        network,
        _image_size(branch, code_base),
        drop_path_rate=float(branch.get("drop_path_rate") or 0),
        block_groups=_groups(branch),
        prefix_tokens=has_class,
        final_norm=final_norm,
        timm_args={
            "patch_size": int(branch.get("patch_size", 16)),
            "embed_dim": int(branch["embed_dim"]),
            "depth": int(branch["depth"]),
            "num_heads": int(branch["num_heads"]),
            "mlp_ratio": float(branch.get("mlp_ratio", 4)),
            **timm_args,
        },
        **{"position_grid": _position_grid(branch, code_base), "position_resize": "official", **fields},
    )


def _image_size(branch: Settings, code_base: str) -> int:
    sizes = ("img_size", "real_size") if code_base in ("classification", "llava") else ("real_size", "img_size")
    return int(next(branch[name] for name in (*sizes, "pretrain_img_size") if name in branch))


def _position_grid(branch: Settings, code_base: str) -> int:
    """Return the side of the stored position table in tokens."""
    own_grid = code_base in ("classification", "segmentation")
    side = branch["img_size"] if own_grid else branch.get("pretrain_img_size", 224)
    return int(side) // int(branch.get("patch_size", 16))


def _groups(branch: Settings) -> tuple[tuple[int, int], ...] | None:
    groups = branch.get("interaction_indexes")
    return tuple((first, last) for first, last in groups) if groups else None


def _windows(branch: Settings) -> tuple[int, ...]:
    depth = int(branch["depth"])
    windows, sizes = branch.get("window_attn") or False, branch.get("window_size") or DEFAULT_WINDOW
    windows = list(windows) if isinstance(windows, list | tuple) else [windows] * depth
    sizes = list(sizes) if isinstance(sizes, list | tuple) else [sizes] * depth
    if len(windows) != depth or len(sizes) != depth:
        raise ValueError(
            f"window_attn has {len(windows)} and window_size {len(sizes)} entries, the branch has {depth} blocks."
        )
    return tuple(max(0, side) if on else 0 for on, side in zip(windows, sizes, strict=True))


def _activation(branch: Settings) -> str:
    return "gelu_tanh" if "fused_mlp" in (branch.get("mlp_type"), branch.get("Mlp_block")) else "gelu"


def _deit(branch: Settings, is_classifier: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    pad_after = not branch.get("use_flash_attn", False)
    fields = {
        "drop_path_rule": "constant",
        "window_size": _windows(branch),
        "window_padding": "after_qkv" if pad_after else "before_qkv",
    }
    timm_args = {
        "qkv_bias": bool(branch.get("qkv_bias", False)),
        "init_values": branch.get("init_scale") or 1e-4,  # parity: `vit_models` always has layer scale
        "no_embed_class": True,
        "act_layer": _activation(branch),
    }
    return "deit_base_patch16_224", fields, timm_args


def _intern_vit(branch: Settings, is_classifier: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    fields = {"drop_path_rule": "constant" if is_classifier else "linear", "window_size": _windows(branch)}
    # parity: the classification code has other defaults, above all no layer scale (`docs/official.md`)
    norm = branch.get("norm_layer_type", "ln" if is_classifier else "RMSNorm")
    qk_norm = bool(branch.get("qk_normalization", not is_classifier))
    timm_args: dict[str, Any] = {
        "qkv_bias": bool(branch.get("qkv_bias", False)),
        "init_values": branch.get("init_values", None if is_classifier else 0.1) or None,
        "no_embed_class": True,
        "act_layer": _activation(branch),
    }
    if norm not in ("LayerNorm", "ln", "RMSNorm"):
        raise ValueError(f"norm_layer_type is {norm!r}, expected LayerNorm (ln) or RMSNorm.")
    if norm != "RMSNorm" and not qk_norm:
        return "vit_base_patch16_224", fields, timm_args
    own = {"norm": "rms" if norm == "RMSNorm" else "layer", "qk_norm": qk_norm, "final_norm": is_classifier}
    return "intern_vit_6b_patch14_224", fields, {**timm_args, **own}


def _beit(branch: Settings, is_classifier: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    windows = _windows(branch)
    if 0 in windows or branch.get("use_abs_pos_emb") or branch.get("use_shared_rel_pos_bias"):
        raise ValueError(
            "BEiT branches of the released models have one table of relative positions per block and windows in every "
            "block; set window_attn and window_size, and remove use_abs_pos_emb and use_shared_rel_pos_bias."
        )
    timm_args = {"qkv_bias": bool(branch.get("qkv_bias", False)), "init_values": branch.get("init_values") or None}
    return (
        "beitv2_base_patch16_224",
        {"window_size": windows, "position_grid": None, "position_resize": "timm"},
        timm_args,
    )


def _uni_perceiver(branch: Settings, is_classifier: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return "uni_perceiver_base_patch16_224", {"window_size": _windows(branch)}, {}


def _clip(branch: Settings, is_classifier: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return "vit_base_patch16_clip_quickgelu_224", {}, {"act_layer": branch.get("hidden_act", "quick_gelu")}


def _convnext(branch: Settings, *, image_size: int) -> BranchConfig:
    sizes = {}
    if "depths" in branch:
        dims = branch.get("dims") or branch["hidden_sizes"]
        sizes = {"depths": tuple(branch["depths"]), "dims": tuple(dims)}
    groups = _groups(branch)
    if groups is None:  # a single network: one group per stage
        ends = list(accumulate(depth + (index > 0) for index, depth in enumerate(branch["depths"])))
        groups = tuple((start, end - 1) for start, end in zip([0, *ends[:-1]], ends, strict=True))
    return BranchConfig(
        str(branch.get("arch", "convnext_base")),
        image_size,
        drop_path_rate=float(branch.get("drop_path_rate") or 0),
        block_groups=groups,
        cut="blocks",
        timm_args=sizes,
    )
