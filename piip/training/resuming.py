"""Lightning callbacks of a resumed run: the same data, or a run that continues by steps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from piip.data.loader import ResumableLoader
from piip.training.progress import note


class Begun(pl.Callback):
    """Record that the state of a checkpoint was restored, so that later errors are not blamed on the checkpoint."""

    def __init__(self) -> None:
        self.reached = False

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record it before the first validation batch."""
        self.reached = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record it where no validation comes first."""
        self.reached = True


class SameData(pl.Callback):
    """Raise an error if training images, annotations or the number of processes differ from the checkpoint's.

    This is not part of the loader's state, because Lightning loads that only within an epoch.

    Args:
        loader: The training loader.
        annotations: A digest of the annotation files; empty if the data have none.
        is_exact: Raise the error; otherwise log it as a warning.
    """

    def __init__(self, loader: ResumableLoader, *, annotations: str = "", is_exact: bool = True) -> None:
        self.loader = loader
        self.annotations = annotations
        self.is_exact = is_exact
        self._facts: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's facts, computed once."""
        if self._facts is None:
            self._facts = self.loader.facts() | ({"annotations": self.annotations} if self.annotations else {})
        return self._facts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the checkpoint's facts with the loader's."""
        try:
            self.loader.check_facts(state_dict, self.state_dict())
        except ValueError as error:
            if self.is_exact:
                raise
            note(str(error).partition(" An exact")[0])


class ContinuedBySteps(pl.Callback):
    """Resume a checkpoint whose epochs have another length, or whose recipe had other fields.

    Weights, state of the optimiser and number of steps stay. The run continues at the beginning of the epoch that the
    step falls into, with the learning rates and decays of the new recipe.

    Args:
        steps_per_epoch: Optimiser steps per epoch of this run.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the checkpoint before Lightning restores loops and optimiser.

        Raises:
            ValueError: The optimiser has other groups of parameters.
        """
        loops = checkpoint["loops"]["fit_loop"]
        epoch = checkpoint["global_step"] // self.steps_per_epoch
        for progress in loops["epoch_progress"].values():
            progress.update(dict.fromkeys(progress, epoch))
        for name in ("epoch_loop.batch_progress", "epoch_loop.scheduler_progress"):
            loops[name]["current"] = dict.fromkeys(loops[name]["current"], 0)
        checkpoint["epoch"] = epoch
        task: Any = pl_module
        optimizer, schedule = task.configure(task.model)
        state, now = checkpoint["optimizer_states"][0], optimizer.state_dict()
        if [group["params"] for group in state["param_groups"]] != [group["params"] for group in now["param_groups"]]:
            raise ValueError(
                "The optimiser of the checkpoint has other groups of parameters: keep frozen branches, layer decay "
                "and weight decay, or start a new run from the saved model with --run.start."
            )
        step = checkpoint["global_step"]
        rates = [base * rate(step) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        state["param_groups"] = [{**g, "lr": rate} for g, rate in zip(now["param_groups"], rates, strict=True)]
        checkpoint["lr_schedulers"][0].update(base_lrs=list(schedule.base_lrs), _last_lr=rates)
