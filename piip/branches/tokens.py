"""What all transformers of uniform blocks share: stages are runs of blocks over prefix and patch tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD, Branch
from piip.branches.window import join_windows, partition_windows
from piip.config import BranchConfig
from piip.layers import checkpointing
from piip.structures import BranchFeatures, StageInfo

PlainViT = VisionTransformer | Eva | Beit


class TokenBranch(Branch):
    """A transformer of timm run stage by stage; its family says how a block runs.

    Args:
        vit: The timm model.
        block_ranges: Half-open range of blocks of each stage.
        window_sizes: Side of the attention windows of each block in tokens, 0 for global attention; empty for none.
        final_norm: Apply the model's final norm in `finish`.

    Raises:
        ValueError: Windows that are not one per block, or of a model with prefix tokens.
    """

    def __init__(
        self, vit: PlainViT, block_ranges: Sequence[tuple[int, int]], *, window_sizes: Sequence[int], final_norm: bool
    ) -> None:
        super().__init__()
        _remove_head(vit, keep_norm=final_norm)
        self.vit = vit
        self.block_ranges = list(block_ranges)
        self.depth = len(vit.blocks)
        self.window_sizes = list(window_sizes) or [0] * self.depth
        self.num_prefix_tokens = vit.num_prefix_tokens
        self.has_class_token = vit.cls_token is not None
        self.fixed_size = None
        info: Mapping[str, Any] = vit.feature_info[0]
        self.stride = int(info["reduction"])
        self.stages = tuple(StageInfo(int(info["num_chs"]), self.stride, stop) for _, stop in self.block_ranges)
        config: Mapping[str, Any] = vit.pretrained_cfg or {}  # type: ignore[assignment]
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        if len(self.window_sizes) != self.depth:
            raise ValueError(
                f"window_size has {len(self.window_sizes)} entries, the network has {self.depth} blocks; give one "
                "number for all blocks or one per block."
            )
        if any(self.window_sizes) and self.num_prefix_tokens:
            raise ValueError(
                f"Windowed attention cannot place the {self.num_prefix_tokens} class or register tokens; "
                "set prefix_tokens to false."
            )

    @abstractmethod
    def run_block(self, index: int, tokens: Tensor, features: BranchFeatures, window: int, *, is_cut: bool) -> Tensor:
        """Run one block.

        Args:
            index: The block.
            tokens: Prefix and patch tokens (B, P + N, C); where they are cut, one window each (B * windows, w * w, C).
            features: What entered the stage: grid and rotary embedding.
            window: Side of the attention windows in tokens, 0 for global attention.
            is_cut: Whether the tokens are already cut into windows.
        """

    def run_stage(self, stage: int, features: BranchFeatures) -> BranchFeatures:
        """Run the blocks of one stage over prefix and patch tokens."""
        start, stop = self.block_ranges[stage]
        tokens = self._joined(features)
        while start < stop:
            window = self.window_sizes[start]
            others = [i for i in range(start, stop) if self.window_sizes[i] != window]
            run = others[0] if others else stop  # not next(..., stop), which torch.compile of PyTorch 2.6 cannot trace
            tokens = self._run_blocks(range(start, run), tokens, features, window)
            start = run
        return self._split(tokens, features.grid, features.rotary)

    def _run_blocks(self, indices: range, tokens: Tensor, features: BranchFeatures, window: int) -> Tensor:
        """Run consecutive blocks that share a window size."""
        grid = features.grid
        # whole windows are separate images to a block; in training, drop path must still see the real images
        is_cut = window > 0 and grid[0] % window == 0 and grid[1] % window == 0 and not self.training
        if is_cut:
            tokens = partition_windows(tokens, grid, window)
        for index in indices:
            tokens = self.run_block(index, tokens, features, window, is_cut=is_cut)
        return join_windows(tokens, grid, window) if is_cut else tokens

    def call(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call a block, keeping or recomputing its activations in the backward pass."""
        return checkpointing.call(function, *args, recompute=self.grad_checkpointing)

    def finish(self, features: BranchFeatures) -> BranchFeatures:
        """Apply the final norm to prefix and patch tokens."""
        if isinstance(self.vit.norm, nn.Identity):
            return features
        return self._split(self.vit.norm(self._joined(features)), features.grid, features.rotary)

    def layer_depth(self, parameter_name: str) -> int:
        """Return the depth index of a parameter; see `Branch.layer_depth`."""
        parts = parameter_name.split(".")
        if parts[:2] == ["vit", "blocks"]:
            return int(parts[2]) + 1
        return self.depth + 1 if parts[:2] == ["vit", "norm"] else 0

    def no_weight_decay(self) -> set[str]:
        """Return timm's list of parameters that are not decayed."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def _split(self, tokens: Tensor, grid: tuple[int, int], rotary: Tensor | None) -> BranchFeatures:
        prefix = self.num_prefix_tokens
        return BranchFeatures(tokens[:, prefix:], tokens[:, :prefix], grid, rotary)

    def _joined(self, features: BranchFeatures) -> Tensor:
        if not self.num_prefix_tokens:
            return features.patches
        return torch.cat((features.prefix, features.patches), 1)


def _remove_head(vit: PlainViT, *, keep_norm: bool) -> None:
    """Drop what runs after the final norm, so that a branch holds no unused parameters."""
    vit.reset_classifier(0, "")
    vit.fc_norm = nn.Identity()
    if not keep_norm:
        vit.norm = nn.Identity()


def vit_arguments(vit: PlainViT, config: BranchConfig, args: dict[str, Any], side: int | None = None) -> dict[str, Any]:
    """Return the timm arguments of a plain ViT; see `Family.timm_args`.

    Args:
        vit: The network.
        config: The branch.
        args: Arguments that every network takes.
        side: Side in pixels of the image whose grid the positions are stored for; None follows the description.
    """
    if config.position_grid is not None:
        side = config.position_grid * int(vit.patch_embed.patch_size[0])
    return {**args, "num_classes": 0, "img_size": side or config.image_size}
