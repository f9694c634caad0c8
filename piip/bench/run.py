"""Measuring models in turn: each in its own process, several rounds, every round kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piip.bench.machine import available_bytes, machine
from piip.bench.subjects import Subject
from piip.bench.worker import Job, Worker
from piip.cost import CostReport, estimate_cost
from piip.serialization.save import DTYPES
from piip.structures import Size

# What a process needs, for choosing which models are in memory at once: Python and PyTorch, weights (with packed copies
# and a second model for counting launches), and activations per pixel of float32, all rather too much than too little.
PROCESS_BYTES, WEIGHT_COPIES, PIXEL_BYTES = 800 * 10**6, 3, 1400
USABLE = 0.9  # of the available memory

Row = dict[str, Any]
Key = tuple[str, str, str]  # see `Job.key`
Say = Callable[[str, int, int], None]  # what happens, passes done, passes in all


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Args:
        dtypes: "f32", "bf16" or both.
        form: One of `worker.FORMS`.
        repeats: Rounds that count, after the first.
        image_size: (H, W) in pixels; None for the size at which each model was evaluated, or its nominal square. At
            another size its accuracy is left out.
        batch_size: Images per pass.
        device: "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of PyTorch's operations on the CPU.
    """

    dtypes: tuple[str, ...]
    form: str
    repeats: int
    image_size: Size | None
    batch_size: int
    device: str
    threads: int


@dataclass
class BenchReport:
    """Rows of measurements, saved as they come.

    Args:
        path: JSON file.
        machine: See `machine.machine`.
        rows: One row for each model and dtype.
        complete: Whether all models were measured.
    """

    path: Path
    machine: dict[str, Any]
    rows: dict[Key, Row] = field(default_factory=dict)
    complete: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values: "machine", "complete" and "models"."""
        return {"machine": self.machine, "complete": self.complete, "models": [*self.rows.values()]}

    def save(self) -> None:
        """Write the file; a reader always finds a whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def run_bench(subjects: Sequence[Subject], options: BenchOptions, path: str | Path, say: Say) -> BenchReport:
    """Measure models in turn; time per multiply-add is relative to the first one.

    Args:
        subjects: The models.
        options: How to measure.
        path: JSON file for the rows.
        say: Called before every pass.

    Raises:
        ValueError: No model could be measured; with the reason of the first one.
    """
    report = BenchReport(Path(path), machine(options.device, threads=options.threads))
    counted = [_count(subject, options.image_size) for subject in subjects]
    groups = []
    for dtype in options.dtypes:
        jobs = []
        for subject, cost in counted:
            size, threads = cost.image_size, options.threads
            job = Job(subject, size, dtype, options.form, options.batch_size, options.device, threads)
            report.rows[job.key] = _facts(job, cost)
            jobs.append((job, _memory_need(job, cost)))
        groups += group_jobs(jobs, int(USABLE * available_bytes(options.device)))
    report.save()
    progress = _Progress(say, sum(len(group) for group in groups) * (options.repeats + 1))
    for group in groups:
        _measure_group(group, report, options.repeats, progress)
    errors = [row["error"] for row in report.rows.values() if "error" in row]
    if len(errors) == len(report.rows):
        raise ValueError(errors[0])
    report.complete = True
    report.save()
    return report


def group_jobs(jobs: Sequence[tuple[Job, int]], memory: int) -> list[list[Job]]:
    """Return jobs in groups that fit into memory together, each beside the first one; a job that does not is alone.

    Args:
        jobs: Jobs and the bytes that each needs.
        memory: Bytes for all of a group.
    """
    (reference, reference_bytes), *others = jobs
    alone = [[job] for job, need in others if reference_bytes + need > memory]
    groups, used = [[reference]], reference_bytes
    for job, need in others:
        if [job] in alone:
            continue
        if used + need > memory:
            groups.append([reference])
            used = reference_bytes
        groups[-1].append(job)
        used += need
    return groups + alone


def _count(subject: Subject, image_size: Size | None) -> tuple[Subject, CostReport]:
    """Return a model with its cost at the size to measure, without its accuracy if that is of another size."""
    cost = estimate_cost(subject.config, image_size=image_size or subject.image_size)
    if cost.image_size != (subject.image_size or (subject.config.branches[-1].image_size,) * 2):
        subject = dataclasses.replace(subject, accuracy=None)
    return subject, cost


