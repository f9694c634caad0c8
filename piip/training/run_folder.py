"""The folder of a training run: finding checkpoints, detecting other runs, reading the history.

Contents:
    checkpoints/   step*.ckpt (everything for exact resume; the two newest) and recipe.yaml, the resolved recipe
    best/          the saved model with the best validation metric so far
    model/         the saved model after the last step
    csv/           metrics.csv, one version folder per start; `read_history` joins them
    tensorboard/   the same numbers for TensorBoard
"""

from __future__ import annotations

import contextlib
import csv
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from piip.recipe import Recipe, load_recipe
from piip.serialization.mismatch import explain_mismatch

CHECKPOINTS = "checkpoints"
BEST = "best"
MODEL = "model"
CHECKPOINT_PATTERN = "step*.ckpt"
RECIPE_NAME = "recipe.yaml"
LOCK_NAME = ".lock"
SAVED_BY = "StepCheckpoint"  # the callback that writes checkpoints is in every one of them
# Parts of a checkpoint that resuming reads.
CONTENTS = {
    "state_dict": dict,
    "callbacks": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "global_step": int,
    "epoch": int,
}

# These fields change neither the position of a step in the run nor its result beyond rounding.
FREE_ON_RESUME = (
    "data.root",
    "data.workers",
    "data.on_error",
    "run.out",
    "run.start",
    "run.checkpoint_every",
    "run.log_every",
    "run.precision",
    "run.grad_checkpointing",
)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder of a run and keep other runs out of it; the lock ends with the process, also if it is killed.

    Args:
        folder: Folder of the run.

    Yields:
        Nothing.

    Raises:
        ValueError: The folder cannot be written, or another process trains in it.
    """
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a lock that exists can be taken in a folder that takes no files
            lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another process trains in {folder} at the moment: wait for it, or choose another --out."
        ) from error
    except NotImplementedError:  # file systems without locks
        pass
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written ({error.strerror}): choose another --out."
        ) from error
    try:
        yield
    finally:
        if not was_there and [path.name for path in folder.iterdir()] == [LOCK_NAME]:  # the run was refused
            shutil.rmtree(folder)
        lock.release()


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after `step` optimiser steps."""
    return f"step{step:08d}.ckpt"


def checkpoint_step(path: Path) -> int | None:
    """Return the optimiser step in a checkpoint's name, None for other names."""
    match = re.fullmatch(r"step(\d+)\.ckpt", path.name)
    return int(match.group(1)) if match else None


def find_checkpoint(folder: Path, resume: str | Path | None) -> Path | None:
    """Return the checkpoint to start from.

    Args:
        folder: Folder of the run.
        resume: None for a new run, "auto" for the newest checkpoint in the folder if there is one, or a path.

    Raises:
        ValueError: The path does not exist or is damaged, or the folder contains another run.
    """
    present = sorted((folder / CHECKPOINTS).glob(CHECKPOINT_PATTERN))
    if resume is None:
        if present:
            raise ValueError(f"{folder} contains a run ({present[-1].name}). Use --resume auto or another --out.")
        return None
    if str(resume) == "auto":
        checkpoint = present[-1] if present else None
    else:
        checkpoint = Path(resume)
        if not checkpoint.is_file():  # or it is a folder
            raise ValueError(
                f"There is no checkpoint {str(resume)!r}, expected 'auto' or a file RUN/checkpoints/step*.ckpt."
            )
        if present and checkpoint.resolve() not in [path.resolve() for path in present]:
            raise ValueError(
                f"{folder} contains a run ({present[-1].name}), and {resume} is not one of its checkpoints. Choose "
                "another --out."
            )
    if checkpoint is not None:
        _check_whole(checkpoint)
        read_checkpoint(checkpoint)
    return checkpoint


