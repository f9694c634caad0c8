"""Cross-attention from one branch to another: deformable (the paper's) and dense, with the same forward."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.ops import cell_centres, cell_sides, deformable_attention
from piip.structures import Grid


def ray_offsets(num_heads: int, num_points: int) -> Tensor:
    """Return offsets (x, y) in cells to start from, (heads, points, 2): a ray of points, one direction per head.

    Args:
        num_heads: Attention heads.
        num_points: Points per head; the k-th is k cells away.

    Source: the official initialisation of arXiv 2010.04159.
    """
    angle = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    ray = torch.stack((angle.cos(), angle.sin()), -1)
    ray = ray / ray.abs().amax(-1, keepdim=True)  # onto the unit square
    return ray[:, None] * torch.arange(1, num_points + 1, dtype=torch.float32)[:, None]


class DeformableCrossAttention(nn.Module):
    """Every query token samples a few points of the source map around its own position.

    Args:
        query_dim: Width of the query tokens and of the result.
        source_dim: Width of the source tokens.
        num_heads: Attention heads; must divide the value width.
        num_points: Sampling points per head.
        value_ratio: Value width relative to `query_dim`.

    Raises:
        ValueError: `num_heads` does not divide the value width.

    Source: arXiv 2406.04330 section 3.2, with the attention of arXiv 2010.04159 (one level).
    """

    def __init__(
        self,
        query_dim: int,
        source_dim: int,
        *,
        num_heads: int = 16,
        num_points: int = 4,
        value_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        value_dim = int(query_dim * value_ratio)
        if value_dim < 1 or value_dim % num_heads:
            raise ValueError(
                f"{num_heads} heads do not divide the value width {value_dim} (= {query_dim} * {value_ratio}); "
                f"choose a divisor of {value_dim}."
            )
        self.num_heads = num_heads
        self.num_points = num_points
        self.value_dim = value_dim
        self.offsets = nn.Linear(query_dim, num_heads * num_points * 2)
        self.weights = nn.Linear(query_dim, num_heads * num_points)
        self.value = nn.Linear(source_dim, value_dim)
        self.output = nn.Linear(value_dim, query_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise points on rays around each query, one direction per head, with equal weights."""
        with torch.no_grad():
            self.offsets.bias.copy_(ray_offsets(self.num_heads, self.num_points).flatten())
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, source: Tensor, query_grid: Grid, source_grid: Grid) -> Tensor:
        """Attend from `query` (B, Q, C) on `query_grid` to `source` (B, N, C') on `source_grid`; (B, Q, C)."""
        batch, queries, _ = query.shape
        heads, points = self.num_heads, self.num_points
        value = self.value(source).view(batch, source.shape[1], heads, self.value_dim // heads)
        weights = self.weights(query).view(batch, queries, heads, points).softmax(-1)
        offsets = self.offsets(query).view(batch, queries, heads, points, 2)
        sampled = sample_around(value, offsets, weights, query_grid, source_grid)
        # the bias is part of a product of rows in any layout
        return self.output(sampled.flatten(0, 1)).unflatten(0, (batch, -1))

    def sampling_points(self, query: Tensor, centres: Tensor, source_grid: Grid) -> tuple[Tensor, Tensor]:
        """Return where queries sample and with which weights, for inspection; `forward` does not call this.

        Args:
            query: Query tokens, (B, Q, C).
            centres: Their positions as (x, y) relative to the image, (Q, 2).
            source_grid: (H, W) of the sampled map.

        Returns:
            Locations as (x, y) relative to the image, outside [0, 1] where zeros are read, float32
            (B, Q, heads, points, 2), and weights, which sum to 1 over the points of a head, (B, Q, heads, points).
        """
        shape = (*query.shape[:2], self.num_heads, self.num_points)
        offsets = self.offsets(query).view(*shape, 2).float()
        locations = centres.view(1, -1, 1, 1, 2) + offsets * cell_sides(source_grid, query.device)
        return locations, self.weights(query).view(shape).softmax(-1).float()


def sample_around(value: Tensor, offsets: Tensor, weights: Tensor, query_grid: Grid, source_grid: Grid) -> Tensor:
    """Sample a map around the queries' own positions; see `deformable_attention`.

    Args:
        value: Values of the map, (B, N, heads, dim).
        offsets: Points as (x, y), counted in cells of the map from the query's position, (B, Q, heads, points, 2).
        weights: Weight of each point, (B, Q, heads, points).
        query_grid: (H, W) of the queries.
        source_grid: (H, W) of the map.

    Returns:
        (B, Q, heads * dim).
    """
    # locations stay float32 in every precision
    centres = cell_centres(query_grid, value.device).view(1, -1, 1, 1, 2)
    locations = torch.addcmul(centres, offsets.float(), cell_sides(source_grid, value.device))
    return deformable_attention(value, source_grid, locations, weights.to(value.dtype))


class CrossAttention(nn.Module):
    """Dense multi-head cross-attention over all source tokens.

    Args:
        query_dim: Width of the query tokens and of the result.
        source_dim: Width of the source tokens.
        num_heads: Attention heads; must divide `query_dim`.

    Raises:
        ValueError: `num_heads` does not divide `query_dim`.

    Source: arXiv 2406.04330, ablation of the attention type (`interact_attn_type="normal"` in the release).
    """

    def __init__(self, query_dim: int, source_dim: int, *, num_heads: int = 16) -> None:
        super().__init__()
        if query_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the query width {query_dim}; choose a divisor.")
        self.num_heads = num_heads
        self.query = nn.Linear(query_dim, query_dim, bias=False)
        self.key = nn.Linear(source_dim, query_dim, bias=False)
        self.value = nn.Linear(source_dim, query_dim, bias=False)
        self.output = nn.Linear(query_dim, query_dim)

    def forward(self, query: Tensor, source: Tensor, query_grid: Grid, source_grid: Grid) -> Tensor:
        """Attend from `query` (B, Q, C) to `source` (B, N, C'); grids are not needed here; (B, Q, C)."""
        heads = [
            tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.query(query), self.key(source), self.value(source))
        ]
        attended = F.scaled_dot_product_attention(*heads)  # (B, heads, Q, C / heads)
        return self.output(attended.transpose(1, 2).flatten(2))
