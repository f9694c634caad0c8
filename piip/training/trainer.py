"""Lightning's trainer for a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from piip.device import pick_device
from piip.recipe import Recipe
from piip.training.loggers import build_loggers
from piip.training.run_folder import checkpoint_step
from piip.training.setup import RunLength

LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


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
