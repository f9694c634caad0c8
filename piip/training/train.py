"""Training: from a recipe to a folder with checkpoints, logs and a saved model (see `piip.training.run_folder`)."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from piip.data.formats import DATA_FORMATS
from piip.data.image_check import check_splits
from piip.data.loader import check_shared_memory
from piip.device import check_devices, check_precision, pick_device
from piip.recipe import Recipe
from piip.serialization.base import PyramidModel
from piip.serialization.save import save_model
from piip.training.callbacks import (
    AveragedWeights,
    BestModel,
    KeptWeights,
    Patience,
    SavedRecipe,
    StepCheckpoint,
    StepSeed,
    StopAtStep,
    export_from_all,
    validation_metrics,
)
from piip.training.interruption import explained_restore, saved_interrupts
from piip.training.prepare import Parts, prepare
from piip.training.progress import note, progress_callbacks
from piip.training.resuming import Begun, ContinuedBySteps, SameData
from piip.training.run_folder import BEST, CHECKPOINTS, MODEL, find_checkpoint, locked
from piip.training.setup import describe_frozen, digest_annotations
from piip.training.trainer import build_trainer


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run.

    Args:
        model_dir: The saved model after the last step.
        metrics: Its validation metrics: "val/top1" and "val/top5" in [0, 1], "val/loss".
        steps: Total number of optimiser steps, including those before restarts.
    """

    model_dir: Path
    metrics: dict[str, float]
    steps: int


