"""What the runs of a comparison left in their folders, the rates they choose, and means over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from piip.compare.plan import Plan, Run

RESULT = "result.json"
Row = dict[str, Any]
Rows = Mapping[str, Row]  # by folder


def read_rows(plan: Plan) -> dict[str, Row]:
    """Return the rows of all runs that ended, by folder, in the order of the comparison.

    Args:
        plan: The comparison.
    """
    paths = {run.folder: plan.out / run.folder / RESULT for run in plan.possible_runs()}
    return {folder: json.loads(path.read_text("utf-8")) for folder, path in paths.items() if path.is_file()}


def failed_runs(plan: Plan, rows: Rows) -> list[str]:
    """Return the folders of runs without a result; a rate at which training diverges is one.

    Args:
        plan: The comparison.
        rows: Results by folder.
    """
    tried = {run.folder for family in plan.families for run in plan.tuning_runs(family)}
    return [folder for folder, row in rows.items() if "error" in row and not (row["diverged"] and folder in tried)]


def is_finished(row: Row | None) -> bool:
    """Return whether a run needs nothing more: it was measured, or would diverge again.

    Args:
        row: Its row, if it has one.
    """
    return row is not None and ("error" not in row or bool(row.get("diverged")))


def chosen_rate(plan: Plan, label: str, rows: Rows, failed: Collection[str] = ()) -> float | None:
    """Return the learning rate of a model: that of its family with the best validation.

    Args:
        plan: The comparison.
        label: The model.
        rows: Results by folder.
        failed: Folders of runs that failed and are not tried again now: the rate is chosen without them.

    Returns:
        The rate, the lower of two equally good ones; None while a run is missing, or if none succeeded.
    """
    fixed = plan.fixed_rate(label)
    if fixed is not None:
        return fixed
    tried = plan.tuning_runs(plan.contenders[label].family)
    if any(not is_finished(rows.get(run.folder)) and run.folder not in failed for run in tried):
        return None
    values = {run.rate: _headline(plan, rows.get(run.folder)) for run in tried}
    best = max(sorted(values), key=lambda rate: values[rate])
    return best if values[best] > -math.inf else None


def _headline(plan: Plan, row: Row | None) -> float:
    """Return the validation metric that chooses rates."""
    value = None if row is None or "error" in row else row["validation"].get(plan.metrics[0])
    return -math.inf if value is None else float(value)


def needed_runs(plan: Plan, rows: Rows, *, only: Collection[str] = (), failed: Collection[str] = ()) -> list[Run]:
    """Return the runs to do, the most telling first, as far as the rates are known.

    Args:
        plan: The comparison.
        rows: Results by folder.
        only: Labels of models; empty for all. The runs that try rates for their families are needed, too.
        failed: Folders of runs that are not tried again now.
    """
    needed: dict[str, Run] = {}
    for label, seed in plan.slots([*only]):
        rate = chosen_rate(plan, label, rows, failed)
        runs = plan.tuning_runs(plan.contenders[label].family) if rate is None else [plan.run(label, rate, seed)]
        needed |= {run.folder: run for run in runs}
    return [run for run in needed.values() if not is_finished(rows.get(run.folder)) and run.folder not in failed]


@dataclass(frozen=True)
class Summary:
    """A model's results over its seeds.

    Args:
        label: The model.
        rate: Its learning rate; None while that is not chosen.
        rows: Measured runs at that rate, one per seed.
        errors: Messages of failed ones.
    """

    label: str
    rate: float | None
    rows: list[Row]
    errors: list[str]

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the seeds, None without runs.

        Args:
            metric: Its name.
        """
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Return the standard deviation of a metric (that of a sample), None with fewer than two seeds.

        Args:
            metric: Its name.
        """
        values = self._values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, metric: str) -> list[float]:
        return [row["scores"][metric] for row in self.rows if row["scores"].get(metric) is not None]

    def mean_of(self, field: str) -> float | None:
        """Return the mean of another field of the rows, such as "seconds".

        Args:
            field: Its name.
        """
        return statistics.fmean(row[field] for row in self.rows) if self.rows else None


def summarize(plan: Plan, rows: Rows) -> list[Summary]:
    """Return the results of every model.

    Args:
        plan: The comparison.
        rows: Results by folder.
    """
    failed = [folder for folder, row in rows.items() if "error" in row]
    summaries = []
    for label in plan.contenders:
        rate = chosen_rate(plan, label, rows, failed)
        runs = [] if rate is None else [plan.run(label, rate, seed) for seed in plan.config.seeds]
        ended = [rows[run.folder] for run in runs if run.folder in rows]
        measured = [row for row in ended if "error" not in row]
        summaries.append(Summary(label, rate, measured, [row["error"] for row in ended if "error" in row]))
    return summaries
