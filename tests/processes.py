"""Running a recipe in several processes, and what each of them saw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

RECORDER = """
import os, sys
from pathlib import Path
import torch
from piip.cli.main import main
from piip.training.tasks.base import TrainingTask
from piip.training.sharding import full_state

step, losses = TrainingTask.training_step, []

def recorded(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    losses.append(loss.item())
    return loss

def keep(self):
    seen = {"losses": losses, "weights": full_state(self.model)}
    torch.save(seen, Path(sys.argv[1]) / str(self.global_rank))

TrainingTask.training_step, TrainingTask.on_train_end = recorded, keep
main(sys.argv[2:])
"""


def run_processes(
    values: dict[str, Any], folder: Path, *options: str, processes: int = 2, nodes: int = 1
) -> list[dict[str, Any]]:
    """Train a recipe and return every process's "losses" and, with whole tensors, "weights" at the end.

    Args:
        values: The recipe.
        folder: For the recipe and what the processes leave; made here.
        options: Further options of `piip train`.
        processes: On this machine, or on each of the pretended machines.
        nodes: Machines, pretended by one launcher each.
    """
    folder.mkdir()
    (folder / "recorder.py").write_text(RECORDER)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = [str(folder / "recorder.py"), str(folder), "train", str(folder / "recipe.yaml")]
    command += ["--device", "cpu", "--devices", str(processes), "--nodes", str(nodes), "--progress", "none", *options]
    launchers: list[list[str]] = [[sys.executable]]
    if nodes > 1:
        size = ["--nnodes", str(nodes), "--nproc-per-node", str(processes), "--master-port", "29517"]
        run = [sys.executable, "-m", "torch.distributed.run", *size, "--node-rank"]
        launchers = [[*run, str(rank)] for rank in range(nodes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*launcher, *command], env=environment, stderr=subprocess.PIPE, text=True)
        for launcher in launchers
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [torch.load(folder / str(rank)) for rank in range(processes * nodes)]
