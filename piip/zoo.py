"""Models by name.

Names are `<arch>_<resolutions>.<pretraining>_<task>[_<variant>]`: networks from smallest to largest, resolutions
from highest to lowest. Every model also answers to the name of its official record; that name builds the official
rules (resize by factors, class from the top-left patch), ours the rules of this library (whole patches, class from the
mean). The parameters are the same; the authors' classifiers were trained for theirs.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD
from piip.build import build_backbone, build_model
from piip.config import (
    BranchConfig,
    HeadConfig,
    InteractionConfig,
    MergeConfig,
    ModelConfig,
    NeckConfig,
)
from piip.fields import nearest_names

ConfigMaker = Callable[[], ModelConfig]

_MODELS: dict[str, ConfigMaker] = {}
_PUBLISHED: dict[str, ConfigMaker] = {}  # where the published figures are of other networks than the released code's
_OFFICIAL: dict[str, str] = {}  # official record -> our name

DEPTHS = {"tiny": 12, "small": 12, "base": 12, "large": 24}
HALF = (0.5, 0.5, 0.5)  # the released detectors scale pixels to [-1, 1]
SIMPLE_NECK = NeckConfig("simple")
INTERACTION = InteractionConfig(count=12, drop_path_rate=0.4)


def _register(name: str, official: str) -> Callable[[ConfigMaker], ConfigMaker]:
    def keep(make: ConfigMaker) -> ConfigMaker:
        _MODELS[name] = make
        _OFFICIAL[official] = name
        return make

    return keep


def list_models(pattern: str = "*", *, official: bool = False) -> list[str]:
    """List model names.

    Args:
        pattern: Shell-style pattern, e.g. "*tsb*".
        official: List the names of the official records instead of ours.
    """
    return sorted(fnmatch.filter(_OFFICIAL if official else _MODELS, pattern))


def official_record(name: str) -> str:
    """Return the name of the official record of a model.

    Args:
        name: Our name or already the record's.

    Raises:
        ValueError: An unknown name, with the nearest known ones.
    """
    records = {ours: record for record, ours in _OFFICIAL.items()}
    if name not in records and name not in _OFFICIAL:
        raise ValueError(f"No model is called {name!r}. {nearest_names(name, [*_MODELS, *_OFFICIAL])}")
    return records.get(name, name)


def model_config(name: str) -> ModelConfig:
    """Return the description of a named model: ours, or with official rules for an official record's name.

    Raises:
        ValueError: An unknown name, with the nearest known ones.
    """
    record = official_record(name)
    config = _MODELS[_OFFICIAL[record]]()
    if name != record:
        return config
    head = config.head
    if head.kind == "per_branch":
        head = dataclasses.replace(head, pool="first_patch")
    return dataclasses.replace(config, resize="official", head=head)


def published_config(name: str) -> ModelConfig:
    """Return the model whose cost was published under a name.

    parity: the four-branch detectors are built with two ViT-S but published with the ViT-T that was meant.

    Raises:
        ValueError: An unknown name, with the nearest ones.
    """
    ours = _OFFICIAL[official_record(name)]
    return _PUBLISHED.get(ours, _MODELS[ours])()


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    pretrained_branches: bool = False,
    features_only: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        name: One of `list_models()`, or the name of an official record.
        num_classes: Classes of a classifier, instead of the model's own.
        pretrained: Weights of the whole model.
        pretrained_branches: Each branch's own weights, through timm.
        features_only: Backbone and neck alone: image -> list of maps.
        **overrides: Fields of `ModelConfig`, e.g. `resize="official"` or `merge={"kind": "slim"}`.

    Returns:
        The model of the name's task.

    Raises:
        ValueError: An unknown name or field (with the nearest ones), weights that are not to be had, or a task whose
            head this version does not have.

    Example:
        >>> model = create_model("piip_tsb_368_192_128.deit1_in1k", num_classes=10)
        >>> logits = model(torch.randn(1, 3, 368, 368))
    """
    config = model_config(name)
    if pretrained:
        raise ValueError(
            f"No downloadable weights are known for {name}. Get the authors' file and turn it into a checkpoint with "
            "`piip convert` (in preparation), or start from pretrained_branches=True."
        )
    config = ModelConfig.from_dict({**config.to_dict(), **overrides}) if overrides else config
    if pretrained_branches:
        branches = tuple(dataclasses.replace(branch, pretrained=True) for branch in config.branches)
        config = dataclasses.replace(config, branches=branches)
    if features_only:
        return build_backbone(dataclasses.replace(config, head=HeadConfig()))
    if config.head.kind == "none":
        raise ValueError(f"{name} has no classification head; pass features_only=True for its backbone and neck.")
    if num_classes is not None:
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, num_classes=num_classes))
    return build_model(config)


