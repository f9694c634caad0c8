"""The released ViT models: classifiers of DeiT and AugReg networks, detection backbones of DeiT and AugReg networks."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig
from piip.zoo.parts import DEPTHS, DINO_NECK, INTERACTION, SINGLE_NECK, deit_branch, dense_branch, dense_model
from piip.zoo.registry import register


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


@register("piip_tsb_368_192_128.deit1_in1k", "piip_3branch_tsb_368-192-128_cls_token_deit1")
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


@register("piip_sbl_320_160_96.augreg_in1k", "piip_3branch_sbl_320-160-96_cls_token_augreg")
def _sbl_320() -> ModelConfig:
    return _augreg_classifier(96, 160, 320)


@register("piip_sbl_384_192_128.augreg_in1k", "piip_3branch_sbl_384-192-128_cls_token_augreg")
def _sbl_384() -> ModelConfig:
    return _augreg_classifier(128, 192, 384)


def _deit_detector(networks: str, sizes: tuple[int, ...], window: int) -> ModelConfig:
    """Networks as letters, largest first; sizes from lowest to highest."""
    letters = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
    return dense_model(
        *(deit_branch(letters[letter], size, window) for letter, size in zip(networks, sizes, strict=True)),
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
    register(
        f"piip_{_arch}_{_resolutions}.deit3_coco_mask_rcnn",
        f"mask_rcnn_deit_{_arch}_{_resolutions}_fpn_1x_coco_bs16",
        published=partial(_deit_detector, "lbst", _sizes, _window) if _arch == "tsbl" else None,
    )(partial(_deit_detector, _networks, _sizes, _window))


@register("piip_sbl_1792_1120_672.deit3_384_coco_dino", "dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms")
def _sbl_1792() -> ModelConfig:
    def branch(size: str, image_size: int, rate: float) -> BranchConfig:
        windows = (24, 24, 0) * (DEPTHS[size] // 3)
        name = f"deit3_{size}_patch16_384.fb_in22k_ft_in1k"
        return dense_branch(name, image_size, rate, windows, drop_path_rule="constant", position_grid=24)

    branches = (branch("large", 672, 0.4), branch("base", 1120, 0.15), branch("small", 1792, 0.05))
    return dense_model(*branches, neck=DINO_NECK, imagenet_colors=True)


def _augreg_detector(interaction: InteractionConfig, **timm_args: Any) -> ModelConfig:
    def branch(size: str, image_size: int, rate: float) -> BranchConfig:
        return dense_branch(
            f"vit_{size}_patch16_384.augreg_in21k_ft_in1k",
            image_size,
            rate,
            28,
            position_grid=24,
            timm_args={"init_values": 1.0, **timm_args},
        )

    branches = (branch("large", 672, 0.4), branch("base", 1120, 0.3), branch("small", 1568, 0.2))
    return dense_model(*branches, interaction=interaction)


@register("piip_sbl_1568_1120_672.augreg_coco_mask_rcnn", "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16")
def _augreg_1568() -> ModelConfig:
    return _augreg_detector(INTERACTION)


@register(
    "piip_sbl_1568_1120_672.augreg_coco_mask_rcnn_speedup",
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16_speedup",
)
def _augreg_1568_speedup() -> ModelConfig:
    lean = dataclasses.replace(INTERACTION, projection=False, norm=False)
    return _augreg_detector(lean, act_layer="gelu_tanh")


def _single(size: str) -> ModelConfig:
    windows = (14, 14, 0) * (DEPTHS[size] // 3)
    return dense_model(deit_branch(size, 1024, windows), neck=SINGLE_NECK)


@register("single_b_1024.deit3_coco_mask_rcnn", "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16")
def _single_b() -> ModelConfig:
    return _single("base")


@register("single_l_1024.deit3_coco_mask_rcnn", "mask_rcnn_deit_vit_l_fpn_1x_coco_bs16")
def _single_l() -> ModelConfig:
    return _single("large")
