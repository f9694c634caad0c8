"""Interface of the branches of a pyramid."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from piip.ops.positions import channel_values
from piip.structures import BranchFeatures, StageInfo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Branch(nn.Module, ABC):
    """A pretrained network cut into stages, between which branches interact.

    Attributes:
        stages: Channels, stride and depth after each stage.
        stride: Pixels every image side must be a multiple of (patch size, or the coarsest stride used; 1 with a
            fixed size).
        depth: Number of blocks.
        num_prefix_tokens: Class and register tokens P.
        has_class_token: Whether the first prefix token is a class token.
        fixed_size: The only accepted image size (H, W), or None.
        mean: Channel means the network was trained with, RGB in [0, 1].
        std: Channel deviations the network was trained with.
        is_frozen: Whether training leaves the network as it is; see `freeze`.
        is_decayed_officially: Whether the authors' optimiser lowered learning rates by depth for such networks.
    """

    stages: tuple[StageInfo, ...]
    stride: int
    depth: int
    num_prefix_tokens: int
    has_class_token: bool = False
    fixed_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grad_checkpointing: bool = False
    is_frozen: bool = False
    is_decayed_officially: bool = True

    def __init__(self) -> None:
        super().__init__()
        self._given: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def freeze(self) -> None:
        """Keep the weights and statistics in training.

        Parameters need no gradients, so nothing is recorded before the first interaction, and the network stays in
        evaluation mode.
        """
        self.is_frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Branch:
        """Set training mode, except for a frozen branch.

        Args:
            mode: Training or evaluation.
        """
        return super().train(mode and not self.is_frozen)

    def renormalize_from(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Expect images normalised with another mean and std, and turn them into this branch's own.

        Args:
            mean: Channel means the images will be normalised with, RGB in [0, 1].
            std: Channel standard deviations in the same form.
        """
        same = tuple(mean) == tuple(self.mean) and tuple(std) == tuple(self.std)
        self._given = None if same else (tuple(mean), tuple(std))

    def prepare(self, image: Tensor) -> Tensor:
        """Return the image (B, 3, H, W) in this branch's dtype, normalised as it expects; see `renormalize_from`."""
        if self._given is not None:
            mean, std = self._given
            scale = tuple(theirs / own for theirs, own in zip(std, self.std, strict=True))
            shift = tuple((a - b) / own for a, b, own in zip(mean, self.mean, self.std, strict=True))
            image = image * channel_values(scale, image.device) + channel_values(shift, image.device)
        return image.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, which `optimize_for_inference` may turn into buffers."""
        weights = itertools.chain(self.parameters(), self.buffers())
        return next(weight.dtype for weight in weights if weight.is_floating_point())

    @abstractmethod
    def embed(self, image: Tensor) -> BranchFeatures:
        """Turn an image (B, 3, H, W) into the tokens that enter the first stage."""

    @abstractmethod
    def run_stage(self, stage: int, features: BranchFeatures) -> BranchFeatures:
        """Run the blocks of one stage."""

    @abstractmethod
    def finish(self, features: BranchFeatures) -> BranchFeatures:
        """Apply what the network does after its last block (its final norm)."""

    @abstractmethod
    def layer_depth(self, parameter_name: str) -> int:
        """Return the depth of a parameter: 0 for embeddings, k for the k-th block, `depth` + 1 after the last.

        Args:
            parameter_name: Name relative to this branch.
        """

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters, relative to this branch, that are usually not decayed."""
        return set()

    def forward(self, image: Tensor) -> BranchFeatures:
        """Run the whole network alone, without interactions."""
        features = self.embed(image)
        for stage in range(len(self.stages)):
            features = self.run_stage(stage, features)
        return self.finish(features)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable


def even_split(count: int, parts: int) -> list[tuple[int, int]]:
    """Split `count` items into `parts` runs of nearly equal length.

    Returns:
        Half-open ranges (start, stop), all non-empty.

    Raises:
        ValueError: More parts than items, or fewer than one part.
    """
    if not 1 <= parts <= count:
        raise ValueError(f"{count} blocks or stages cannot be split into {parts} groups; choose 1 to {count}.")
    bounds = [round(index * count / parts) for index in range(parts + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def group_ranges(
    count: int, groups: Sequence[int] | Sequence[tuple[int, int]] | None, parts: int
) -> list[tuple[int, int]]:
    """Return the half-open block range of every stage.

    Args:
        count: Number of blocks or stages of the network.
        groups: Group sizes that add up to `count`, inclusive (first, last) pairs, or None for an even split.
        parts: Number of groups wanted.

    Raises:
        ValueError: A wrong number of groups, sizes that do not add up, or ranges outside the network.
    """
    if groups is None:
        return even_split(count, parts)
    if len(groups) != parts:
        raise ValueError(f"block_groups has {len(groups)} groups, expected {parts}: one before every interaction.")
    ranges: list[tuple[int, int]] = []
    for group in groups:
        start = ranges[-1][1] if ranges else 0
        ranges.append((start, start + group) if isinstance(group, int) else (group[0], group[1] + 1))
    if isinstance(groups[0], int) and ranges[-1][1] != count:
        raise ValueError(f"block_groups adds up to {ranges[-1][1]} blocks, the network has {count}.")
    if any(not 0 <= start < stop <= count for start, stop in ranges):
        raise ValueError(f"block_groups {tuple(groups)} reaches outside the network's {count} blocks or is empty.")
    return ranges
