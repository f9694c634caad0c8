"""Progress of a training run: images per second and remaining time, as a bar in a terminal or as lines in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities import rank_zero_only

PROGRESS_KINDS = ("auto", "bar", "lines", "none")


def progress_callbacks(kind: str, *, batch_size: int, every: int, total_steps: int) -> list[pl.Callback]:
    """Return the callbacks that show progress.

    Args:
        kind: "bar", "lines", "none", or "auto": a bar if stderr is a terminal, else lines.
        batch_size: Images per batch, over all processes.
        every: Optimiser steps between logged values and between lines, at most one epoch.
        total_steps: Optimiser steps of the whole run.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind not in PROGRESS_KINDS:
        raise ValueError(f"progress is {kind!r}, expected one of {', '.join(PROGRESS_KINDS)}.")
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "lines"
    throughput = Throughput(batch_size, every=every)
    shown: dict[str, list[pl.Callback]] = {
        "bar": [ProgressBar(throughput, total_steps=total_steps)],
        "lines": [ProgressLines(throughput, every=every, total_steps=total_steps)],
        "none": [],
    }
    return [throughput, *shown[kind]]


class Throughput(pl.Callback):
    """Measure and log `train/images_per_second` since the start, without validation between epochs.

    Args:
        batch_size: Images per batch, over all processes.
        every: Optimiser steps between logged values.
    """

    def __init__(self, batch_size: int, *, every: int) -> None:
        self.batch_size = batch_size
        self.every = every
        self.images_per_second = 0.0
        self._images = 0
        self._seconds = 0.0
        self._before = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._before = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images and time."""
        now = time.perf_counter()
        self._images += self.batch_size
        self._seconds += now - self._before
        self._before = now
        self.images_per_second = self._images / self._seconds
        if is_due(trainer, batch_idx, self.every):
            pl_module.log("train/images_per_second", self.images_per_second, prog_bar=True)

    def time_left(self, trainer: pl.Trainer, total_steps: int) -> str:
        """Return the remaining time of the run as hours:minutes:seconds."""
        images = (total_steps - trainer.global_step) * trainer.accumulate_grad_batches * self.batch_size
        return str(timedelta(seconds=int(images / self.images_per_second))) if self.images_per_second else "?"


class ProgressBar(RichProgressBar):
    """Lightning's bar, followed by loss, accuracy, images per second and remaining time of the run.

    Args:
        throughput: Source of the rate.
        total_steps: Optimiser steps of the whole run.
    """

    def __init__(self, throughput: Throughput, *, total_steps: int) -> None:
        super().__init__()
        self.throughput = throughput
        self.total_steps = total_steps

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """Return the metrics shown after the bar."""
        logged = trainer.callback_metrics
        shown = {
            "loss": "train/loss",
            "top-1": "val/top1",
            "box AP": "val/box_ap",
            "mask AP": "val/mask_ap",
            "mIoU": "val/miou",
        }
        metrics = {name: f"{float(logged[key]):.4f}" for name, key in shown.items() if key in logged}
        metrics["images/s"] = f"{self.throughput.images_per_second:.1f}"
        return {**metrics, "left": self.throughput.time_left(trainer, self.total_steps)}


class ProgressLines(pl.Callback):
    """One line every N optimiser steps and after every validation, for logs and pipes.

    Args:
        throughput: Source of the rate.
        every: Optimiser steps between lines.
        total_steps: Optimiser steps of the whole run.
    """

    def __init__(self, throughput: Throughput, *, every: int, total_steps: int) -> None:
        self.throughput = throughput
        self.every = every
        self.total_steps = total_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print epoch, step, loss, rate and remaining time."""
        if not is_due(trainer, batch_idx, self.every) or not trainer.is_global_zero:
            return
        rate = self.throughput.images_per_second
        loss = float(trainer.callback_metrics["train/loss"])
        _print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} step {trainer.global_step}/{self.total_steps} "
            f"loss {loss:.4f}, {rate:.1f} images/s, {self.throughput.time_left(trainer, self.total_steps)} left"
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the validation metrics."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = [f"{n} {float(v):.4f}" for n, v in trainer.callback_metrics.items() if n.startswith("val/")]
        _print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} " + " ".join(metrics))


def is_due(trainer: pl.Trainer, batch_idx: int, every: int) -> bool:
    """Return whether a batch ends an optimiser step whose number is a multiple of `every`."""
    is_last = batch_idx + 1 == trainer.num_training_batches
    is_step = is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return is_step and trainer.global_step % every == 0


@rank_zero_only
def note(line: str) -> None:
    """Print one line about the run, on one process."""
    _print(line)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
