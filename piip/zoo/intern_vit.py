"""The released models with InternViT-6B: detectors with MAE-H and DeiT III-L, segmentors with MAE-H, baselines."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from piip.config import BranchConfig, InteractionConfig, ModelConfig, NeckConfig
from piip.zoo.parts import DINO_NECK, INTERACTION, SIMPLE_NECK, SINGLE_NECK, UPERNET, dense_branch, dense_model
from piip.zoo.registry import register

LEAN = dataclasses.replace(INTERACTION, projection=False, norm=False)
FUSED = {"act_layer": "gelu_tanh"}  # the released "fused" MLP computes the tanh approximation
# 48 and 32 blocks between 12 interactions
GROUPS_OF_SIX_BILLION = (4,) * 12
GROUPS_OF_HUGE = (*(2,) * 4, *(3,) * 8)


def _six_billion(image_size: int, timm_args: dict[str, Any], **fields: Any) -> BranchConfig:
    args = {"patch_size": 16, **timm_args}
    return dense_branch("intern_vit_6b_patch14_224", image_size, 0.4, timm_args=args, **fields)


def _huge(image_size: int, timm_args: dict[str, Any], **fields: Any) -> BranchConfig:
    args = {"patch_size": 16, "init_values": 1.0, **timm_args}
    return dense_branch("vit_huge_patch14_224.mae", image_size, 0.4, timm_args=args, **fields)


def _pair(
    six_billion: int, huge: int, interaction: InteractionConfig, neck: NeckConfig, timm_args: dict[str, Any]
) -> ModelConfig:
    return dense_model(
        _six_billion(six_billion, timm_args, block_groups=GROUPS_OF_SIX_BILLION),
        _huge(huge, timm_args, block_groups=GROUPS_OF_HUGE),
        interaction=interaction,
        neck=neck,
    )


@register("piip_h6b_1024_768.mae_internvl_coco_dino", "dino_4scale_internvit_h6b_1024_768_fpn_1x_coco_bs32_ms")
def _dino_pair() -> ModelConfig:
    return _pair(768, 1024, INTERACTION, DINO_NECK, {})


@register("piip_h6b_1024_512.mae_internvl_coco_mask_rcnn", "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms")
def _mask_rcnn_pair() -> ModelConfig:
    return _pair(512, 1024, INTERACTION, SIMPLE_NECK, {})


@register(
    "piip_h6b_1024_512.mae_internvl_coco_mask_rcnn_speedup",
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup",
)
def _lean_pair() -> ModelConfig:
    return _pair(512, 1024, LEAN, SIMPLE_NECK, FUSED)


def _triple(neck: NeckConfig) -> ModelConfig:
    large = dense_branch(
        "deit3_large_patch16_384.fb_in22k_ft_in1k",
        1536,
        0.4,
        drop_path_rule="constant",
        position_grid=24,
        timm_args={"init_values": 1.0, **FUSED},
    )
    interaction = dataclasses.replace(LEAN, count=4)
    return dense_model(_six_billion(512, FUSED), _huge(1024, FUSED), large, interaction=interaction, neck=neck)


@register(
    "piip_lh6b_1536_1024_512.deit3_mae_internvl_coco_dino",
    "dino_4scale_internvit_lh6b_1536_1024_512_fpn_2x_coco_bs32_ms",
)
def _dino_triple() -> ModelConfig:
    return _triple(DINO_NECK)


@register(
    "piip_lh6b_1536_1024_512.deit3_mae_internvl_coco_mask_rcnn",
    "mask_rcnn_internvit_lh6b_1536_1024_512_fpn_1x_coco_bs32_ms",
)
def _mask_rcnn_triple() -> ModelConfig:
    return _triple(SIMPLE_NECK)


@register("single_6b_1024.internvl_coco_mask_rcnn", "mask_rcnn_internvit_6b_fpn_1x_coco_bs16_ms")
def _single_detector() -> ModelConfig:
    return dense_model(_six_billion(1024, {}), neck=SINGLE_NECK)


def _segmentor(six_billion: int) -> ModelConfig:
    # position tables are stored at the grid of the fixed crop
    return dense_model(
        _six_billion(six_billion, FUSED, block_groups=GROUPS_OF_SIX_BILLION, position_grid=six_billion // 16),
        _huge(512, FUSED, block_groups=GROUPS_OF_HUGE, position_grid=32),
        head=UPERNET,
        interaction=LEAN,
        imagenet_colors=True,
    )


for _size in (192, 256, 384, 512):
    register(
        f"piip_h6b_512_{_size}.mae_internvl_ade20k_upernet",
        f"upernet_internvit_h6b_{_size}_512_80k_ade20k_bs16_lr4e-5",
    )(partial(_segmentor, _size))


@register("single_6b_512.internvl_ade20k_upernet", "upernet_internvit_6b_512_80k_ade20k_bs16_lr4e-5")
def _single_segmentor() -> ModelConfig:
    return dense_model(_six_billion(512, FUSED, position_grid=32), head=UPERNET, neck=SINGLE_NECK, imagenet_colors=True)
