"""Cost: multiply-adds, parameters and activations, part by part, by our rule and by the paper's."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import nn

from piip.build import PyramidWarning, build_model
from piip.checkpoints.official import OfficialModel
from piip.config import DENSE_HEADS, BranchConfig, HeadConfig, ModelConfig
from piip.cost.operations import list_operations
from piip.cost.paper import paper_cost
from piip.cost.report import CostReport, PartCost, format_table
from piip.cost.total import find_backbone, total_cost
from piip.models import PIIPDenseModel
from piip.serialization.base import DescribedModel
from piip.zoo.create import model_config, published_config

SIZES = {"embed_dim": "wide", "depth": "deep"}  # arguments that make a named network another one

__all__ = ["CostReport", "PartCost", "estimate_cost", "format_table", "list_operations"]


def estimate_cost(
    model_or_name: nn.Module | str | ModelConfig,
    *,
    image_size: int | tuple[int, int] | None = None,
    rule: str = "total",
) -> CostReport:
    """Estimate what a model costs for one image, without running it or holding its weights.

    Args:
        model_or_name: A model, a model name, or a description.
        image_size: Side or (H, W) in pixels; None takes the nominal finest square.
        rule: "total" counts what really runs, merge, neck and classifier included; "paper" what the authors counted.
            Detection and segmentation heads are left out by both.

    Returns:
        The report: `.macs`, `.flops` (= 2 * macs), `.params`, `.parts`.

    Raises:
        ValueError: An unknown name or rule, or a rule that does not apply.

    Example:
        >>> estimate_cost("piip_tsb_1120_896_448.deit3_coco_mask_rcnn").macs / 1e9
    """
    if rule not in ("total", "paper"):
        raise ValueError(f"rule is {rule!r}, expected 'total' or 'paper'.")
    config = _config(model_or_name)
    if rule == "paper":
        if config is None:
            raise ValueError("rule='paper' needs a model name, a ModelConfig or a model built from one.")
        nominal = config.branches[-1].image_size
        if image_size not in (None, nominal, (nominal, nominal)):
            raise ValueError(f"rule='paper' counts at the nominal {nominal} pixels only; leave image_size out.")
        if isinstance(model_or_name, str):
            config = published_config(model_or_name)
        return _named(paper_cost(config), config)
    model = model_or_name if isinstance(model_or_name, nn.Module) else _build_on_meta(config)
    if isinstance(model, PIIPDenseModel):  # what its head costs depends on what it finds
        model = model.backbone
    report = total_cost(model, _size(image_size, model, config))
    return _named(report, config)


def _config(model_or_name: nn.Module | str | ModelConfig) -> ModelConfig | None:
    if isinstance(model_or_name, str):
        return model_config(model_or_name)
    if isinstance(model_or_name, DescribedModel | OfficialModel):
        return model_or_name.config
    return model_or_name if isinstance(model_or_name, ModelConfig) else None


def _build_on_meta(config: ModelConfig | None) -> nn.Module:
    assert config is not None  # names and descriptions have one
    bare = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", PyramidWarning)  # comparing costs is how one finds out
        head = HeadConfig() if config.head.kind in DENSE_HEADS else config.head
        return build_model(dataclasses.replace(config, branches=bare, head=head))


def _size(image_size: int | tuple[int, int] | None, model: nn.Module, config: ModelConfig | None) -> tuple[int, int]:
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size is {(height, width)}, expected positive pixels (H, W).")
        return height, width
    backbone = find_backbone(model)
    if backbone is None:
        raise ValueError("image_size is needed for a model that is not a pyramid, e.g. image_size=224.")
    return backbone.image_sizes[-1], backbone.image_sizes[-1]


def _named(report: CostReport, config: ModelConfig | None) -> CostReport:
    if config is None:
        return report
    names = {f"branch {i}": _label(branch) for i, branch in enumerate(config.branches)}
    return dataclasses.replace(report, names=names)


def _label(branch: BranchConfig) -> str:
    """Name a branch, with width and depth where they are not the network's own."""
    sizes = [f"{branch.timm_args[key]} {word}" for key, word in SIZES.items() if key in branch.timm_args]
    return f"{branch.network}{' ' + ', '.join(sizes) if sizes else ''} @ {branch.image_size}"
