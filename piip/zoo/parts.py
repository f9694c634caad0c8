"""Common parts of the descriptions of several families."""

from __future__ import annotations

from typing import Any

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig

DEPTHS = {"tiny": 12, "small": 12, "base": 12, "large": 24}
HALF = (0.5, 0.5, 0.5)  # most released detectors scale pixels to [-1, 1]
SIMPLE_NECK = NeckConfig("simple")
SINGLE_NECK = NeckConfig("simple", norm="layer")
DINO_NECK = NeckConfig("simple", scales=(2, 1, 0.5))
MASK_RCNN = HeadConfig("mask_rcnn", num_classes=80)  # of COCO
DINO = HeadConfig("dino", num_classes=80)  # of COCO
UPERNET = HeadConfig("upernet", num_classes=150)  # of ADE20K
INTERACTION = InteractionConfig(count=12, drop_path_rate=0.4)


def dense_model(
    *branches: BranchConfig,
    head: HeadConfig = MASK_RCNN,
    interaction: InteractionConfig = INTERACTION,
    neck: NeckConfig = SIMPLE_NECK,
    imagenet_colors: bool = False,
) -> ModelConfig:
    """Return a released detector or segmentor.

    Args:
        *branches: Largest network first; a single one is a baseline.
        head: What reads the neck's levels; three levels are always a DINO head's.
        interaction: Exchange between branches.
        neck: Levels.
        imagenet_colors: Images are normalised with ImageNet's mean and std instead of 0.5.
    """
    head = DINO if neck == DINO_NECK else head
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet_colors else (HALF, HALF)
    if len(branches) == 1:
        return ModelConfig(branches, merge=MergeConfig("none"), neck=neck, head=head, mean=mean, std=std)
    return ModelConfig(branches, interaction, MergeConfig("conv"), neck, head, allow_direct=True, mean=mean, std=std)


def dense_branch(
    network: str, image_size: int, drop_path_rate: float, window: int | tuple[int, ...] = 0, **fields: Any
) -> BranchConfig:
    """Return a ViT without class token and final norm, with layer scale starting at 1.

    Args:
        network: A timm name.
        image_size: Nominal side in pixels.
        drop_path_rate: Stochastic depth.
        window: Side of the attention windows in tokens.
        **fields: Further fields of `BranchConfig`.
    """
    values = {"position_grid": 14, "timm_args": {"init_values": 1.0}, "position_resize": "official", **fields}
    return BranchConfig(
        network,
        image_size,
        drop_path_rate=drop_path_rate,
        window_size=window,
        prefix_tokens=False,
        final_norm=False,
        **values,
    )


DEIT = {
    "tiny": ("deit_tiny_patch16_224.fb_in1k", 0.05),
    "small": ("deit3_small_patch16_224.fb_in22k_ft_in1k", 0.05),
    "base": ("deit3_base_patch16_224.fb_in22k_ft_in1k", 0.15),
    "large": ("deit3_large_patch16_224.fb_in22k_ft_in1k", 0.4),
}


def deit_branch(size: str, image_size: int, window: int | tuple[int, ...]) -> BranchConfig:
    """Return the DeiT III branch (tiny: DeiT) of a size, as the released detectors have it."""
    network, rate = DEIT[size]
    return dense_branch(network, image_size, rate, window, drop_path_rule="constant")
