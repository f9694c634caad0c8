"""Encoder and decoder of the DINO head.

Layers are post-norm. Positions are added to queries and keys, never to values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.heads.dino.attention import LevelsDeformableAttention
from piip.heads.dino.boxes import inverse_sigmoid
from piip.heads.dino.tokens import LevelTokens, cell_references, sine_embedding

BOX_TEMPERATURE = 10_000.0


class LayerSizes(NamedTuple):
    """Sizes that all layers share.

    Attributes:
        embed_dim: Width C.
        hidden_dim: Hidden width of the feed-forward parts.
        num_heads: Attention heads.
        num_levels: Number of levels L.
        num_points: Sampling points per head and level.
    """

    embed_dim: int = 256
    hidden_dim: int = 2048
    num_heads: int = 8
    num_levels: int = 4
    num_points: int = 4

    def deformable_attention(self) -> LevelsDeformableAttention:
        """Build an attention of these sizes."""
        return LevelsDeformableAttention(
            self.embed_dim, num_heads=self.num_heads, num_levels=self.num_levels, num_points=self.num_points
        )

    def feed_forward(self) -> nn.Sequential:
        """Build a feed-forward part of these sizes."""
        return mlp([self.embed_dim, self.hidden_dim, self.embed_dim])

    def norms(self, count: int) -> nn.ModuleList:
        """Build layer norms of these sizes."""
        return nn.ModuleList([nn.LayerNorm(self.embed_dim) for _ in range(count)])


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers between the widths with ReLUs between the layers, Xavier-uniform, without offsets."""
    layers: list[nn.Module] = []
    for in_features, out_features in zip(widths[:-1], widths[1:], strict=True):
        linear = nn.Linear(in_features, out_features)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class EncoderLayer(nn.Module):
    """Encoder layer: attention between the cells of all levels.

    Args:
        sizes: Sizes of the layer.
    """

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.attention = sizes.deformable_attention()
        self.feed_forward = sizes.feed_forward()
        self.norms = sizes.norms(2)

    def forward(self, tokens: Tensor, references: Tensor, levels: LevelTokens) -> Tensor:
        """Return the tokens (B, N, C) after one layer."""
        attended = self.attention(tokens + levels.positions, tokens, references, levels)
        tokens = self.norms[0](tokens + attended)
        return self.norms[1](tokens + self.feed_forward(tokens))


class Encoder(nn.Module):
    """Encoder layers and level embeddings.

    Args:
        sizes: Sizes of the layers.
        depth: Number of layers.
    """

    def __init__(self, sizes: LayerSizes, depth: int) -> None:
        super().__init__()
        self.level_embeds = nn.Parameter(torch.randn(sizes.num_levels, sizes.embed_dim))
        self.layers = nn.ModuleList([EncoderLayer(sizes) for _ in range(depth)])

    def forward(self, levels: LevelTokens) -> Tensor:
        """Return the memory (B, N, C) of the tokens."""
        references = cell_references(levels)
        tokens = levels.tokens
        for layer in self.layers:
            tokens = layer(tokens, references, levels)
        return tokens


class DecoderLayer(nn.Module):
    """Decoder layer: self-attention of queries, then attention to the memory.

    Args:
        sizes: Sizes of the layer.
    """

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(sizes.embed_dim, sizes.num_heads, batch_first=True)
        self.cross_attention = sizes.deformable_attention()
        self.feed_forward = sizes.feed_forward()
        self.norms = sizes.norms(3)

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        memory: Tensor,
        references: Tensor,
        levels: LevelTokens,
        visible: Tensor | None,
    ) -> Tensor:
        """Return the states (B, Q, C) after one layer; `visible` (Q, Q) is False if a query cannot see another."""
        states = self.norms[0](states + self._attend(states + positions, states, visible))
        read = self.cross_attention(states + positions, memory, references, levels)
        states = self.norms[1](states + read)
        return self.norms[2](states + self.feed_forward(states))

    def _attend(self, query: Tensor, states: Tensor, visible: Tensor | None) -> Tensor:
        """Run the self-attention with one product for queries and keys, which have the same input."""
        attention, width = self.self_attention, states.shape[2]
        weight, value_weight = attention.in_proj_weight.split([2 * width, width])
        bias, value_bias = attention.in_proj_bias.split([2 * width, width])
        heads = (attention.num_heads, attention.head_dim)
        queries, keys = F.linear(query, weight, bias).unflatten(2, (2, *heads)).unbind(2)
        values = F.linear(states, value_weight, value_bias).unflatten(2, heads)
        queries, keys, values = (each.transpose(1, 2) for each in (queries, keys, values))
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
        return attention.out_proj(attended.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Decoder layers that refine the box of every query.

    Args:
        sizes: Sizes of the layers.
        depth: Number of layers.
    """

    def __init__(self, sizes: LayerSizes, depth: int) -> None:
        super().__init__()
        width = sizes.embed_dim
        self.layers = nn.ModuleList([DecoderLayer(sizes) for _ in range(depth)])
        self.positions = mlp([2 * width, width, width])
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        content: Tensor,
        boxes: Tensor,
        memory: Tensor,
        levels: LevelTokens,
        *,
        refine: Sequence[nn.Module],
        attn_mask: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Decode the queries.

        parity: refinement reads the state as it is, the prediction elsewhere reads the normed one, with one branch.

        Args:
            content: Initial query contents, (B, Q, C).
            boxes: Initial boxes x, y, w, h in [0, 1], relative to the image, float32, (B, Q, 4).
            memory: Output of the encoder, (B, N, C).
            levels: Grids and padding of the memory.
            refine: For every layer the branch that moves the boxes, in logits.
            attn_mask: True where a query (row) cannot see another (column), (Q, Q); None is nowhere.

        Returns:
            For every layer the normed states (B, Q, C); boxes before the first layer and after each one, (B, Q, 4);
            for every layer the move from the box before it, in logits, that the normed states give, (B, Q, 4).
            Boxes carry gradients of the last refinement only: "look forward twice" (arXiv 2203.03605, section 3.5).
        """
        shares = levels.valid.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        visible = None if attn_mask is None else ~attn_mask
        states, normed, references, moves = content, [], [boxes], []
        for layer, branch in zip(self.layers, refine, strict=True):
            on_levels = boxes[:, :, None] * shares  # relative to every, perhaps padded, level
            states = layer(states, self._embed(on_levels, states), memory, on_levels, levels, visible)
            normed.append(self.norm(states))
            move, predicted = branch(torch.stack((states, normed[-1]))).float().unbind()
            refined = (move + inverse_sigmoid(boxes)).sigmoid()
            references.append(refined)
            moves.append(predicted)
            boxes = refined.detach()
        return normed, references, moves

    def _embed(self, on_levels: Tensor, like: Tensor) -> Tensor:
        # parity: boxes are relative to the padded batch here (by the finest level's share), not to the image
        x, y, w, h = on_levels[:, :, 0].unbind(-1)
        embedding = sine_embedding(torch.stack((y, x, w, h), -1), like.shape[-1] // 2, BOX_TEMPERATURE)
        return self.positions(embedding.to(like.dtype))
