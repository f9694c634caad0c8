"""Deformable attention over several levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from piip.heads.dino.tokens import LevelTokens, level_extents
from piip.layers.attention import ray_offsets
from piip.ops import levels_deformable_attention, native
from piip.ops.positions import kept
from piip.structures import Grid


class LevelsDeformableAttention(nn.Module):
    """Every query samples a few points of every level around its reference.

    Args:
        embed_dim: Width of queries, tokens and result.
        num_heads: Attention heads; must divide `embed_dim`.
        num_levels: Number of levels L.
        num_points: Points per head and level.

    Raises:
        ValueError: `num_heads` does not divide `embed_dim`.

    Source: arXiv 2010.04159, section 4.1, equation 3.
    """

    def __init__(self, embed_dim: int, *, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the width {embed_dim}; choose a divisor.")
        self.samples = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise points on rays around each reference, the same on all levels, with equal weights."""
        num_heads, num_levels, num_points = self.samples
        rays = ray_offsets(num_heads, num_points)[:, None].expand(num_heads, num_levels, num_points, 2)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.weights, self.value, self.output):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(rays.flatten())

    def forward(self, query: Tensor, tokens: Tensor, references: Tensor, levels: LevelTokens) -> Tensor:
        """Attend to the tokens of all levels.

        Args:
            query: Queries with their positions, (B, Q, C).
            tokens: Tokens to read, (B, N, C); padding reads as zeros.
            references: Of every query on every level, points (B, Q, L, 2) or boxes x, y, w, h (B, Q, L, 4), relative
                to the level, float32. Offsets count cells around points, and quarters of half the sides of boxes.
            levels: Grids and padding of the tokens.

        Returns:
            (B, Q, C).
        """
        value = levels.without_padding(self.value(tokens)).unflatten(2, (self.samples[0], -1))
        offsets, logits = self.offsets(query), self.weights(query)
        if not torch.is_grad_enabled() and native.supports(value) and native.is_available():
            sides = [side for grid in levels.grids for side in grid]
            return self.output(native.sample_levels(value, sides, offsets, logits, references))
        return self.output(self._sample(value, offsets, logits, references, levels))

    def _sample(
        self, value: Tensor, offsets: Tensor, logits: Tensor, references: Tensor, levels: LevelTokens
    ) -> Tensor:
        offsets = offsets.unflatten(2, (*self.samples, 2)).float()
        weights = logits.unflatten(2, (self.samples[0], -1)).softmax(-1).to(value.dtype)
        weights = weights.unflatten(3, self.samples[1:])
        return levels_deformable_attention(value, levels.grids, self._locations(offsets, references, levels), weights)

    def _locations(self, offsets: Tensor, references: Tensor, levels: LevelTokens) -> Tensor:
        """Return points (B, Q, heads, L, points, 2), float32 in every precision."""
        references = references[:, :, None, :, None]
        if references.shape[-1] == 2:
            return torch.addcmul(references, offsets, cell_sides(levels.grids, offsets.device))
        centres, sides = references.split(2, -1)
        return torch.addcmul(centres, offsets, sides, value=0.5 / self.samples[2])


@kept
def cell_sides(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """Return the sides (x, y) of the cells of every level, relative to the level, float32, (L, 1, 2).

    Args:
        grids: (H, W) of every level.
        device: Device of the result.
    """
    return 1 / level_extents(grids, device)[:, None]
