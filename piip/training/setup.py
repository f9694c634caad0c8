"""Preparation of a training run: model, data and length, built and checked from a recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from timm.data import Mixup
from torch import nn

from piip.build import build_model
from piip.checkpoints.initial import load_branch_weights
from piip.checkpoints.networks.resizing import fitted_own
from piip.data.formats import DATA_FORMATS, Images
from piip.kinds import DATA_KINDS, HEAD_KINDS
from piip.recipe import DataConfig, Recipe, RegularizeConfig
from piip.serialization.base import PyramidModel
from piip.serialization.hub import find_model
from piip.serialization.load import start_from
from piip.serialization.model_card import require_config
from piip.training.progress import note

DIGESTED_BYTES = 4096  # at the end of every mask


@dataclass(frozen=True)
class RunLength:
    """Length of a run.

    Args:
        epochs: Number of epochs; the last one may be incomplete.
        steps_per_epoch: Optimiser steps per epoch.
        total_steps: Optimiser steps of the run.
        warmup_steps: Optimiser steps of the warm-up.
        log_every: Optimiser steps between logged values and progress lines, at most one epoch.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    log_every: int


def open_images(recipe: Recipe) -> tuple[Images, Images | None]:
    """Return training and validation images, without transforms; None if there is no validation.

    Raises:
        ValueError: A split is missing or empty, the classes of the splits differ, or `run.patience` has nothing to
            watch.
    """
    images, val_images = DATA_FORMATS[recipe.data.kind].open(recipe.data, recipe.run.seed, recipe.known_classes)
    if val_images is None and recipe.run.patience is not None:
        raise ValueError("run.patience needs a validation split: set data.val or data.val_fraction, or remove it.")
    return images, val_images


def build_recipe_model(recipe: Recipe, *, num_classes: int | None = None, resumed: bool = False) -> PyramidModel:
    """Return the recipe's model, newly initialised or with pretrained weights.

    Args:
        recipe: The recipe.
        num_classes: Number of classes K if the recipe does not set it; None uses 1000.
        resumed: A checkpoint provides all weights; `run.start` is not read.

    Raises:
        ValueError: The description is invalid, or pretrained weights are unavailable or do not fit.
    """
    config = recipe.model_config(num_classes=num_classes)
    named = [branch.weights for branch in config.branches if branch.weights is not None]
    if named and recipe.run.start is not None and not resumed:
        raise ValueError(
            f"run.start is {recipe.run.start!r} and a branch has the weights {named[0]!r}: choose one. To start from "
            "the model, set model.branches.K.weights to null."
        )
    model = build_model(config)
    if recipe.run.start is not None and not resumed:
        told = start_from(model, find_model(recipe.run.start), resize=fitted_own)
        if told:
            note(told)
    if named and not resumed:
        for sentence in load_branch_weights(model):
            note(sentence)
    if recipe.run.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return model


def check_classes(model: PyramidModel, classes: list[str]) -> None:
    """Compare the classes of model and data.

    Raises:
        ValueError: They differ, or the model has no classifier.
    """
    config = require_config(model)
    num_classes = config.head.num_classes
    if config.head.task == "features" or num_classes != len(classes):
        raise ValueError(
            f"The model's head {config.head.kind!r} has {num_classes} classes, the training data "
            f"{len(classes)} ({', '.join(classes[:3])}, ...). Remove the number from the recipe or "
            f"set it to null: --model.num_classes null (named models), --model.head.num_classes null."
        )


def digest_annotations(recipe: Recipe) -> str:
    """Return a short hash of the training annotations, read in part only; empty if images have none of their own.

    Args:
        recipe: The recipe.
    """
    if not DATA_KINDS[recipe.data.kind].is_padded:
        return ""
    path = Path(recipe.data.root) / recipe.data.train
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(path.read_bytes())
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        if file.is_file():
            with file.open("rb") as opened:  # PNG files end with a checksum of their contents
                opened.seek(max(0, file.stat().st_size - DIGESTED_BYTES))
                digest.update(f"{file.name} {file.stat().st_size}".encode(errors="surrogateescape") + opened.read())
    return digest.hexdigest()[:16]


def describe_frozen(recipe: Recipe, model: nn.Module) -> str:
    """Return one sentence on the parameters that are trained, nothing if no branch is frozen.

    Args:
        recipe: The recipe.
        model: Its model.
    """
    frozen = [str(i) for i, branch in enumerate(recipe.model_config().branches) if branch.frozen]
    if not frozen:
        return ""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained, total = sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)
    names = f"branch {frozen[0]} is" if len(frozen) == 1 else f"branches {', '.join(frozen)} are"
    return f"Training {trained:,} of {total:,} parameters: {names} frozen."


def resolve(recipe: Recipe, model: PyramidModel) -> Recipe:
    """Return the recipe with the full description of the model, its image size and normalisation.

    Args:
        recipe: The recipe.
        model: Built from it.
    """
    facts, config = model.pretrained_cfg, require_config(model)
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    transform = dataclasses.replace(
        recipe.data.transform,
        input_size=recipe.data.transform.input_size or facts["input_size"][-1],
        mean=mean,
        std=std,
    )
    dense = recipe.data.dense
    masks = HEAD_KINDS[config.head.kind].needs_masks if dense.masks is None else dense.masks
    dense = dataclasses.replace(dense, mean=mean, std=std, masks=masks)
    return dataclasses.replace(
        recipe,
        model=recipe.model_config(num_classes=config.head.num_classes),
        data=dataclasses.replace(recipe.data, transform=transform, dense=dense),
    )


def set_transforms(images: Images, val_images: Images | None, config: DataConfig) -> None:
    """Set the transforms of both splits.

    Args:
        images: Training images.
        val_images: Validation images, if there are any.
        config: The section `data` of the resolved recipe.
    """
    prepare = DATA_FORMATS[config.kind].prepare
    images.transform = prepare(config, True)
    if val_images is not None:
        val_images.transform = prepare(config, False)


def run_length(recipe: Recipe, batches: int) -> RunLength:
    """Return the length of a run over `batches` batches per epoch.

    Raises:
        ValueError: The warm-up is not shorter than the run.
    """
    steps_per_epoch = math.ceil(batches / recipe.run.accumulate)  # the last step of an epoch may have fewer batches
    total = recipe.schedule.max_steps or recipe.schedule.epochs * steps_per_epoch
    schedule = recipe.schedule
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    name, value = "warmup_epochs", f"{schedule.warmup_epochs} or {warmup} steps"
    if schedule.warmup_steps is not None:
        name, value, warmup = "warmup_steps", f"{schedule.warmup_steps}", schedule.warmup_steps
    if warmup >= total:
        raise ValueError(
            f"schedule.{name} is {value}, expected fewer than the {total} steps of the run; for a short run add "
            f"--schedule.{name} 0."
        )
    log_every = min(recipe.run.log_every, steps_per_epoch)
    return RunLength(math.ceil(total / steps_per_epoch), steps_per_epoch, total, warmup, log_every)


def build_mix(config: RegularizeConfig, num_classes: int) -> Mixup | None:
    """Return timm's mixup and cutmix, or None if both are off."""
    if not config.mixes:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mix_prob,
        switch_prob=config.switch_prob,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
