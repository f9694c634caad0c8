"""What flows between the parts of a pyramid.

Shape key, used in every module of the package: B batch, N patch tokens, P prefix tokens, C channels,
H W grid or image height and width, K classes, Q queries.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StageInfo(NamedTuple):
    """What a branch looks like after one of its stages.

    Attributes:
        channels: Width C of the tokens.
        stride: Image pixels per token along one side.
        depth: Number of blocks that ran up to the end of the stage.
    """

    channels: int
    stride: int
    depth: int


class BranchFeatures(NamedTuple):
    """Tokens of one branch at one point of its depth.

    Attributes:
        patches: Patch tokens, row-major over the grid, (B, N, C) with N = H * W.
        prefix: Class and register tokens, (B, P, C); P may be 0. They stay out of the interactions.
        grid: (H, W) of the patch tokens.
        rotary: Rotary position embedding of this grid for the branch's blocks, or None.
    """

    patches: Tensor
    prefix: Tensor
    grid: tuple[int, int]
    rotary: Tensor | None = None

    def as_map(self) -> Tensor:
        """Return the patch tokens as a feature map (B, C, H, W)."""
        height, width = self.grid
        return self.patches.transpose(1, 2).unflatten(2, (height, width))

    @staticmethod
    def map_to_tokens(feature_map: Tensor) -> Tensor:
        """Return a feature map (B, C, H, W) as row-major tokens (B, H * W, C)."""
        return feature_map.flatten(2).transpose(1, 2)
