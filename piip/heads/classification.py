"""Classifiers on top of a pyramid.

Source: arXiv 2406.04330, section 4.3; released heads in `docs/official.md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.config import ModelConfig
from piip.serialization.base import DescribedModel
from piip.structures import BranchFeatures


class PooledHead(nn.Module):
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

    def forward(self, features: Sequence[BranchFeatures], maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) of the last map (B, C, H, W); branch features are not used."""
        tokens = self.norm(BranchFeatures.map_to_tokens(maps[-1]))
        return self.fc(tokens[:, 0] if self.pool == "first_patch" else tokens.mean(1))


class PerBranchHead(nn.Module):
    """One linear layer a branch, logits averaged.

    Args:
        channels: Width of each branch.
        num_classes: Number of classes K.
        pool: "token" (class token), "mean" over patches, or "first_patch".
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, pool: str = "token") -> None:
        super().__init__()
        self.pool = pool
        self.fcs = nn.ModuleList([nn.Linear(width, num_classes) for width in channels])

    def reset_classes(self, num_classes: int) -> None:
        """Start new linear layers for another number of classes."""
        self.fcs = nn.ModuleList([_renewed(fc, num_classes) for fc in self.fcs])

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


class PIIPClassifier(DescribedModel):
    """A pyramid backbone with a classification head.

    Args:
        backbone: The pyramid.
        head: `PooledHead` or `PerBranchHead`.
        config: What the model was built from, for saving.
    """

    config: ModelConfig

    def __init__(self, backbone: PIIPBackbone, head: PooledHead | PerBranchHead, *, config: ModelConfig) -> None:
        first = backbone.branches[0]
        super().__init__(config, mean=first.mean, std=first.std, image_size=backbone.image_sizes[-1])
        self.backbone = backbone
        self.head = head

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.config.head.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Start a new classifier for another number of classes, as timm's models do.

        Args:
            num_classes: Number of classes K.

        Raises:
            ValueError: Fewer than one class.
        """
        head = dataclasses.replace(self.config.head, num_classes=num_classes)
        self.config = dataclasses.replace(self.config, head=head)
        self.head.reset_classes(num_classes)
        for name in ("classes", "metrics"):  # of the classifier before
            self.metadata.pop(name, None)

    def forward_features(self, image: Tensor) -> list[BranchFeatures]:
        """Return the finished features of every branch for images (B, 3, H, W)."""
        return self.backbone.forward_features(image)

    def forward_head(self, features: list[BranchFeatures]) -> Tensor:
        """Return logits (B, K) of finished features."""
        return self.head(features, self.backbone.forward_maps(features))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K) of normalised RGB images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(image))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the branches' blocks in the backward pass instead of keeping their activations."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that are usually not decayed."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
