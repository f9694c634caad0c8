"""Branch merging, by the table of merge kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from piip.branches import Branch
from piip.config import MergeConfig
from piip.kinds import MERGE_KINDS, MergeFacts
from piip.layers.merge import BranchMerge, Merge, conv_projection, linear_projection, slim_projection
from piip.tables import Table

SLIM_WIDTH = 256  # what detection and segmentation heads work at


def map_width(branches: Sequence[Branch], merge: Merge | None) -> int:
    """Return the width of the map that necks and pooled heads read."""
    return branches[-1].stages[-1].channels if merge is None else merge.out_channels


def _linear_merge(config: MergeConfig, widths: Sequence[int]) -> BranchMerge:
    width = config.width or widths[0]
    parts = [linear_projection(channels, width, is_first=i == 0) for i, channels in enumerate(widths)]
    return BranchMerge(parts, width)


def _conv_merge(config: MergeConfig, widths: Sequence[int]) -> BranchMerge:
    width = config.width or widths[0]
    return BranchMerge([conv_projection(channels, width) for channels in widths], width)


def _slim_merge(config: MergeConfig, widths: Sequence[int]) -> BranchMerge:
    width = config.width or SLIM_WIDTH
    return BranchMerge([slim_projection(channels, width) for channels in widths], width)


# Description and width of every branch -> the merge, or None for one map per branch.
MERGES: Table[Callable[[MergeConfig, Sequence[int]], Merge | None], MergeFacts] = Table(
    "merge",
    MERGE_KINDS,
    {"linear": _linear_merge, "conv": _conv_merge, "slim": _slim_merge, "none": lambda config, widths: None},
)
