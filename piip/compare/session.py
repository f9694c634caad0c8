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
        threads: Threads of each run; None for PyTorch's own choice.
        only: Labels of models; empty for all.
        minutes: Time after which the run in progress is interrupted; None for no limit.
        launch: Does a run.
        say: Gets one line for every event.
        after_run: Called after every run.
        started: Time of day in seconds: runs that failed since then, here or elsewhere, are not tried again.
    """

    plan: Plan
    device: str = "auto"
    threads: int | None = None
    only: Sequence[str] = ()
    minutes: float | None = None
    launch: Launch = run_in_process
    say: Say = print
    after_run: Callable[[], object] = lambda: None
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._deadline = None if self.minutes is None else time.monotonic() + 60 * self.minutes

    def work(self) -> None:
        """Do the runs that are needed, as far as time allows.

        Raises:
            KeyboardInterrupt: A run was interrupted from outside.
        """
        while self._has_time():
            runs = self.needed()
            if not runs:
                return
            for run in runs:
                with claimed(self.plan.out, run.folder) as is_ours:
                    if is_ours and run in self.needed():
                        self._do(run)
                        break
            else:  # others are at it, and rates may depend on them
                time.sleep(PAUSE)

    def _has_time(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline

    def needed(self) -> list[Run]:
        """Return the runs that are left, as far as the rates are known."""
        rows = read_rows(self.plan)
        failed = [folder for folder, row in rows.items() if "error" in row and row.get("ended", 0) >= self.started]
        return needed_runs(self.plan, rows, only=self.only, failed=failed)

    def _do(self, run: Run) -> None:
        plan = self.plan
        recipe, test = plan.recipe(run), plan.test if run.fraction == 1 else None
        job = Job(recipe, plan.task, test, self.device, self.threads)
        name = f"{run.label}, rate {run.rate:g}, seed {run.seed}" + (", to try the rate" if run.fraction != 1 else "")
        done = sum(map(is_finished, read_rows(plan).values()))
        self.say(f"{done} of {plan.num_runs} runs done. Now {name}: {job.folder / LOG}")
        save_recipe(recipe, job.folder / RECIPE)
        outcome = self.launch(job, self._deadline)
        if outcome.interrupted:
            if self._has_time():  # it was not this process that ended the run
                raise KeyboardInterrupt
            return
        row = {**dataclasses.asdict(run), "ended": time.time(), **outcome.values}
        if outcome.error is not None:
            row |= {"error": outcome.error, "diverged": outcome.diverged}
            self.say(f"{name} failed: {outcome.error}")
        write_json(row, job.folder / RESULT, indent=1)
        self.after_run()


@contextlib.contextmanager
def claimed(out: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Take a run or file of a comparison, so that other processes leave it alone until this one is done or dies.

    Args:
        out: Folder of the comparison.
        name: What is taken.
        wait: Wait until it is free.

    Yields:
        Whether it is ours.
    """
    folder = out / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / (name.replace("/", "--") + ".lock"), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except NotImplementedError:  # file systems without locks
        pass
    try:
        yield True
    finally:
        lock.release()
