"""One model in a process of its own, which runs a forward pass whenever it is told to.

The peak memory of the process is the model's, and models that are measured in turn do not share the memory allocator.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piip.bench.subjects import Subject
from piip.bench.weights import build_random
from piip.build import PyramidWarning
from piip.cost.launches import Launches, count_launches
from piip.optimize.rewrite import optimize_for_inference
from piip.serialization.base import PyramidModel
from piip.serialization.load import load_model
from piip.serialization.save import DTYPES
from piip.structures import Size

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Job:
    """A model and how to run it.

    Args:
        subject: The model.
        image_size: (H, W) in pixels.
        dtype: "f32" or "bf16".
        form: One of `FORMS`.
        batch_size: Images per pass.
        device: "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of PyTorch's operations on the CPU.
    """

    subject: Subject
    image_size: Size
    dtype: str
    form: str
    batch_size: int
    device: str
    threads: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the job from others of a run."""
        return (self.subject.name, self.dtype, self.form)


def _compiled(model: PyramidModel, image: Tensor) -> Run:
    compiled: Run = torch.compile(model)
    return compiled


# Ways to run a model: "eager" as it is, "optimized" by piip, "compiled" by PyTorch, or exported to another runtime.
FORMS: dict[str, Callable[[PyramidModel, Tensor], Run]] = {
    "optimized": optimize_for_inference,
    "eager": lambda model, image: model,
    "compiled": _compiled,
    "onnx": functools.partial(optimize_for_inference, runtime="onnx"),
    "openvino": functools.partial(optimize_for_inference, runtime="openvino"),
}


def prepare(job: Job) -> tuple[Run, Tensor]:
    """Build a model and its images, and return what runs them.

    Args:
        job: What to build.
    """
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    model = build(job)
    image = torch.randn(job.batch_size, 3, *job.image_size).to(job.device, DTYPES[job.dtype])
    return FORMS[job.form](model, image), image


def build(job: Job) -> PyramidModel:
    """Build a model with its weights or random ones.

    Args:
        job: What to build.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyramidWarning)
        if job.subject.directory is None:
            return build_random(job.subject.config, device=job.device, dtype=job.dtype)
        model = load_model(job.subject.directory, device=job.device, dtype=job.dtype)
    return model.get_backbone() if job.subject.config.head.task == "features" else model


class Worker:
    """A process with one model.

    Args:
        job: The model and how to run it.

    Attributes:
        prepare_seconds: Time to build and optimize the model.

    Raises:
        ValueError: The model cannot be built or run, or the system killed the process.
    """

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self._name = job.subject.name
        self.prepare_seconds = float(self._receive())

    def run(self) -> float:
        """Run a forward pass and return its seconds."""
        self._connection.send("run")
        return float(self._receive())

    def run_again(self) -> float:
        """Run two forward passes and return the seconds of the second.

        While other models ran, systems that reclaim idle memory may have taken this process's pages.
        """
        self._connection.send("run again")
        return float(self._receive())

    def peak_bytes(self) -> int:
        """Return the peak memory so far: resident bytes of the process, or allocated bytes of the GPU."""
        self._connection.send("peak")
        return int(self._receive())

    def launches(self) -> Launches:
        """Count launches and synchronisations of an eager pass; not timed."""
        self._connection.send("launches")
        return Launches(*self._receive())

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise ValueError(f"{self._name}: {_ending(self._process.exitcode)}") from error
        if isinstance(answer, str):
            self.close()
            raise ValueError(f"{self._name}: {answer}")
        return answer


def _ending(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "the system ended its process, most likely for lack of memory; try --dtype bf16 or --form eager."
    return f"its process ended with exit code {exitcode}."


def _serve(connection: Connection, job: Job) -> None:
    """Answer requests with numbers, or with a text in case of an error; runs in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        started = time.perf_counter()
        run, image = prepare(job)
        answers: dict[str, Callable[[], Any]] = {
            "run": lambda: _seconds(run, image),
            "run again": lambda: [_seconds(run, image) for _ in range(2)][1],
            "peak": lambda: _peak(image),
            "launches": lambda: tuple(_launches(job, run, image)),
        }
        connection.send(time.perf_counter() - started)
        with torch.inference_mode(), contextlib.suppress(EOFError):
            while True:
                connection.send(answers[connection.recv()]())
    except (ValueError, RuntimeError, MemoryError) as error:  # of the model, or PyTorch's for lack of memory
        connection.send(" ".join(str(error).split()) or type(error).__name__)


def _seconds(run: Run, image: Tensor) -> float:
    started = time.perf_counter()
    run(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - started


def _launches(job: Job, run: Run, image: Tensor) -> Launches:
    model = run if job.form == "eager" else build(job)  # what is optimized is not dispatched by PyTorch
    return count_launches(lambda: model(image))


def _peak(image: Tensor) -> int:
    return torch.cuda.max_memory_allocated(image.device) if image.is_cuda else peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the peak resident size of this process so far.

    Read from /proc where there is one: `getrusage` starts with the size of the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
