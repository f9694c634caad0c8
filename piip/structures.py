"""Data passed between the parts of a pyramid.

Shape key, used in every module of the package: B batch, N patch tokens, P prefix tokens, C channels,
H W grid or image height and width, K classes, Q queries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

Grid = tuple[int, int]  # (H, W) in tokens or cells
Size = tuple[int, int]  # (H, W) in pixels
Target = dict[str, Tensor]  # target boxes, labels and masks of one image; each head's `losses` documents its keys
HeadOutput = dict[str, Any]  # prediction of a dense head for one image; each head's `predict` documents its keys

IGNORE_INDEX = 255  # label of pixels that losses and metrics ignore


class StageInfo(NamedTuple):
    """Shape of a branch after one of its stages.

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
        prefix: Class and register tokens, (B, P, C); P may be 0. They take no part in the interactions.
        grid: (H, W) of the patch tokens.
        rotary: Rotary position embedding of this grid for the branch's blocks, or None.
    """

    patches: Tensor
    prefix: Tensor
    grid: Grid
    rotary: Tensor | None = None

    def with_patches(self, patches: Tensor) -> BranchFeatures:
        """Return these features with other patch tokens; torch.compile of PyTorch 2.6 cannot trace `_replace`."""
        return BranchFeatures(patches, self.prefix, self.grid, self.rotary)

    def as_map(self) -> Tensor:
        """Return the patch tokens as a feature map (B, C, H, W)."""
        height, width = self.grid
        return self.patches.transpose(1, 2).unflatten(2, (height, width))

    @staticmethod
    def map_to_tokens(feature_map: Tensor) -> Tensor:
        """Return a feature map (B, C, H, W) as row-major tokens (B, H * W, C)."""
        return feature_map.flatten(2).transpose(1, 2)


class ImageInfo(NamedTuple):
    """One image of a batch.

    Attributes:
        size: (H, W) in network pixels, without padding.
        padded: (H, W) with its own padding.
        batch: (H, W) of the batch it is part of.
        original: (H, W) of the original image.
        scale: Network pixels per original pixel, (x, y), from the rounded sizes.
    """

    size: Size
    padded: Size
    batch: Size
    original: Size
    scale: tuple[float, float]

    @staticmethod
    def make(
        size: Size,
        *,
        padded: Size | None = None,
        batch: Size | None = None,
        original: Size | None = None,
    ) -> ImageInfo:
        """Describe an image that was resized from `original` to `size` and padded at the right and bottom.

        Args:
            size: (H, W) in network pixels.
            padded: (H, W) with padding; None is none.
            batch: (H, W) of the batch; None is that of the padded image.
            original: (H, W) before the resize; None was not resized.
        """
        padded, original = padded or size, original or size
        scale = (size[1] / original[1], size[0] / original[0])
        return ImageInfo(size, padded, batch or padded, original, scale)
