"""Loggers for losses and metrics of a run."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from piip.recipe import RunConfig

PROJECT = "piip"


def quieten_lightning() -> None:
    """Hide Lightning's advice, for the rest of the process: a command says by itself what users need to know."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # about in-place operations on its outputs


def build_loggers(run: RunConfig, *, log_every: int, resumed_at: int | None = None) -> list[Logger]:
    """Return the loggers of a run, in the order of the recipe.

    Weights & Biases and MLflow use their own settings (WANDB_MODE, MLFLOW_TRACKING_URI, ...). Runs are
    named after their folder, and a resumed run continues the same run of Weights & Biases.

    Args:
        run: The recipe's section.
        log_every: Optimiser steps between logged values.
        resumed_at: Optimiser step of the checkpoint that the run resumes from.

    Raises:
        ValueError: A logger's package is not installed.
    """
    folder = Path(run.out)

    def wandb() -> Logger:
        identity = "".join(character if character.isalnum() else "-" for character in str(folder.resolve()))[-64:]
        return WandbLogger(name=folder.name, save_dir=folder, project=PROJECT, id=identity, resume="allow")

    def mlflow() -> Logger:
        from mlflow import get_tracking_uri  # Lightning's default is a kind of store that MLflow deprecated

        return MLFlowLogger(experiment_name=PROJECT, run_name=folder.name, tracking_uri=get_tracking_uri())

    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="csv", flush_logs_every_n_steps=log_every),
        "tensorboard": lambda: TensorBoardLogger(
            folder, name="tensorboard", version="", default_hp_metric=False, purge_step=resumed_at
        ),
        "wandb": wandb,
        "mlflow": mlflow,
    }
    for name in run.loggers:
        if importlib.util.find_spec(name) is None and name in ("wandb", "mlflow"):
            raise ValueError(f"run.loggers has {name!r}, which is not installed. Use: pip install {name}")
    return [makers[name]() for name in run.loggers]
