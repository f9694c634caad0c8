"""Where the losses and metrics of a run go."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from piip.recipe import RunConfig

PROJECT = "piip"


def build_loggers(run: RunConfig, *, log_every: int, resumed_at: int | None = None) -> list[Logger]:
    """Return the loggers that a run asks for, in its order.

    Weights & Biases and MLflow write where their own settings say (WANDB_MODE, MLFLOW_TRACKING_URI, ...). The run has
    the name of its folder, and a resumed run goes on in the same record of Weights & Biases.

    Args:
        run: The recipe's section.
        log_every: Optimiser steps between logged values.
        resumed_at: Optimiser steps behind the checkpoint that the run goes on from.

    Raises:
        ValueError: A logger's package is not installed.
    """
    folder = Path(run.out)

    def wandb() -> Logger:
        identity = "".join(character if character.isalnum() else "-" for character in str(folder.resolve()))[-64:]
        return WandbLogger(name=folder.name, save_dir=folder, project=PROJECT, id=identity, resume="allow")

    def mlflow() -> Logger:
        from mlflow import get_tracking_uri  # Lightning's default is a kind of store that MLflow has given up

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
            raise ValueError(f"run.loggers asks for {name!r}, which is not installed. Use: pip install {name}")
    return [makers[name]() for name in run.loggers]
