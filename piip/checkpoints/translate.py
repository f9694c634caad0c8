"""Conversion of the authors' constructor arguments to a `ModelConfig`.

Facts: the authors' public release, code state of 2025-08-05; in our words in `docs/official.md`. One branch is
translated in `families.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piip.checkpoints.families import branch_config, family_of, with_sizes
from piip.config import (
    HeadConfig,
    InteractionConfig,
    MergeConfig,
    ModelConfig,
    NeckConfig,
)

CODE_BASES = ("classification", "detection", "segmentation", "llava")
SINGLE_CLASSES = ("vit_models", "InternViT6B", "ConvNextHFWrapper")
OFFICIAL_CLASSES = {
    **dict.fromkeys(SINGLE_CLASSES, 1),
    "PIIPTwoBranch": 2,
    "PIIPThreeBranch": 3,
    "PIIPFourBranch": 4,
    "PIIPTwoBranchModel": 2,
    "PIIPTwoBranchMixModel": 2,
}


def branch_settings(config: Mapping[str, Any], *, code_base: str, official_class: str) -> list[dict[str, Any]]:
    """Return the effective settings of each branch, largest network first.

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


def translate_config(
    config: Mapping[str, Any], *, code_base: str, official_class: str, archs: Mapping[str, Mapping[str, Any]]
) -> ModelConfig:
    """Translate official constructor arguments; see `build_official`."""
    settings = branch_settings(config, code_base=code_base, official_class=official_class)
    families = [family_of(branch, code_base, official_class) for branch in settings]
    settings = [with_sizes(branch, family, archs) for branch, family in zip(settings, families, strict=True)]
    is_single = len(settings) == 1
    separate = code_base == "classification" and bool(config.get("separate_head", False))
    branches = tuple(
        branch_config(branch, family, code_base=code_base, final_norm=separate)
        for branch, family in zip(settings, families, strict=True)
    )
    head, merge, neck = HeadConfig(), MergeConfig("none" if is_single else "conv"), NeckConfig()
    if code_base == "classification":
        # parity: num_classes does not reach the heads inside the branches (`docs/official.md`)
        apart = HeadConfig("per_branch", num_classes=1000, pool="first_patch")
        head = apart if separate else HeadConfig("pooled", num_classes=int(config.get("num_classes", 1000)))
        merge = MergeConfig("none" if separate else "linear")
    elif code_base == "llava":
        if config.get("use_branch_merging"):
            raise ValueError("use_branch_merging is not known for the released vision towers; set it to false.")
        merge = MergeConfig("none")
    else:
        neck = _neck(config, official_class)
    interaction = InteractionConfig() if is_single else _interaction(config, settings)
    return ModelConfig(branches, interaction, merge, neck, head, resize="official", allow_direct=True)


def _interaction(config: Mapping[str, Any], settings: list[dict[str, Any]]) -> InteractionConfig:
    heads, ratio = int(config.get("deform_num_heads", 6)), float(config.get("deform_ratio", 1.0))
    dense = config.get("interact_attn_type", "normal") == "normal"
    for branch in settings:
        for channels in branch.get("dims") or branch.get("hidden_sizes") or [branch.get("embed_dim", heads)]:
            width = int(channels) if dense else int(channels * ratio)
            if width % heads:
                raise ValueError(f"deform_num_heads is {heads}, which does not divide the attention width {width}.")
    return InteractionConfig(
        count=len(settings[0]["interaction_indexes"]),
        attention="dense" if dense else "deformable",
        num_heads=heads,
        num_points=int(config.get("n_points", 4)),
        value_ratio=ratio,
        ffn_ratio=float(config.get("cffn_ratio", 0.25)) if config.get("with_cffn", False) else 0.0,
        projection=bool(config.get("interaction_proj", True)),
        norm=config.get("norm_layer") != "none",
        drop_path_rate=float(config.get("interaction_drop_path_rate", 0.3)),
    )


def _neck(config: Mapping[str, Any], official_class: str) -> NeckConfig:
    if official_class == "ConvNextHFWrapper":
        return NeckConfig("stages")
    if official_class in SINGLE_CLASSES:
        if not config.get("use_simple_fpn", True) or not config.get("with_fpn", True):
            raise ValueError("The single-branch baseline is supported with its simple feature pyramid only.")
        return NeckConfig("simple", norm="layer")
    if not config.get("with_simple_fpn", True):
        if official_class != "PIIPThreeBranch":
            raise ValueError(f"with_simple_fpn=False is known for PIIPThreeBranch only, not for {official_class}.")
        return NeckConfig("interaction", interactions=tuple(config["out_interaction_indexes"]))
    return NeckConfig("simple", scales=(2, 1, 0.5) if config.get("is_dino") else (4, 2, 1, 0.5))
