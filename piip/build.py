"""From a description to a model: the only place where numbers meet modules."""

from __future__ import annotations

import dataclasses
import functools
import logging
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from piip.backbone import PIIPBackbone
from piip.branches import Branch, create_network, interaction_points, wrap_network
from piip.config import DENSE_HEADS, BranchConfig, HeadConfig, InteractionConfig, ModelConfig
from piip.cost.counting import count_forward
from piip.heads.classification import PerBranchHead, PIIPClassifier, PooledHead
from piip.heads.dino.head import DINOHead
from piip.heads.dino.transformer import LayerSizes
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.projector import PIIPVisionTower, Projector
from piip.heads.upernet import UperNetHead
from piip.layers.attention import CrossAttention, DeformableCrossAttention
from piip.layers.interaction import ConvFFN, Injector, Interaction, InteractionUnit
from piip.layers.merge import (
    BranchMerge,
    LastMap,
    conv_projection,
    linear_projection,
    short_projection,
    slim_projection,
)
from piip.layers.necks import InteractionPyramid, Neck, SimpleFeaturePyramid
from piip.models import DenseHead, PIIPDenseModel
from piip.structures import StageInfo

logger = logging.getLogger("piip")

SLIM_WIDTH = 256  # what detection and segmentation heads work at
HEAD_WIDTHS = {"projector": 4096, "mask_rcnn": 256, "upernet": 1536, "dino": 256}  # of the released models
BOX_FEATURES = 4  # times the width of a Mask R-CNN
HIDDEN_FEATURES = 8  # times the width of a DINO head


class PyramidWarning(UserWarning):
    """A pyramid whose larger networks see higher resolutions."""


def build_backbone(config: ModelConfig) -> PIIPBackbone:
    """Build the pyramid that a description names.

    Args:
        config: The description; its head is not built.

    Returns:
        A backbone: image (B, 3, H, W) -> list of maps.

    Raises:
        ValueError: Unknown networks, or parts that do not fit together.
    """
    if not isinstance(config, ModelConfig):
        raise ValueError(f"Expected ModelConfig(branches=(BranchConfig(...), ...)), got {type(config).__name__}.")
    networks = [create_network(branch) for branch in config.branches]
    points = [interaction_points(network) for network in networks]
    groups = _number_of_groups(config, points)
    branches = [
        wrap_network(network, branch, groups) for network, branch in zip(networks, config.branches, strict=True)
    ]
    if config.resize == "exact":
        _check_sizes(config, branches)
    if not config.allow_direct:
        _warn_unless_inverted(config, branches)
    if config.normalize == "per_branch":
        for branch in branches:
            branch.renormalize_from(config.mean or branches[0].mean, config.std or branches[0].std)
    interactions = [
        Interaction(
            [
                _unit(config.interaction, coarse.stages[stage], fine.stages[stage])
                for coarse, fine in zip(branches[:-1], branches[1:], strict=True)
            ]
        )
        for stage in range(groups)
    ]
    merge = None if config.merge.kind == "none" else _final_merge(config, branches)
    stage_merges = {stage: _stage_merge(config, branches, stage) for stage in _stages_to_merge(config, groups)}
    neck = _neck(config, branches, merge, list(stage_merges.values()))
    for part in (merge, neck, *stage_merges.values()):
        if part is not None:  # as tokens seen as maps are: convolutions then copy nothing
            part.to(memory_format=torch.channels_last)
    return PIIPBackbone(
        branches,
        interactions,
        merge,
        neck,
        image_sizes=[branch.image_size for branch in config.branches],
        stage_merges=stage_merges,
        official_resize=config.resize == "official",
        config=dataclasses.replace(config, head=HeadConfig()),
    )


def build_model(config: ModelConfig) -> PIIPBackbone | PIIPClassifier | PIIPVisionTower | PIIPDenseModel:
    """Build the whole model of a description: with its head, or the backbone where there is none.

    Args:
        config: The description.

    Returns:
        The model.

    Raises:
        ValueError: Unknown networks, or parts that do not fit together.
    """
    backbone = build_backbone(config)
    head = config.head
    if head.kind == "none":
        return backbone
    if head.kind == "pooled":
        pooled = PooledHead(_map_width(backbone.branches, backbone.merge), head.num_classes, pool=head.pool)
        return PIIPClassifier(backbone, pooled, config=config)
    widths = [branch.stages[-1].channels for branch in backbone.branches]
    if head.kind == "projector":
        return PIIPVisionTower(backbone, Projector(widths, head.width or HEAD_WIDTHS[head.kind]), config=config)
    if head.kind in DENSE_HEADS:
        return PIIPDenseModel(backbone, _dense_head(head, backbone), config=config)
    without = [i for i, branch in enumerate(backbone.branches) if head.pool == "token" and not branch.has_class_token]
    if without:
        names = ", ".join(config.branches[i].network for i in without)
        raise ValueError(f"HeadConfig.pool 'token' needs class tokens, {names} has none; use pool 'mean'.")
    return PIIPClassifier(backbone, PerBranchHead(widths, head.num_classes, pool=head.pool), config=config)


