"""Running tiny recipes, and reading what the runs left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_run import branch
from torch import nn

from piip.recipe import Recipe
from piip.training.run_folder import read_history
from piip.training.train import TrainingResult, train

# Everything that draws random numbers, or holds state between steps.
EVERYTHING: dict[str, dict[str, Any]] = {
    "model": {"branches": [branch(24, 32, drop_path_rate=0.2), branch(32, 16)]},
    "data": {"transform": {"auto_augment": "rand-m9-mstd0.5-inc1", "reprob": 0.3}},
    "regularize": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "optim": {"layer_decay": 0.8, "clip": 1.0},
    "schedule": {"epochs": 3, "warmup_epochs": 0.5},
}


def run(recipe: Recipe, resume: str | None = None) -> TrainingResult:
    return train(recipe, resume=resume, device="cpu", progress="none")


def losses(folder: str | Path) -> list[float]:
    return [row["train/loss"] for row in read_history(folder) if "train/loss" in row]


def moved(first: nn.Module, second: nn.Module) -> set[str]:
    """Return the parts whose tensors differ: "branches.0", "branches.1", "interactions", ..."""
    other = second.state_dict()
    names = [name for name, value in first.state_dict().items() if not torch.equal(value, other[name])]
    return {".".join(name.removeprefix("backbone.").split(".")[: 2 if ".branches." in name else 1]) for name in names}


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def newest_step(folder: Path) -> int:
    return max((int(path.stem[4:]) for path in folder.glob("checkpoints/step*.ckpt")), default=0)
