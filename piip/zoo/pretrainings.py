"""The released SBL detectors at 1568/1120/672 pretrained as MAE, DINOv2, BEiT v2, Uni-Perceiver."""

from __future__ import annotations

from typing import Any

from piip.config import BranchConfig, ModelConfig
from piip.zoo.parts import deit_branch, dense_branch, dense_model
from piip.zoo.registry import register

SIZES = {"large": 672, "base": 1120, "small": 1568}
WINDOW = 28


def _names(pretraining: str) -> tuple[str, str]:
    return (
        f"piip_sbl_1568_1120_672.{pretraining}_coco_mask_rcnn",
        f"mask_rcnn_{pretraining.removesuffix('v2') if 'beit' in pretraining else pretraining}"
        "_sbl_1568_1120_672_fpn_1x_coco_bs16",
    )


def _with_small_deit(large: str, base: str, **fields: Any) -> ModelConfig:
    """Return the detector of two given networks and, for want of a small one, DeiT III small."""
    rates = {large: ("large", 0.4), base: ("base", 0.15)}
    branches = [dense_branch(name, SIZES[size], rate, WINDOW, **fields) for name, (size, rate) in rates.items()]
    return dense_model(*branches, deit_branch("small", SIZES["small"], WINDOW))


@register(*_names("mae"))
def _mae() -> ModelConfig:
    return _with_small_deit("vit_large_patch16_224.mae", "vit_base_patch16_224.mae")


@register(*_names("beitv2"))
def _beit() -> ModelConfig:
    # positions are those inside a window: there is no table of the whole grid
    return _with_small_deit(
        "beitv2_large_patch16_224.in1k_ft_in22k",
        "beitv2_base_patch16_224.in1k_ft_in22k",
        position_grid=None,
        position_resize="timm",
        timm_args={"init_values": 1e-6},
    )


@register(*_names("uniperceiver"))
def _uni_perceiver() -> ModelConfig:
    return _with_small_deit("uni_perceiver_large_patch16_224", "uni_perceiver_base_patch16_224", timm_args={})


@register(*_names("dinov2"))
def _dino() -> ModelConfig:
    def branch(size: str, rate: float) -> BranchConfig:
        return dense_branch(
            f"vit_{size}_patch14_dinov2.lvd142m",
            SIZES[size],
            rate,
            WINDOW,
            position_grid=32,  # 518 pixels in patches of 16
            timm_args={"patch_size": 16, "init_values": 1.0},
        )

    return dense_model(branch("large", 0.4), branch("base", 0.3), branch("small", 0.2))
