"""The report of a comparison: table, figure and raw rows, rebuilt after every run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.bench.figure import Cost, draw_panels
from piip.bench.machine import describe_machine
from piip.compare.plan import BACKWARD, Contender, Plan
from piip.compare.results import Rows, Summary, read_rows, summarize
from piip.output import write_json
from piip.recipe import save_recipe

RESULTS, PAGE, FIGURE, RECIPES, TIMES = "results.json", "report.md", "accuracy.png", "recipes", "bench.json"
ABSENT = "-"
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """What a line of the table shows.

    Args:
        summary: Results of the model.
        contender: The model.
        time: Its row of the benchmark; None if it was not timed.
    """

    summary: Summary
    contender: Contender
    time: Row | None

    def timed(self, field: str) -> float | None:
        """Return a number of the benchmark per image, None if there is none."""
        return None if self.time is None else self.time[field]


def _seconds(line: Line) -> float | None:
    seconds = line.timed("median_seconds")
    return None if seconds is None or line.time is None else seconds / line.time["batch_size"]


def _text(value: float | None, kind: str, *, factor: float = 1.0) -> str:
    return ABSENT if value is None else format(value * factor, kind)


# Columns after the metrics, by their heads; those without any value are left out.
COLUMNS: dict[str, Callable[[Line], str]] = {
    "seeds": lambda line: str(len(line.summary.rows)),
    "GMACs": lambda line: f"{line.contender.cost.macs / 1e9:.3g}",
    "without head": lambda line: f"{line.contender.cost.without_head.macs / 1e9:.3g}",
    "params (M)": lambda line: f"{line.contender.cost.params / 1e6:.2f}",
    "training TMACs": lambda line: _text(_training_macs(line), ".4g", factor=1e-12),
    "s / image": lambda line: _text(_seconds(line), ".3g"),
    "peak MB": lambda line: _text(line.timed("peak_bytes"), ".0f", factor=1e-6),
    "training min": lambda line: _text(line.summary.mean_of("seconds"), ".1f", factor=1 / 60),
    "training peak MB": lambda line: _text(line.summary.mean_of("peak_bytes"), ".0f", factor=1e-6),
    "rate": lambda line: _text(line.summary.rate, "g"),
}


def _training_macs(line: Line) -> float | None:
    """Return the multiply-adds of a run's training, None before the first run."""
    steps = line.summary.mean_of("steps")
    each = (1 + BACKWARD) * line.contender.training_macs * line.contender.images_per_step
    return None if steps is None else steps * each


def write_report(plan: Plan) -> tuple[dict[str, Any], str]:
    """Write `results.json`, `report.md`, `accuracy.png` and the recipes.

    Args:
        plan: The comparison.

    Returns:
        The contents of `results.json`, and the table in Markdown.
    """
    rows = read_rows(plan)
    times = read_times(plan.out)
    lines = [
        Line(summary, plan.contenders[summary.label], times.get(summary.label)) for summary in summarize(plan, rows)
    ]
    content = _content(plan, rows, lines)
    write_json(content, plan.out / RESULTS, indent=1)
    for label, rate in ((line.summary.label, line.summary.rate) for line in lines):
        if rate is not None:
            run = plan.run(label, rate, plan.config.seeds[0])
            save_recipe(plan.recipe(run), plan.out / RECIPES / f"{label}.yaml")
    has_figure = _draw(plan, lines)
    (plan.out / PAGE).write_text(_page(plan, rows, lines, has_figure=has_figure), encoding="utf-8")
    return content, markdown(plan, lines)


def read_times(out: Path) -> dict[str, Row]:
    """Return the rows of the benchmark by label; those without a time are left out.

    Args:
        out: Folder of the comparison.
    """
    path = out / TIMES
    rows = json.loads(path.read_text("utf-8"))["models"] if path.is_file() else []
    return {row["name"]: row for row in rows if row["seconds"] is not None}


def _content(plan: Plan, rows: Rows, lines: Sequence[Line]) -> dict[str, Any]:
    models = []
    for line in lines:
        summary, contender = line.summary, line.contender
        models.append(
            {
                "label": summary.label,
                "family": contender.family,
                "branches": len(contender.config.branches),
                "rate": summary.rate,
                "seeds": [row["seed"] for row in summary.rows],
                "steps": contender.steps,
                "image_size": list(contender.cost.image_size),
                "macs": contender.cost.macs,
                "macs_without_head": contender.cost.without_head.macs,
                "params": contender.cost.params,
                "training_macs_per_image": (1 + BACKWARD) * contender.training_macs,
                "seconds_per_image": _seconds(line),
                "bench_peak_bytes": line.timed("peak_bytes"),
                "means": {name: summary.mean(name) for name in plan.metrics},
                "deviations": {name: summary.deviation(name) for name in plan.metrics},
            }
        )
    split = {"split": plan.test.split, "images": plan.test.images}
    return {"metrics": list(plan.metrics), "test": split, "models": models, "runs": list(rows.values())}


