"""All levels as one sequence of tokens, with their positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
        covered: Cells of every level along (x, y) that are inside the image, float32, (B, L, 2).
        valid: The same as a fraction of the level, float32, (B, L, 2).
        is_padded: Whether there is any padding.
    """

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    grids: tuple[Grid, ...]
    covered: Tensor
    valid: Tensor
    is_padded: bool = True

    def without_padding(self, values: Tensor) -> Tensor:
        """Return values (B, N, C) of the cells, zero where they are padding."""
        return values.masked_fill(self.padding[..., None], 0) if self.is_padded else values


def flatten_levels(levels: Sequence[Tensor], level_embeds: Tensor, image_infos: Sequence[ImageInfo]) -> LevelTokens:
    """Concatenate the levels.

    Args:
        levels: (B, C, H_l, W_l), finest first.
        level_embeds: A vector for every level, (L, C).
        image_infos: The images: where the batch is padding.
    """
    device = level_embeds.device
    is_padded = any(image_info.size != image_info.batch for image_info in image_infos)
    grids = tuple((level.shape[2], level.shape[3]) for level in levels)
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    covered = torch.tensor(
        [[covered_cells(grid, image_info) for grid in grids] for image_info in image_infos],
        dtype=torch.float32,
        device=device,
    )
    own_covered = covered[:, cell_levels(grids, device)]  # (B, N, 2), as all that follows
    inside = centres_in_cells(grids, device) < own_covered
    positions = map_positions(inside, grids, own_covered, tokens.shape[2])
    own_embed = F.embedding(cell_levels(grids, device), level_embeds)
    return LevelTokens(
        tokens,
        (positions + own_embed).to(tokens.dtype),
        ~inside.all(-1),
        grids,
        covered,
        covered / level_extents(grids, device),
        is_padded,
    )


def covered_cells(grid: Grid, image_info: ImageInfo) -> tuple[int, int]:
    """Return how many cells of a level, along (x, y), read a pixel inside the image: the nearest one above and left."""
    height, width = (
        int((np.floor(np.arange(cells, dtype=np.float32) * np.float32(side / cells)) < inside).sum())
        for cells, side, inside in zip(grid, image_info.batch, image_info.size, strict=True)
    )
    return width, height


@kept
def level_extents(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """Return (W, H) of every level, float32, (L, 2).

    Args:
        grids: (H, W) of every level.
        device: Device of the result.
    """
    return torch.tensor([(width, height) for height, width in grids], dtype=torch.float32, device=device)


@kept
def cell_levels(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """Return the level of every cell, int64, (N,).

    Args:
        grids: (H, W) of every level.
        device: Device of the result.
    """
    sizes = torch.tensor([height * width for height, width in grids])
    return torch.arange(len(grids)).repeat_interleave(sizes).to(device)


@kept
def centres_in_cells(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """Return the centres of all cells as (x, y) counted in cells of their level, exact halves, float32, (N, 2).

    Args:
        grids: (H, W) of every level.
        device: Device of the result.
    """
    centres = [
        torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).view(-1, 2)
        for height, width in grids
    ]
    return (torch.cat(centres).float() + 0.5).to(device)


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
    angle = (values.float() * (2 * math.pi))[..., None] / wavelengths(features, temperature, values.device)
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-3)


@kept
def wavelengths(features: int, temperature: float, device: torch.device) -> Tensor:
    """Return the wavelength of every feature, relative to the shortest, float32, (features,).

    Args:
        features: Features of a value, even.
        temperature: Ratio of the longest to the shortest wavelength.
        device: Device of the result.
    """
    index = torch.arange(features, dtype=torch.float32, device=device)
    return temperature ** (2 * (index // 2) / features)


def map_positions(inside: Tensor, grids: tuple[Grid, ...], covered: Tensor, width: int) -> Tensor:
    """Embed the positions of cells in their image, counted from 1, relative to the image's rows and columns.

    Args:
        inside: Whether a cell's column and row are inside its image, bool (B, N, 2).
        grids: (H, W) of every level.
        covered: Columns and rows of its level that are inside the image, float32, (B, N, 2).
        width: Width C of the embedding, a multiple of 4; first half y, second half x.

    Returns:
        (B, N, C), float32.
    """
    counted = torch.minimum(centres_in_cells(grids, covered.device) + 0.5, covered)
    # a row is counted along a column, which counts nothing where it is outside itself, and the reverse
    placed = counted / (covered + 1e-6) * inside.flip(-1)
    return sine_embedding(placed.flip(-1), width // 2, MAP_TEMPERATURE)


def cell_references(levels: LevelTokens) -> Tensor:
    """Return the centre of every cell as (x, y) on every level, float32, (B, N, L, 2).

    Centres are first relative to the image without padding, then multiplied by its fraction of each level.
    """
    device = levels.valid.device
    extents = (levels.valid * level_extents(levels.grids, device))[:, cell_levels(levels.grids, device)]
    return (centres_in_cells(levels.grids, device) / extents)[:, :, None] * levels.valid[:, None]
