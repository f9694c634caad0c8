"""Training: from a recipe to a folder with checkpoints, logs and an exported model (see `piip.run_folder`)."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from timm.data import Mixup
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from piip.callbacks import (
    AveragedWeights,
    BestModel,
    SavedRecipe,
    StepCheckpoint,
    StepSeed,
    StopAtStep,
    validation_metrics,
)
from piip.data.loader import Loaders, class_names, open_loaders
from piip.data.transforms import TransformConfig
from piip.optim import build_optimizer, build_schedule
from piip.progress import progress_callbacks
from piip.recipe import NamedModel, Recipe
from piip.run_folder import CHECKPOINTS, check_same_recipe, checkpoint_step, find_checkpoint
from piip.saving import save_model
from piip.tasks.classification import ClassificationTask

MONITOR = "val/top1"
LIGHTNING_PRECISION = {"32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Args:
        model_dir: The exported model after the last step.
        metrics: Its validation metrics: "val/top1" and "val/top5" in [0, 1], "val/loss".
        steps: Optimiser steps since the beginning, over all restarts.
    """

    model_dir: Path
    metrics: dict[str, float]
    steps: int


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Args:
        epochs: Passes over the data, the last one possibly incomplete.
        steps_per_epoch: Optimiser steps in one of them.
        total_steps: Optimiser steps of the run.
        warmup_steps: Optimiser steps of the warm-up.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


def train(
    recipe: Recipe,
    *,
    resume: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    progress: str = "auto",
) -> TrainingResult:
    """Train a classifier, checking recipe, data and model before the first step.

    Args:
        recipe: The run; its folder is `recipe.run.out`.
        resume: A checkpoint, or "auto" for the newest one in the folder (none: start from the beginning).
        device: "auto", "cpu" or "cuda".
        devices: Processes; more than one trains data-parallel, with `batch_size` images each.
        progress: "auto", "bar", "lines" or "none".

    Raises:
        ValueError: Recipe, data and model do not fit together, or the folder holds another run.
        NonFiniteLoss: The loss became NaN; the last checkpoint is kept.
    """
    folder = Path(recipe.run.out)
    checkpoint = find_checkpoint(folder, resume)
    if checkpoint is not None:
        check_same_recipe(recipe, checkpoint)
    torch.manual_seed(recipe.run.seed)
    root = Path(recipe.data.root)
    model = build_recipe_model(recipe, num_classes=len(class_names(root / recipe.data.train)))
    loaders = open_loaders(
        root / recipe.data.train,
        root / recipe.data.val,
        transform=resolved_transform(recipe.data.transform, model),
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        on_error=recipe.data.on_error,
        seed=recipe.run.seed,
        replicas=devices,
    )
    num_classes = check_classes(model, loaders.classes)
    length = run_length(recipe, len(loaders.train))
    task = ClassificationTask(
        model,
        num_classes=num_classes,
        configure=functools.partial(_configure, recipe=recipe, length=length),
        mix=_mix(recipe, num_classes),
        label_smoothing=recipe.regularize.label_smoothing,
    )
    export = functools.partial(export_model, recipe=recipe, loaders=loaders)
    averaging = _averaging(recipe)
    callbacks = [
        StepSeed(recipe.run.seed),
        BestModel(functools.partial(export, directory=folder / "best"), monitor=MONITOR),
        *averaging,
        SavedRecipe(recipe, folder / CHECKPOINTS),
        StopAtStep(length.total_steps),
        StepCheckpoint(folder / CHECKPOINTS, every=recipe.run.checkpoint_every),
        *progress_callbacks(progress, batch_size=recipe.data.batch_size * devices, every=recipe.run.log_every),
    ]
    trainer = build_trainer(recipe, length, callbacks, device=device, devices=devices, checkpoint=checkpoint)
    loaders.train.order.rank = trainer.global_rank
    trainer.fit(task, loaders.train, loaders.val, ckpt_path=checkpoint, weights_only=True)
    for callback in averaging:
        callback.copy_to(task)  # a finished run that is resumed has nothing left to do, not even this
    metrics = validation_metrics(trainer) or dict(trainer.validate(task, loaders.val, verbose=False)[0])
    if trainer.is_global_zero:
        export(model, metrics, directory=folder / "model")
    return TrainingResult(folder / "model", metrics, trainer.global_step)


