"""The released detectors with ConvNeXt: pure and mixed with DeiT III, at 1024/672/448, and the ConvNeXt-B baseline."""

from __future__ import annotations

from functools import partial

from piip.config import BranchConfig, ModelConfig, NeckConfig
from piip.zoo.parts import deit_branch, dense_model
from piip.zoo.registry import register

SIZES = (448, 672, 1024)  # lowest resolution, largest network first
WINDOW = 14
# blocks and downsampling layers between the 12 interactions
GROUPS = {
    "tiny": (3, 4, 2, *(1,) * 8, 4),
    "small": (3, 4, 4, *(3,) * 8, 4),
    "base": (3, 4, 4, *(3,) * 8, 4),
}
DROP_PATH = {"tiny": 0.3, "small": 0.3, "base": 0.4}
WORDS = {"ct": "tiny", "cs": "small", "cb": "base", "vt": "tiny", "vs": "small", "vb": "base"}
NECK = NeckConfig("interaction", interactions=(0, 1, 10))


def _branch(letters: str, image_size: int) -> BranchConfig:
    size = WORDS[letters]
    if letters.startswith("v"):
        return deit_branch(size, image_size, WINDOW)
    return BranchConfig(
        f"convnext_{size}.fb_in1k",
        image_size,
        drop_path_rate=DROP_PATH[size],
        block_groups=GROUPS[size],
        cut="blocks",
    )


def _mixed(*letters: str) -> ModelConfig:
    """Networks as letters, largest first."""
    branches = [_branch(network, size) for network, size in zip(letters, SIZES, strict=True)]
    return dense_model(*branches, neck=NECK, imagenet_colors=True)


# networks, smallest first, and the pretraining and networks in the record's name
_MIXED = (
    ("ct_cs_vb", "convnext_deit3", "convnext-t_convnext-s_vit-b"),
    ("ct_vs_cb", "convnext_deit3", "convnext-t_vit-s_convnext-b"),
    ("ct_vs_vb", "convnext_deit3", "convnext-t_vit-s_vit-b"),
    ("ct_cs_cb", "convnext", "convnext-tsb"),
    ("vt_cs_cb", "convnext_deit", "vit-t_convnext-s_convnext-b"),
    ("vt_cs_vb", "convnext_deit3", "vit-t_convnext-s_vit-b"),
    ("vt_vs_cb", "convnext_deit3", "vit-t_vit-s_convnext-b"),
)
for _networks, _pretraining, _words in _MIXED:
    register(
        f"piip_{_networks}_1024_672_448.{_pretraining}_coco_mask_rcnn",
        f"mask_rcnn_{_words}_1024_672_448_regular-fpn",
    )(partial(_mixed, *reversed(_networks.split("_"))))


@register("single_cb_1024.convnext_coco_mask_rcnn", "mask_rcnn_convnext-base_1024_regular-fpn")
def _single() -> ModelConfig:
    branch = BranchConfig("convnext_base.fb_in1k", 1024, block_groups=(3, 4, 28, 4), cut="blocks")
    return dense_model(branch, neck=NeckConfig("stages"))
