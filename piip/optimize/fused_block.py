"""Transformer blocks for inference on CPU in fewer steps than they are made of."""

from __future__ import annotations

from typing import Any, TypeGuard

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from piip.branches.window import attend, in_windows, windowed_block
from piip.ops.native import gemm
from piip.optimize.packing import (
    InPlaceGELU,
    PackedLinear,
    can_pack,
    in_place,
    is_plain_norm,
    joins,
    packed_linear,
    packed_norm,
)
from piip.structures import Grid


class FusedBlock(nn.Module):
    """A plain transformer block of timm whose sums are part of its gemm.

    In bfloat16, where the processor multiplies such numbers, attention of short sequences and the whole MLP are one
    kernel each.

    Args:
        block: The block to stand for, one that `can_fuse_block`; its attention is packed in place.
        rows: Tokens of a batch, for which layouts are chosen.
    """

    def __init__(self, block: Block, *, rows: int) -> None:
        super().__init__()
        attention: Any = block.attn
        self.norm, self.attention = packed_norm(block.norm1) or block.norm1, attention
        for name in ("qkv", "proj"):
            layer = getattr(attention, name)
            setattr(attention, name, packed_linear(layer.weight, layer.bias, rows=rows))
        norms = (attention.q_norm, attention.k_norm, attention.norm)
        self.is_plain = all(isinstance(norm, nn.Identity) for norm in norms)  # between the two products
        self.mlp = (FusedMLP if _suits_kernel(block.mlp) else PackedMLP)(block.norm2, block.mlp, rows=rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the block on tokens (B, N, C)."""
        attended = self._attend(self.attention.qkv(self.norm(tokens)))
        return self.mlp(self.attention.proj(attended, tokens))

    def in_windows(self, tokens: Tensor, grid: Grid, window: int, pad_with_bias: bool) -> Tensor:
        """Run the block with attention inside windows; see `windowed_block`."""
        qkv = self.attention.qkv(self.norm(tokens))
        fill = self.attention.qkv.bias if pad_with_bias else None
        attended = in_windows(self._attend, qkv, grid, window, fill=fill)
        return self.mlp(self.attention.proj(attended, tokens))

    def _attend(self, qkv: Tensor) -> Tensor:
        if self.is_plain and gemm.can_attend(qkv, self.attention.num_heads):
            return gemm.attend(qkv, self.attention.num_heads, self.attention.scale)
        return attend(self.attention, qkv)


class PackedMLP(nn.Module):
    """Norm, two-layer network and sum.

    Args:
        norm: Layer norm.
        mlp: The network.
        rows: Tokens of a batch, for which layouts are chosen.
    """

    def __init__(self, norm: nn.Module, mlp: Any, *, rows: int) -> None:
        super().__init__()
        self.norm, self.act = packed_norm(norm) or norm, in_place(mlp.act)
        self.fc1, self.fc2 = (packed_linear(layer.weight, layer.bias, rows=rows) for layer in (mlp.fc1, mlp.fc2))
        if joins(mlp.act):
            self.act = nn.Identity()
            self.fc1 = PackedLinear(mlp.fc1.weight, mlp.fc1.bias, rows=rows, activation="gelu")

    def forward(self, tokens: Tensor, add: Tensor | None = None) -> Tensor:
        """Return the network's result for tokens (..., C) plus `add`, or plus the tokens."""
        return self.fc2(self.act(self.fc1(self.norm(tokens))), tokens if add is None else add)


class FusedMLP(nn.Module):
    """The same in one kernel; the arguments are those of `PackedMLP`."""

    def __init__(self, norm: nn.Module, mlp: Any, *, rows: int) -> None:
        super().__init__()
        packed = packed_norm(norm)
        assert packed is not None, "callers ask first"
        self.norm = gemm.Norm(packed.weight, packed.bias, packed.epsilon)
        self.first, self.second = (gemm.tiled(layer.weight, layer.bias) for layer in (mlp.fc1, mlp.fc2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, N, C) plus the network's result."""
        return gemm.network(tokens, self.norm, self.first, self.second)


def fused_windowed_block(block: nn.Module, tokens: Tensor, grid: Grid, window: int, pad_with_bias: bool) -> Tensor:
    """Run a block with attention inside windows, fused where it is a `FusedBlock`; see `windowed_block`."""
    if isinstance(block, FusedBlock):
        return block.in_windows(tokens, grid, window, pad_with_bias)
    return windowed_block(block, tokens, grid, window, pad_with_bias)


def can_fuse_block(block: nn.Module) -> TypeGuard[Block]:
    """Return whether `FusedBlock` can stand for a module: a plain block of timm whose layer scales are folded."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    attention, mlp = block.attn, block.mlp
    layers = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
    return (
        all(type(layer) is nn.Linear and can_pack(layer.weight) for layer in layers)
        and all(type(step) is nn.Identity for step in (block.ls1, block.ls2, mlp.norm))
        and getattr(attention, "gate", None) is None  # timm before 1.0.28 has no gates
        and is_plain_norm(block.norm1)
        and is_plain_norm(block.norm2)
    )


def _suits_kernel(mlp: Any) -> bool:
    is_gelu = type(in_place(mlp.act)) is InPlaceGELU
    return is_gelu and gemm.are_available(mlp.fc1.weight) and mlp.fc1.in_features == mlp.fc2.out_features
