"""Branch merging: one feature map from all branches.

Source: arXiv 2406.04330, section 3.3; layer order as released (`docs/official.md`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.structures import BranchFeatures


class CombinesBranches(nn.Module):
    """A part that makes one result of all branches.

    Attributes:
        takes_mean: Whether the result is the mean of the shares, rather than their sum.
    """

    takes_mean: ClassVar[bool] = False

    def shares(self) -> Sequence[nn.Module]:
        """Return the modules whose outputs are the branches' shares of the result, one per branch.

        Empty for a part that neither adds nor averages: what one branch contributes cannot be told there.
        """
        return ()


class Merge(CombinesBranches, ABC):
    """Merges the features of all branches into one map.

    Attributes:
        out_channels: Width C of the map.
    """

    out_channels: int

    @abstractmethod
    def forward(self, features: Sequence[BranchFeatures]) -> Tensor:
        """Return a map (B, C, H, W) on the last branch's grid."""


class BranchMerge(Merge):
    """Project every branch to one width, resize to the finest grid, add with learned weights.

    Args:
        projections: One module per branch, map (B, C_i, H_i, W_i) -> (B, C, H_i, W_i).
        out_channels: Width C of the result.
    """

    def __init__(self, projections: Sequence[nn.Module], out_channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in projections])
        self.out_channels = out_channels

    def shares(self) -> Sequence[nn.Module]:
        """Return the projections."""
        return list(self.projections)

    def forward(self, features: Sequence[BranchFeatures]) -> Tensor:
        """Return the merged map (B, C, H, W) on the last branch's grid."""
        grid = features[-1].grid
        merged: Tensor | None = None
        for branch, projection, scale in zip(features, self.projections, self.scales, strict=True):
            projected = resize_map(projection(branch.as_map()), grid)
            merged = scale * projected if merged is None else torch.addcmul(merged, scale, projected)
        assert merged is not None
        return merged


class LastMap(Merge):
    """No merge: returns the map of the last branch, for single networks with stages.

    Args:
        out_channels: Width C of the map.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def forward(self, features: Sequence[BranchFeatures]) -> Tensor:
        """Return the last branch's map (B, C, H, W)."""
        return features[-1].as_map()


def resize_map(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a map (B, C, H, W) bilinearly in float32 and return it in its own dtype."""
    if tuple(feature_map.shape[-2:]) == tuple(grid):
        return feature_map
    return F.interpolate(feature_map.float(), size=grid, mode="bilinear", align_corners=False).to(feature_map.dtype)


class PointwiseLinear(nn.Linear):
    """A linear layer over the channels of a map (B, C, H, W)."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        return super().forward(feature_map.movedim(1, -1)).movedim(-1, 1)


def fitting_groups(channels: int, wanted: int = 32) -> int:
    """Return the largest number of norm groups up to `wanted` that divides `channels`."""
    return next(groups for groups in range(min(wanted, channels), 0, -1) if channels % groups == 0)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm with 32 groups, or the largest number that fits."""
    return nn.GroupNorm(fitting_groups(channels), channels)


def linear_projection(channels: int, width: int, *, is_first: bool) -> nn.Module:
    """Return the projection of the released classification models: norm - linear - norm; only a norm for the first.

    Args:
        channels: Width of the branch.
        width: Width of the merged map.
        is_first: Whether this is branch 0; its linear layer is omitted if its width is the merged width.
    """
    if is_first and channels == width:
        return group_norm(channels)
    return nn.Sequential(group_norm(channels), PointwiseLinear(channels, width), group_norm(width))


def conv_projection(channels: int, width: int) -> nn.Module:
    """Return the projection of the released detection models: twice 3x3 convolution - norm - ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        group_norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        group_norm(width),
        nn.ReLU(),
    )


def short_projection(channels: int, width: int, *, is_first: bool) -> nn.Module:
    """Return the projection of the released intermediate merges: [3x3 convolution] - norm - ReLU.

    Args:
        channels: Width of the branch.
        width: Width of the merged map.
        is_first: Branch 0 has no convolution.
    """
    if is_first and channels == width:
        return nn.Sequential(group_norm(width), nn.ReLU())
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), group_norm(width), nn.ReLU())


def slim_projection(channels: int, width: int) -> nn.Module:
    """Return our projection: to the head's width first (1x1), then one cheap 3x3 convolution there.

    Source: own. The released merge runs at the widest branch's width on the finest grid, which costs more than
    the branches themselves at high resolutions.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        group_norm(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        group_norm(width),
    )
