"""Working a comparison off: one run after the other, beside other processes that do the same."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from piip.compare.plan import RECIPE, Plan, Run
from piip.compare.results import RESULT, is_finished, needed_runs, read_rows
from piip.compare.worker import LOG, Job, Outcome, run_in_process
from piip.output import write_json
from piip.recipe import save_recipe

LOCKS = ".locks"
PAUSE = 3.0  # seconds between looks at what other processes have finished

Launch = Callable[[Job, "float | None"], Outcome]
Say = Callable[[str], None]


@dataclass
class Session:
    """The work of one command.

    Args:
        plan: The comparison.
        device: Device of the runs.
        threads: Threads of each run.
        only: Labels of models; empty for all.
        deadline: Value of `time.monotonic` at which work ends; None for no limit.
        launch: Does a run.
        say: Gets one line for every event.
        after_run: Called after every run.
        failed: Folders of the runs that failed in this session.
    """

    plan: Plan
    device: str = "auto"
    threads: int | None = None
    only: Sequence[str] = ()
    deadline: float | None = None
    launch: Launch = run_in_process
    say: Say = print
    after_run: Callable[[], object] = lambda: None
    failed: list[str] = field(default_factory=list)

    def work(self) -> bool:
        """Do all runs that are needed; return whether none is left."""
        while not self._is_late():
            runs = self._needed()
            if not runs:
                return True
            for run in runs:
                with claimed(self.plan.out, run) as is_ours:
                    if is_ours and any(run == other for other in self._needed()):
                        self._do(run)
                        break
            else:  # others are at it, and rates may depend on them
                time.sleep(PAUSE)
        return not self._needed()

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _needed(self) -> list[Run]:
        return needed_runs(self.plan, read_rows(self.plan), only=self.only, failed=self.failed)

    def _do(self, run: Run) -> None:
        plan = self.plan
        recipe, test = plan.recipe(run), plan.test if run.fraction == 1 else None
        job = Job(recipe, plan.task, test, self.device, self.threads)
        done, total = self._count()
        name = f"{run.label}, rate {run.rate:g}, seed {run.seed}" + (", to try the rate" if run.fraction != 1 else "")
        self.say(f"{done} of {total} runs done; now {name}: {job.folder / LOG}")
        save_recipe(recipe, job.folder / RECIPE)
        outcome = self.launch(job, self.deadline)
        if outcome.interrupted:
            return
        row = {**dataclasses.asdict(run), **outcome.values}
        if outcome.error is not None:
            row |= {"error": outcome.error, "diverged": outcome.diverged}
            self.failed.append(run.folder)
            self.say(f"{name} failed: {outcome.error}")
        write_json(row, job.folder / RESULT, indent=1)
        self.after_run()

    def _count(self) -> tuple[int, int]:
        """Return how many runs are done, and how many there will be."""
        plan, rows = self.plan, read_rows(self.plan)
        labels = {label for label, _ in plan.slots(self.only)}
        tuning = [run for family, of in plan.families.items() if labels & {*of} for run in plan.tuning_runs(family)]
        shared = len({plan.contenders[run.label].family for run in tuning if run.fraction == 1 and run.label in labels})
        total = len(tuning) + len(labels) * len(plan.config.seeds) - shared
        return sum(is_finished(row) and row["label"] in labels for row in rows.values()), total


@contextlib.contextmanager
def claimed(out: Path, run: Run) -> Iterator[bool]:
    """Take a run, so that other processes leave it alone until this one is done or dies.

    Args:
        out: Folder of the comparison.
        run: The run.

    Yields:
        Whether it is free.
    """
    folder = out / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / (run.folder.replace("/", "--") + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
