"""From the authors' constructor arguments to a `ModelConfig`: their rules, written as ours.

Facts: the authors' public release, code state of 2025-08-05; in our words in `docs/official.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piip.config import (
    BranchConfig,
    HeadConfig,
    InteractionConfig,
    MergeConfig,
    ModelConfig,
    NeckConfig,
)

CODE_BASES = ("classification", "detection")
OFFICIAL_CLASSES = {"vit_models": 1, "PIIPTwoBranch": 2, "PIIPThreeBranch": 3, "PIIPFourBranch": 4}


def branch_settings(config: Mapping[str, Any], *, code_base: str, official_class: str) -> list[dict[str, Any]]:
    """Return the settings each branch really has, largest network first.

    parity: the four-branch class of the detection code builds branch 4 with branch 3's network and takes only its
    resolution and groups (`docs/official.md`).

    Raises:
        ValueError: The configuration lacks a branch.
    """
    count = OFFICIAL_CLASSES[official_class]
    if count == 1:
        return [dict(config)]
    missing = [f"branch{i + 1}" for i in range(count) if f"branch{i + 1}" not in config]
    if missing:
        raise ValueError(f"{official_class} needs {count} branches, the configuration lacks {', '.join(missing)}.")
    settings = [dict(config[f"branch{i + 1}"]) for i in range(count)]
    if count == 4 and code_base == "detection":
        own = {key: settings[3][key] for key in ("real_size", "img_size", "interaction_indexes") if key in settings[3]}
        settings[3] = {**settings[2], **own}
    return settings


def is_plain(branch: Mapping[str, Any], official_class: str) -> bool:
    """Tell whether a branch is `vit_models` (DeiT) rather than InternViT-like (AugReg, MAE, DINOv2).

    The released classes go by the name of the pretrained file: the single and the four-branch class know only DeiT,
    the two-branch class takes everything else for InternViT-like.

    Raises:
        ValueError: A family that is not supported yet.
    """
    tag = str(branch.get("pretrained") or branch.get("model_type") or "deit")
    if "deit" in tag or official_class in ("vit_models", "PIIPFourBranch"):
        return True
    families = () if official_class == "PIIPTwoBranch" else ("beit", "perceiver", "convnext")
    other = next((family for family in families if family in tag), None)
    if branch.get("qk_normalization") or branch.get("norm_layer_type", "LayerNorm") != "LayerNorm":
        other = "InternViT-6B"
    if other:
        raise ValueError(f"Branches of the family {other} are not supported yet (pretrained: {tag!r}).")
    return False


def translate_config(config: Mapping[str, Any], *, code_base: str, official_class: str) -> ModelConfig:
    """Translate official constructor arguments; see `build_official`."""
    settings = branch_settings(config, code_base=code_base, official_class=official_class)
    is_classifier, is_single = code_base == "classification", len(settings) == 1
    separate = is_classifier and bool(config.get("separate_head", True))
    branches = tuple(
        _branch(branch, plain=is_plain(branch, official_class), is_classifier=is_classifier, final_norm=separate)
        for branch in settings
    )
    if is_classifier:
        pooled = HeadConfig("pooled", num_classes=int(config.get("num_classes", 1000)))
        # parity: num_classes does not reach the heads inside the branches (`docs/official.md`)
        head = HeadConfig("per_branch", num_classes=1000, pool="first_patch") if separate else pooled
        merge = MergeConfig("none" if separate else "linear")
        neck = NeckConfig()
    else:
        head, merge = HeadConfig(), MergeConfig("none" if is_single else "conv")
        neck = _neck(config, official_class)
    interaction = InteractionConfig() if is_single else _interaction(config, settings)
    return ModelConfig(branches, interaction, merge, neck, head, resize="official", allow_direct=True)


def _branch(branch: Mapping[str, Any], *, plain: bool, is_classifier: bool, final_norm: bool) -> BranchConfig:
    patch, depth = int(branch.get("patch_size", 16)), int(branch["depth"])
    trained = int(branch.get("pretrain_img_size", 224))
    size = int(branch["img_size"] if is_classifier else branch.get("real_size", trained))
    # parity: `vit_models` always has layer scale, the InternViT class has none in classification (`docs/official.md`)
    scale = (branch.get("init_scale") or 1.0) if plain else (0 if is_classifier else branch.get("init_values", 1.0))
    pad_after = plain and not branch.get("use_flash_attn", False)
    fused = "fused_mlp" in (branch.get("mlp_type"), branch.get("Mlp_block"))
    groups = branch.get("interaction_indexes")
    return BranchConfig(
        "deit_base_patch16_224" if plain else "vit_base_patch16_224",
        size,
        drop_path_rate=float(branch.get("drop_path_rate", 0)),
        drop_path_rule="constant" if plain or is_classifier else "linear",
        window_size=_windows(branch, depth),
        window_padding="after_qkv" if pad_after else "before_qkv",
        block_groups=tuple((first, last) for first, last in groups) if groups else None,
        prefix_tokens=bool(branch.get("use_cls_token", False)) and is_classifier,
        final_norm=final_norm,
        position_resize="official",
        position_grid=(size if is_classifier else trained) // patch,
        timm_args={
            "patch_size": patch,
            "embed_dim": int(branch["embed_dim"]),
            "depth": depth,
            "num_heads": int(branch["num_heads"]),
            "mlp_ratio": float(branch.get("mlp_ratio", 4)),
            "qkv_bias": bool(branch.get("qkv_bias", True)),
            "init_values": scale or None,
            "no_embed_class": True,
            "act_layer": "gelu_tanh" if fused else "gelu",
        },
    )


def _windows(branch: Mapping[str, Any], depth: int) -> tuple[int, ...]:
    windows = branch.get("window_attn") or [False] * depth
    sizes = branch.get("window_size") or [-1] * depth
    if not isinstance(windows, list | tuple) or not isinstance(sizes, list | tuple):
        raise ValueError(f"window_attn is {windows!r} and window_size {sizes!r}, expected one entry a block each.")
    if len(windows) != depth or len(sizes) != depth:
        raise ValueError(
            f"window_attn has {len(windows)} and window_size {len(sizes)} entries, the branch has {depth} blocks."
        )
    return tuple(max(0, side) if on else 0 for on, side in zip(windows, sizes, strict=True))


def _interaction(config: Mapping[str, Any], settings: list[dict[str, Any]]) -> InteractionConfig:
    first = settings[0]
    heads, ratio = int(config.get("deform_num_heads", 16)), float(config.get("deform_ratio", 1.0))
    dense = config.get("interact_attn_type", "deform") == "normal"
    for branch in settings:
        width = int(branch["embed_dim"]) if dense else int(branch["embed_dim"] * ratio)
        if width % heads:
            raise ValueError(f"deform_num_heads is {heads}, which does not divide the attention width {width}.")
    return InteractionConfig(
        count=len(first["interaction_indexes"]),
        attention="dense" if dense else "deformable",
        num_heads=heads,
        num_points=int(config.get("n_points", 4)),
        value_ratio=ratio,
        ffn_ratio=float(config.get("cffn_ratio", 0.25)) if config.get("with_cffn", True) else 0.0,
        projection=bool(config.get("interaction_proj", True)),
        norm=config.get("norm_layer") != "none",
        drop_path_rate=float(config.get("interaction_drop_path_rate", 0)),
    )


def _neck(config: Mapping[str, Any], official_class: str) -> NeckConfig:
    if official_class == "vit_models":
        if not config.get("use_simple_fpn", True) or not config.get("with_fpn", True):
            raise ValueError("The single-branch baseline is supported with its simple feature pyramid only.")
        return NeckConfig("simple", norm="layer")
    if not config.get("with_simple_fpn", True):
        if official_class != "PIIPThreeBranch":
            raise ValueError(f"with_simple_fpn=False is known for PIIPThreeBranch only, not for {official_class}.")
        return NeckConfig("interaction", interactions=tuple(config["out_interaction_indexes"]))
    return NeckConfig("simple", scales=(2, 1, 0.5) if config.get("is_dino") else (4, 2, 1, 0.5))
