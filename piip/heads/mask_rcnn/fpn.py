"""Feature pyramid network in front of detection heads.

Source: arXiv 1612.03144; layer order as released (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Bring maps of several strides to one width and let coarse ones inform finer ones.

    Args:
        in_channels: Width of each map, finest first.
        out_channels: Common width.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(channels, out_channels, 1) for channels in in_channels])
        self.outputs = nn.ModuleList([nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one map (B, C, H_i, W_i) for each given one, and a further one of half the coarsest size."""
        laterals = [layer(feature_map) for layer, feature_map in zip(self.laterals, maps, strict=True)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        outputs = [layer(feature_map) for layer, feature_map in zip(self.outputs, merged, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]
