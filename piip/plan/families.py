"""Networks to choose from: those of a family, by its name, or of one's own choice."""

from __future__ import annotations

from collections.abc import Sequence

import timm

from piip.deprecation import deprecated
from piip.fields import nearest_names
from piip.zoo.families import NETWORK_FAMILIES

RENAMED = {"dinov2": "dinov2_reg"}  # old name -> new name


def find_networks(family: str, networks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the networks to choose from, the largest first.

    Args:
        family: A name in `NETWORK_FAMILIES`, unless networks are given.
        networks: Names of timm, the largest network first; None for those of the family.

    Raises:
        ValueError: There is no such family or network, with the nearest names, or networks are named twice.
    """
    if networks is None:
        if family in RENAMED:
            deprecated(f"--family {family}", f"--family {RENAMED[family]}")
        family = RENAMED.get(family, family)
        if family not in NETWORK_FAMILIES:
            raise ValueError(f"family is {family!r}, expected one of {', '.join(NETWORK_FAMILIES)}, or --networks.")
        return tuple(NETWORK_FAMILIES[family].networks.values())
    for name in networks:
        if not timm.is_model(name):
            raise ValueError(f"timm has no network {name!r}. {nearest_names(name, timm.list_models())}")
    if len(set(networks)) < len(networks):
        raise ValueError(f"networks are {', '.join(networks)}, expected every network once, the largest first.")
    return tuple(networks)
