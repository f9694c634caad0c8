"""BEiT and BEiT v2: transformers whose positions are biases of the attention, one table per block.

All knowledge of the insides of timm's `Beit` is in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from piip.branches.family import Cut, Family
from piip.branches.tokens import TokenBranch, vit_arguments
from piip.branches.window import in_windows, split_heads
from piip.config import BranchConfig
from piip.ops.relative_positions import relative_positions, resize_table
from piip.structures import BranchFeatures

PREFIX_ROWS = 3  # of a table, its last ones: class to patch, patch to class, class to class


class BeitBranch(TokenBranch):
    """A timm `Beit` run stage by stage, on any grid.

    A block's table belongs to one window (h, w): rows (2h - 1)(2w - 1), the offset query - key row-major. With windowed
    attention the table is that of the window; with global attention it is that of the nominal grid and is resized to
    other grids in the forward pass (timm runs its own grid only).

    Args:
        vit: The timm model.
        block_ranges: Half-open range of blocks of each stage.
        window_sizes: Side of the attention windows of each block in tokens, 0 for global attention.
        prefix_tokens: Keep the class token.
        final_norm: Apply the model's final norm in `finish`, where it has one before pooling.

    Raises:
        ValueError: A model with a position table or with one table of biases for all blocks.
    """

    def __init__(
        self,
        vit: Beit,
        block_ranges: Sequence[tuple[int, int]],
        *,
        window_sizes: Sequence[int] = (),
        prefix_tokens: bool = True,
        final_norm: bool = True,
    ) -> None:
        if vit.pos_embed is not None or vit.rel_pos_bias is not None:
            raise ValueError(
                "BEiT branches need one table of relative positions per block; set use_abs_pos_emb and "
                "use_shared_rel_pos_bias to false."
            )
        if not prefix_tokens:
            vit.cls_token = None
            vit.num_prefix_tokens = 0
        super().__init__(vit, block_ranges, window_sizes=window_sizes, final_norm=final_norm)
        self.vit: Beit = vit
        for block, window in zip(self.vit.blocks, self.window_sizes, strict=True):
            _fit_table(block.attn, window, has_class=prefix_tokens)

    def embed(self, image: Tensor) -> BranchFeatures:
        """Embed patches, the class token in front; image sides beyond whole patches are cut off."""
        height, width = (side // self.stride * self.stride for side in image.shape[-2:])
        patches = self.vit.patch_embed.proj(self.prepare(image)[..., :height, :width])
        grid = (patches.shape[2], patches.shape[3])
        tokens = self.vit.patch_embed.norm(BranchFeatures.map_to_tokens(patches))
        if self.vit.cls_token is not None:
            tokens = torch.cat((self.vit.cls_token.expand(tokens.shape[0], -1, -1), tokens), 1)
        return self._split(tokens, grid, None)

    def run_block(self, index: int, tokens: Tensor, features: BranchFeatures, window: int, *, is_cut: bool) -> Tensor:
        """Run one block; see `TokenBranch.run_block`."""
        grid = (window, window) if is_cut else features.grid
        return self.call(_run, self.vit.blocks[index], tokens, grid, 0 if is_cut else window)


def _fit_table(attention: Attention, window: int, *, has_class: bool) -> None:
    """Give a layer the table of its window, without the rows of a class token that is not there."""
    attention.relative_position_index = None  # timm's is of one grid, rows are looked up by ours
    if attention.relative_position_bias_table is None:
        return
    wanted = (window, window) if window else attention.window_size
    stored = attention.relative_position_bias_table.detach()
    table = resize_table(stored, attention.window_size, wanted, PREFIX_ROWS)
    attention.window_size = wanted
    attention.relative_position_bias_table = nn.Parameter((table if has_class else table[:-PREFIX_ROWS]).clone())


def _run(block: Block, tokens: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Run a block over tokens (B, P + N, C) of a grid, attention in windows of `window` tokens or global (0)."""
    attended = _attend(block.attn, block.norm1(tokens), grid, window)
    if block.gamma_1 is None:
        tokens = tokens + block.drop_path1(attended)
        return tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
    tokens = tokens + block.drop_path1(block.gamma_1 * attended)
    return tokens + block.drop_path2(block.gamma_2 * block.mlp(block.norm2(tokens)))


def _attend(attention: Attention, tokens: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    qkv_bias = None
    if attention.q_bias is not None:
        qkv_bias = torch.cat((attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias))
    qkv = attention.qkv(tokens)  # called instead of read, because its weight may be sharded
    if qkv_bias is not None:
        qkv = qkv + qkv_bias
    num_patches = grid[0] * grid[1]
    bias = position_bias(attention, (window, window) if window else grid, has_class=tokens.shape[1] > num_patches)

    def attend(products: Tensor) -> Tensor:
        query, key, value = split_heads(products, attention.num_heads)
        dropout = attention.attn_drop.p if attention.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)

    kept = in_windows(attend, qkv, grid, window, fill=qkv_bias) if window else attend(qkv)
    return attention.proj_drop(attention.proj(kept))


def position_bias(attention: Attention, grid: tuple[int, int], *, has_class: bool) -> Tensor | None:
    """Return the biases of a block's attention logits on a grid.

    Args:
        attention: timm's attention layer.
        grid: (H, W) of the tokens that attend to each other.
        has_class: Whether there is a leading class token.

    Returns:
        (1, heads, P + N, P + N), or None for a layer without a table.
    """
    stored = attention.relative_position_bias_table
    if stored is None:
        return None
    table = resize_table(stored, attention.window_size, grid, PREFIX_ROWS if has_class else 0)
    indices = relative_positions(grid, has_class, table.device)
    return table[indices].permute(2, 0, 1).unsqueeze(0)


def _timm_arguments(vit: Beit, config: BranchConfig, args: dict[str, Any]) -> dict[str, Any]:
    windows = {config.window_size} if isinstance(config.window_size, int) else set(config.window_size)
    # with one window size, positions are those inside a window
    side = windows.pop() * int(vit.patch_embed.patch_size[0]) if len(windows) == 1 and 0 not in windows else None
    return vit_arguments(vit, config, args, side)


def _wrap(vit: Beit, config: BranchConfig, cut: Cut) -> BeitBranch:
    if config.window_padding != "before_qkv":
        raise ValueError(f"Branch {config.network}: BEiT pads windows 'before_qkv' only; leave window_padding.")
    return BeitBranch(
        vit,
        cut.ranges,
        window_sizes=cut.windows,
        prefix_tokens=config.prefix_tokens,
        final_norm=config.final_norm,
    )


FAMILY = Family(
    "BEiT",
    matches=lambda network, config: isinstance(network, Beit),
    timm_args=_timm_arguments,
    cut_points=lambda vit: len(vit.blocks),
    wrap=_wrap,
)
