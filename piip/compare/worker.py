"""One run in a process of its own: trained to its end, then measured."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from piip.bench.worker import peak_resident_bytes
from piip.compare.config import SplitConfig
from piip.compare.measure import MEASURES, Scores
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
        values: "steps", "validation", "scores", "seconds" and "peak_bytes" of a finished run.
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
        quieten_lightning()
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        seconds = _train(job)
        peak = peak_bytes(job.device)
        scores: Scores = {}
        if job.test is not None:
            scores = MEASURES[job.task].evaluate(job.folder / BEST, job.recipe, job.test, job.device)
        description = read_description(job.folder / BEST)
    except KeyboardInterrupt:
        return Outcome(interrupted=True)
    except FloatingPointError as error:
        return Outcome(error=_line(error), diverged=True)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        traceback.print_exc()
        return Outcome(error=_line(error))
    validation = {name.removeprefix("val/"): value for name, value in description["metrics"].items()}
    steps = read_description(job.folder / MODEL)["steps"]
    return Outcome({"steps": steps, "validation": validation, "scores": scores, "seconds": seconds, "peak_bytes": peak})


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


def peak_bytes(device: str) -> int:
    """Return the peak memory of this process so far: resident bytes, or allocated bytes of the GPU.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
    """
    used = 0 if device == "cpu" or not torch.cuda.is_available() else torch.cuda.max_memory_allocated()
    return used or peak_resident_bytes()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def run_in_process(job: Job, deadline: float | None = None) -> Outcome:
    """Do a run in a process of its own, whose output goes into a file in the run's folder.

    Args:
        job: The run.
        deadline: Value of `time.monotonic` at which the run is interrupted; None for no limit.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the run has saved its step.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe(duplex=False)
    job.folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_serve, args=(theirs, job))
    process.start()
    theirs.close()
    try:
        while not connection.poll(WAIT):
            if deadline is not None and time.monotonic() > deadline:
                process.terminate()
                break
        return _receive(connection, process)
    except KeyboardInterrupt:
        process.terminate()
        process.join()
        raise
    finally:
        if process.is_alive():  # interrupted twice
            process.kill()
        process.join()
        connection.close()


def _receive(connection: Connection, process: Any) -> Outcome:
    """Return what a process answers, or what its end means."""
    try:
        answer: Outcome = connection.recv()
        return answer
    except EOFError:
        process.join()
    if process.exitcode in (-signal.SIGTERM, 130):
        return Outcome(interrupted=True)
    if process.exitcode == -signal.SIGKILL:
        return Outcome(error="the system ended its process, most likely for lack of memory")
    return Outcome(error=f"its process ended with exit code {process.exitcode}")


def _serve(connection: Connection, job: Job) -> None:
    """Do a run and send its outcome; runs in the new process."""
    with (job.folder / LOG).open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        connection.send(do_run(job))
        connection.close()