def train(
    recipe: Recipe,
    *,
    resume: str | Path | None = None,
    resume_inexact: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: str = "auto",
) -> TrainingResult:
    """Train a model; recipe, data and model are checked before the first step.

    Args:
        recipe: The run; its folder is `recipe.run.out`.
        resume: A checkpoint, or "auto" for the newest one in the folder (if there is none, the run starts new).
        resume_inexact: Resume by optimiser step although data, batch size, processes or recipe differ.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        devices: Processes on this machine; more than one trains data-parallel, with `batch_size` images each.
        nodes: Number of machines, each with `devices` processes, started by `torchrun`.
        progress: "auto", "bar", "lines" or "none".

    Raises:
        ValueError: Recipe, data and model do not match, or the folder contains another run.
        NonFiniteLoss: The loss or its gradient became NaN or infinite; the last checkpoints are available.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    folder = Path(recipe.run.out)
    if resume_inexact and resume is None:
        raise ValueError("--resume-inexact says how to resume, expected --resume auto or --resume FILE with it.")
    check_devices(device, devices)
    advice = check_precision(device, recipe.run.precision)
    if advice:
        note(advice)
    # the other processes of a run share the folder with the first
    process: Any = rank_zero_only
    with locked(folder) if process.rank == 0 else contextlib.nullcontext():
        checkpoint = find_checkpoint(folder, resume)
        on_gpu = pick_device(device).type == "cuda"
        parts = prepare(recipe, checkpoint, replicas=devices * nodes, on_gpu=on_gpu, is_exact=not resume_inexact)
        return _run(
            parts,
            checkpoint,
            device=device,
            devices=devices,
            nodes=nodes,
            progress=progress,
            is_exact=not resume_inexact,
        )


def _run(
    parts: Parts,
    checkpoint: Path | None,
    *,
    device: str,
    devices: int,
    nodes: int,
    progress: str,
    is_exact: bool,
) -> TrainingResult:
    """Train with checked parts; see `train`."""
    recipe, folder = parts.recipe, Path(parts.recipe.run.out)
    replicas = devices * nodes
    rank_zero_only(check_splits)(parts.splits, workers=recipe.data.workers, show=progress != "none")
    if recipe.data.workers:
        # one image stands for all: a batch of them needs the most where all are as large
        batch = parts.loader.collate_fn([parts.splits[0][0]] * recipe.data.batch_size)
        check_shared_memory(batch, workers=recipe.data.workers)
    sentence = describe_frozen(parts.recipe, parts.task.model)
    if sentence:
        note(sentence)
    export = functools.partial(export_model, recipe=parts.recipe, labels=parts.splits[0].label_facts())
    averaging = _averaging(recipe)
    shown = progress_callbacks(
        progress,
        batch_size=recipe.data.batch_size * replicas,
        every=parts.length.log_every,
        total_steps=parts.length.total_steps,
    )
    begun = Begun()
    by_steps = [ContinuedBySteps(parts.length.steps_per_epoch)] if not is_exact else []
    same = SameData(parts.loader, annotations=digest_annotations(parts.recipe), is_exact=is_exact)
    callbacks = [begun, *by_steps, same, *_callbacks(parts, export, averaging, checkpoint), *shown]
    trainer = build_trainer(
        recipe, parts.length, callbacks, device=device, devices=devices, nodes=nodes, checkpoint=checkpoint
    )
    parts.loader.order.share(trainer.global_rank, trainer.world_size)
    try:
        with explained_restore(checkpoint, begun), saved_interrupts(trainer), warnings.catch_warnings():
            # loss scaling may skip the first step, which PyTorch takes for an error of ours
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)`")
            trainer.fit(parts.task, parts.loader, parts.val_loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # Lightning raises it for Ctrl-C and SIGTERM
        raise KeyboardInterrupt from error
    for average in averaging:
        average.copy_to(parts.task)  # Lightning does not copy them if a finished run is resumed
    metrics = validation_metrics(trainer)
    if not metrics and parts.val_loader is not None:
        metrics = dict(trainer.validate(parts.task, parts.val_loader, verbose=False)[0])
    export_from_all(trainer, parts.task.model, functools.partial(export, directory=folder / MODEL), metrics)
    return TrainingResult(folder / MODEL, metrics, trainer.global_step)


def export_model(
    model: PyramidModel,
    state: dict[str, Tensor],
    metrics: dict[str, float],
    steps: int,
    *,
    directory: Path,
    recipe: Recipe,
    labels: dict[str, Any],
) -> None:
    """Save the model with the metadata for evaluation and prediction.

    Args:
        model: The trained model.
        state: Its weights, not sharded.
        metrics: Its validation metrics.
        steps: Number of optimiser steps.
        directory: Output directory.
        recipe: The resolved recipe of the run.
        labels: "classes", their names in the order of the logits, and what else the data set knows about them.
    """
    metadata = {
        **labels,
        **DATA_FORMATS[recipe.data.kind].input_facts(recipe.data),
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "steps": steps,
        "recipe": recipe.to_dict(),
    }
    save_model(model, directory, metadata, state=state)


def _callbacks(
    parts: Parts, export: Callable[..., None], averaging: list[AveragedWeights], checkpoint: Path | None
) -> list[pl.Callback]:
    """Return the callbacks; the best model is exported before the averaged weights are swapped back."""
    recipe = parts.recipe
    folder = Path(recipe.run.out)
    watched = parts.task.watched
    patience = [Patience(watched, mode="max", patience=recipe.run.patience)] if recipe.run.patience else []
    return [
        *patience,
        StepSeed(recipe.run.seed),
        BestModel(functools.partial(export, directory=folder / BEST), monitor=watched),
        KeptWeights(functools.partial(export, directory=folder / MODEL), folder / MODEL),
        *averaging,
        SavedRecipe(recipe, folder / CHECKPOINTS),
        StopAtStep(parts.length.total_steps),
        StepCheckpoint(folder / CHECKPOINTS, every=recipe.run.checkpoint_every, resumed=checkpoint),
    ]


def _averaging(recipe: Recipe) -> list[AveragedWeights]:
    if recipe.run.ema_decay is None:
        return []
    return [AveragedWeights(recipe.run.ema_decay, warmup=recipe.run.ema_warmup)]
