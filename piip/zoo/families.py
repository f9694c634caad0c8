"""Families of networks that go together, and the pyramids of each that have names.

Names are `piip_<networks>_<resolutions>.<family>`, e.g. `piip_sbl_1120_672_448.dinov3`: networks from small to large
by the letters of the table, resolutions from high to low. Every side is a multiple of 14, 16 and 32 pixels, so all
networks here take it. `piip plan` chooses among the same networks.

Adding a family is one entry in `NETWORK_FAMILIES`, or `add_family` from outside the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from piip.branches.published_weights import image_statistics
from piip.config import BranchConfig, HeadConfig, MergeConfig, ModelConfig
from piip.tables import Table
from piip.zoo.registry import register


@dataclass(frozen=True)
class NetworkFamily:
    """Networks that go together.

    Args:
        networks: By the letters of model names, timm's names with the tag of the weights; the largest network first.
        pyramids: Networks and resolutions of the pyramids that have names, e.g. "sbl_1120_672_448" or
            "ct_vb_vl_1120_672_448": one word of single letters, or one word per network.
    """

    networks: Mapping[str, str]
    pyramids: tuple[str, ...] = ()


SBL = ("sbl_1120_672_448", "sbl_672_448_224")
TSB = ("tsb_1120_896_448", "tsb_672_448_224")

NETWORK_FAMILIES: Table[NetworkFamily, None] = Table.of(
    "family",
    {
        "deit3": NetworkFamily(
            {
                "l": "deit3_large_patch16_224.fb_in22k_ft_in1k",
                "b": "deit3_base_patch16_224.fb_in22k_ft_in1k",
                "s": "deit3_small_patch16_224.fb_in22k_ft_in1k",
                "t": "deit_tiny_patch16_224.fb_in1k",  # DeiT III has no tiny network; the papers use this one too
            },
            (*SBL, *TSB),
        ),
        "augreg": NetworkFamily(
            {
                "l": "vit_large_patch16_224.augreg_in21k_ft_in1k",
                "b": "vit_base_patch16_224.augreg_in21k_ft_in1k",
                "s": "vit_small_patch16_224.augreg_in21k_ft_in1k",
                "t": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
            },
            (*SBL, *TSB),
        ),
        "dinov2_reg": NetworkFamily(
            {
                "l": "vit_large_patch14_reg4_dinov2.lvd142m",
                "b": "vit_base_patch14_reg4_dinov2.lvd142m",
                "s": "vit_small_patch14_reg4_dinov2.lvd142m",
            },
            SBL,
        ),
        "dinov3": NetworkFamily(
            {
                "h": "vit_huge_plus_patch16_dinov3.lvd1689m",
                "l": "vit_large_patch16_dinov3.lvd1689m",
                "b": "vit_base_patch16_dinov3.lvd1689m",
                "s": "vit_small_patch16_dinov3.lvd1689m",
            },
            (*SBL, "blh_1120_672_448"),
        ),
        "siglip2": NetworkFamily(
            {
                "so": "vit_so400m_patch16_siglip_256.v2_webli",
                "l": "vit_large_patch16_siglip_256.v2_webli",
                "b": "vit_base_patch16_siglip_256.v2_webli",
            },
            ("b_l_so_1120_672_448", "b_l_so_672_448_224", "bl_896_448"),
        ),
        "eva02": NetworkFamily(
            {
                "l": "eva02_large_patch14_224.mim_in22k",
                "b": "eva02_base_patch14_224.mim_in22k",
                "s": "eva02_small_patch14_224.mim_in22k",
                "t": "eva02_tiny_patch14_224.mim_in22k",
            },
            (*SBL, *TSB),
        ),
        "convnextv2": NetworkFamily(
            {
                "cl": "convnextv2_large.fcmae_ft_in22k_in1k",
                "cb": "convnextv2_base.fcmae_ft_in22k_in1k",
                "ct": "convnextv2_tiny.fcmae_ft_in22k_in1k",
                "cn": "convnextv2_nano.fcmae_ft_in22k_in1k",
            },
            ("ct_cb_cl_1120_672_448", "cn_ct_cb_1120_896_448"),
        ),
        "convnextv2_deit3": NetworkFamily(
            {
                "vl": "deit3_large_patch16_224.fb_in22k_ft_in1k",
                "vb": "deit3_base_patch16_224.fb_in22k_ft_in1k",
                "ct": "convnextv2_tiny.fcmae_ft_in22k_in1k",
                "cn": "convnextv2_nano.fcmae_ft_in22k_in1k",
            },
            ("ct_vb_vl_1120_672_448", "cn_vb_1120_448"),
        ),
        "convnext_dinov3": NetworkFamily(
            {
                "vl": "vit_large_patch16_dinov3.lvd1689m",
                "cl": "convnext_large.dinov3_lvd1689m",
                "cb": "convnext_base.dinov3_lvd1689m",
                "vb": "vit_base_patch16_dinov3.lvd1689m",
                "cs": "convnext_small.dinov3_lvd1689m",
                "ct": "convnext_tiny.dinov3_lvd1689m",
            },
            ("ct_vb_vl_1120_672_448", "cs_vb_vl_1120_672_448", "cb_vl_1120_448", "ct_cb_cl_1120_672_448"),
        ),
        "tiny": NetworkFamily(
            {
                "ml": "mobilenetv4_conv_large.e600_r384_in1k",
                "mm": "mobilenetv4_conv_medium.e500_r256_in1k",
                "ms": "mobilenetv4_conv_small.e2400_r224_in1k",
            },
        ),
    },
)


def pyramid_config(family: NetworkFamily, pyramid: str) -> ModelConfig:
    """Return the description of a named pyramid: a classifier of 1,000 classes on the merged map.

    Args:
        family: The family.
        pyramid: Networks and resolutions; see `NetworkFamily`.
    """
    words = pyramid.split("_")
    letters = [word for word in words if not word.isdigit()]
    letters = list(letters[0]) if len(letters) == 1 else letters
    sides = [int(word) for word in words if word.isdigit()]
    names = [family.networks[letter] for letter in letters]
    branches = [BranchConfig(name, side) for name, side in zip(names, sides, strict=True)]
    alike = len({image_statistics(name) for name in names}) == 1
    return ModelConfig(
        tuple(reversed(branches)),
        merge=MergeConfig("slim"),
        head=HeadConfig("pooled"),
        normalize="shared" if alike else "per_branch",
    )


def _name_pyramids(name: str, family: NetworkFamily) -> None:
    for pyramid in family.pyramids:
        register(f"piip_{pyramid}.{name}")(partial(pyramid_config, family, pyramid))


def add_family(name: str, family: NetworkFamily) -> None:
    """Add a family of networks: its pyramids get names, and `piip plan --family` knows it.

    Args:
        name: The end of the models' names.
        family: The family.

    Raises:
        ValueError: The name already exists.
    """
    NETWORK_FAMILIES.register(name, family)
    _name_pyramids(name, family)


for _name, _family in NETWORK_FAMILIES.items():
    _name_pyramids(_name, _family)
