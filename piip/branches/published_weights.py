"""What timm says about the published weights of networks: their licence, and the images they were trained with."""

from __future__ import annotations

from typing import Any

import timm

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD


def _facts(network: str) -> dict[str, Any]:
    facts = timm.models.get_pretrained_cfg(network)
    return {} if facts is None else facts.to_dict(remove_source=False, remove_null=True)


def weights_license(network: str) -> str | None:
    """Return the licence of a network's published weights as timm states it, e.g. "apache-2.0".

    Args:
        network: A timm name; without a tag, that of the weights that timm loads by default.

    Returns:
        The name of the licence; None if timm states none or has no such weights.
    """
    return _facts(network).get("license")


def image_statistics(network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return channel means and standard deviations of the images a network was trained with, RGB in [0, 1].

    Args:
        network: A timm name.
    """
    facts = _facts(network)
    return tuple(facts.get("mean", IMAGENET_MEAN)), tuple(facts.get("std", IMAGENET_STD))
