"""From a recipe and its data to the training steps."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from piip.data.coco import CocoInstances, read_coco
from piip.data.semantic_masks import IndexMaps
from piip.recipe import Recipe
from piip.training.optim import build_optimizer, build_schedule
from piip.training.setup import Images, RunLength, build_mix
from piip.training.tasks.base import TrainingTask
from piip.training.tasks.classification import ClassificationTask
from piip.training.tasks.dense import InstanceTask, SemanticTask

HEADS = {"folder": ("pooled", "per_branch"), "coco": ("mask_rcnn", "dino"), "index_maps": ("upernet",)}


def build_task(recipe: Recipe, model: Any, length: RunLength, val_images: Images) -> TrainingTask:
    """Return the training steps of a recipe's data.

    Args:
        recipe: The resolved recipe.
        model: Its model.
        length: The length of the run.
        val_images: What is validated.

    Raises:
        ValueError: The model's head is for another kind of data.
    """
    kind, head, wanted = recipe.data.kind, model.config.head.kind, HEADS[recipe.data.kind]
    if head not in wanted:
        raise ValueError(f"The model's head is {head!r}, data of kind {kind!r} need one of {', '.join(wanted)}.")
    configure = functools.partial(_configure, recipe=recipe, length=length)
    if isinstance(val_images, CocoInstances):
        return InstanceTask(
            model,
            configure=configure,
            content=read_coco(val_images.file),
            image_ids=val_images.image_ids,
            category_ids=val_images.category_ids,
            detections=recipe.data.detections,
        )
    if isinstance(val_images, IndexMaps):
        return SemanticTask(model, configure=configure)
    num_classes = len(val_images.classes)
    return ClassificationTask(
        model,
        num_classes=num_classes,
        configure=configure,
        mix=build_mix(recipe.regularize, num_classes),
        label_smoothing=recipe.regularize.label_smoothing,
    )


def _configure(model: nn.Module, *, recipe: Recipe, length: RunLength) -> tuple[Optimizer, LRScheduler]:
    optimizer = build_optimizer(model, recipe.optim)
    schedule = build_schedule(
        optimizer, recipe.schedule, total_steps=length.total_steps, warmup_steps=length.warmup_steps
    )
    return optimizer, schedule
