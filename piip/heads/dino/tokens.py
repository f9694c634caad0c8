"""All levels as one sequence of tokens, with their positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops import grid_extent
from piip.ops.positions import kept
from piip.structures import Grid, ImageInfo

MAP_TEMPERATURE = 20.0


class LevelTokens(NamedTuple):
    """The concatenated levels of a batch, finest first, row-major: N cells in total.

    Attributes:
        tokens: (B, N, C).
        positions: Position embeddings (B, N, C).
        padding: True where a cell is outside its image, (B, N).
        grids: (H_l, W_l) of every level.
        valid: Fraction of every level that is inside the image, as (x, y), float32, (B, L, 2).
    """

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    grids: tuple[Grid, ...]
    valid: Tensor

    @property
    def sizes(self) -> list[int]:
        """Number of cells of every level."""
        return [height * width for height, width in self.grids]


def flatten_levels(levels: Sequence[Tensor], level_embeds: Tensor, image_infos: Sequence[ImageInfo]) -> LevelTokens:
    """Concatenate the levels.

    Args:
        levels: (B, C, H_l, W_l), finest first.
        level_embeds: A vector for every level, (L, C).
        image_infos: The images: where the batch is padding.
    """
    image_padding = padded_pixels(image_infos).to(levels[0].device)
    tokens, positions, paddings, valid = [], [], [], []
    for level, embed in zip(levels, level_embeds, strict=True):
        outside = F.interpolate(image_padding[None], size=level.shape[-2:])[0].bool()  # (B, H, W)
        position = map_positions(outside, level.shape[1]).flatten(1, 2)
        tokens.append(level.flatten(2).transpose(1, 2))
        positions.append((position + embed).to(level.dtype))
        paddings.append(outside.flatten(1))
        valid.append(torch.stack(((~outside[:, 0]).float().mean(1), (~outside[:, :, 0]).float().mean(1)), -1))
    grids = tuple((level.shape[2], level.shape[3]) for level in levels)
    return LevelTokens(
        torch.cat(tokens, 1), torch.cat(positions, 1), torch.cat(paddings, 1), grids, torch.stack(valid, 1)
    )


def padded_pixels(image_infos: Sequence[ImageInfo]) -> Tensor:
    """Return 1 for pixels of the batch that are outside their image, 0 inside, float32, (B, H, W)."""
    outside = torch.ones(len(image_infos), *image_infos[0].batch)
    for pixels, image_info in zip(outside, image_infos, strict=True):
        pixels[: image_info.size[0], : image_info.size[1]] = 0
    return outside


def sine_embedding(values: Tensor, features: int, temperature: float) -> Tensor:
    """Return sines and cosines of values, with the wavelength increasing every two features.

    Args:
        values: (..., n), where 1 is a full turn.
        features: Features of each value, even.
        temperature: Ratio of the longest to the shortest wavelength.

    Returns:
        (..., n * features), float32.

    Source: arXiv 1706.03762, section 3.5; constants of the released detectors (`docs/official.md`).
    """
    index = torch.arange(features, dtype=torch.float32, device=values.device)
    wavelength = temperature ** (2 * (index // 2) / features)
    angle = (values.float() * (2 * math.pi))[..., None] / wavelength  # (..., n, features)
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-3)


def map_positions(outside: Tensor, width: int) -> Tensor:
    """Embed the positions of cells in their image, counted from 1, relative to the image's rows and columns.

    Args:
        outside: True where a cell is padding, (B, H, W).
        width: Width C of the embedding, a multiple of 4; first half y, second half x.

    Returns:
        (B, H, W, C), float32.
    """
    inside = (~outside).float()
    rows, columns = inside.cumsum(1), inside.cumsum(2)
    y, x = rows / (rows[:, -1:] + 1e-6), columns / (columns[:, :, -1:] + 1e-6)
    return sine_embedding(torch.stack((y, x), -1), width // 2, MAP_TEMPERATURE)


@kept
def centres_in_cells(grid: Grid, device: torch.device) -> Tensor:
    """Return the centres of cells as (x, y) counted in cells, exact halves, row-major, float32, (H * W, 2).

    Args:
        grid: (H, W).
        device: Device of the result.
    """
    y, x = (torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in grid)
    return torch.stack((x.expand(grid), y[:, None].expand(grid)), -1).view(-1, 2)


def cell_references(levels: LevelTokens) -> Tensor:
    """Return the centre of every cell as (x, y) on every level, float32, (B, N, L, 2).

    Centres are first relative to the image without padding, then multiplied by its fraction of each level.
    """
    device = levels.valid.device
    centres = [
        centres_in_cells(grid, device) / (levels.valid[:, index, None] * grid_extent(grid, device))
        for index, grid in enumerate(levels.grids)
    ]
    return torch.cat(centres, 1)[:, :, None] * levels.valid[:, None]
