"""The authors' models: built from their configurations, loaded from their files.

Facts: the authors' public release, code state of 2025-08-05. The released classes repeat one model per branch count;
here each is a `ModelConfig` of the ordinary parts with official rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.build import build_model
from piip.checkpoints.keymap import OfficialNames
from piip.checkpoints.report import explain_mismatch
from piip.config import (
    BranchConfig,
    HeadConfig,
    InteractionConfig,
    MergeConfig,
    ModelConfig,
    NeckConfig,
)
from piip.zoo import model_config, official_record

CODE_BASES = ("classification", "detection")
OFFICIAL_CLASSES = {"vit_models": 1, "PIIPTwoBranch": 2, "PIIPThreeBranch": 3, "PIIPFourBranch": 4}
INDEX_BUFFERS = ("relative_position_index", "position_ids", "num_batches_tracked")


class OfficialModel(nn.Module):
    """One of the authors' backbones or classifiers, with their rules.

    Args:
        model: The model made of our parts.
        names: How the authors name its parameters.
        config: What it was built from.
        input_size: The only accepted square input size (classification), or None.
    """

    def __init__(self, model: nn.Module, names: OfficialNames, config: ModelConfig, input_size: int | None) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.config = config
        self.input_size = input_size

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return what the official forward pass returns for normalised images (B, 3, H, W), float32.

        Raises:
            ValueError: A classification model was given another size than its own.
        """
        if self.input_size is not None and tuple(image.shape[-2:]) != (self.input_size, self.input_size):
            raise ValueError(
                f"This released classifier takes {self.input_size}x{self.input_size} pixels only, "
                f"got {tuple(image.shape[-2:])}; resize the image, or use the model by our name for any size."
            )
        outputs = self.model(image)
        return [tensor.float() for tensor in (outputs if isinstance(outputs, list) else [outputs])]


def build_official(
    config: Mapping[str, Any],
    *,
    code_base: str,
    official_class: str,
    convnext_arch: Mapping[str, Any] | None = None,
    clip_arch: Mapping[str, Any] | None = None,
    timm_convnext_arch: Mapping[str, Any] | None = None,
) -> OfficialModel:
    """Build one of the authors' models from its constructor arguments.

    Args:
        config: Constructor arguments under their official names.
        code_base: "classification" or "detection".
        official_class: "PIIPTwoBranch", "PIIPThreeBranch", "PIIPFourBranch" or, single-branch, "vit_models".
        convnext_arch: Sizes of ConvNeXt branches; not supported yet.
        clip_arch: Sizes of CLIP branches; not supported yet.
        timm_convnext_arch: Sizes of timm ConvNeXt branches; not supported yet.

    Returns:
        The model: image -> list of tensors (classification: one of logits; detection: the pyramid maps).

    Raises:
        ValueError: A code base, class or branch family that is not supported.
    """
    if code_base not in CODE_BASES or official_class not in OFFICIAL_CLASSES:
        raise ValueError(
            f"{official_class} of code base {code_base!r} is not supported; supported are "
            f"{', '.join(OFFICIAL_CLASSES)} of {' and '.join(CODE_BASES)}."
        )
    if convnext_arch or clip_arch or timm_convnext_arch:
        raise ValueError("ConvNeXt and CLIP branches of the released models are not supported yet.")
    return _wrap(translate_config(config, code_base=code_base, official_class=official_class))


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


def is_plain(branch: Mapping[str, Any]) -> bool:
    """Tell whether a branch is `vit_models` (DeiT) rather than InternViT-like (AugReg, MAE, DINOv2).

    Raises:
        ValueError: A family that is not supported yet.
    """
    tag = str(branch.get("pretrained") or branch.get("model_type") or "deit")
    if "deit" in tag:
        return True
    other = next((family for family in ("beit", "perceiver", "convnext") if family in tag), None)
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
    branches = tuple(_branch(branch, is_classifier=is_classifier, final_norm=separate) for branch in settings)
    if is_classifier:
        pooled = HeadConfig("pooled", num_classes=int(config.get("num_classes", 1000)))
        # parity: num_classes does not reach the heads inside the branches (`docs/official.md`)
        head = HeadConfig("per_branch", num_classes=1000, pool="first_patch") if separate else pooled
        merge = MergeConfig("none" if separate else "linear")
        neck = NeckConfig()
    else:
        head, merge = HeadConfig(), MergeConfig("none" if is_single else "conv")
        neck = _neck(config, is_single=is_single)
    interaction = InteractionConfig() if is_single else _interaction(config, settings[0])
    return ModelConfig(branches, interaction, merge, neck, head, resize="official", allow_direct=True)


