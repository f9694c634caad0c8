"""Networks of timm on the meta device, to see whether arguments fit."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from piip.device import without_values


def probe(name: str, args: dict[str, Any]) -> nn.Module:
    """Build a network without allocating weights.

    Raises:
        ValueError: timm refuses the arguments.
    """
    try:
        with without_values():
            return timm.create_model(name, **args)
    except Exception as error:  # timm fails wherever a wrong argument leads
        raise ValueError(f"timm cannot build {name} with {args}: {type(error).__name__}: {error}") from error
