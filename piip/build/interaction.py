"""Interaction units, by the table of attention kinds."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from torch import nn

from piip.config import InteractionConfig
from piip.kinds import ATTENTION_KINDS
from piip.layers.attention import CrossAttention, DeformableCrossAttention
from piip.layers.interaction import ConvFFN, Injector, InteractionUnit
from piip.structures import StageInfo
from piip.tables import Table

logger = logging.getLogger("piip")


def fitting_heads(width: int, wanted: int) -> int:
    """Return the largest number of heads up to `wanted` that divides `width`."""
    return next(heads for heads in range(min(wanted, width), 0, -1) if width % heads == 0)


@functools.lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    logger.warning(message)


def _fitting_heads(width: int, config: InteractionConfig) -> int:
    heads = fitting_heads(width, config.num_heads)
    if heads != config.num_heads:
        _say_once(f"{config.num_heads} heads do not divide the attention width {width}: using {heads}.")
    return heads


def _deformable(config: InteractionConfig, query_dim: int, source_dim: int) -> nn.Module:
    width = int(query_dim * config.value_ratio)
    if width < 1:
        raise ValueError(f"value_ratio {config.value_ratio} leaves no values at width {query_dim}; raise it.")
    return DeformableCrossAttention(
        query_dim,
        source_dim,
        num_heads=_fitting_heads(width, config),
        num_points=config.num_points,
        value_ratio=config.value_ratio,
    )


def _dense(config: InteractionConfig, query_dim: int, source_dim: int) -> nn.Module:
    return CrossAttention(query_dim, source_dim, num_heads=_fitting_heads(query_dim, config))


def _injector(config: InteractionConfig, dim: int, source_dim: int) -> Injector:
    def norm(width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=1e-6) if config.norm else nn.Identity()

    hidden = int(dim * config.ffn_ratio)
    if config.ffn_ratio and not hidden:
        raise ValueError(
            f"ffn_ratio {config.ffn_ratio} leaves no hidden layer at width {dim}; raise it, or 0 for none."
        )
    return Injector(
        ATTENTIONS[config.attention](config, dim, source_dim),
        dim,
        query_norm=norm(dim),
        source_norm=norm(source_dim),
        ffn=ConvFFN(dim, hidden) if hidden else None,
        ffn_norm=norm(dim) if hidden else None,
        drop_path_rate=config.drop_path_rate,
        gate_init=config.gate_init,
    )


def interaction_unit(config: InteractionConfig, coarse: StageInfo, fine: StageInfo) -> InteractionUnit:
    """Build the interaction of two neighbouring branches."""
    to_coarse, to_fine = (config.direction in ("both", way) for way in ("to_coarse", "to_fine"))
    project = config.projection
    return InteractionUnit(
        _injector(config, coarse.channels, coarse.channels if project else fine.channels) if to_coarse else None,
        _injector(config, fine.channels, fine.channels if project else coarse.channels) if to_fine else None,
        coarse_projection=nn.Linear(fine.channels, coarse.channels) if project and to_coarse else None,
        fine_projection=nn.Linear(coarse.channels, fine.channels) if project and to_fine else None,
    )


# Description, width of the queries, width of the source -> cross-attention with
# `forward(query, source, query_grid, source_grid)`.
ATTENTIONS: Table[Callable[[InteractionConfig, int, int], nn.Module], None] = Table(
    "attention", ATTENTION_KINDS, {"deformable": _deformable, "dense": _dense}
)
