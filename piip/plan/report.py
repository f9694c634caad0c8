"""What a plan shows and writes: a table, a figure, a recipe and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from rich.table import Table as TextTable

from piip.plan.search import Option
from piip.plan.tasks import OPTIM, PlanTask

LIMITS = (
    "What this cannot know: how accurate any of these models will be on your data. The order is by what the authors "
    "published about pyramids of the same shape, on COCO with Mask R-CNN; see docs/plan.md."
)
COLORS = ("#1e3a8a", "#2563eb", "#93c5fd", "#f59e0b", "#9ca3af")
GROUPS = ("branch 0", "branch 1", "branch 2", "interactions", "merge, neck and head")


def table(rows: Sequence[Mapping[str, Any]], title: str) -> TextTable:
    """Return the options as a text table.

    Args:
        rows: From `Option.to_dict`, and "seconds", "expected_seconds", "peak_bytes" and "expected_bytes".
        title: Title.
    """
    shown = TextTable(title=title)
    for name in ("", "model (finest first)", "GMACs", "M params", "seconds", "GB", "most like (published)", "support"):
        shown.add_column(
            name,
            overflow="fold",
            justify="right" if name in ("GMACs", "M params", "seconds", "GB", "support") else "left",
        )
    for number, row in enumerate(rows, start=1):
        evidence = row["evidence"]
        like = "" if evidence is None else f"{evidence['name'].split('.')[0]}, {evidence['saving']:.1f}x"
        shown.add_row(
            str(number) if evidence else "",
            row["title"],
            f"{row['macs'] / 1e9:.3g}",
            f"{row['params'] / 1e6:.0f}",
            _value(row["seconds"], row["expected_seconds"], 1.0),
            _value(row["peak_bytes"], row["expected_bytes"], 1e9),
            like,
            "" if evidence is None else f"{evidence['support']:.2f}",
        )
    return shown


def _value(measured: float | None, expected: float | None, unit: float) -> str:
    """Return a measured value, or an expected one with a tilde."""
    if measured is not None:
        return f"{measured / unit:.3g}"
    return "" if expected is None else f"~{expected / unit:.2g}"


def grouped(macs_by_part: Mapping[str, float]) -> list[float]:
    """Return multiply-adds in the groups of the figure, `GROUPS`.

    Args:
        macs_by_part: By part of a `CostReport`.
    """
    known = [macs_by_part.get(name, 0.0) for name in GROUPS[:-1]]
    return [*known, sum(macs_by_part.values()) - sum(known)]


def draw(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str, budget_macs: float | None) -> None:
    """Draw the multiply-adds of every option by part.

    Args:
        rows: From `Option.to_dict`, pyramids first.
        path: PNG file.
        title: Title.
        budget_macs: Limit to draw, or None.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 1.4 + 0.42 * len(rows)))
    places = range(len(rows))
    left = [0.0] * len(rows)
    for group, (name, color) in enumerate(zip(GROUPS, COLORS, strict=True)):
        widths = [grouped(row["macs_by_part"])[group] / 1e9 for row in rows]
        if any(widths):
            label = f"{name}{' (largest network)' if group == 0 else ''}"
            axis.barh(places, widths, left=left, color=color, label=label, height=0.62)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.set_yticks(places, [row["title"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    if budget_macs is not None:
        axis.axvline(budget_macs / 1e9, color="#b91c1c", linewidth=1, label="budget")
    axis.set_xlabel("GMACs of the whole model for one image")
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.9 / figure.get_figheight()), ncols=3, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def recipe_text(option: Option, config: Mapping[str, Any], task: PlanTask, command: str) -> str:
    """Return a recipe for `piip train`; paths in capitals are to be filled in.

    Args:
        option: The pyramid.
        config: Fields of its model that differ from the defaults.
        task: The task.
        command: Command that made the plan, for the first line.
    """
    side = max(option.image_size)
    data = {**task.data, **_sizes(task, option)}
    values = {
        "model": config,
        "data": data,
        "optim": OPTIM,
        "schedule": {"epochs": 12},
        "run": {"out": "runs/plan", "precision": "bf16"},
    }
    cost = f"{option.cost.macs / 1e9:.3g} GMACs at {side} pixels"
    lines = (
        f"{option.candidate.title}: {cost}.",
        "",
        f"  {command}",
        "",
        "Fill in the paths under data, then: piip train recipe.yaml",
    )
    head = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return head + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def _sizes(task: PlanTask, option: Option) -> dict[str, Any]:
    """Return the fields of the data section that hold image sizes."""
    side = max(option.image_size)
    if "dense" not in task.data:
        return {"transform": {"input_size": side}}
    return {"dense": {"short_side": min(option.image_size), "long_side": side, "pad_divisor": 32}}
