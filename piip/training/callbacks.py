"""Lightning callbacks of a training run: randomness by step, averaged weights, checkpoints, the best model."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, WeightAveraging
from torch import Tensor, nn

from piip.data.loader import ResumableLoader
from piip.recipe import Recipe, save_recipe
from piip.training.run_folder import CHECKPOINT_PATTERN, RECIPE_NAME, checkpoint_name
from piip.training.sharding import full_state, is_sharded

KEPT_CHECKPOINTS = 2
Export = Callable[[nn.Module, dict[str, Tensor], dict[str, float], int], None]

logger = logging.getLogger(__name__)


class StepSeed(pl.Callback):
    """Make mixing, dropout and stochastic depth functions of (seed, epoch, batch, rank).

    A resumed run then draws exactly what the interrupted one would have drawn, without stored generator states.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the three generators that models and timm draw from."""
        key = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        first, second, third = (int(word) for word in np.random.SeedSequence(key).generate_state(3))
        torch.manual_seed(first)
        np.random.seed(second)  # timm's Mixup draws from numpy's global generator
        random.seed(third)


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights, which validation and export see.

    Args:
        decay: Weight of the old average, in (0, 1).
        warmup: Use min(decay, (1 + n) / (10 + n)) after n updates, so that short runs forget their initial weights.
    """

    def __init__(self, decay: float, *, warmup: bool) -> None:
        @torch.no_grad()
        def average(averages: Any, currents: Any, count: Tensor | int) -> None:
            updates = int(count)
            rate = min(decay, (1 + updates) / (10 + updates)) if warmup else decay
            torch._foreach_lerp_(averages, currents, 1 - rate)

        # Buffers are copied, not averaged: an averaged integer table would no longer be one.
        super().__init__(use_buffers=False, multi_avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the weights, without the warning that they are not spread: recipes do not ask for both."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
            super().setup(trainer, pl_module, stage)

    def copy_to(self, pl_module: pl.LightningModule) -> None:
        """Give a module the averaged weights."""
        self._copy_average_to_current(pl_module)


class SameData(pl.Callback):
    """Refuse to go on with other training images or another number of processes than the checkpoint's.

    Not the loader's own state: Lightning loads that only in mid-epoch.

    Args:
        loader: Knows the images and the processes.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader = loader
        self._facts: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's facts, found out once."""
        self._facts = self._facts or self.loader.facts()
        return self._facts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the checkpoint's facts with the loader's."""
        self.loader.check_facts(state_dict)


class SavedRecipe(pl.Callback):
    """Write the resolved recipe beside the checkpoints before the first of them.

    Args:
        recipe: The resolved recipe.
        folder: Where checkpoints go.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            save_recipe(self.recipe, self.folder / RECIPE_NAME)


class StepCheckpoint(Checkpoint):
    """A checkpoint for exact resume every N optimiser steps and after every epoch; the two newest are kept.

    Only files that this run wrote are deleted: their names are part of a checkpoint. A file appears whole or not at
    all.

    The last batch of an epoch is left to the checkpoint after validation, and a batch that only accumulates
    gradients is no place to stop: gradients are not part of a checkpoint.

    Args:
        folder: Where checkpoints go.
        every: Optimiser steps between checkpoints.
        resumed: The checkpoint that the run goes on from, if any.
    """

    def __init__(self, folder: Path, *, every: int, resumed: Path | None = None) -> None:
        self.folder = folder
        self.every = every
        self.resumed = resumed
        self._written: list[str] = []

    def state_dict(self) -> dict[str, list[str]]:
        """Return the names of the run's checkpoints, this one included."""
        return {"written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        """Take over the run's checkpoints, unless the run goes on in another folder."""
        if self.resumed is not None and self.resumed.parent.resolve() == self.folder.resolve():
            self._written = [name for name in state_dict["written"] if name != self.resumed.name] + [self.resumed.name]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delete what a kill left half written."""
        if trainer.is_global_zero:
            for part in self.folder.glob(CHECKPOINT_PATTERN + ".part"):
                part.unlink()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the count of optimiser steps asks for it."""
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        is_last = batch_idx + 1 == trainer.num_training_batches
        if not accumulates and not is_last and trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after validation."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        name = checkpoint_name(trainer.global_step)
        self._written = [other for other in self._written if other != name] + [name]
        # Lightning's own temporary file may lie on another disk, from where no rename is atomic
        temporary = self.folder / (name + ".part")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            os.replace(temporary, self.folder / name)
            for old in self._written[:-KEPT_CHECKPOINTS]:
                (self.folder / old).unlink(missing_ok=True)
        self._written = self._written[-KEPT_CHECKPOINTS:]


class BestModel(pl.Callback):
    """Export the model whenever a validation metric reaches a new maximum.

    Stands before `AveragedWeights` in the list of callbacks, so that the validated (averaged) weights are exported.

    Args:
        export: Called with model, weights, metrics and optimiser steps, on process 0.
        monitor: Name of the metric.
    """

    def __init__(self, export: Export, *, monitor: str) -> None:
        self.export = export
        self.monitor = monitor
        self.best = float("-inf")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare and export."""
        if trainer.sanity_checking:
            return
        metrics = validation_metrics(trainer)
        # process 0 decides for all: gathering spread weights needs every one of them
        value = trainer.strategy.broadcast(metrics[self.monitor])
        if value > self.best:
            self.best = value
            export_from_all(trainer, pl_module.get_submodule("model"), self.export, metrics)

    def state_dict(self) -> dict[str, float]:
        """Return the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Take the best value of the interrupted run."""
        self.best = state_dict["best"]


class KeptWeights(pl.Callback):
    """Export the model when validation fails, so that what training cost is not lost.

    The weights are those that were validated (averaged ones where the run averages). Weights that are spread over
    processes cannot be gathered when one of them fails: there the newest checkpoint is what is kept.

    Args:
        export: Called with model, weights, no metrics and optimiser steps.
        directory: Where it writes, for the message.
    """

    def __init__(self, export: Export, directory: Path) -> None:
        self.export = export
        self.directory = directory

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Export, and say where; an interrupted run goes on from its checkpoint instead."""
        model = pl_module.get_submodule("model")
        failed = trainer.validating and isinstance(exception, Exception)
        if failed and trainer.is_global_zero and not is_sharded(model):
            self.export(model, model.state_dict(), {}, trainer.global_step)
            logger.warning(
                "Validation failed after step %d. The trained weights are in %s: `piip evaluate` measures them.",
                trainer.global_step,
                self.directory,
            )


class Patience(EarlyStopping):
    """Stop after some validations without a better metric; a run that was stopped so takes no step when resumed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop again."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class StopAtStep(pl.Callback):
    """End training after a number of optimiser steps, validating once more.

    Trainer's own `max_steps` would make every restart look like one in mid-epoch.

    Args:
        max_steps: Optimiser steps.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take no step where the checkpoint is that of the last one."""
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the trainer to stop."""
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True


def export_from_all(trainer: pl.Trainer, model: nn.Module, export: Export, metrics: dict[str, float]) -> None:
    """Gather a model's weights, which all processes must do together, and export them on process 0."""
    state = full_state(model)
    if trainer.is_global_zero:
        export(model, state, metrics, trainer.global_step)


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return the latest validation metrics as numbers."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
