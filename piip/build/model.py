"""From a description to a whole model, by the table of head kinds."""

from __future__ import annotations

from collections.abc import Callable

from piip.backbone import PIIPBackbone
from piip.build.backbone import build_backbone
from piip.build.merge import map_width
from piip.config import HeadConfig, ModelConfig
from piip.heads.classification import PerBranchHead, PooledHead
from piip.heads.dino.head import DINOHead
from piip.heads.dino.transformer import LayerSizes
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.projector import Projector
from piip.heads.upernet import UperNetHead
from piip.kinds import HEAD_KINDS, HeadFacts
from piip.models import PIIPClassifier, PIIPDenseModel, PIIPVisionTower
from piip.serialization.base import PyramidModel
from piip.tables import Table

BOX_FEATURES = 4  # times the width of a Mask R-CNN
HIDDEN_FEATURES = 8  # times the width of a DINO head


def build_model(config: ModelConfig) -> PyramidModel:
    """Build the whole model of a description: with its head, or the backbone where there is none.

    Args:
        config: The description.

    Returns:
        A `PIIPBackbone`, `PIIPClassifier`, `PIIPVisionTower` or `PIIPDenseModel`.

    Raises:
        ValueError: Unknown networks, or parts that do not fit together.
    """
    return HEADS[config.head.kind](config, build_backbone(config))


def branch_widths(backbone: PIIPBackbone) -> list[int]:
    """Return the channels of every branch's last stage."""
    return [branch.stages[-1].channels for branch in backbone.branches]


def head_width(head: HeadConfig) -> int:
    """Return the channels inside a head: those of the description, or those of the released models."""
    width = head.width or HEAD_KINDS[head.kind].width
    if width is None:
        raise ValueError(f"HeadConfig.width is missing, head {head.kind!r} has no default.")
    return width


def _without_head(_config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    return backbone


def _pooled(config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    width = map_width(backbone.branches, backbone.merge)
    return PIIPClassifier(backbone, PooledHead(width, config.head.num_classes, pool=config.head.pool), config=config)


def _per_branch(config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    head = config.head
    without = [i for i, branch in enumerate(backbone.branches) if head.pool == "token" and not branch.has_class_token]
    if without:
        names = ", ".join(config.branches[i].network for i in without)
        raise ValueError(f"HeadConfig.pool 'token' needs class tokens, {names} has none; use pool 'mean'.")
    built = PerBranchHead(branch_widths(backbone), head.num_classes, pool=head.pool)
    return PIIPClassifier(backbone, built, config=config)


def _projector(config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    projector = Projector(branch_widths(backbone), head_width(config.head))
    return PIIPVisionTower(backbone, projector, config=config)


def _dino(config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    width = head_width(config.head)
    channels = [int(info["num_chs"]) for info in backbone.feature_info]
    head = DINOHead(channels, config.head.num_classes, sizes=LayerSizes(width, HIDDEN_FEATURES * width))
    return PIIPDenseModel(backbone, head, config=config)


def _four_maps(config: ModelConfig, backbone: PIIPBackbone) -> list[int]:
    """Return the channels of the backbone's four maps."""
    channels = [int(info["num_chs"]) for info in backbone.feature_info]
    if len(channels) != 4:
        raise ValueError(
            f"HeadConfig {config.head.kind!r} reads four maps, the neck makes {len(channels)}; set neck.scales."
        )
    return channels


def _upernet(config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    channels, width = _four_maps(config, backbone), head_width(config.head)
    head = UperNetHead(channels, config.head.num_classes, channels=width, auxiliary_channels=width)
    return PIIPDenseModel(backbone, head, config=config)


def _mask_rcnn(config: ModelConfig, backbone: PIIPBackbone) -> PyramidModel:
    width = head_width(config.head)
    head = MaskRCNNHead(
        _four_maps(config, backbone),
        config.head.num_classes,
        channels=width,
        proposal_channels=width,
        box_features=BOX_FEATURES * width,
        mask_channels=width,
        anchor_scale=config.head.anchor_scale,
    )
    return PIIPDenseModel(backbone, head, config=config)


# Description and backbone -> the model.
HEADS: Table[Callable[[ModelConfig, PIIPBackbone], PyramidModel], HeadFacts] = Table(
    "head",
    HEAD_KINDS,
    {
        "none": _without_head,
        "pooled": _pooled,
        "per_branch": _per_branch,
        "projector": _projector,
        "mask_rcnn": _mask_rcnn,
        "upernet": _upernet,
        "dino": _dino,
    },
)