def _branch(branch: Mapping[str, Any], *, is_classifier: bool, final_norm: bool) -> BranchConfig:
    plain = is_plain(branch)
    patch, depth = int(branch.get("patch_size", 16)), int(branch["depth"])
    trained = int(branch.get("pretrain_img_size", 224))
    size = int(branch["img_size"] if is_classifier else branch.get("real_size", trained))
    windows = branch.get("window_attn") or [False] * depth
    sizes = branch.get("window_size") or [-1] * depth
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
        window_size=tuple(max(0, side) if on else 0 for on, side in zip(windows, sizes, strict=True)),
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


def _interaction(config: Mapping[str, Any], first: Mapping[str, Any]) -> InteractionConfig:
    return InteractionConfig(
        count=len(first["interaction_indexes"]),
        attention="dense" if config.get("interact_attn_type", "deform") == "normal" else "deformable",
        num_heads=int(config.get("deform_num_heads", 16)),
        num_points=int(config.get("n_points", 4)),
        value_ratio=float(config.get("deform_ratio", 1.0)),
        ffn_ratio=float(config.get("cffn_ratio", 0.25)) if config.get("with_cffn", True) else 0.0,
        projection=bool(config.get("interaction_proj", True)),
        norm=config.get("norm_layer") != "none",
        drop_path_rate=float(config.get("interaction_drop_path_rate", 0)),
    )


def _neck(config: Mapping[str, Any], *, is_single: bool) -> NeckConfig:
    if is_single:
        return NeckConfig("simple", norm="layer")
    if not config.get("with_simple_fpn", True):
        return NeckConfig("interaction", interactions=tuple(config["out_interaction_indexes"]))
    return NeckConfig("simple", scales=(2, 1, 0.5) if config.get("is_dino") else (4, 2, 1, 0.5))


def build_released(name: str) -> OfficialModel:
    """Build a released model by its name, with the official rules.

    Args:
        name: Our name or that of the official record, see `piip.list_models()`.

    Returns:
        The model, ready for `load_official`.

    Raises:
        ValueError: An unknown name, with the nearest ones.
    """
    return _wrap(model_config(official_record(name)))


def _wrap(config: ModelConfig) -> OfficialModel:
    model = build_model(config)
    side = config.branches[-1].image_size if config.head.kind != "none" else None
    return OfficialModel(model, _names(config, model), config, side)


def _names(config: ModelConfig, model: nn.Module) -> OfficialNames:
    has_finest_level = 4 in config.neck.scales
    unused: list[tuple[str, tuple[int, ...]]] = []
    if isinstance(model, PIIPBackbone) and len(config.branches) == 3 and not has_finest_level:
        # parity: the three-branch class keeps the 4x level of a detector that does not use it (`docs/official.md`)
        width = int(model.feature_info[0]["num_chs"])
        for layer in (0, 3):
            unused += [(f"fpn1.{layer}.weight", (width, width, 2, 2)), (f"fpn1.{layer}.bias", (width,))]
        unused += [("fpn1.1.weight", (width,)), ("fpn1.1.bias", (width,))]
    return OfficialNames(
        plain_branches=tuple(branch.network.startswith("deit") for branch in config.branches),
        dense=config.interaction.attention == "dense",
        merge="short" if config.neck.kind == "interaction" else config.merge.kind,
        is_single=len(config.branches) == 1,
        per_branch_head=config.head.kind == "per_branch",
        first_level=1 if has_finest_level else 2,
        unused=tuple(unused),
    )


def official_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that a released file of this model must have.

    Args:
        model: A model from `build_official` or `build_released`.

    Raises:
        ValueError: Another model.
    """
    official = _require_official(model)
    shapes = dict(official.names.unused)
    for name, tensor in official.model.state_dict().items():
        shape = tuple(tensor.shape)
        if official.names.has_unused_row(name):
            shape = (shape[0], shape[1] + 1, *shape[2:])
        shapes[official.names.official(name)] = shape
    return shapes


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load an official state dict into a model from `build_official`.

    Args:
        model: The model.
        state_dict: Tensors under official names; index buffers may be absent.

    Raises:
        ValueError: Missing or unexpected names or wrong shapes, grouped by branch; nothing is loaded then.
    """
    official = _require_official(model)
    wanted = official_shapes(official)
    given = {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if name in wanted or not name.endswith(INDEX_BUFFERS)
    }
    problem = explain_mismatch(wanted, given)
    if problem:
        raise ValueError(problem)
    own = {}
    for name in official.model.state_dict():
        tensor = state_dict[official.names.official(name)]
        own[name] = tensor[:, 1:] if official.names.has_unused_row(name) else tensor
    with torch.no_grad():
        official.model.load_state_dict(own)


def _require_official(model: nn.Module) -> OfficialModel:
    if not isinstance(model, OfficialModel):
        raise ValueError(f"Expected a model from build_official, got {type(model).__name__}.")
    return model
