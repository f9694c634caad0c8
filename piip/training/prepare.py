"""What a run needs before its first step: model, task and batches, checked against each other."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from piip.data.formats import DATA_FORMATS, Images
from piip.data.loader import ResumableLoader, ignore_interrupts
from piip.data.sampler import EpochSampler, GroupedSampler
from piip.kinds import DATA_KINDS
from piip.recipe import Recipe
from piip.training.progress import note
from piip.training.run_folder import check_same_recipe, check_weights
from piip.training.setup import (
    RunLength,
    build_recipe_model,
    check_classes,
    open_images,
    resolve,
    run_length,
    set_transforms,
)
from piip.training.tasks.base import TrainingTask
from piip.training.tasks.build import build_task


@dataclass(frozen=True)
class Parts:
    """Checked parts of a run.

    Args:
        recipe: The resolved recipe.
        length: Length of the run.
        task: Training task with the model.
        loader: Training batches.
        val_loader: Validation batches, if there is a validation split.
        splits: Training images, and validation images if there are any.
    """

    recipe: Recipe
    length: RunLength
    task: TrainingTask
    loader: ResumableLoader
    val_loader: DataLoader[Any] | None
    splits: list[Images]


def prepare(recipe: Recipe, checkpoint: Path | None, *, replicas: int, on_gpu: bool, is_exact: bool = True) -> Parts:
    """Build and check everything that a run needs.

    Args:
        recipe: The run.
        checkpoint: The checkpoint to resume from, or None.
        replicas: Processes on all machines.
        on_gpu: Whether batches are copied to a GPU.
        is_exact: Whether data, batch size, processes and recipe must be those of the checkpoint.

    Raises:
        ValueError: Recipe, data, model and checkpoint do not match.
    """
    images, val_images = open_images(recipe)
    torch.manual_seed(recipe.run.seed)
    model = build_recipe_model(recipe, num_classes=len(images.classes), resumed=checkpoint is not None)
    check_classes(model, images.classes)
    recipe = resolve(recipe, model)
    if checkpoint is not None:
        resolve_old = functools.partial(resolve, model=model)
        difference = check_same_recipe(recipe, checkpoint, resolve=resolve_old, is_exact=is_exact)
        if difference:
            note(difference)
        check_weights(model, checkpoint)
    set_transforms(images, val_images, recipe.data)
    loader = _train_loader(recipe, images, replicas, pin_memory=on_gpu)
    length = run_length(recipe, len(loader))
    return Parts(
        recipe,
        length,
        task=build_task(recipe, model, length, val_images),
        loader=loader,
        val_loader=_val_loader(recipe, val_images),
        splits=[split for split in (images, val_images) if split is not None],
    )


def _val_loader(recipe: Recipe, val_images: Images | None) -> DataLoader[Any] | None:
    if val_images is None:
        return None
    return DataLoader(
        val_images,
        # an image's padding, and so its prediction, must not depend on other images of the batch
        batch_size=1 if DATA_KINDS[recipe.data.kind].is_padded else recipe.data.batch_size,
        num_workers=recipe.data.workers,
        collate_fn=DATA_FORMATS[recipe.data.kind].collate(recipe.data, False),
        worker_init_fn=ignore_interrupts,
    )


def _order(recipe: Recipe, images: Images, replicas: int) -> EpochSampler:
    data, seed = recipe.data, recipe.run.seed
    if not data.group_by_aspect:
        return EpochSampler(len(images), seed=seed, num_replicas=replicas)
    padded: Any = images  # recipes do not allow grouping for other kinds
    groups = [int(width > height) for height, width in padded.shapes]
    return GroupedSampler(groups, batch_size=data.batch_size, seed=seed, num_replicas=replicas)


def _train_loader(recipe: Recipe, images: Images, replicas: int, *, pin_memory: bool) -> ResumableLoader:
    return ResumableLoader(
        images,
        _order(recipe, images, replicas),
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        pin_memory=pin_memory,
        collate=DATA_FORMATS[recipe.data.kind].collate(recipe.data, True),
    )
