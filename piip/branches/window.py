"""Windowed self-attention on the token grid.

Windows tile the grid from the top left. Where they do not fit, bottom and right are padded; padded tokens take
part in the softmax and are cut off afterwards (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import Attention, LayerScale
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from piip.structures import Grid


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


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a qkv product (B, N, 3 * C) into query, key and value (B, heads, N, C / heads)."""
    query, key, value = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def in_windows(
    attend: Callable[[Tensor], Tensor], qkv: Tensor, grid: Grid, window: int, *, fill: Tensor | None
) -> Tensor:
    """Attend inside windows that need not tile the grid.

    Args:
        attend: From the qkv products of windows (B * windows, window * window, 3 * C) to their values (..., C).
        qkv: Products of the whole grid (B, H * W, 3 * C).
        grid: (H, W).
        window: Window side in tokens.
        fill: The product of a padded token (3 * C,), or None for zeros.

    Returns:
        (B, H * W, C).
    """
    whole, padded = pad_grid(qkv, grid, window, fill)
    joined = join_windows(attend(partition_windows(whole, padded, window)), padded, window)
    return joined.view(-1, *padded, joined.shape[-1])[:, : grid[0], : grid[1]].flatten(1, 2)


def attend(attention: Attention, qkv: Tensor) -> Tensor:
    """Run what lies between the two products of a timm attention layer: from (B, N, 3 * C) to (B, N, C)."""
    query, key, value = split_heads(qkv, attention.num_heads)
    dropout = attention.attn_drop.p if attention.training else 0.0
    attended = F.scaled_dot_product_attention(
        attention.q_norm(query), attention.k_norm(key), value, dropout_p=dropout, scale=attention.scale
    )
    return attention.norm(attended.transpose(1, 2).flatten(2))


def attend_in_windows(attention: Attention, qkv: Tensor, grid: Grid, window: int, *, pad_with_bias: bool) -> Tensor:
    """Do the same inside windows that need not tile the grid.

    Tokens are padded after the qkv product, so that padded ones cost nothing there: with the bias, which is what
    the product of a zero token would be, or with zeros.

    Args:
        attention: timm's attention layer.
        qkv: Products of normed tokens (B, H * W, 3 * C).
        grid: (H, W).
        window: Window side in tokens.
        pad_with_bias: True pads before the qkv product, False after it.

    Returns:
        (B, H * W, C).
    """
    fill = attention.qkv.bias if pad_with_bias else None
    return in_windows(lambda windows: attend(attention, windows), qkv, grid, window, fill=fill)


def windowed_block(block: nn.Module, tokens: Tensor, grid: Grid, window: int, pad_with_bias: bool) -> Tensor:
    """Run one timm ViT block with attention inside windows; tokens (B, H * W, C)."""
    assert isinstance(block, Block)
    attention: Attention = block.attn  # type: ignore[assignment]  # timm's blocks take any attention layer
    qkv = attention.qkv(block.norm1(tokens))
    attended = attend_in_windows(attention, qkv, grid, window, pad_with_bias=pad_with_bias)
    return _finish_block(block, tokens, attention.proj_drop(attention.proj(attended)))


def plain_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """Run one timm ViT block on tokens (B, N, C), with layer scales that cost no passes of their own."""
    assert isinstance(block, Block)
    return _finish_block(block, tokens, block.attn(block.norm1(tokens)))


def _finish_block(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    tokens = _add_scaled(tokens, block.drop_path1(attended), block.ls1)
    return _add_scaled(tokens, block.drop_path2(block.mlp(block.norm2(tokens))), block.ls2)


def _add_scaled(tokens: Tensor, update: Tensor, scale: nn.Module) -> Tensor:
    """Return the sum of tokens and a scaled update; what scales channels and what drops images can change places."""
    if type(scale) is LayerScale:
        return torch.addcmul(tokens, update, scale.gamma)
    return tokens + scale(update)
