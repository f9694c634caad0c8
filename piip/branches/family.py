"""Interface of families of networks for the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from piip.branches.base import Branch
from piip.config import BranchConfig


class Cut(NamedTuple):
    """Split of a network.

    Attributes:
        ranges: Half-open range of blocks or stages of each stage of the branch.
        windows: Side of the attention windows of each block in tokens, 0 for global attention.
    """

    ranges: list[tuple[int, int]]
    windows: Sequence[int]


@dataclass(frozen=True)
class Family:
    """Networks that become branches in the same way.

    Args:
        name: For messages.
        matches: Network and description -> whether it is one of the family. The network is timm's model as it is (on
            the meta device) or as `timm_args` built it.
        timm_args: Network on the meta device, description, arguments that every network takes -> arguments of
            `timm.create_model`. Raises ValueError where a field does not fit.
        cut_points: Network -> number of positions after which an interaction can follow: its blocks or stages.
        wrap: Network, description and where to cut -> the branch. Raises ValueError where a field does not fit.
    """

    name: str
    matches: Callable[[nn.Module, BranchConfig], bool]
    timm_args: Callable[[Any, BranchConfig, dict[str, Any]], dict[str, Any]]
    cut_points: Callable[[Any], int]
    wrap: Callable[[Any, BranchConfig, Cut], Branch]
