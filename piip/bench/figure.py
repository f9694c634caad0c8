"""The figure of a benchmark: accuracy against time, multiply-adds and memory, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from piip.bench.table import label

Row = dict[str, Any]
Cost = Callable[[Row], float]
PANELS: dict[str, Cost] = {
    "seconds per batch": lambda row: row["seconds"],
    "GMACs": lambda row: row["macs"] / 1e9,
    "peak memory, GB": lambda row: row["peak_bytes"] / 1e9,
}
COLORS = {False: "#c2410c", True: "#2563eb"}  # single network, pyramid
FRONT = "#94a3b8"
KEY_COLUMNS = 3
MAX_TICKS = 7
MAX_LABELLED = 9


def draw(rows: Sequence[Row], path: str | Path, *, title: str) -> None:
    """Draw accuracy against time, multiply-adds and memory; without accuracies, time against multiply-adds.

    Args:
        rows: Measured models of one dtype; rows without a time are left out, and those without `main_metric`.
        path: PNG file.
        title: Text above the panels.
    """
    measured = [row for row in rows if row["seconds"] is not None]
    metric = main_metric(measured)
    shown = [row for row in measured if row["metric"] == metric]
    draw_panels(shown, PANELS if metric else {"GMACs": PANELS["GMACs"]}, path, title=title, metric=metric)


def draw_panels(
    shown: Sequence[Row],
    panels: Mapping[str, Cost],
    path: str | Path,
    *,
    title: str,
    metric: str | None,
    max_labelled: int = MAX_LABELLED,
) -> None:
    """Draw accuracy against several costs; without a metric, time.

    Args:
        shown: Models with "name", "branches", "accuracy" (or "seconds") and the costs; "spread", if there, is the half
            length of error bars.
        panels: Cost of a row, by the name of its axis.
        path: PNG file.
        title: Text above the panels.
        metric: Name of the accuracy.
        max_labelled: With more models, only single networks and the fronts are in the key.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [row["accuracy"] if metric else row["seconds"] for row in shown]
    fronts = {
        name: pareto_front([*zip(map(value, shown), heights, strict=True)]) if metric else []
        for name, value in panels.items()
    }
    numbers = _numbers(shown, heights, {index for front in fronts.values() for index in front}, max_labelled)
    lines = -(-len(numbers) // KEY_COLUMNS)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.4 + 0.2 * lines), squeeze=False)
    for axis, (name, value) in zip(axes[0], panels.items(), strict=True):
        _draw_panel(axis, [value(row) for row in shown], heights, shown, fronts[name], numbers)
        axis.set_xlabel(name)
    axes[0][0].set_ylabel(f"{metric}, %" if metric else "seconds per batch")
    axes[0][0].legend(loc="best", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.045 * lines, 1, 1))
    _draw_key(figure, shown, numbers, lines)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _numbers(
    rows: Sequence[Row], heights: Sequence[float], front: Collection[int], max_labelled: int
) -> dict[int, int]:
    """Return the numbers of the models in the key, the best first: all, or single networks and the fronts."""
    chosen = [
        index for index, row in enumerate(rows) if len(rows) <= max_labelled or row["branches"] == 1 or index in front
    ]
    ordered = sorted(chosen, key=lambda index: -heights[index])
    return {index: number for number, index in enumerate(ordered, start=1)}


def _draw_key(figure: Figure, rows: Sequence[Row], numbers: Mapping[int, int], lines: int) -> None:
    """Write the names of the numbered models below the panels."""
    for place, (index, number) in enumerate(numbers.items()):
        column, line = divmod(place, lines)
        color = COLORS[rows[index]["branches"] > 1]
        text, x, y = f"{number}  {label(rows[index]['name'])}", 0.03 + column / KEY_COLUMNS, 0.04 * (lines - line)
        figure.text(x, y, text, fontsize=8, color=color, va="top")


def main_metric(rows: Sequence[Row]) -> str | None:
    """Return the metric that most rows have, which is the one the figure shows; None if no row has any.

    Args:
        rows: Models of a `BenchReport`.
    """
    known = [row["metric"] for row in rows if row["metric"] is not None]
    return max(known, key=known.count) if known else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats, from the cheapest on.

    Args:
        points: Cost and accuracy; less cost and more accuracy are better.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _draw_panel(
    axis: Axes,
    costs: Sequence[float],
    heights: Sequence[float],
    rows: Sequence[Row],
    front: Sequence[int],
    numbers: Mapping[int, int],
) -> None:
    for is_pyramid, name in ((False, "single network"), (True, "pyramid")):
        chosen = [index for index, row in enumerate(rows) if (row["branches"] > 1) is is_pyramid]
        x, y = [costs[index] for index in chosen], [heights[index] for index in chosen]
        if chosen:
            axis.scatter(x, y, color=COLORS[is_pyramid], label=name, s=28, zorder=3)
            spread = [rows[index].get("spread") or 0.0 for index in chosen]
            if any(spread):
                axis.errorbar(x, y, yerr=spread, fmt="none", ecolor=COLORS[is_pyramid], capsize=2, elinewidth=1)
    if len(front) > 1:
        x, y = [costs[index] for index in front], [heights[index] for index in front]
        axis.plot(x, y, color=FRONT, zorder=1, label="Pareto front")
    for index, number in numbers.items():
        color = COLORS[rows[index]["branches"] > 1]
        point = (costs[index], heights[index])
        axis.annotate(
            str(number), point, xytext=(-3, 5), textcoords="offset points", ha="right", fontsize=8, color=color
        )
    axis.margins(0.08)
    axis.grid(color="#e5e7eb", linewidth=0.6)
    axis.set_xscale("log")
    _plain_ticks(axis, costs)


def _plain_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Label a logarithmic axis with a few plain numbers."""
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        steps = [digit * 10.0**power for power in range(-4, 6) for digit in digits]
        inside = [step for step in steps if min(values) / 1.3 <= step <= max(values) * 1.3]
        if len(inside) <= MAX_TICKS:
            break
    axis.xaxis.set_major_locator(FixedLocator(inside))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
