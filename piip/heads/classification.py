"""Classifiers on top of a pyramid.

Source: arXiv 2406.04330, section 4.3; released heads in `docs/official.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from piip.layers.merge import CombinesBranches
from piip.structures import BranchFeatures


class ClassificationHead(CombinesBranches, ABC):
    """Logits from finished branch features and the maps after merging."""

    @abstractmethod
    def forward(self, features: Sequence[BranchFeatures], maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K).

        Args:
            features: Finished features of every branch.
            maps: The backbone's maps (B, C, H, W).
        """

    @abstractmethod
    def reset_classes(self, num_classes: int) -> None:
        """Start new linear layers for another number of classes."""

    @abstractmethod
    def summary(self, num_classes: int) -> str:
        """Return one sentence about the output of the head, for cards."""


class PooledHead(ClassificationHead):
    """Norm, pooling and one linear layer on the merged map.

    Args:
        channels: Width of the merged map.
        num_classes: Number of classes K.
        pool: "mean" or "first_patch".
    """

    def __init__(self, channels: int, num_classes: int, *, pool: str = "mean") -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc = nn.Linear(channels, num_classes)

    def reset_classes(self, num_classes: int) -> None:
        """Start a new linear layer for another number of classes."""
        self.fc = _renewed(self.fc, num_classes)

    def summary(self, num_classes: int) -> str:
        """Return one sentence about the output of the head, for cards."""
        return f"A linear layer on the pooled map gives logits for {num_classes} classes."

    def forward(self, features: Sequence[BranchFeatures], maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) of the last map (B, C, H, W); branch features are not used."""
        tokens = self.norm(BranchFeatures.map_to_tokens(maps[-1]))
        return self.fc(tokens[:, 0] if self.pool == "first_patch" else tokens.mean(1))


class PerBranchHead(ClassificationHead):
    """One linear layer per branch, logits averaged.

    Args:
        channels: Width of each branch.
        num_classes: Number of classes K.
        pool: "token" (class token), "mean" over patches, or "first_patch".
    """

    takes_mean = True

    def __init__(self, channels: Sequence[int], num_classes: int, *, pool: str = "token") -> None:
        super().__init__()
        self.pool = pool
        self.fcs = nn.ModuleList([nn.Linear(width, num_classes) for width in channels])

    def reset_classes(self, num_classes: int) -> None:
        """Start new linear layers for another number of classes."""
        self.fcs = nn.ModuleList([_renewed(fc, num_classes) for fc in self.fcs])

    def summary(self, num_classes: int) -> str:
        """Return one sentence about the output of the head, for cards."""
        return f"The logits of one linear layer per branch are averaged, for {num_classes} classes."

    def shares(self) -> Sequence[nn.Module]:
        """Return the linear layers, whose logits are averaged."""
        return list(self.fcs)

    def _read(self, features: BranchFeatures) -> Tensor:
        if self.pool == "token":
            return features.prefix[:, 0]
        # parity: released models classify by the top-left patch (`docs/official.md`)
        return features.patches[:, 0] if self.pool == "first_patch" else features.patches.mean(1)

    def forward(self, features: Sequence[BranchFeatures], maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) of the finished branch features; maps are not used."""
        logits = [fc(self._read(branch)) for fc, branch in zip(self.fcs, features, strict=True)]
        return torch.stack(logits).mean(0)


def _renewed(layer: nn.Module, num_classes: int) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return nn.Linear(layer.in_features, num_classes, device=layer.weight.device, dtype=layer.weight.dtype)
