"""What `piip compare` does: plan, work, time, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.bench.run import BenchOptions, run_bench
from piip.bench.subjects import Subject, untrained
from piip.compare.config import CompareConfig, load_comparison
from piip.compare.plan import Plan, check_unchanged, make_plan
from piip.compare.report import PAGE, TIMES, read_times, write_report
from piip.compare.results import failed_runs, read_rows
from piip.compare.session import Launch, Session, claimed
from piip.compare.worker import run_in_process
from piip.device import pick_device
from piip.fields import at_least, nearest_names
from piip.output import writable_folder


@dataclass(frozen=True)
class Comparison:
    """What a command left.

    Args:
        content: Contents of `results.json`.
        is_complete: Whether every run that was asked for is done.
        failed: Folders of the runs that failed.
        summary: Table and state, for printing.
    """

    content: dict[str, Any]
    is_complete: bool
    failed: list[str]
    summary: str


def compare_models(
    path: str | Path,
    *,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    max_minutes: float | None = None,
    bench_only: bool = False,
    device: str = "auto",
    threads: int | None = None,
    launch: Launch = run_in_process,
) -> Comparison:
    """Work a comparison off, as far as time allows; see `piip compare --help`.

    Args:
        path: The file of the comparison.
        out: Folder of the comparison; None for runs/compare/NAME.
        only: Labels of models; empty for all.
        max_minutes: Time after which the run in progress is interrupted; None for no limit.
        bench_only: Time the models, and train nothing.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of each run; None for PyTorch's own choice.
        launch: Does a run; in a process of its own by default.

    Raises:
        ValueError: File, recipes or data are wrong, or a run was started with another recipe.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run in progress has saved its step.
    """
    pick_device(device)
    config = _checked(path, only=only, max_minutes=max_minutes, bench_only=bench_only, threads=threads)
    plan = make_plan(config, Path(out) if out is not None else Path("runs") / "compare" / Path(path).stem)
    writable_folder(plan.out)
    check_unchanged(plan)
    session = Session(
        plan,
        device=device,
        threads=threads,
        only=only,
        minutes=max_minutes,
        launch=launch,
        say=_say,
        after_run=lambda: _report(plan),
    )
    if not bench_only:
        _report(plan)
        session.work()
    is_complete = not session.needed()
    is_timed = {*plan.contenders} <= {*read_times(plan.out)}
    if bench_only or (config.bench is not None and is_complete and not only and not is_timed):
        _time(plan, device)
    content, table = _report(plan)
    failed = failed_runs(plan, read_rows(plan))
    state = "complete" if is_complete else f"not complete, continue with: piip compare {path} --out {plan.out}"
    errors = f"; {len(failed)} runs failed" if failed else ""
    return Comparison(content, is_complete, failed, f"{table}\n\n{plan.out / PAGE} is {state}{errors}")


def _checked(
    path: str | Path, *, only: Sequence[str], max_minutes: float | None, bench_only: bool, threads: int | None
) -> CompareConfig:
    """Return the file of a comparison; raise ValueError for options that mean nothing for it."""
    if threads is not None:
        at_least("threads", threads, 1)
    if max_minutes is not None and max_minutes <= 0:
        raise ValueError(f"max_minutes is {max_minutes}, expected a time above 0.")
    config = load_comparison(path)
    for label in only:
        if label not in config.models:
            raise ValueError(f"There is no model {label!r}. {nearest_names(label, [*config.models])}")
    if bench_only and config.bench is None:
        raise ValueError(f"{path} has no section bench, expected for example bench: {{threads: 1}}.")
    return config


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _report(plan: Plan) -> tuple[dict[str, Any], str]:
    """Write the report; return the contents of `results.json`, and the table."""
    with claimed(plan.out, "report", wait=True):
        return write_report(plan)


def _time(plan: Plan, device: str) -> None:
    """Time all models, head included, in turn."""
    timing = plan.config.bench
    assert timing is not None
    subjects = []
    for label, contender in plan.contenders.items():
        config = untrained(contender.config)
        subjects.append(Subject(label, config, image_size=contender.cost.image_size))
    options = BenchOptions(
        dtypes=(timing.dtype,),
        form=timing.form,
        repeats=timing.repeats,
        image_size=None,
        batch_size=timing.batch_size,
        device=str(pick_device(device)),
        threads=timing.threads,
    )
    run_bench(subjects, options, plan.out / TIMES, lambda text, done, total: _say(f"{done + 1} of {total}: {text}"))
