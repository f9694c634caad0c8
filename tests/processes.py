"""Starting processes, and running a recipe in several of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

RECORDER = """
import os, sys
from pathlib import Path
import torch
from piip.cli import main
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


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Let processes that start here be interrupted, though these tests may not be.

    A shell's background jobs ignore SIGINT, and what a process ignores, its children ignore.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def environment(**variables: str) -> dict[str, str]:
    """Return the variables of this process and more.

    Tiny models are fastest on one thread. What hangs says where when `outcome` stops it.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **variables}


def start(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a program whose output goes into pipes; `env` is `environment()` unless given."""
    env = environment() if env is None else env
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with default_signals():
        return subprocess.Popen(command, cwd=cwd, env=env, **pipes)


def outcome(process: subprocess.Popen[str], *, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a process; one that takes too long is killed, and nothing of it stays open."""
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        out, errors = process.communicate()
        raise AssertionError(f"{process.args} took more than {timeout} s:\n{out}{errors}") from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def run(
    *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return outcome(start(*command, cwd=cwd, env=env))


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must succeed, and return what it printed."""
    done = outcome(process)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finish_all(processes: Iterable[subprocess.Popen[str]]) -> None:
    """Wait for processes that must all succeed; none is left behind where one fails."""
    for done in [outcome(process) for process in processes]:
        assert done.returncode == 0, done.stdout + done.stderr


def succeed(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program that must succeed, and return what it printed."""
    return finish(start(*command, cwd=cwd, env=env))


def free_port() -> int:
    """Return a port on which nothing listens; tests that run at the same time get others."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
        size = ["--nnodes", str(nodes), "--nproc-per-node", str(processes), "--master-port", str(free_port())]
        run = [sys.executable, "-m", "torch.distributed.run", *size, "--node-rank"]
        launchers = [[*run, str(rank)] for rank in range(nodes)]
    finish_all([start(*launcher, *command) for launcher in launchers])
    return [torch.load(folder / str(rank)) for rank in range(processes * nodes)]
