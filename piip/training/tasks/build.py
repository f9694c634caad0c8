"""Training tasks from a recipe and its data, by the table of tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from piip.data.formats import Images
from piip.kinds import DATA_KINDS, HEAD_KINDS
from piip.recipe import Recipe
from piip.serialization.base import PyramidModel
from piip.serialization.model_card import require_config
from piip.training.optim import build_optimizer, build_schedule
from piip.training.setup import RunLength, build_mix
from piip.training.tasks.base import Configure, TrainingTask
from piip.training.tasks.classification import ClassificationTask
from piip.training.tasks.dense import DetectionTask, SemanticTask


def build_task(recipe: Recipe, model: PyramidModel, length: RunLength, val_images: Images | None) -> TrainingTask:
    """Return the training task for a recipe's model and data.

    Args:
        recipe: The resolved recipe.
        model: Its model.
        length: The length of the run.
        val_images: The validation images, if there are any.

    Raises:
        ValueError: The model's head does not match the kind of data.
    """
    head, tasks = require_config(model).head, DATA_KINDS[recipe.data.kind].tasks
    if head.task not in tasks:
        fitting = [kind for kind, facts in HEAD_KINDS.items() if facts.task in tasks]
        raise ValueError(
            f"The model's head is {head.kind!r}, data of kind {recipe.data.kind!r} need one of {', '.join(fitting)}."
        )
    configure = functools.partial(_configure, recipe=recipe, length=length)
    return TASKS[head.task](recipe, model, val_images, configure)


def _configure(model: nn.Module, *, recipe: Recipe, length: RunLength) -> tuple[Optimizer, LRScheduler]:
    optimizer = build_optimizer(model, recipe.optim)
    schedule = build_schedule(
        optimizer, recipe.schedule, total_steps=length.total_steps, warmup_steps=length.warmup_steps
    )
    return optimizer, schedule


def _classification(recipe: Recipe, model: Any, val_images: Images | None, configure: Configure) -> TrainingTask:
    num_classes = model.num_classes
    return ClassificationTask(
        model,
        num_classes=num_classes,
        configure=configure,
        mix=build_mix(recipe.regularize, num_classes),
        label_smoothing=recipe.regularize.label_smoothing,
    )


def _detection(recipe: Recipe, model: Any, val_images: Any, configure: Configure) -> TrainingTask:
    return DetectionTask(model, configure=configure, val_images=val_images, max_detections=recipe.data.max_detections)


def _semantic(recipe: Recipe, model: Any, val_images: Images | None, configure: Configure) -> TrainingTask:
    return SemanticTask(model, configure=configure)


# By the task of the model's head.
TASKS: dict[str, Callable[[Recipe, Any, Any, Configure], TrainingTask]] = {
    "classification": _classification,
    "detection": _detection,
    "instance": _detection,
    "semantic": _semantic,
}
