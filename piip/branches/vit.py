"""Plain vision transformers of timm as branches: DeiT, DeiT III, AugReg, MAE, CLIP, SigLIP, DINOv2; EVA-02, DINOv3.

All knowledge of the insides of timm's `VisionTransformer` and `Eva` is in this file and in `window.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD, Branch
from piip.branches.window import join_windows, partition_windows, windowed_block
from piip.features import BranchFeatures, StageInfo


class ViTBranch(Branch):
    """A timm ViT (`VisionTransformer` or `Eva`) run stage by stage.

    With official position resizing and no interactions this is the authors' branch; with timm's it equals
    `vit.forward_features`.

    Args:
        vit: The timm model, built with `dynamic_img_size=True`.
        block_ranges: Half-open range of blocks of each stage.
        window_sizes: Side of the attention windows of each block in tokens, 0 for global attention.
        window_padding: "before_qkv" or "after_qkv", where windows do not tile the grid.
        prefix_tokens: Keep class and register tokens.
        final_norm: Apply the model's final norm in `finish`.
        position_resize: "timm" or "official".

    Raises:
        ValueError: Windows asked of a model with prefix tokens or with other blocks than plain ones.
    """

    def __init__(
        self,
        vit: VisionTransformer | Eva,
        block_ranges: Sequence[tuple[int, int]],
        *,
        window_sizes: Sequence[int] = (),
        window_padding: str = "before_qkv",
        prefix_tokens: bool = True,
        final_norm: bool = True,
        position_resize: str = "timm",
    ) -> None:
        super().__init__()
        if position_resize == "official" and (isinstance(vit, Eva) or vit.pos_embed is None):
            raise ValueError(
                f"position_resize 'official' needs a position table, {type(vit).__name__} has none of its own."
            )
        _remove_head(vit, keep_norm=final_norm)
        if not prefix_tokens or position_resize == "official":
            _separate_prefix_positions(vit)
        if not prefix_tokens:
            _remove_prefix_tokens(vit)
        self.vit = vit
        self.block_ranges = list(block_ranges)
        self.depth = len(vit.blocks)
        self.window_sizes = list(window_sizes) or [0] * self.depth
        self.pad_with_bias = window_padding == "before_qkv"
        self.official_positions = position_resize == "official"
        self.num_prefix_tokens = vit.num_prefix_tokens
        self.has_class_token = vit.cls_token is not None
        self.fixed_size = None
        info: Mapping[str, Any] = vit.feature_info[0]
        self.stride = int(info["reduction"])
        self.stages = tuple(StageInfo(int(info["num_chs"]), self.stride, stop) for _, stop in self.block_ranges)
        config: Mapping[str, Any] = vit.pretrained_cfg or {}  # type: ignore[assignment]
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        self._check_windows()

    def _check_windows(self) -> None:
        if len(self.window_sizes) != self.depth:
            raise ValueError(
                f"window_size has {len(self.window_sizes)} entries, the network has {self.depth} blocks; give one "
                "number for all blocks or one a block."
            )
        if not any(self.window_sizes):
            return
        if self.num_prefix_tokens:
            raise ValueError(
                f"Windowed attention cannot place the {self.num_prefix_tokens} class or register tokens; "
                "set prefix_tokens to false."
            )
        plain = all(type(block) is Block and type(block.attn) is Attention for block in self.vit.blocks)
        if not plain:
            raise ValueError(
                f"Windowed attention needs timm's plain ViT blocks, {type(self.vit).__name__} has "
                f"{type(self.vit.blocks[0]).__name__}; leave window_size at 0."
            )

    def embed(self, image: Tensor) -> BranchFeatures:
        """Embed patches and add positions; image sides beyond whole patches are cut off."""
        height, width = (side // self.stride * self.stride for side in image.shape[-2:])
        patches = self.vit.patch_embed(self.prepare(image)[..., :height, :width])  # (B, H, W, C)
        grid = (patches.shape[1], patches.shape[2])
        if self.official_positions:
            tokens, rotary = self._embed_official(patches), None
        else:
            placed: Any = self.vit._pos_embed(patches)  # tokens, and with rotary embeddings also those
            tokens, rotary = placed if isinstance(placed, tuple) else (placed, None)
        return self._split(self.vit.norm_pre(tokens), grid, rotary)

    def _embed_official(self, patches: Tensor) -> Tensor:
        """Add positions to patches (B, H, W, C); prefix tokens go in front without one."""
        grid = (patches.shape[1], patches.shape[2])
        table, patch_embed = self.vit.pos_embed, self.vit.patch_embed
        assert table is not None  # checked when the branch was made
        positions = resize_positions(table, patch_embed.grid_size, grid)
        tokens = patches.flatten(1, 2) + positions
        prefix = [token for token in (self.vit.cls_token, self.vit.reg_token) if token is not None]
        return torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], 1)

    def _split(self, tokens: Tensor, grid: tuple[int, int], rotary: Tensor | None) -> BranchFeatures:
        prefix = self.num_prefix_tokens
        return BranchFeatures(tokens[:, prefix:], tokens[:, :prefix], grid, rotary)

    def _joined(self, features: BranchFeatures) -> Tensor:
        if not self.num_prefix_tokens:
            return features.patches
        return torch.cat((features.prefix, features.patches), 1)

    def run_stage(self, stage: int, features: BranchFeatures) -> BranchFeatures:
        """Run the blocks of one stage over prefix and patch tokens."""
        start, stop = self.block_ranges[stage]
        tokens = self._joined(features)
        while start < stop:
            window = self.window_sizes[start]
            run = next((i for i in range(start, stop) if self.window_sizes[i] != window), stop)
            tokens = self._run_blocks(range(start, run), tokens, features, window)
            start = run
        return self._split(tokens, features.grid, features.rotary)

    def _run_blocks(self, indices: range, tokens: Tensor, features: BranchFeatures, window: int) -> Tensor:
        """Run consecutive blocks that share a window size."""
        grid = features.grid
        # whole windows are separate images to a block; in training, drop path must still see the real images
        whole = window > 0 and grid[0] % window == 0 and grid[1] % window == 0 and not self.training
        if whole:
            tokens = partition_windows(tokens, grid, window)
        for index in indices:
            block = self.vit.blocks[index]
            if window and not whole:
                tokens = self._call(windowed_block, block, tokens, grid, window, self.pad_with_bias)
            elif features.rotary is not None:
                # mixed rotary embeddings have one table a block
                mixed = features.rotary.dim() > 3
                tokens = self._call(block, tokens, features.rotary[index] if mixed else features.rotary)
            else:
                tokens = self._call(block, tokens)
        return join_windows(tokens, grid, window) if whole else tokens

    def _call(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

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


def resize_positions(table: Tensor, stored: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resize a position table (1, h * w, C) to a grid, bicubic without antialias, in float32.

    parity: the official code resizes so in every forward pass, timm with antialias.

    Returns:
        (1, H * W, C) in the dtype of the table.
    """
    if tuple(stored) == tuple(grid):
        return table
    maps = table.float().transpose(1, 2).unflatten(2, tuple(stored))
    resized = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)


