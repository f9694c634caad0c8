"""What to measure: named models, recipes and model directories, with the accuracy that is known of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.config import HeadConfig, ModelConfig
from piip.recipe import load_recipe
from piip.serialization.description import read_description
from piip.serialization.hub import find_model
from piip.structures import Size
from piip.zoo.create import model_config
from piip.zoo.published import MAIN_RESULTS, PublishedModel, published_models

RECIPE_ENDINGS = (".yaml", ".yml")
# Keys of `metadata["metrics"]`, which `piip train` records, and names of the metrics; the first that is there counts.
RECORDED_METRICS = {"val/box_ap": "Box mAP", "val/miou": "mIoU", "val/top1": "Top-1 Acc"}


@dataclass(frozen=True)
class Accuracy:
    """A known result of a model.

    Args:
        metric: Name of the metric, e.g. "Box mAP".
        value: In percent.
        source: Who measured it, on what.
    """

    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        name: Name, recipe or directory, as given.
        config: Description of what is measured.
        directory: Directory of its weights; None for random weights, which take the same time.
        accuracy: Its known result; None if there is none.
        image_size: (H, W) in pixels at which it was evaluated, padding included; None for its nominal square.
    """

    name: str
    config: ModelConfig
    directory: str | None = None
    accuracy: Accuracy | None = None
    image_size: Size | None = None


def find_subject(name: str, *, with_head: bool = False) -> Subject:
    """Return the model of a name, a recipe or a directory.

    Args:
        name: One of `piip.list_models()` or an official record, a recipe file, a model directory, or "owner/name" on
            the Hugging Face hub.
        with_head: Measure detection and segmentation heads as well; otherwise backbone, merge and neck.

    Raises:
        ValueError: There is no such model, recipe or directory.
    """
    subject = _find(name)
    if with_head or not subject.config.head.is_dense:
        return subject
    return dataclasses.replace(subject, config=dataclasses.replace(subject.config, head=HeadConfig()))


def _find(name: str) -> Subject:
    if name.endswith(RECIPE_ENDINGS):
        return Subject(name, untrained(load_recipe(name).model_config()))
    if Path(name).is_dir() or "/" in name:
        return _saved(name)
    config = untrained(model_config(name))  # raises ValueError with the nearest names
    published = next((model for model in published_models() if name in (model.name, model.record)), None)
    if published is None:  # not one of the authors' models
        return Subject(name, config)
    return Subject(name, config, accuracy=_published(published), image_size=_evaluated_size(published))


def untrained(config: ModelConfig) -> ModelConfig:
    """Return a description without pretrained weights, which take the same time as random ones.

    Args:
        config: The description.
    """
    branches = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    return dataclasses.replace(config, branches=branches)


def _saved(name: str) -> Subject:
    directory = find_model(name)
    description = read_description(directory)
    config = untrained(ModelConfig.from_dict(description["model"]))
    return Subject(name, config, str(directory), _recorded(description.get("metrics", {})))


def _evaluated_size(model: PublishedModel) -> Size | None:
    """Return the size of the batches in which landscape images were evaluated; None for square crops and windows."""
    dense = model.evaluation.get("dense", {})
    if model.task != "detection" or "short_side" not in dense:
        return None
    divisor = dense["pad_divisor"]
    height, width = (-(-dense[side] // divisor) * divisor for side in ("short_side", "long_side"))
    return height, width


def _published(model: PublishedModel) -> Accuracy | None:
    """Return the authors' main result."""
    metric = MAIN_RESULTS[model.task]
    if metric not in model.results:
        return None
    return Accuracy(metric, float(model.results[metric]), "published by the authors for their weights")


def _recorded(metrics: dict[str, Any]) -> Accuracy | None:
    """Return the main result that was recorded when a model was trained."""
    key = next((key for key in RECORDED_METRICS if key in metrics), None)
    if key is None:
        return None
    return Accuracy(RECORDED_METRICS[key], 100 * metrics[key], "recorded in training, validation split")