def _dense_head(head: HeadConfig, backbone: PIIPBackbone) -> DenseHead:
    channels = [int(info["num_chs"]) for info in backbone.feature_info]
    width = head.width or HEAD_WIDTHS[head.kind]
    if head.kind == "dino":
        return DINOHead(channels, head.num_classes, sizes=LayerSizes(width, HIDDEN_FEATURES * width))
    if len(channels) != 4:
        raise ValueError(f"HeadConfig {head.kind!r} reads four maps, the neck makes {len(channels)}; set neck.scales.")
    if head.kind == "upernet":
        return UperNetHead(channels, head.num_classes, channels=width, auxiliary_channels=width)
    return MaskRCNNHead(
        channels,
        head.num_classes,
        channels=width,
        proposal_channels=width,
        box_features=BOX_FEATURES * width,
        mask_channels=width,
        anchor_scale=head.anchor_scale,
    )


def _number_of_groups(config: ModelConfig, points: list[int]) -> int:
    if config.interaction.count is not None and len(points) > 1:
        groups = config.interaction.count
    elif config.branches[0].block_groups is not None:
        groups = len(config.branches[0].block_groups)
    else:
        groups = min(points) if len(points) > 1 else 1
    for branch, available in zip(config.branches, points, strict=True):
        if groups > available:
            raise ValueError(
                f"{groups} interactions were asked for, but {branch.network} can take at most {available} (one after "
                "each block or stage); lower interaction.count."
            )
    return groups


def _check_sizes(config: ModelConfig, branches: list[Branch]) -> None:
    for description, branch in zip(config.branches, branches, strict=True):
        size, stride = description.image_size, branch.stride
        if size % stride:
            below, above = size // stride * stride, (size // stride + 1) * stride
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"image_size {size} of {description.network} is not a multiple of its stride {stride}; use {nearest}."
            )


def _warn_unless_inverted(config: ModelConfig, branches: list[Branch]) -> None:
    """Warn when a network is not larger than its neighbour at the next higher resolution."""
    params = [sum(p.numel() for p in branch.parameters()) for branch in branches]
    sizes = [branch.image_size for branch in config.branches]
    wrong = [i for i in range(len(params) - 1) if params[i] <= params[i + 1] or sizes[i] > sizes[i + 1]]
    if not wrong:
        return
    lines = [
        f"  branch {i}: {branch.network} at {branch.image_size} px, {params[i] / 1e6:.1f} M parameters, "
        f"{_branch_macs(branch) / 1e9:.2f} GMACs"
        for i, branch in enumerate(config.branches)
    ]
    warnings.warn(
        "This pyramid is not parameter-inverted: every branch should be a larger network at a lower resolution than "
        f"the next one, but branch {wrong[0]} is not, compared with branch {wrong[0] + 1}. Such a pyramid costs more "
        "and gains less; reorder the branches, or set ModelConfig(allow_direct=True) for a baseline.\n"
        + "\n".join(lines),
        PyramidWarning,
        stacklevel=3,
    )


def _branch_macs(config: BranchConfig) -> int:
    with torch.device("meta"):
        bare = dataclasses.replace(config, pretrained=False, block_groups=None)
        branch = wrap_network(create_network(bare), bare, 1)
    return count_forward(branch, (config.image_size, config.image_size))


def fitting_heads(width: int, wanted: int) -> int:
    """Return the largest number of heads up to `wanted` that divides `width`."""
    return next(heads for heads in range(min(wanted, width), 0, -1) if width % heads == 0)


@functools.lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    logger.warning(message)