def build_recipe_model(recipe: Recipe, *, num_classes: int | None = None) -> nn.Module:
    """Return the recipe's model, freshly initialised or with the pretrained weights it asks for.

    Args:
        recipe: Names or describes the model.
        num_classes: Classes K where the recipe leaves them open; None keeps the model's own number.
    """
    from piip.zoo import build_model, create_model

    if not isinstance(recipe.model, NamedModel):
        return build_model(recipe.model)
    named = recipe.model
    return create_model(
        named.name,
        num_classes=named.num_classes or num_classes,
        pretrained=named.pretrained,
        pretrained_branches=named.pretrained_branches,
        **named.overrides,
    )


def resolved_transform(config: TransformConfig, model: nn.Module) -> TransformConfig:
    """Return the transform with the model's normalisation, and its image size where the recipe has none."""
    facts: Any = model.pretrained_cfg
    size = config.input_size or facts["input_size"][-1]
    return dataclasses.replace(config, input_size=size, mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def check_classes(model: nn.Module, classes: list[str]) -> int:
    """Return the number of classes, having compared model and data.

    Raises:
        ValueError: They differ.
    """
    config: Any = model.config
    num_classes = config.head.num_classes
    if config.head.kind == "none" or num_classes != len(classes):
        raise ValueError(
            f"The model's head {config.head.kind!r} has {num_classes} classes, the training data "
            f"{len(classes)} ({', '.join(classes[:3])}, ...). Set model.num_classes (named models) or "
            f"model.head.num_classes to {len(classes)}."
        )
    return num_classes


def run_length(recipe: Recipe, batches: int) -> Length:
    """Return the length of a run over `batches` batches an epoch.

    Raises:
        ValueError: The warm-up does not end before the run.
    """
    steps_per_epoch = math.ceil(batches / recipe.run.accumulate)  # the last step of an epoch may have fewer batches
    total = recipe.schedule.max_steps or recipe.schedule.epochs * steps_per_epoch
    warmup = round(recipe.schedule.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        raise ValueError(
            f"schedule.warmup_epochs is {recipe.schedule.warmup_epochs} or {warmup} steps, "
            f"expected fewer than the {total} steps of the run."
        )
    return Length(math.ceil(total / steps_per_epoch), steps_per_epoch, total, warmup)


def build_trainer(
    recipe: Recipe,
    length: Length,
    callbacks: list[pl.Callback],
    *,
    device: str = "auto",
    devices: int = 1,
    checkpoint: Path | None = None,
) -> pl.Trainer:
    """Return Lightning's trainer with loggers in the run's folder.

    Args:
        recipe: The run.
        length: Its length.
        callbacks: All that watch or change the run.
        device: "auto", "cpu" or "cuda".
        devices: Processes.
        checkpoint: Where the run goes on, for TensorBoard to forget the steps after it.
    """
    folder = recipe.run.out
    log_every = min(recipe.run.log_every, length.steps_per_epoch)
    purge = checkpoint_step(checkpoint) if checkpoint is not None else None
    loggers = [
        CSVLogger(folder, name="csv", flush_logs_every_n_steps=log_every),
        TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge),
    ]
    return pl.Trainer(
        default_root_dir=folder,
        accelerator=device,
        devices=devices,
        precision=LIGHTNING_PRECISION[recipe.run.precision],
        max_epochs=length.epochs,
        accumulate_grad_batches=recipe.run.accumulate,
        gradient_clip_val=recipe.optim.clip,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=log_every,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )


def export_model(
    model: nn.Module, metrics: dict[str, float], *, directory: Path, recipe: Recipe, loaders: Loaders
) -> None:
    """Write the model with all that evaluation and prediction need."""
    metadata = {
        "classes": loaders.classes,
        "transform": dataclasses.asdict(loaders.transform),
        "metrics": metrics,
        "recipe": recipe.to_dict(),
    }
    save_model(model, directory, metadata)


def _configure(model: nn.Module, *, recipe: Recipe, length: Length) -> tuple[Optimizer, LRScheduler]:
    optimizer = build_optimizer(model, recipe.optim)
    schedule = build_schedule(
        optimizer, recipe.schedule, total_steps=length.total_steps, warmup_steps=length.warmup_steps
    )
    return optimizer, schedule


def _mix(recipe: Recipe, num_classes: int) -> Mixup | None:
    config = recipe.regularize
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


def _averaging(recipe: Recipe) -> list[AveragedWeights]:
    if recipe.run.ema_decay is None:
        return []
    return [AveragedWeights(recipe.run.ema_decay, warmup=recipe.run.ema_warmup)]
