"""Interaction units: how neighbouring branches exchange features.

Source: arXiv 2406.04330, section 3.2 and Figure 3; order of operations as released (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from piip.layers import checkpointing
from piip.structures import BranchFeatures, Grid


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution on the token grid.

    Args:
        dim: Width of the tokens.
        hidden_dim: Inner width.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Map tokens (B, N, C) on `grid` to (B, N, C)."""
        hidden = self.fc1(tokens).transpose(1, 2).unflatten(2, grid)  # (B, hidden, H, W), channels last in memory
        hidden = self.act(self.conv(hidden))
        rows = hidden.flatten(2).transpose(1, 2).flatten(0, 1)  # the bias is part of a product of rows in any layout
        return self.fc2(rows).unflatten(0, (tokens.shape[0], -1))


class Injector(nn.Module):
    """Adds features of one branch to another, through gates.

    Args:
        attention: Cross-attention with `forward(query, source, query_grid, source_grid)`.
        dim: Width of the receiving branch.
        query_norm: Norm of the receiving tokens.
        source_norm: Norm of the other branch's tokens.
        ffn: ConvFFN after the attention, or None.
        ffn_norm: Norm before the ConvFFN.
        drop_path_rate: Stochastic depth of the ConvFFN.
        gate_init: Initial value of the gates.
    """

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        *,
        query_norm: nn.Module,
        source_norm: nn.Module,
        ffn: ConvFFN | None = None,
        ffn_norm: nn.Module | None = None,
        drop_path_rate: float = 0.0,
        gate_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.query_norm = query_norm
        self.source_norm = source_norm
        self.attention = attention
        self.attention_gate = nn.Parameter(torch.full((dim,), gate_init))
        self.ffn = ffn
        if ffn is not None:
            self.ffn_norm = ffn_norm or nn.Identity()
            self.ffn_gate = nn.Parameter(torch.full((dim,), gate_init))
            self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def gates(self) -> dict[str, Tensor]:
        """Return the gates (C,) of "attention" and, if there is one, "ffn"."""
        gates: dict[str, Tensor] = {"attention": self.attention_gate}
        return gates if self.ffn is None else {**gates, "ffn": self.ffn_gate}

    def forward(self, query: Tensor, source: Tensor, query_grid: Grid, source_grid: Grid) -> Tensor:
        """Return the updated query tokens (B, Q, C), given the other branch's tokens (B, N, C')."""
        attended = self.attention(self.query_norm(query), self.source_norm(source), query_grid, source_grid)
        query = torch.addcmul(query, self.attention_gate, attended)
        if self.ffn is not None:
            mapped = self.drop_path(self.ffn(self.ffn_norm(query), query_grid))
            query = torch.addcmul(query, self.ffn_gate, mapped)
        return query


class InteractionUnit(nn.Module):
    """Exchange between two neighbours; both directions read the tokens from before the exchange.

    Args:
        to_coarse: Injector into the lower-resolution branch (larger network), or None.
        to_fine: Injector into the higher-resolution branch, or None.
        coarse_projection: Maps fine tokens to the coarse width for `to_coarse`, or identity.
        fine_projection: Maps coarse tokens to the fine width for `to_fine`, or identity.
    """

    def __init__(
        self,
        to_coarse: Injector | None,
        to_fine: Injector | None,
        *,
        coarse_projection: nn.Module | None = None,
        fine_projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.to_coarse = to_coarse
        self.to_fine = to_fine
        self.coarse_projection = coarse_projection or nn.Identity()
        self.fine_projection = fine_projection or nn.Identity()

    def injectors(self, pair: int) -> dict[tuple[int, int], Injector]:
        """Return the injectors by the indices of the branches that they (read, update).

        Args:
            pair: Index of the unit's coarse branch.
        """
        directions = {(pair + 1, pair): self.to_coarse, (pair, pair + 1): self.to_fine}
        return {branches: injector for branches, injector in directions.items() if injector is not None}

    def forward(self, coarse: BranchFeatures, fine: BranchFeatures) -> tuple[BranchFeatures, BranchFeatures]:
        """Return both branches with exchanged features."""
        coarse_patches, fine_patches = coarse.patches, fine.patches
        if self.to_coarse is not None:
            source = self.coarse_projection(fine.patches)
            coarse_patches = self.to_coarse(coarse.patches, source, coarse.grid, fine.grid)
        if self.to_fine is not None:
            source = self.fine_projection(coarse.patches)
            fine_patches = self.to_fine(fine.patches, source, fine.grid, coarse.grid)
        return coarse.with_patches(coarse_patches), fine.with_patches(fine_patches)


class Interaction(nn.Module):
    """The chain of units between all neighbours, highest resolution first.

    Args:
        units: One unit per neighbouring pair; unit i connects branches i and i + 1. Empty for a single branch.

    Attributes:
        grad_checkpointing: Recompute units in the backward pass instead of storing their activations.
    """

    def __init__(self, units: Sequence[InteractionUnit]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.units: Sequence[InteractionUnit] = nn.ModuleList(units)  # type: ignore[assignment]

    def forward(self, features: list[BranchFeatures]) -> list[BranchFeatures]:
        """Return all branches with exchanged features; a later pair uses the updates of an earlier one."""
        features = list(features)
        for pair in reversed(range(len(self.units))):
            features[pair], features[pair + 1] = self._exchange(pair, features[pair], features[pair + 1])
        return features

    def _exchange(
        self, pair: int, coarse: BranchFeatures, fine: BranchFeatures
    ) -> tuple[BranchFeatures, BranchFeatures]:
        return checkpointing.call(self.units[pair], coarse, fine, recompute=self.grad_checkpointing)
