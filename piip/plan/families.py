"""Families of networks trained alike, by name, and networks of one's own choice."""

from __future__ import annotations

from collections.abc import Sequence

import timm

from piip.fields import nearest_names
from piip.tables import Table

# timm's names with the weights, the largest network first.
FAMILIES: Table[tuple[str, ...], None] = Table.of(
    "family",
    {
        "deit3": (
            "deit3_large_patch16_224.fb_in22k_ft_in1k",
            "deit3_base_patch16_224.fb_in22k_ft_in1k",
            "deit3_small_patch16_224.fb_in22k_ft_in1k",
            "deit_tiny_patch16_224.fb_in1k",  # DeiT III has no tiny network; the papers use this one too
        ),
        "augreg": (
            "vit_large_patch16_224.augreg_in21k_ft_in1k",
            "vit_base_patch16_224.augreg_in21k_ft_in1k",
            "vit_small_patch16_224.augreg_in21k_ft_in1k",
            "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        ),
        "dinov2": (
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_base_patch14_reg4_dinov2.lvd142m",
            "vit_small_patch14_reg4_dinov2.lvd142m",
        ),
        "dinov3": (
            "vit_large_patch16_dinov3.lvd1689m",
            "vit_base_patch16_dinov3.lvd1689m",
            "vit_small_patch16_dinov3.lvd1689m",
        ),
        "siglip2": (
            "vit_so400m_patch16_siglip_256.v2_webli",
            "vit_large_patch16_siglip_256.v2_webli",
            "vit_base_patch16_siglip_256.v2_webli",
        ),
        "eva02": (
            "eva02_large_patch14_224.mim_in22k",
            "eva02_base_patch14_224.mim_in22k",
            "eva02_small_patch14_224.mim_in22k",
            "eva02_tiny_patch14_224.mim_in22k",
        ),
        "convnextv2": (
            "convnextv2_large.fcmae_ft_in22k_in1k",
            "convnextv2_base.fcmae_ft_in22k_in1k",
            "convnextv2_tiny.fcmae_ft_in22k_in1k",
            "convnextv2_nano.fcmae_ft_in22k_in1k",
        ),
        "tiny": (
            "mobilenetv4_conv_large.e600_r384_in1k",
            "mobilenetv4_conv_medium.e500_r256_in1k",
            "mobilenetv4_conv_small.e2400_r224_in1k",
        ),
    },
)


def find_networks(family: str, networks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the networks to choose from, the largest first.

    Args:
        family: A name in `FAMILIES`, unless networks are given.
        networks: Names of timm, the largest network first; None for those of the family.

    Raises:
        ValueError: There is no such family or network, with the nearest names, or networks are named twice.
    """
    if networks is None:
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}, or --networks.")
        return FAMILIES[family]
    for name in networks:
        if not timm.is_model(name):
            raise ValueError(f"timm has no network {name!r}. {nearest_names(name, timm.list_models())}")
    if len(set(networks)) < len(networks):
        raise ValueError(f"networks are {', '.join(networks)}, expected every network once, the largest first.")
    return tuple(networks)