def _classifier(*branches: BranchConfig) -> ModelConfig:
    head = HeadConfig("per_branch", num_classes=1000, pool="mean")
    # all released classifiers were trained with ImageNet's mean and std, AugReg's own are 0.5
    return ModelConfig(branches, INTERACTION, MergeConfig("none"), head=head, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _classifier_branch(network: str, image_size: int, drop_path_rate: float, **timm_args: Any) -> BranchConfig:
    return BranchConfig(
        network,
        image_size,
        drop_path_rate=drop_path_rate,
        drop_path_rule="constant",
        position_resize="official",
        position_grid=image_size // 16,
        timm_args=timm_args,
    )


def _detector(
    *branches: BranchConfig, interaction: InteractionConfig = INTERACTION, neck: NeckConfig = SIMPLE_NECK
) -> ModelConfig:
    return ModelConfig(branches, interaction, MergeConfig("conv"), neck, allow_direct=True, mean=HALF, std=HALF)


def _detector_branch(
    network: str, image_size: int, drop_path_rate: float, window: int | tuple[int, ...], **fields: Any
) -> BranchConfig:
    """A ViT without class token and final norm, attention in windows, layer scale starting at 1."""
    values = {
        "drop_path_rule": "constant",
        "position_grid": 14,
        "timm_args": {"init_values": 1.0},
        **fields,
    }
    return BranchConfig(
        network,
        image_size,
        drop_path_rate=drop_path_rate,
        window_size=window,
        prefix_tokens=False,
        final_norm=False,
        position_resize="official",
        **values,
    )


DEIT = {
    "tiny": ("deit_tiny_patch16_224.fb_in1k", 0.05),
    "small": ("deit3_small_patch16_224.fb_in22k_ft_in1k", 0.05),
    "base": ("deit3_base_patch16_224.fb_in22k_ft_in1k", 0.15),
    "large": ("deit3_large_patch16_224.fb_in22k_ft_in1k", 0.4),
}


def _deit(network: str, image_size: int, window: int | tuple[int, ...]) -> BranchConfig:
    return _detector_branch(DEIT[network][0], image_size, DEIT[network][1], window)


@_register("piip_tsb_368_192_128.deit1_in1k", "piip_3branch_tsb_368-192-128_cls_token_deit1")
def _tsb_368() -> ModelConfig:
    return _classifier(
        _classifier_branch("deit_base_patch16_224.fb_in1k", 128, 0.2, init_values=1.0),
        _classifier_branch("deit_small_patch16_224.fb_in1k", 192, 0.05, init_values=1.0),
        _classifier_branch("deit_tiny_patch16_224.fb_in1k", 368, 0.05, init_values=1.0),
    )


def _augreg_classifier(large: int, base: int, small: int) -> ModelConfig:
    return _classifier(
        _classifier_branch("vit_large_patch16_224.augreg_in21k_ft_in1k", large, 0.4),
        _classifier_branch("vit_base_patch16_224.augreg_in21k_ft_in1k", base, 0.2),
        _classifier_branch("vit_small_patch16_224.augreg_in21k_ft_in1k", small, 0.05),
    )


@_register("piip_sbl_320_160_96.augreg_in1k", "piip_3branch_sbl_320-160-96_cls_token_augreg")
def _sbl_320() -> ModelConfig:
    return _augreg_classifier(96, 160, 320)


@_register("piip_sbl_384_192_128.augreg_in1k", "piip_3branch_sbl_384-192-128_cls_token_augreg")
def _sbl_384() -> ModelConfig:
    return _augreg_classifier(128, 192, 384)


def _deit_detector(networks: str, sizes: tuple[int, ...], window: int) -> ModelConfig:
    """Networks as letters, largest first; sizes from lowest to highest."""
    letters = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
    return _detector(
        *(_deit(letters[letter], size, window) for letter, size in zip(networks, sizes, strict=True)),
    )


# letters, resolutions and window of the released DeiT detectors; all else is shared
# parity: "tsbl" runs two ViT-S, as the four-branch class builds branch 4 with branch 3's settings
_DEIT_DETECTORS = (
    ("tsb", "bst", (448, 896, 1120), 14),
    ("tsb", "bst", (672, 1120, 1568), 14),
    ("tsb", "bst", (448, 896, 1568), 14),
    ("sbl", "lbs", (448, 672, 1120), 28),
    ("sbl", "lbs", (448, 896, 1344), 28),
    ("sbl", "lbs", (672, 1120, 1568), 28),
    ("sbl", "lbs", (672, 896, 1568), 28),
    ("tsbl", "lbss", (448, 672, 896, 1344), 28),
    ("tsbl", "lbss", (448, 672, 1120, 1568), 28),
    ("tsbl", "lbss", (448, 1120, 1568, 1792), 28),
)
for _arch, _networks, _sizes, _window in _DEIT_DETECTORS:
    _resolutions = "_".join(str(size) for size in reversed(_sizes))
    _register(
        f"piip_{_arch}_{_resolutions}.deit3_coco_mask_rcnn",
        f"mask_rcnn_deit_{_arch}_{_resolutions}_fpn_1x_coco_bs16",
    )(partial(_deit_detector, _networks, _sizes, _window))
    if _arch == "tsbl":
        _PUBLISHED[f"piip_{_arch}_{_resolutions}.deit3_coco_mask_rcnn"] = partial(
            _deit_detector, "lbst", _sizes, _window
        )


@_register("piip_sbl_1792_1120_672.deit3_384_coco_dino", "dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms")
def _sbl_1792() -> ModelConfig:
    def branch(size: str, image_size: int, rate: float) -> BranchConfig:
        windows = (24, 24, 0) * (DEPTHS[size] // 3)
        name = f"deit3_{size}_patch16_384.fb_in22k_ft_in1k"
        return _detector_branch(name, image_size, rate, windows, position_grid=24)

    branches = (branch("large", 672, 0.4), branch("base", 1120, 0.15), branch("small", 1792, 0.05))
    return _detector(*branches, neck=NeckConfig("simple", scales=(2, 1, 0.5)))


def _augreg_detector(interaction: InteractionConfig, **timm_args: Any) -> ModelConfig:
    def branch(size: str, image_size: int, rate: float) -> BranchConfig:
        return _detector_branch(
            f"vit_{size}_patch16_384.augreg_in21k_ft_in1k",
            image_size,
            rate,
            28,
            drop_path_rule="linear",
            position_grid=24,
            timm_args={"init_values": 1.0, **timm_args},
        )

    branches = (branch("large", 672, 0.4), branch("base", 1120, 0.3), branch("small", 1568, 0.2))
    return _detector(*branches, interaction=interaction)


@_register("piip_sbl_1568_1120_672.augreg_coco_mask_rcnn", "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16")
def _augreg_1568() -> ModelConfig:
    return _augreg_detector(INTERACTION)


@_register(
    "piip_sbl_1568_1120_672.augreg_coco_mask_rcnn_speedup",
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16_speedup",
)
def _augreg_1568_speedup() -> ModelConfig:
    lean = dataclasses.replace(INTERACTION, projection=False, norm=False)
    return _augreg_detector(lean, act_layer="gelu_tanh")


def _single(size: str) -> ModelConfig:
    windows = (14, 14, 0) * (DEPTHS[size] // 3)
    neck = NeckConfig("simple", norm="layer")
    return ModelConfig((_deit(size, 1024, windows),), merge=MergeConfig("none"), neck=neck, mean=HALF, std=HALF)


@_register("single_b_1024.deit3_coco_mask_rcnn", "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16")
def _single_b() -> ModelConfig:
    return _single("base")


@_register("single_l_1024.deit3_coco_mask_rcnn", "mask_rcnn_deit_vit_l_fpn_1x_coco_bs16")
def _single_l() -> ModelConfig:
    return _single("large")