def _remove_head(vit: VisionTransformer | Eva, *, keep_norm: bool) -> None:
    """Drop what runs after the final norm, so that a branch holds no unused parameters."""
    vit.reset_classifier(0, "")
    vit.fc_norm = nn.Identity()
    if not keep_norm:
        vit.norm = nn.Identity()


def _separate_prefix_positions(vit: VisionTransformer | Eva) -> None:
    """Move the position rows of class and register tokens into the tokens themselves: the same function."""
    prefix = vit.num_prefix_tokens
    if not prefix or vit.pos_embed is None or vit.no_embed_class:
        return
    if isinstance(vit, VisionTransformerDistilled):
        raise ValueError("Distilled DeiT cannot be used without its prefix tokens; choose the undistilled network.")
    with torch.no_grad():
        rows = vit.pos_embed[:, :prefix].clone()
        if vit.cls_token is not None:
            vit.cls_token.add_(rows[:, :1])
        if vit.reg_token is not None:
            vit.reg_token.add_(rows[:, -vit.reg_token.shape[1] :])
    vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, prefix:].clone())
    vit.no_embed_class = True


def _remove_prefix_tokens(vit: VisionTransformer | Eva) -> None:
    vit.cls_token = None
    vit.reg_token = None
    vit.num_prefix_tokens = 0
    if isinstance(vit, Eva):
        for block in vit.blocks:
            block.attn.num_prefix_tokens = 0  # type: ignore[union-attr]
