"""What the evaluation of a detector or segmentor found, as values, as text and as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from piip.evaluation.metrics.precision_tables import NAMES, RECALLS, PrecisionTables
from piip.evaluation.report.page import Page, Value

Curves = dict[str, dict[str, list[float]]]
OVERLAPS = {"IoU 0.50": 0.5, "IoU 0.75": 0.75, "IoU 0.50 to 0.95": None}


@dataclass(frozen=True)
class DenseReport:
    """How good a detector or segmentor is.

    Args:
        images: Images that were evaluated.
        scores: Instances: average precision and recall, see `score_results`; classes of pixels: "miou", "aacc", "macc";
            all in [0, 1].
        per_class: Numbers of every class, None where there is nothing to count. Instances: "objects", and
            "box_ap" and so on; classes of pixels: "iou", "accuracy", "precision", "pixels".
        setup: What was measured and how: "model", "split", "scales", "flip" and, of instances, "counter".
        detections: Limits on instances an image.
        headline: Limit that "box_ap" and "mask_ap" are counted at; None for classes of pixels.
        curves: Precision at the recalls 0, 0.01 to 1: "box" and "mask", there "means" and "classes" (at IoU 0.5).
        confusion: Number of pixels of class i (row) taken for class j (column).
    """

    images: int
    scores: dict[str, float]
    per_class: dict[str, dict[str, float | int | None]]
    setup: dict[str, Any] = field(default_factory=dict)
    detections: tuple[int, ...] = ()
    headline: int | None = None
    curves: dict[str, Curves] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without curves and confusions."""
        limits = {"detections": list(self.detections), "headline": self.headline} if self.detections else {}
        return {"images": self.images, **self.scores, **limits, **self.setup, "per_class": self.per_class}


def class_rows(
    classes: list[str], objects: list[int], tables: Mapping[str, PrecisionTables], headline: int
) -> dict[str, dict[str, float | int | None]]:
    """Return the precisions of every class.

    Args:
        classes: Their names.
        objects: How many of them there are.
        tables: What was counted, by "box" and "mask".
        headline: See `PrecisionTables.scores`.
    """
    rows: dict[str, dict[str, float | int | None]] = {}
    for place, (name, count) in enumerate(zip(classes, objects, strict=True)):
        rows[name] = {"objects": count}
        for kind, table in tables.items():
            scores = table.scores(headline=headline, of=slice(place, place + 1))
            rows[name] |= {f"{kind}_{part}": None if scores[part] < 0 else scores[part] for part in (*NAMES, "ar")}
    return rows


def curves_of(classes: list[str], table: PrecisionTables) -> Curves:
    """Return precision over recall: the mean of all classes at several overlaps, and every class at IoU 0.5.

    Args:
        classes: Their names.
        table: What was counted.
    """
    alone = {name: table.curve(0.5, of=slice(place, place + 1)) for place, name in enumerate(classes)}
    means = {name: table.curve(overlap) for name, overlap in OVERLAPS.items()}
    return {
        "means": {name: curve for name, curve in means.items() if curve},
        "classes": {name: curve for name, curve in alone.items() if curve},
    }


def format_dense_report(report: DenseReport) -> str:
    """Return the report as a table for people."""
    width = max(len(name) for name in [*report.scores, *report.per_class, "images"])
    lines = [f"{'images':<{width}} {report.images:>8}"]
    lines += [f"{name:<{width}} {'-' if value < 0 else f'{value:.4f}':>8}" for name, value in report.scores.items()]
    if report.detections:
        at = "" if report.headline == report.detections[-1] else f", box_ap and mask_ap at {report.headline}"
        lines.append(f"at most {report.detections[-1]} instances an image{at}; counted by {report.setup['counter']}")
    shown = _shown_columns(report)
    lines += ["", " ".join([f"{'class':<{width}}", *(f"{name:>9}" for name in shown)])]
    for name, row in report.per_class.items():
        lines.append(" ".join([f"{name:<{width}}", *(f"{_cell(row[column]):>9}" for column in shown)]))
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def _shown_columns(report: DenseReport) -> list[str]:
    """Return the columns of the table in a terminal; files have all."""
    columns = list(next(iter(report.per_class.values())))
    return [name for name in columns if name.split("_")[-1] not in ("small", "medium", "large", "ar")]


def dense_page(report: DenseReport, *, worst: Callable[[Path], None] | None = None) -> Page:
    """Return the report's page.

    Args:
        report: The report.
        worst: Draws the images that went worst; None leaves them out.
    """
    from piip.evaluation.report.plots import class_bars, confusion, precision_recall

    pictures: dict[str, Callable[[Path], None]] = {}
    for kind, curves in report.curves.items():
        pictures[f"precision_recall_{kind}.png"] = partial(
            precision_recall, means=curves["means"], classes=curves["classes"], title=kind
        )
    for column in [name for name in ("mask_ap", "box_ap", "iou") if name in _shown_columns(report)]:
        values = {name: row[column] for name, row in report.per_class.items()}
        pictures[f"per_class_{column}.png"] = partial(class_bars, values=values, label=column)
    if report.confusion:
        pictures["confusion.png"] = partial(
            confusion, counts=report.confusion, names=list(report.per_class), unit="pixels"
        )
    if worst is not None:
        pictures["worst.png"] = worst
    facts: dict[str, Value] = {"images": report.images, **{name: _fact(value) for name, value in report.setup.items()}}
    if report.detections:
        facts["limits on detections an image"] = _fact(report.detections)
    return Page(
        title="Evaluation",
        facts=facts,
        scores=_score_rows(report),
        classes=[{"class": name, **row} for name, row in report.per_class.items()],
        numbers={**report.to_dict(), "curves": report.curves, "confusion": report.confusion},
        pictures=pictures,
    )


def _fact(value: Any) -> Value:
    return " ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else value


def _score_rows(report: DenseReport) -> list[dict[str, Value]]:
    """Return the table of scores: boxes and masks beside each other, recalls with the limit that they are at."""
    if not report.detections:
        return [{"score": name, "value": value} for name, value in report.scores.items()]
    limits = {name: f"ar at {limit}" for name, limit in zip(RECALLS, report.detections, strict=False)}
    limits["ap"] = f"ap at {report.headline}"
    rows: list[dict[str, Value]] = []
    for part in (*NAMES, *RECALLS):
        values = {kind: report.scores[f"{kind}_{part}"] for kind in report.curves}
        known = {kind: None if value < 0 else value for kind, value in values.items()}
        rows.append({"score": limits.get(part, part), **known})
    return rows
