"""Projection of a backbone's maps to one width, with additional coarser levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

NORM_GROUPS = 32


class ChannelMapper(nn.Module):
    """A 1x1 convolution for every map, and strided 3x3 convolutions for additional coarser levels.

    The first additional level is computed from the coarsest input map, every other one from the previous level.

    Args:
        in_channels: Width of each map, finest first.
        out_channels: Common width, a multiple of 32.
        num_levels: Number of levels to make, at least the number of maps.

    Raises:
        ValueError: There are no maps, more maps than levels, or a width that the norm cannot group.

    Source: the neck of the released DINO detectors (`docs/official.md`).
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_levels: int = 4) -> None:
        super().__init__()
        if not 1 <= len(in_channels) <= num_levels:
            raise ValueError(f"in_channels describes {len(in_channels)} maps, expected 1 to {num_levels} (num_levels).")
        if out_channels % NORM_GROUPS:
            raise ValueError(f"out_channels is {out_channels}, expected a multiple of {NORM_GROUPS}.")
        further = [in_channels[-1], *[out_channels] * num_levels][: num_levels - len(in_channels)]
        self.maps = nn.ModuleList([_block(channels, out_channels, 1) for channels in in_channels])
        self.further = nn.ModuleList([_block(channels, out_channels, 3) for channels in further])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise convolutions with Xavier-uniform weights."""
        for block in (*self.maps, *self.further):
            nn.init.xavier_uniform_(block[0].weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels (B, C, H_l, W_l), finest first, of maps (B, C_i, H_i, W_i)."""
        levels = [block(feature_map) for block, feature_map in zip(self.maps, maps, strict=True)]
        source = maps[-1]
        for block in self.further:
            source = block(source)
            levels.append(source)
        return levels


def _block(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=1 + kernel // 2, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, out_channels))