def markdown(plan: Plan, lines: Sequence[Line]) -> str:
    """Return the table of results in Markdown.

    Args:
        plan: The comparison.
        lines: Its lines.
    """
    columns = {f"{name} %": [_with_deviation(line.summary, name) for line in lines] for name in plan.metrics}
    columns |= {head: [*map(cell, lines)] for head, cell in COLUMNS.items()}
    shown = {head: cells for head, cells in columns.items() if head not in COLUMNS or {*cells} != {ABSENT}}
    table = [["model", *shown], ["---", *("---:" for _ in shown)]]
    table += [[line.summary.label, *cells] for line, *cells in zip(lines, *shown.values(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _with_deviation(summary: Summary, metric: str) -> str:
    mean, deviation = summary.mean(metric), summary.deviation(metric)
    return _text(mean, ".2f", factor=100) + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _page(plan: Plan, rows: Rows, lines: Sequence[Line], *, has_figure: bool) -> str:
    budget = plan.config.budget
    spent = {"steps": budget.steps, "epochs": budget.epochs, "training multiply-adds": budget.macs}
    length = next(f"{value:g} {name}" for name, value in spent.items() if value is not None)
    split = "test" if plan.config.test is not None else "validation"
    parts = [
        "# Comparison",
        f"Mean ± standard deviation over the seeds, measured on the {split} split `{plan.test.split}` with the "
        f"checkpoint that is best in validation. Every run: {length}. Multiply-adds are of one image, head included; "
        "those of training count three times the forward pass for every image. Training time includes validation, and "
        "not the starts of a run that were killed.",
        *_machines(plan, rows),
        markdown(plan, lines),
    ]
    if has_figure:
        parts.append(f"![{plan.metrics[0]} against cost]({FIGURE})")
    parts += [text for text in (_rates(plan, rows), _errors(rows)) if text]
    return "\n\n".join(parts) + "\n"


def _machines(plan: Plan, rows: Rows) -> list[str]:
    """Return sentences on where the models were trained and timed."""
    trained = sorted({describe_machine(row["machine"]) for row in rows.values() if "machine" in row})
    sentences = [f"Trained on {'; '.join(trained)}."] if trained else []
    path = plan.out / TIMES
    if path.is_file():
        sentences.append(f"Timed on {describe_machine(json.loads(path.read_text('utf-8'))['machine'])}.")
    return sentences


def _rates(plan: Plan, rows: Rows) -> str:
    """Return a table of the rates that were tried, empty without any."""
    if not plan.is_tuned:
        return ""
    rates = plan.config.rates
    table = [
        f"| family | tried with | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---|---|" + "---:|" * len(rates),
    ]
    for family in plan.families:
        runs = plan.tuning_runs(family)
        values = [rows.get(run.folder, {}).get("validation", {}).get(plan.metrics[0]) for run in runs]
        table.append(f"| {family} | {runs[0].label} | {' | '.join(_text(v, '.2f', factor=100) for v in values)} |")
    fraction = plan.config.tuning.fraction
    length = "" if fraction == 1 else f", at {fraction:g} of the length"
    head = f"Learning rates, by {plan.metrics[0]} % in validation with seed {plan.config.seeds[0]}{length}:"
    return "\n\n".join(["## Learning rates", head, "\n".join(table)])


def _errors(rows: Rows) -> str:
    failed = [f"- {folder}: {row['error']}" for folder, row in rows.items() if "error" in row]
    return "\n".join(["## Failed runs", "", *failed]) if failed else ""


def _draw(plan: Plan, lines: Sequence[Line]) -> bool:
    """Draw the headline against costs; return whether there was anything to draw."""
    metric = plan.metrics[0]
    shown = []
    for line in lines:
        mean, deviation = line.summary.mean(metric), line.summary.deviation(metric)
        if mean is not None:
            facts = {"name": line.summary.label, "branches": len(line.contender.config.branches)}
            costs = {"macs": line.contender.cost.macs, "seconds": _seconds(line)}
            shown.append(facts | costs | {"accuracy": 100 * mean, "spread": 100 * (deviation or 0)})
    if not shown:
        return False
    panels: dict[str, Cost] = {"GMACs per image": lambda row: row["macs"] / 1e9}
    if all(row["seconds"] is not None for row in shown):
        panels["seconds per image"] = lambda row: row["seconds"]
    seeds = len(plan.config.seeds)
    title = f"{metric} on {plan.test.split}, mean and standard deviation of up to {seeds} seeds"
    draw_panels(shown, panels, plan.out / FIGURE, title=title, metric=metric, max_labelled=len(shown))
    return True