def _check_whole(checkpoint: Path) -> None:
    """Verify the checksums of a checkpoint before anything else is loaded."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            problem = archive.testzip()
    except Exception as error:  # damaged archives fail wherever the damage leads
        problem = " ".join(str(error).split()) or type(error).__name__
    if problem is not None and checkpoint_step(checkpoint) is None:
        raise ValueError(_foreign(checkpoint, problem))
    if problem is not None:
        raise ValueError(
            f"The checkpoint {checkpoint} is damaged ({problem}). Delete it and use --resume auto to resume from "
            "the previous one."
        )


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint; tensors stay in the file until they are used, and no code in it is run.

    Args:
        checkpoint: The file.

    Raises:
        ValueError: The file was not written by a training run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats that are refused below
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever is in the file, it is not ours
        reason = str(error).strip().splitlines() or [type(error).__name__]
        found = re.search(r"GLOBAL [\w.]+", str(error))
        raise ValueError(_foreign(checkpoint, f"it asks for {found.group()[7:]}" if found else reason[0])) from error
    values = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in CONTENTS.items() if not isinstance(values.get(name), kind)]
    if wrong or SAVED_BY not in values["callbacks"]:
        raise ValueError(_foreign(checkpoint, f"it has no {' and no '.join(wrong) or SAVED_BY}"))
    return values


def check_weights(model: nn.Module, checkpoint: Path) -> None:
    """Raise an error if the weights of a checkpoint are those of another model.

    Args:
        model: The model to be trained.
        checkpoint: The checkpoint to resume from.

    Raises:
        ValueError: Names or shapes differ.
    """
    given = {name: tuple(value.shape) for name, value in read_checkpoint(checkpoint)["state_dict"].items()}
    wanted = {f"model.{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    problem = explain_mismatch(wanted, given, source=str(checkpoint))
    if problem:
        raise ValueError(problem)


def _foreign(checkpoint: Path, reason: str) -> str:
    return (
        f"{checkpoint} is no checkpoint of `piip train` ({reason.rstrip('.')}), nothing in it was run. Expected 'auto' "
        "or a file RUN/checkpoints/step*.ckpt; weights alone are loaded with --run.start or `piip convert`."
    )


def check_same_recipe(
    recipe: Recipe, checkpoint: Path, *, resolve: Callable[[Recipe], Recipe], is_exact: bool = True
) -> str:
    """Raise an error if the recipe differs from that of the checkpoint.

    Args:
        recipe: The resolved recipe.
        checkpoint: The checkpoint to resume from.
        resolve: Resolves open fields of the checkpoint's recipe.
        is_exact: Raise the error; otherwise return it.

    Returns:
        What differs; empty if nothing does.

    Raises:
        ValueError: A field that affects training differs.
    """
    beside = checkpoint.parent / RECIPE_NAME
    if not beside.is_file():
        return ""
    changed = recipe_changes(resolve(load_recipe(beside)), recipe)
    difference = f"{beside} differs from this recipe: {'; '.join(changed)}." if changed else ""
    if changed and is_exact:
        raise ValueError(
            f"{difference} An exact resume needs the same recipe (it may change {', '.join(FREE_ON_RESUME)}); "
            "otherwise continue by step with --resume-inexact, or choose another --out."
        )
    return difference


def recipe_changes(before: Recipe, after: Recipe) -> list[str]:
    """Return the fields that affect training and differ, as "NAME OLD -> NEW"; see `FREE_ON_RESUME` for the others.

    Args:
        before: A recipe.
        after: A recipe that is as much resolved as the first.
    """
    old, new = _flat(before.to_dict()), _flat(after.to_dict())
    return [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in FREE_ON_RESUME
    ]


def read_history(folder: str | Path) -> list[dict[str, float]]:
    """Return the logged rows of a run from all its starts, in order.

    If a restart repeats steps, its rows are used. If a run was killed between a checkpoint and the row of its step,
    that row is missing, but the weights include the step.

    Returns:
        Dicts with "step" (0-based), "epoch" and the logged metrics; a metric that was not logged has no key.
    """
    rows: list[dict[str, float]] = []
    versions = sorted(Path(folder).glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    for path in versions:
        with path.open(newline="") as file:
            added = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        first = min((row["step"] for row in added), default=float("inf"))
        rows = [row for row in rows if row["step"] < first] + added
    return rows


def _flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value)) if any(isinstance(item, Mapping) for item in value) else value
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
