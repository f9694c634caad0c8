"""Training: from a recipe to a folder with checkpoints, logs and a saved model (see `piip.training.run_folder`)."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from piip.data.formats import DATA_FORMATS, Images
from piip.data.image_check import check_splits
from piip.data.loader import ResumableLoader, check_shared_memory, ignore_interrupts
from piip.data.sampler import EpochSampler, GroupedSampler
from piip.device import check_devices, check_precision, pick_device
from piip.kinds import DATA_KINDS
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
from piip.training.loggers import build_loggers
from piip.training.progress import note, progress_callbacks
from piip.training.resuming import Begun, ContinuedBySteps, SameData
from piip.training.run_folder import (
    BEST,
    CHECKPOINTS,
    MODEL,
    check_same_recipe,
    check_weights,
    checkpoint_step,
    find_checkpoint,
    locked,
)
from piip.training.setup import (
    RunLength,
    build_recipe_model,
    check_classes,
    describe_frozen,
    digest_annotations,
    open_images,
    resolve,
    run_length,
    set_transforms,
)
from piip.training.tasks.base import TrainingTask
from piip.training.tasks.build import build_task

LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


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
        parts = _prepare(recipe, checkpoint, replicas=devices * nodes, on_gpu=on_gpu, is_exact=not resume_inexact)
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
    parts: _Parts,
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


@dataclass(frozen=True)
class _Parts:
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


def _prepare(recipe: Recipe, checkpoint: Path | None, *, replicas: int, on_gpu: bool, is_exact: bool = True) -> _Parts:
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
    return _Parts(
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


def build_trainer(
    recipe: Recipe,
    length: RunLength,
    callbacks: list[pl.Callback],
    *,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    checkpoint: Path | None = None,
) -> pl.Trainer:
    """Return Lightning's trainer with loggers in the run's folder.

    Args:
        recipe: The recipe of the run.
        length: Length of the run.
        callbacks: All callbacks.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        devices: Processes per machine.
        nodes: Machines.
        checkpoint: The checkpoint to resume from; TensorBoard discards later steps.
    """
    folder = recipe.run.out
    place = pick_device(device)
    resumed_at = checkpoint_step(checkpoint) if checkpoint is not None else None
    return pl.Trainer(
        default_root_dir=folder,
        accelerator=place.type,
        devices=devices if place.index is None else [place.index],
        num_nodes=nodes,
        strategy=_strategy(recipe, devices * nodes),
        # each process has too few images for its own statistics; PyTorch synchronises on GPUs only
        sync_batchnorm=place.type == "cuda" and devices * nodes > 1,
        precision=LIGHTNING_PRECISION[recipe.run.precision],
        max_epochs=length.epochs,
        accumulate_grad_batches=recipe.run.accumulate,
        gradient_clip_val=recipe.optim.clip,
        callbacks=callbacks,
        logger=build_loggers(recipe.run, log_every=length.log_every, resumed_at=resumed_at),
        log_every_n_steps=length.log_every,
        num_sanity_val_steps=1,
        use_distributed_sampler=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )


def _strategy(recipe: Recipe, processes: int) -> Strategy | str:
    if recipe.run.strategy == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return "auto"


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


def _callbacks(
    parts: _Parts, export: Callable[..., None], averaging: list[AveragedWeights], checkpoint: Path | None
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
