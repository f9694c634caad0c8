"""One run in a process of its own: trained to its end, then measured."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from piip.bench.machine import machine
from piip.bench.worker import peak_resident_bytes
from piip.compare.config import SplitConfig
from piip.compare.measure import MEASURES
from piip.device import pick_device
from piip.output import write_json
from piip.recipe import Recipe
from piip.serialization.description import read_description
from piip.training.loggers import quieten_lightning
from piip.training.run_folder import BEST, MODEL
from piip.training.train import train

LOG = "log.txt"
SECONDS = "seconds.json"
WAIT = 1.0  # seconds between looks at the clock


@dataclass(frozen=True)
class Job:
    """A run and how to do it.

    Args:
        recipe: Its recipe.
        task: Key of `measure.MEASURES`.
        test: Split to measure; None for runs that only try a rate.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of PyTorch's operations; None for PyTorch's own choice.
    """

    recipe: Recipe
    task: str
    test: SplitConfig | None
    device: str
    threads: int | None

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.recipe.run.out)


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        values: Of a finished run: "steps"; "validation", the metrics of its best checkpoint; "scores", those of the
            split that is measured; "seconds" of training with validation; "peak_bytes" of training; "machine".
        error: Message in one line; None for runs that finished or were interrupted.
        diverged: Whether the loss became NaN or infinite, which would happen again.
        interrupted: Whether it was interrupted and can be resumed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    diverged: bool = False
    interrupted: bool = False


def do_run(job: Job) -> Outcome:
    """Train a run to its end, or resume it, and measure its best checkpoint, in this process.

    Args:
        job: The run.
    """
    try:
        return Outcome(_trained_and_measured(job))
    except KeyboardInterrupt:
        return Outcome(interrupted=True)
    except (ValueError, OSError, RuntimeError, MemoryError, FloatingPointError) as error:
        traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        return Outcome(error=message, diverged=isinstance(error, FloatingPointError))


def _trained_and_measured(job: Job) -> dict[str, Any]:
    """Return the values of an `Outcome`."""
    quieten_lightning()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    seconds = _train(job)
    peak = _peak_bytes(job.device)
    best = job.folder / BEST
    recorded = read_description(best)["metrics"]
    return {
        "steps": read_description(job.folder / MODEL)["steps"],
        "validation": {name.removeprefix("val/"): value for name, value in recorded.items()},
        "scores": {} if job.test is None else MEASURES[job.task].evaluate(best, job.recipe, job.test, job.device),
        "seconds": seconds,
        "peak_bytes": peak,
        "machine": machine(str(pick_device(job.device))),
    }


def _train(job: Job) -> float:
    """Train to the end; return the seconds of all starts, except of those that were killed."""
    path = job.folder / SECONDS
    before = json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
    started = time.perf_counter()
    try:
        train(job.recipe, resume="auto", device=job.device, progress="lines")
    finally:
        seconds = before + time.perf_counter() - started
        if job.folder.is_dir():
            write_json({"seconds": seconds}, path)
    return seconds


def _peak_bytes(device: str) -> int:
    """Return the peak memory of this process so far: allocated bytes of the GPU, or resident bytes."""
    is_cuda = pick_device(device).type == "cuda"
    return torch.cuda.max_memory_allocated(device) if is_cuda else peak_resident_bytes()


def run_in_process(job: Job, deadline: float | None = None) -> Outcome:
    """Do a run in a process of its own, whose output goes into a file in the run's folder.

    Args:
        job: The run.
        deadline: Value of `time.monotonic` at which the run is interrupted; None for no limit.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the run has saved its step.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe(duplex=False)
    job.folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_serve, args=(theirs, job))
    process.start()
    theirs.close()
    try:
        with _terminated_as_interrupted():
            while not connection.poll(WAIT):
                if deadline is not None and time.monotonic() > deadline:
                    process.terminate()
                    break
            outcome = _receive(connection)
            process.join()
            return outcome or _ending(process.exitcode)
    except KeyboardInterrupt:
        process.terminate()
        process.join()
        raise
    finally:
        if process.is_alive():  # interrupted twice
            process.kill()
        process.join()
        connection.close()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _receive(connection: Connection) -> Outcome | None:
    """Return the answer of a process, None if it ended without one."""
    try:
        answer: Outcome = connection.recv()
    except EOFError:
        return None
    return answer


def _ending(exitcode: int | None) -> Outcome:
    """Return what it means that a process ended without an answer."""
    if exitcode == -signal.SIGTERM:  # before or after training, which saves its step
        return Outcome(interrupted=True)
    if exitcode == -signal.SIGKILL:
        return Outcome(error="the system ended its process, most likely for lack of memory")
    return Outcome(error=f"its process ended with exit code {exitcode}, see {LOG} in its folder")


def _serve(connection: Connection, job: Job) -> None:
    """Do a run and send its outcome; runs in the new process."""
    with (job.folder / LOG).open("a", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        connection.send(do_run(job))
        connection.close()
