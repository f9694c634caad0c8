"""Lightning callbacks of a training run: randomness by step, averaged weights, checkpoints, the best model."""

from __future__ import annotations

import logging
import math
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

from piip.recipe import Recipe, save_recipe
from piip.training.run_folder import CHECKPOINT_PATTERN, RECIPE_NAME, checkpoint_name
from piip.training.sharding import full_state, is_sharded

KEPT_CHECKPOINTS = 2
Export = Callable[[nn.Module, dict[str, Tensor], dict[str, float], int], None]

logger = logging.getLogger(__name__)


class StepSeed(pl.Callback):
    """Make mixing, dropout and stochastic depth functions of (seed, epoch, batch, rank).

    A resumed run then draws the same random numbers as an uninterrupted one, without stored generator states.

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
    """Exponential moving average of the weights, used by validation and export.

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
        """Copy the weights, without the warning about sharding: recipes do not allow both."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
            super().setup(trainer, pl_module, stage)

    def copy_to(self, pl_module: pl.LightningModule) -> None:
        """Copy the averaged weights to a module."""
        self._copy_average_to_current(pl_module)


class SavedRecipe(pl.Callback):
    """Write the resolved recipe to the checkpoint folder before the first checkpoint.

    Args:
        recipe: The resolved recipe.
        folder: Folder of the checkpoints.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            save_recipe(self.recipe, self.folder / RECIPE_NAME)


class StepCheckpoint(Checkpoint):
    """Checkpoints for exact resume every N optimiser steps and after every epoch; the two newest are retained.

    Only files written by this run are deleted; their names are part of a checkpoint. Files are written atomically.

    The last batch of an epoch is saved after validation. Batches that only accumulate gradients are not saved, because
    gradients are not part of a checkpoint.

    Args:
        folder: Folder of the checkpoints.
        every: Optimiser steps between checkpoints.
        resumed: The checkpoint that the run resumes from, if any.
    """

    def __init__(self, folder: Path, *, every: int, resumed: Path | None = None) -> None:
        self.folder = folder
        self.every = every
        self.resumed = resumed
        self._written: list[str] = []

    def state_dict(self) -> dict[str, list[str]]:
        """Return the names of the run's checkpoints, including this one."""
        return {"written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        """Restore the names of the run's checkpoints, unless the run continues in another folder."""
        if self.resumed is not None and self.resumed.parent.resolve() == self.folder.resolve():
            self._written = [name for name in state_dict["written"] if name != self.resumed.name] + [self.resumed.name]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delete incomplete files of a killed run."""
        if trainer.is_global_zero:
            for part in self.folder.glob(CHECKPOINT_PATTERN + ".part"):
                part.unlink()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every N optimiser steps, and where SIGTERM ends the run after this step."""
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        is_last = batch_idx + 1 == trainer.num_training_batches
        ends = trainer.received_sigterm and trainer.world_size == 1  # saving together needs the signal in all processes
        if not accumulates and not is_last and (trainer.global_step % self.every == 0 or ends):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after validation."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        name = checkpoint_name(trainer.global_step)
        self._written = [other for other in self._written if other != name] + [name]
        # Lightning's own temporary file may be on another disk, from which renames are not atomic
        temporary = self.folder / (name + ".part")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            if not isinstance(error, OSError) and "writ" not in str(error):  # PyTorch's own for a full disk
                raise
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise ValueError(
                f"The checkpoint {self.folder / name} could not be written ({reason}); earlier ones are intact. Free "
                "disk space and use --resume auto."
            ) from error
        if trainer.is_global_zero:
            os.replace(temporary, self.folder / name)
            for old in self._written[:-KEPT_CHECKPOINTS]:
                (self.folder / old).unlink(missing_ok=True)
        self._written = self._written[-KEPT_CHECKPOINTS:]


class BestModel(pl.Callback):
    """Export the model whenever a validation metric reaches a new maximum.

    It must precede `AveragedWeights` in the list of callbacks, so that the validated (averaged) weights are exported.

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
        # process 0 decides for all, because gathering sharded weights needs all processes
        value = trainer.strategy.broadcast(metrics[self.monitor])
        if is_measured(value) and value > self.best:
            self.best = value
            export_from_all(trainer, pl_module.get_submodule("model"), self.export, metrics)

    def state_dict(self) -> dict[str, float]:
        """Return the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the best value of the interrupted run."""
        self.best = state_dict["best"]


class KeptWeights(pl.Callback):
    """Export the model if validation fails, so that the trained weights are not lost.

    The weights are those that were validated (averaged ones if the run averages). Sharded weights cannot be gathered
    after the failure of a process; in that case only the newest checkpoint is available.

    Args:
        export: Called with model, weights, no metrics and optimiser steps.
        directory: Output directory, for the message.
    """

    def __init__(self, export: Export, directory: Path) -> None:
        self.export = export
        self.directory = directory

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Export and log the directory; an interrupted run resumes from its checkpoint instead."""
        model = pl_module.get_submodule("model")
        failed = trainer.validating and isinstance(exception, Exception)
        if failed and trainer.is_global_zero and not is_sharded(model):
            self.export(model, model.state_dict(), {}, trainer.global_step)
            logger.warning(
                "Validation failed after step %d. The trained weights are in %s: evaluate them with `piip evaluate`.",
                trainer.global_step,
                self.directory,
            )


class Patience(EarlyStopping):
    """Stop after some validations without improvement; such a run takes no further step when resumed."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop again."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count a validation, unless there was nothing to measure."""
        if is_measured(float(trainer.callback_metrics[self.monitor])):
            super().on_train_epoch_end(trainer, pl_module)


class StopAtStep(pl.Callback):
    """End training after a number of optimiser steps, validating once more.

    With the trainer's own `max_steps`, every restart would look like one within an epoch.

    Args:
        max_steps: Optimiser steps.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the checkpoint is that of the last step."""
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the trainer after the last step."""
        if trainer.global_step >= self.max_steps:
            trainer.should_stop = True


def is_measured(value: float) -> bool:
    """Return whether a metric is a number: average precision is -1, mIoU NaN, if the split has nothing to find."""
    return math.isfinite(value) and value >= 0


def export_from_all(trainer: pl.Trainer, model: nn.Module, export: Export, metrics: dict[str, float]) -> None:
    """Gather a model's weights, on all processes together, and export them on process 0."""
    state = full_state(model)
    if trainer.is_global_zero:
        export(model, state, metrics, trainer.global_step)


def validation_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Return the latest validation metrics as numbers."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
