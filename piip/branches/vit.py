"""Plain vision transformers of timm as branches: DeiT, DeiT III, AugReg, MAE, CLIP, SigLIP, DINOv2; EVA-02, DINOv3.

All knowledge of the insides of timm's `VisionTransformer` and `Eva` is in this file and in `window.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from piip.branches.family import Cut, Family
from piip.branches.tokens import TokenBranch, vit_arguments
from piip.branches.window import plain_block, windowed_block
from piip.config import BranchConfig
from piip.structures import BranchFeatures, Grid

WindowedBlock = Callable[[nn.Module, Tensor, Grid, int, bool], Tensor]
MAX_CACHED_SIZES = 16  # image sizes whose positions are cached


class ViTBranch(TokenBranch):
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
        if position_resize == "official" and (isinstance(vit, Eva) or vit.pos_embed is None):
            raise ValueError(
                f"position_resize 'official' needs a position table, {type(vit).__name__} has none of its own."
            )
        if not prefix_tokens or position_resize == "official":
            _separate_prefix_positions(vit)
        if not prefix_tokens:
            _remove_prefix_tokens(vit)
        super().__init__(vit, block_ranges, window_sizes=window_sizes, final_norm=final_norm)
        self.vit: VisionTransformer | Eva = vit
        self.windowed_block: WindowedBlock = windowed_block  # runs a block inside windows that do not tile the grid
        self.cached_positions: dict[tuple[int, int], Tensor] | None = None  # by grid, where they are cached
        self.pad_with_bias = window_padding == "before_qkv"
        self.official_positions = position_resize == "official"
        plain = all(type(block) is Block and type(block.attn) is Attention for block in vit.blocks)
        if any(self.window_sizes) and not plain:
            raise ValueError(
                f"Windowed attention needs timm's plain ViT blocks, {type(vit).__name__} has "
                f"{type(vit.blocks[0]).__name__}; leave window_size at 0."
            )

    def embed(self, image: Tensor) -> BranchFeatures:
        """Embed patches and add positions; image sides beyond whole patches are cut off."""
        height, width = (side // self.stride * self.stride for side in image.shape[-2:])
        patches = self.vit.patch_embed(self.prepare(image)[..., :height, :width])  # (B, H, W, C)
        tokens, rotary = (
            self._embed_positions(patches) if self.cached_positions is None else self._embed_cached(patches)
        )
        return self._split(self.vit.norm_pre(tokens), (patches.shape[1], patches.shape[2]), rotary)

    def _embed_positions(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return prefix and patch tokens with positions, of patches (B, H, W, C), and rotary embeddings or None."""
        if self.official_positions:
            return self._embed_official(patches), None
        placed: Any = self.vit._pos_embed(patches)  # tokens, and with rotary embeddings also those
        return placed if isinstance(placed, tuple) else (placed, None)

    def _embed_cached(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Do the same with the positions of an earlier call of this size; for evaluation only."""
        assert self.cached_positions is not None
        grid = (patches.shape[1], patches.shape[2])
        if grid not in self.cached_positions:
            placed, rotary = self._embed_positions(torch.zeros_like(patches[:1]))
            if rotary is not None:  # it comes with the tokens and is not cached
                self.cached_positions = None
                return self._embed_positions(patches)
            if len(self.cached_positions) >= MAX_CACHED_SIZES:
                self.cached_positions.pop(next(iter(self.cached_positions)))
            self.cached_positions[grid] = placed
        positions = self.cached_positions[grid]
        tokens = patches.flatten(1, 2) + positions[:, self.num_prefix_tokens :]
        prefix = positions[:, : self.num_prefix_tokens].expand(tokens.shape[0], -1, -1)
        return (torch.cat((prefix, tokens), 1) if self.num_prefix_tokens else tokens), None

    def _embed_official(self, patches: Tensor) -> Tensor:
        """Add positions to patches (B, H, W, C); prefix tokens go in front without one."""
        grid = (patches.shape[1], patches.shape[2])
        table, patch_embed = self.vit.pos_embed, self.vit.patch_embed
        assert table is not None  # checked when the branch was made
        positions = resize_positions(table, patch_embed.grid_size, grid)
        tokens = patches.flatten(1, 2) + positions
        prefix = [token for token in (self.vit.cls_token, self.vit.reg_token) if token is not None]
        return torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in prefix), tokens], 1)

    def run_block(self, index: int, tokens: Tensor, features: BranchFeatures, window: int, *, is_cut: bool) -> Tensor:
        """Run one block; see `TokenBranch.run_block`."""
        block = self.vit.blocks[index]
        if window and not is_cut:
            return self.call(self.windowed_block, block, tokens, features.grid, window, self.pad_with_bias)
        if type(block) is Block:
            return self.call(plain_block, block, tokens)
        if features.rotary is None:
            return self.call(block, tokens)
        # mixed rotary embeddings have one table per block
        rotary = features.rotary[index] if features.rotary.dim() > 3 else features.rotary
        return self.call(block, tokens, rotary)


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


def _wrap(vit: VisionTransformer | Eva, config: BranchConfig, cut: Cut) -> ViTBranch:
    return ViTBranch(
        vit,
        cut.ranges,
        window_sizes=cut.windows,
        window_padding=config.window_padding,
        prefix_tokens=config.prefix_tokens,
        final_norm=config.final_norm,
        position_resize=config.position_resize,
    )


FAMILY = Family(
    "plain ViT",
    matches=lambda network, config: isinstance(network, VisionTransformer | Eva),
    timm_args=lambda vit, config, args: {**vit_arguments(vit, config, args), "dynamic_img_size": True},
    cut_points=lambda vit: len(vit.blocks),
    wrap=_wrap,
)
