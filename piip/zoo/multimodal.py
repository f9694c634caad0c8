"""The released multimodal models: vision towers of CLIP and ConvNeXt networks with their projector.

The language models (Vicuna v1.5, 7 B and 13 B) are not part of this library; a projector gives tokens of their width.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD
from piip.config import BranchConfig, HeadConfig, MergeConfig, ModelConfig
from piip.zoo.parts import INTERACTION
from piip.zoo.registry import register

TOKEN_WIDTHS = {"7b": 4096, "13b": 5120}
# blocks and downsampling layers of ConvNeXt between 2, 12 and 24 interactions
CONVNEXT_GROUPS = {
    2: (20, 19),
    12: (3, 4, 4, *(3,) * 8, 4),
    24: (2, 1, 2, 2, 3, *(1, 2) * 9, 2),
}
CONVNEXTS = {"base": "convnext_base.clip_laiona_augreg_320", "large": "convnext_large_mlp.clip_laion2b_ft_320"}


def _clip(size: str, trained_at: int, image_size: int) -> BranchConfig:
    """Return a CLIP network with patches of 16, regardless of its own patch size."""
    patch = {"base": 16, "large": 14}[size]
    return BranchConfig(
        f"vit_{size}_patch{patch}_clip_quickgelu_{trained_at}.openai",
        image_size,
        final_norm=False,
        position_resize="official",
        position_grid=trained_at // 16,
        timm_args={} if patch == 16 else {"patch_size": 16},
    )


def _convnext(size: str, image_size: int, interactions: int) -> BranchConfig:
    return BranchConfig(CONVNEXTS[size], image_size, block_groups=CONVNEXT_GROUPS[interactions], cut="blocks")


def _tower(coarse: BranchConfig, fine: BranchConfig, interactions: int, language_model: str) -> ModelConfig:
    return ModelConfig(
        (coarse, fine),
        dataclasses.replace(INTERACTION, count=interactions),
        MergeConfig("none"),
        head=HeadConfig("projector", width=TOKEN_WIDTHS[language_model]),
        allow_direct=True,
        mean=IMAGENET_MEAN,  # the released towers were trained with ImageNet's, not CLIP's
        std=IMAGENET_STD,
    )


def _two_clips(trained_at: int, sizes: tuple[int, int], interactions: int, language_model: str) -> ModelConfig:
    coarse, fine = _clip("large", trained_at, sizes[0]), _clip("base", 224, sizes[1])
    return _tower(coarse, fine, interactions, language_model)


def _clip_and_convnext(
    convnext: str, clip_size: int, image_size: int, interactions: int, language_model: str
) -> ModelConfig:
    coarse, fine = _clip("large", clip_size, clip_size), _convnext(convnext, image_size, interactions)
    return _tower(coarse, fine, interactions, language_model)


register("piip_bl_512_256.clip_llava_7b", "piip-llava_clip-bl_512-256_7B")(
    partial(_two_clips, 224, (256, 512), 2, "7b")
)
for _language_model in TOKEN_WIDTHS:
    register(f"piip_bl_512_448.clip_llava_{_language_model}", f"piip-llava_clip-bl_512-448_{_language_model.upper()}")(
        partial(_two_clips, 336, (448, 512), 12, _language_model)
    )
register("piip_cb_l_640_224.clip_llava_7b", "piip-llava_convnext-b_clip-l_640-224_7B")(
    partial(_clip_and_convnext, "base", 224, 640, 2, "7b")
)
register("piip_cl_l_1024_336.clip_llava_plus_7b", "piip-llava-plus_convnext-l_clip-l_1024-336_7B")(
    partial(_clip_and_convnext, "large", 336, 1024, 12, "7b")
)
for _size in CONVNEXTS:
    for _language_model, _interactions in (("7b", 12), ("13b", 24)):
        register(
            f"piip_c{_size[0]}_l_1024_336.clip_llava_{_language_model}",
            f"piip-llava_convnext-{_size[0]}_clip-l_1024-336_{_language_model.upper()}",
        )(partial(_clip_and_convnext, _size, 336, 1024, _interactions, _language_model))
