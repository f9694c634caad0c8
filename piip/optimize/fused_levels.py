"""Layers of the DINO head for inference on CPU in fewer steps than they are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from piip.heads.dino.attention import LevelsDeformableAttention
from piip.heads.dino.tokens import LevelTokens
from piip.heads.dino.transformer import EncoderLayer
from piip.ops import native
from piip.optimize.packing import can_pack, packed_linear, packed_norm


class FusedLevelsAttention(nn.Module):
    """Deformable attention over several levels with one product for offsets and weights.

    Args:
        attention: The layer to stand for.
        rows: Queries of a batch and tokens of a batch, for which layouts are chosen.
    """

    def __init__(self, attention: LevelsDeformableAttention, *, rows: tuple[int, int]) -> None:
        super().__init__()
        queries, tokens = rows
        self.num_heads = attention.samples[0]
        layers = (attention.offsets, attention.weights)
        self.widths = [layer.out_features for layer in layers]
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        self.raw = packed_linear(weight, bias, rows=queries)
        self.value = packed_linear(attention.value.weight, attention.value.bias, rows=tokens)
        self.output = packed_linear(attention.output.weight, attention.output.bias, rows=queries)

    def forward(
        self, query: Tensor, tokens: Tensor, references: Tensor, levels: LevelTokens, add: Tensor | None = None
    ) -> Tensor:
        """Attend as `LevelsDeformableAttention`, plus `add` (B, Q, C)."""
        value = levels.without_padding(self.value(tokens)).unflatten(2, (self.num_heads, -1))
        offsets, logits = self.raw(query).split(self.widths, 2)
        sides = [side for grid in levels.grids for side in grid]
        return self.output(native.sample_levels(value, sides, offsets, logits, references), add)


class FusedEncoderLayer(nn.Module):
    """An `EncoderLayer` whose sums are part of its products.

    Args:
        layer: The layer to stand for.
        rows: Tokens of a batch, for which layouts are chosen.
    """

    def __init__(self, layer: EncoderLayer, *, rows: int) -> None:
        super().__init__()
        self.attention = FusedLevelsAttention(layer.attention, rows=(rows, rows))
        first, second = layer.feed_forward[0], layer.feed_forward[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        self.first = packed_linear(first.weight, first.bias, rows=rows, activation="relu")
        self.second = packed_linear(second.weight, second.bias, rows=rows)
        self.norms = nn.ModuleList([packed_norm(norm) or norm for norm in layer.norms])

    def forward(self, tokens: Tensor, references: Tensor, levels: LevelTokens) -> Tensor:
        """Return the tokens (B, N, C) after one layer."""
        tokens = self.norms[0](self.attention(tokens + levels.positions, tokens, references, levels, tokens))
        return self.norms[1](self.second(self.first(tokens), tokens))


def fused_levels(layer: nn.Module, shapes: dict[nn.Module, list[tuple[int, ...]]]) -> nn.Module | None:
    """Return the fused form of a layer of the DINO head, or None where there is none.

    Args:
        layer: Any module.
        shapes: Of the tensors that modules are called with.
    """
    if layer not in shapes or not native.is_available():
        return None
    if type(layer) is EncoderLayer and can_pack(layer.attention.value.weight):
        batch, tokens, _ = shapes[layer][0]
        return FusedEncoderLayer(layer, rows=batch * tokens)
    if type(layer) is LevelsDeformableAttention and can_pack(layer.value.weight):
        queries, tokens = (shape[0] * shape[1] for shape in shapes[layer][:2])
        return FusedLevelsAttention(layer, rows=(queries, tokens))
    return None
