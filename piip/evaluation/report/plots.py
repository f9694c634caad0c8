"""Plots of a report, PNG. Only this file imports matplotlib, by its object-oriented API: no window or global state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 110
NAMED = 12  # maximum number of curves distinguished by colour
LABELLED = 45  # maximum number of classes with labels in the confusion matrix
NUMBERED = 16  # maximum number of columns with numbers in the cells
LETTERS = 28  # longer class names are truncated
RECALL = np.linspace(0, 1, 101)


def precision_recall(
    path: Path, *, means: Mapping[str, Sequence[float]], classes: Mapping[str, Sequence[float]], title: str
) -> None:
    """Plot precision over recall: means of all classes at several IoU thresholds, and every class at IoU 0.5.

    Args:
        path: The PNG.
        means: Precision at the recalls 0, 0.01, ..., 1, by name of the mean; may be empty.
        classes: The same for every class that occurs.
        title: Title of the plot.
    """
    figure = Figure(figsize=(12, 5), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in means.items():
        left.plot(RECALL, values, label=name, linewidth=2)
    left.set_title(f"{title}: mean of the classes")
    few = len(classes) <= NAMED
    for name, values in classes.items():
        right.plot(RECALL, values, label=short(name) if few else None, linewidth=1.5 if few else 0.7, alpha=0.8)
    right.set_title(f"{title}: every class, IoU 0.50" + ("" if few else f" ({len(classes)} classes)"))
    for axes, labelled in ((left, bool(means)), (right, few and bool(classes))):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if labelled:
            axes.legend(fontsize="small")
    _save(figure, path)


def class_bars(path: Path, values: Mapping[str, float | None], *, label: str) -> None:
    """Plot one bar per class, best first, and list the classes that do not occur.

    Args:
        path: The PNG.
        values: Values in [0, 1], None for classes that do not occur.
        label: Name of the values.
    """
    known = sorted(((value, name) for name, value in values.items() if value is not None), key=lambda pair: pair[0])
    absent = [short(name) for name, value in values.items() if value is None]
    figure = Figure(figsize=(9, 1.3 + 0.2 * max(4, len(known))), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    fractions = [value for value, _ in known]
    axes.barh(range(len(known)), fractions, color="#3a7ab5")
    axes.set_yticks(range(len(known)), [short(name) for _, name in known], fontsize=8)
    for index, value in enumerate(fractions):
        axes.text(value + 0.005, index, f"{value:.3f}", va="center", fontsize=7)
    if fractions:
        mean = sum(fractions) / len(fractions)
        axes.axvline(mean, color="#c8332b", linewidth=1, label=f"mean {mean:.3f}")
        axes.legend(loc="lower right", fontsize="small")
    axes.set(xlim=(0, 1.08), ylim=(-0.7, max(1, len(known)) - 0.3), title=label)
    axes.grid(axis="x", alpha=0.3)
    if absent:
        named = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        axes.set_xlabel(f"not in this split: {named}", fontsize=8)
    _save(figure, path)


def confusion(path: Path, counts: Sequence[Sequence[int]], names: Sequence[str], *, unit: str) -> None:
    """Plot the confusion matrix of target classes (rows) and predicted classes (columns), as fractions of the row.

    Args:
        path: The PNG.
        counts: (K, K).
        names: The K classes.
        unit: Counted unit: "images" or "pixels".
    """
    table = np.asarray(counts, dtype=np.float64)
    totals = table.sum(1, keepdims=True)
    fractions = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
    side = float(np.clip(0.32 * len(names) + 2.5, 5, 14))
    figure = Figure(figsize=(side + 1, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.7, label=f"fraction of the true class's {unit}")
    axes.set(xlabel="taken for", ylabel="true class")
    if len(names) <= LABELLED:
        labels = [short(name) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), labels, fontsize=8)
    else:
        axes.set_title(f"{len(names)} classes, numbered from 0 in the order of per_class.csv", fontsize=9)
    if len(names) <= NUMBERED:
        _write_fractions(axes, fractions)
    _save(figure, path)


def _write_fractions(axes: Axes, fractions: np.ndarray) -> None:
    for row, column in np.argwhere(fractions > 0):
        fraction = float(fractions[row, column])
        colour = "white" if fraction > 0.6 else "black"
        axes.text(column, row, f"{fraction:.2f}", ha="center", va="center", fontsize=7, color=colour)


def short(name: str) -> str:
    """Return a class name that fits next to an axis, with "$" escaped because it would begin a formula."""
    cut = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    return cut.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # missing glyphs; per_class.csv has the names
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
