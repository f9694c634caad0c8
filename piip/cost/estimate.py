"""`estimate_cost`: models, names and descriptions, counted by one of the rules in a table."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from piip.build import PyramidWarning, build_model
from piip.config import ModelConfig
from piip.cost.paper import paper_cost
from piip.cost.report import CostReport, name_branches
from piip.cost.total import total_cost
from piip.device import without_values
from piip.serialization.base import ModelParts, countable
from piip.structures import Size
from piip.tables import Table
from piip.zoo.create import model_config, published_config


@dataclass(frozen=True)
class Counted:
    """Input of a rule.

    Args:
        given: Argument of `estimate_cost`.
        config: Its description; None for a model built from modules.
        image_size: (H, W) in pixels, None for the nominal square.
    """

    given: nn.Module | str | ModelConfig
    config: ModelConfig | None
    image_size: Size | None

    @property
    def nominal_side(self) -> int | None:
        """Side of the finest branch's nominal square, None without a description."""
        return None if self.config is None else self.config.branches[-1].image_size


def estimate_cost(
    model_or_name: nn.Module | str | ModelConfig,
    *,
    image_size: int | tuple[int, int] | None = None,
    rule: str = "total",
) -> CostReport:
    """Estimate the cost of a model for one image, without running it or allocating weights.

    Args:
        model_or_name: A model, a model name, or a description.
        image_size: Side or (H, W) in pixels; None uses the nominal square of the finest branch.
        rule: "total" counts all operations that run, including merge, neck and head; "paper" follows the authors, who
            exclude detection and segmentation heads.

    Returns:
        The report: `.macs`, `.flops` (= 2 * macs), `.params`, `.parts`; `.without_head` is the same without the head.
        `.meaning` says what is assumed where the cost depends on the image, such as 1,000 proposals.

    Raises:
        ValueError: The name or rule is unknown, or the rule does not apply.

    Example:
        >>> report = estimate_cost("piip_tsb_1120_896_448.deit3_coco_mask_rcnn")
        >>> report.macs / 1e9, report.without_head.macs / 1e9
    """
    count = COST_RULES[rule]
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ValueError(f"image_size is {tuple(size)}, expected positive pixels (H, W).")
    config = _config(model_or_name)
    report = count(Counted(model_or_name, config, size))
    return report if config is None else name_branches(report, config)


def _config(model_or_name: nn.Module | str | ModelConfig) -> ModelConfig | None:
    if isinstance(model_or_name, str):
        return model_config(model_or_name)
    if isinstance(model_or_name, ModelParts):
        return model_or_name.config
    return model_or_name if isinstance(model_or_name, ModelConfig) else None


def count_total(counted: Counted) -> CostReport:
    """Count matrix products, convolutions, attention and sampling that run, and elementwise operations separately.

    Args:
        counted: Input of the rule.

    Raises:
        ValueError: The image size is missing for a module that is not a model of this library.
    """
    given = counted.given
    model = given if isinstance(given, nn.Module) else _build_on_meta(counted.config)
    size = counted.image_size
    if isinstance(model, ModelParts):
        size = size or (model.get_backbone().image_sizes[-1],) * 2
    if size is None:
        raise ValueError("image_size is needed for a model that is not a pyramid, e.g. image_size=224.")
    return total_cost(countable(model), size)


def _build_on_meta(config: ModelConfig | None) -> nn.Module:
    assert config is not None  # names and descriptions have one
    bare = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    with without_values(), warnings.catch_warnings():
        warnings.simplefilter("ignore", PyramidWarning)  # comparing costs is how one finds out
        return build_model(dataclasses.replace(config, branches=bare))


def count_as_paper(counted: Counted) -> CostReport:
    """Count as the authors did, for the nominal square image.

    Args:
        counted: Input of the rule.

    Raises:
        ValueError: There is no description, or another image size is given.
    """
    side, config = counted.nominal_side, counted.config
    if config is None:
        raise ValueError("rule='paper' needs a model name, a ModelConfig or a model built from one.")
    if counted.image_size not in (None, (side, side)):
        raise ValueError(f"rule='paper' counts at the nominal {side} pixels only; remove image_size.")
    return paper_cost(published_config(counted.given) if isinstance(counted.given, str) else config)


# By name; `register` adds a rule (docs/extending.md).
COST_RULES: Table[Callable[[Counted], CostReport], None] = Table.of(
    "cost rule", {"total": count_total, "paper": count_as_paper}
)