def _memory_need(job: Job, cost: CostReport) -> int:
    itemsize = DTYPES[job.dtype].itemsize
    copies = 1 if job.form == "eager" else WEIGHT_COPIES
    pixels = job.batch_size * job.image_size[0] * job.image_size[1]
    return PROCESS_BYTES + copies * itemsize * cost.params + PIXEL_BYTES * pixels * itemsize // 4


def _facts(job: Job, cost: CostReport) -> Row:
    """Return what is known of a model before it runs."""
    accuracy = job.subject.accuracy
    return {
        "name": job.subject.name,
        "dtype": job.dtype,
        "form": job.form,
        "image_size": list(job.image_size),
        "batch_size": job.batch_size,
        "branches": len(job.subject.config.branches),
        "macs": job.batch_size * cost.macs,
        "macs_by_part": {name: job.batch_size * part.macs for name, part in cost.parts.items()},
        "params": cost.params,
        "seconds": None,
        "median_seconds": None,
        "first_seconds": None,
        "prepare_seconds": None,
        "rounds": [],
        "peak_bytes": None,
        "launches": None,
        "syncs": None,
        "metric": accuracy and accuracy.metric,
        "accuracy": accuracy and accuracy.value,
        "accuracy_source": accuracy and accuracy.source,
        "time_per_mac_ratio": None,
    }


class _Progress:
    """Counts the passes of a run; what is left out counts too."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._done, self._total = say, 0, total

    def next(self, text: str | None) -> None:
        """Go to the next pass, and say what it is unless it is left out."""
        if text is not None:
            self._say(text, self._done, self._total)
        self._done += 1


def _measure_group(group: Sequence[Job], report: BenchReport, repeats: int, progress: _Progress) -> None:
    """Measure jobs in turn; a job that fails gets an "error" in its row and is left out of later rounds."""
    workers: dict[Key, Worker] = {}
    try:
        for round_, job in itertools.product(range(repeats + 1), group):
            what = f"round {round_} of {repeats}" if round_ else "prepare, first pass"
            row = report.rows[job.key]
            progress.next(None if "error" in row else f"{job.subject.name}, {job.dtype}: {what}")
            if "error" in row:
                continue
            try:
                if round_ == 0:
                    workers[job.key] = Worker(job)
                _note(row, workers[job.key], is_first=round_ == 0)
            except ValueError as error:
                row["error"] = str(error)
            report.save()
        _count_launches(workers, report)
    finally:
        for worker in workers.values():
            worker.close()
    _compare(group, report, repeats)


def _count_launches(workers: Mapping[Key, Worker], report: BenchReport) -> None:
    """Count once for every model; the counts do not depend on the dtype."""
    for key, worker in workers.items():
        rows = [row for row in report.rows.values() if row["name"] == report.rows[key]["name"]]
        if rows[0]["launches"] is None and "error" not in report.rows[key]:
            launches = worker.launches()
            for row in rows:
                row.update(launches=launches.launches, syncs=launches.syncs)
            report.save()


def _note(row: Row, worker: Worker, *, is_first: bool) -> None:
    """Run a pass and write it into a row; the first model of a run is measured once in every group."""
    seconds = worker.run() if is_first else worker.run_again()
    row["peak_bytes"] = max(worker.peak_bytes(), row["peak_bytes"] or 0)
    if is_first:
        if row["first_seconds"] is None:
            row.update(first_seconds=seconds, prepare_seconds=worker.prepare_seconds)
        return
    row["rounds"].append(seconds)
    row.update(seconds=min(row["rounds"]), median_seconds=statistics.median(row["rounds"]))


def _compare(group: Sequence[Job], report: BenchReport, repeats: int) -> None:
    """Relate time per multiply-add to that of the first model of the dtype, in the same rounds where it is there."""
    rows = [report.rows[job.key] for job in group]
    reference = next(row for row in report.rows.values() if row["dtype"] == group[0].dtype)
    is_beside = rows[0] is reference
    for row in rows:
        if "error" not in row and "error" not in reference and reference["rounds"]:
            own, other = ([*r["rounds"]][-repeats if is_beside else 0 :] for r in (row, reference))
            row["time_per_mac_ratio"] = (min(own) / row["macs"]) / (min(other) / reference["macs"])
    report.save()