def _attention(config: InteractionConfig, query_dim: int, source_dim: int) -> nn.Module:
    deformable = config.attention == "deformable"
    width = int(query_dim * config.value_ratio) if deformable else query_dim
    if width < 1:
        raise ValueError(f"value_ratio {config.value_ratio} leaves no values at width {query_dim}; raise it.")
    heads = fitting_heads(width, config.num_heads)
    if heads != config.num_heads:
        _say_once(f"{config.num_heads} heads do not divide the attention width {width}: using {heads}.")
    if not deformable:
        return CrossAttention(query_dim, source_dim, num_heads=heads)
    return DeformableCrossAttention(
        query_dim, source_dim, num_heads=heads, num_points=config.num_points, value_ratio=config.value_ratio
    )


def _injector(config: InteractionConfig, dim: int, source_dim: int) -> Injector:
    def norm(width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=1e-6) if config.norm else nn.Identity()

    hidden = int(dim * config.ffn_ratio)
    if config.ffn_ratio and not hidden:
        raise ValueError(
            f"ffn_ratio {config.ffn_ratio} leaves no hidden layer at width {dim}; raise it, or 0 for none."
        )
    return Injector(
        _attention(config, dim, source_dim),
        dim,
        query_norm=norm(dim),
        source_norm=norm(source_dim),
        ffn=ConvFFN(dim, hidden) if hidden else None,
        ffn_norm=norm(dim) if hidden else None,
        drop_path_rate=config.drop_path_rate,
    )


def _unit(config: InteractionConfig, coarse: StageInfo, fine: StageInfo) -> InteractionUnit:
    to_coarse, to_fine = config.direction != "to_fine", config.direction != "to_coarse"
    project = config.projection
    return InteractionUnit(
        _injector(config, coarse.channels, coarse.channels if project else fine.channels) if to_coarse else None,
        _injector(config, fine.channels, fine.channels if project else coarse.channels) if to_fine else None,
        coarse_projection=nn.Linear(fine.channels, coarse.channels) if project and to_coarse else None,
        fine_projection=nn.Linear(coarse.channels, fine.channels) if project and to_fine else None,
    )


def _final_merge(config: ModelConfig, branches: list[Branch]) -> BranchMerge:
    if config.neck.kind == "interaction":
        return _short_merge(branches, -1)
    widths = [branch.stages[-1].channels for branch in branches]
    kind = config.merge.kind
    width = config.merge.width or (SLIM_WIDTH if kind == "slim" else widths[0])
    if kind == "linear":
        parts = [linear_projection(channels, width, is_first=i == 0) for i, channels in enumerate(widths)]
    else:
        make = conv_projection if kind == "conv" else slim_projection
        parts = [make(channels, width) for channels in widths]
    return BranchMerge(parts, width)


def _map_width(branches: Sequence[Branch], merge: BranchMerge | None) -> int:
    """Return the width of the map that necks and pooled heads read."""
    return branches[-1].stages[-1].channels if merge is None else merge.out_channels


def _short_merge(branches: list[Branch], stage: int) -> BranchMerge:
    widths = [branch.stages[stage].channels for branch in branches]
    parts = [short_projection(channels, widths[0], is_first=i == 0) for i, channels in enumerate(widths)]
    return BranchMerge(parts, widths[0])


def _stage_merge(config: ModelConfig, branches: list[Branch], stage: int) -> BranchMerge | LastMap:
    if config.neck.kind == "stages":
        return LastMap(branches[-1].stages[stage].channels)
    return _short_merge(branches, stage)


def _stages_to_merge(config: ModelConfig, groups: int) -> tuple[int, ...]:
    if config.neck.kind == "stages":
        return tuple(range(groups - 1))
    if config.neck.kind != "interaction":
        return ()
    outside = [stage for stage in config.neck.interactions if not 0 <= stage < groups]
    if outside:
        raise ValueError(f"NeckConfig.interactions names {outside}, but there are interactions 0 to {groups - 1} only.")
    return config.neck.interactions


def _neck(
    config: ModelConfig, branches: list[Branch], merge: BranchMerge | None, stage_merges: list[BranchMerge | LastMap]
) -> Neck | None:
    if config.neck.kind in ("none", "stages"):
        return None
    if config.neck.kind == "simple":
        return SimpleFeaturePyramid(_map_width(branches, merge), scales=config.neck.scales, norm=config.neck.norm)
    widths = [*(part.out_channels for part in stage_merges), _map_width(branches, merge)]
    # a network with stages already brings maps of different sizes
    uniform = len({stage.stride for stage in branches[-1].stages}) == 1
    scales = config.neck.scales if uniform else (1,) * len(widths)
    return InteractionPyramid(widths, scales=scales)
