"""Necks: maps at several strides from merged maps.

Source: arXiv 2406.04330, section 4.1 (after ViTDet, arXiv 2203.16527); layer order as released
(`docs/official.md`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from piip.layers import checkpointing
from piip.layers.merge import group_norm


class Neck(nn.Module, ABC):
    """Makes levels from merged maps.

    Attributes:
        scales: Size of each level relative to its map.
        grad_checkpointing: Recompute levels in the backward pass instead of storing their activations.
    """

    scales: tuple[float, ...]
    grad_checkpointing: bool = False

    @abstractmethod
    def feature_info(self, maps: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return channels (`num_chs`) and stride (`reduction`) of the levels, given those of the maps."""

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return levels, finest first, of merged maps (B, C, H, W), the final one last."""

    def make_level(self, layers: nn.Module, feature_map: Tensor) -> Tensor:
        """Run the layers of one level, storing or recomputing their activations for the backward pass."""
        level = checkpointing.call(layers, feature_map, recompute=self.grad_checkpointing)
        if self.grad_checkpointing:
            checkpointing.lay_out_gradient(level)
        return level


class SimpleFeaturePyramid(Neck):
    """Levels at 4, 2, 1 and 1/2 times the size of one merged map.

    Args:
        channels: Width of the map and of every level.
        scales: Levels, finest first.
        norm: "group" or "layer", the norm inside the 4x level.

    Attributes:
        out_channels: Width of the levels.
    """

    def __init__(self, channels: int, *, scales: Sequence[float] = (4, 2, 1, 0.5), norm: str = "group") -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.out_channels = channels
        self.levels = nn.ModuleList([_level(channels, scale, norm) for scale in scales])

    def feature_info(self, maps: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return channels (`num_chs`) and stride (`reduction`) of the levels, given those of the maps."""
        stride = maps[-1]["reduction"]
        return [{"num_chs": self.out_channels, "reduction": stride / scale} for scale in self.scales]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return levels (B, C, H * scale, W * scale) of the last map (B, C, H, W)."""
        return [self.make_level(level, maps[-1]) for level in self.levels]


def _level(channels: int, scale: float, norm: str) -> nn.Module:
    double = nn.ConvTranspose2d(channels, channels, 2, stride=2)
    if scale == 4:
        middle = group_norm(channels) if norm == "group" else LayerNorm2d(channels, eps=1e-6)
        return nn.Sequential(double, middle, nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, stride=2))
    if scale == 2:
        return nn.Sequential(double)
    return nn.Identity() if scale == 1 else nn.MaxPool2d(2, stride=2)


class InteractionPyramid(Neck):
    """One level per merged map: intermediate merges become the finer levels.

    Maps that already have the required size are not changed; others are resized by the layers of
    `SimpleFeaturePyramid`.

    Args:
        channels: Width of each given map, in order.
        scales: Size of each level relative to its map.
    """

    def __init__(self, channels: Sequence[int], *, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.levels = nn.ModuleList(
            [_level(width, scale, "group") for width, scale in zip(channels, scales, strict=True)]
        )

    def feature_info(self, maps: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return channels (`num_chs`) and stride (`reduction`) of the levels, given those of the maps."""
        levels = zip(maps, self.scales, strict=True)
        return [{**info, "reduction": info["reduction"] / scale} for info, scale in levels]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one level (B, C_i, H_i * scale_i, W_i * scale_i) for each map."""
        return [self.make_level(level, feature_map) for level, feature_map in zip(self.levels, maps, strict=True)]
