"""Windowed self-attention on the token grid of plain ViT blocks.

Windows tile the grid from the top left. Where they do not fit, bottom and right are padded; padded tokens take
part in the softmax and are cut off afterwards (`docs/official.md`).
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

Grid = tuple[int, int]


def partition_windows(tokens: Tensor, grid: Grid, window: int) -> Tensor:
    """Cut tokens (B, H * W, C) into windows (B * windows, window * window, C); the window must tile the grid."""
    batch, _, dim = tokens.shape
    rows, columns = grid[0] // window, grid[1] // window
    cut = tokens.view(batch, rows, window, columns, window, dim).transpose(2, 3)
    return cut.reshape(batch * rows * columns, window * window, dim)


def join_windows(windows: Tensor, grid: Grid, window: int) -> Tensor:
    """Undo `partition_windows`."""
    rows, columns = grid[0] // window, grid[1] // window
    parts = windows.view(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    return parts.reshape(-1, grid[0] * grid[1], windows.shape[-1])


def pad_grid(tokens: Tensor, grid: Grid, window: int, fill: Tensor | None) -> tuple[Tensor, Grid]:
    """Pad tokens (B, H * W, C) at bottom and right to whole windows.

    Args:
        tokens: Row-major tokens.
        grid: (H, W).
        window: Window side in tokens.
        fill: Value of padded tokens (C,), or None for zeros.

    Returns:
        Padded tokens and their grid.
    """
    height, width = grid
    padded = (-(-height // window) * window, -(-width // window) * window)
    if padded == grid:
        return tokens, grid
    maps = tokens.view(-1, height, width, tokens.shape[-1])
    edge = tokens.new_zeros(()) if fill is None else fill
    whole = edge.expand(maps.shape[0], *padded, maps.shape[-1]).clone()
    whole[:, :height, :width] = maps
    return whole.flatten(1, 2), padded


def windowed_attention(attention: Attention, tokens: Tensor, grid: Grid, window: int, *, pad_with_bias: bool) -> Tensor:
    """Run a timm attention layer inside windows that need not tile the grid.

    Tokens are padded after the qkv product, so that padded ones cost nothing there: with the bias, which is what
    the product of a zero token would be, or with zeros.

    Args:
        attention: timm's attention layer.
        tokens: Normed tokens (B, H * W, C).
        grid: (H, W).
        window: Window side in tokens.
        pad_with_bias: True pads before the qkv product, False after it.

    Returns:
        (B, H * W, C).
    """
    qkv = attention.qkv(tokens)
    qkv, padded = pad_grid(qkv, grid, window, attention.qkv.bias if pad_with_bias else None)
    windows = partition_windows(qkv, padded, window)
    heads = windows.unflatten(2, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)
    dropout = attention.attn_drop.p if attention.training else 0.0
    attended = F.scaled_dot_product_attention(
        attention.q_norm(query), attention.k_norm(key), value, dropout_p=dropout, scale=attention.scale
    )
    joined = join_windows(attended.transpose(1, 2).flatten(2), padded, window)
    kept = joined.view(-1, *padded, joined.shape[-1])[:, : grid[0], : grid[1]].flatten(1, 2)
    return attention.proj_drop(attention.proj(attention.norm(kept)))


def windowed_block(block: Block, tokens: Tensor, grid: Grid, window: int, pad_with_bias: bool) -> Tensor:
    """Run one timm ViT block with attention inside windows; tokens (B, H * W, C)."""
    attention: Attention = block.attn  # type: ignore[assignment]  # timm's blocks take any attention layer
    attended = windowed_attention(attention, block.norm1(tokens), grid, window, pad_with_bias=pad_with_bias)
    tokens = tokens + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
