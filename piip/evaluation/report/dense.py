"""Results of evaluating a detector or segmentor, as values, text and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from piip.data.findings import shorten
from piip.evaluation.metrics.precision_tables import NAMES, SIZES, PrecisionTables, recall_names
from piip.evaluation.report.page import Page, Value

Curves = dict[str, dict[str, list[float]]]
IOU_THRESHOLDS = {"IoU 0.50": 0.5, "IoU 0.75": 0.75, "IoU 0.50 to 0.95": None}


@dataclass(frozen=True)
class DenseReport:
    """Results of a detector or segmentor.

    Args:
        images: Images that were evaluated.
        scores: Detections: average precision and recall, see `score_results`; semantic segmentation: "miou", "aacc",
            "macc"; all in [0, 1].
        per_class: Results of every class, None if it does not occur. Detections: "objects", and "box_ap" and so
            on; semantic segmentation: "iou", "accuracy", "precision", "pixels".
        skipped: Images that could not be read and do not count.
        setup: Settings of the evaluation: "model", "split", "scales", "flip" and, for detections, "backend".
        max_detections: Limits on detections per image; empty for semantic segmentation.
        headline: Limit of "box_ap" and "mask_ap"; None for semantic segmentation.
        curves: Precision at the recalls 0, 0.01, ..., 1, for "box" and "mask": "means" and "classes" (at IoU 0.5).
        confusion: Number of pixels of class i (row) predicted as class j (column).
    """

    images: int
    scores: dict[str, float]
    per_class: dict[str, dict[str, float | int | None]]
    skipped: int = 0
    setup: dict[str, Any] = field(default_factory=dict)
    max_detections: tuple[int, ...] = ()
    headline: int | None = None
    curves: dict[str, Curves] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)

    def absent_classes(self) -> list[str]:
        """Return the classes without objects or pixels in the split."""
        return [name for name, row in self.per_class.items() if not (row.get("objects", row.get("pixels")) or 0)]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without curves and confusion matrix."""
        limits = {"max_detections": list(self.max_detections), "headline": self.headline} if self.max_detections else {}
        return {
            "images": self.images,
            "skipped": self.skipped,
            **self.scores,
            **limits,
            **self.setup,
            "per_class": self.per_class,
        }


def class_rows(
    classes: list[str], objects: list[int], tables: Mapping[str, PrecisionTables], headline: int
) -> dict[str, dict[str, float | int | None]]:
    """Return the precision of every class.

    Args:
        classes: Class names.
        objects: Number of objects per class.
        tables: Tables for "box" and "mask".
        headline: See `PrecisionTables.scores`.
    """
    rows: dict[str, dict[str, float | int | None]] = {}
    for index, (name, count) in enumerate(zip(classes, objects, strict=True)):
        rows[name] = {"objects": count}
        for kind, table in tables.items():
            scores = table.scores(headline=headline, of=slice(index, index + 1))
            recall = f"ar_{table.max_detections[-1]}"
            rows[name] |= {f"{kind}_{part}": None if scores[part] < 0 else scores[part] for part in (*NAMES, recall)}
    return rows


def curves_of(classes: list[str], table: PrecisionTables) -> Curves:
    """Return precision over recall: the mean of all classes at several IoU thresholds, and every class at IoU 0.5.

    Args:
        classes: Class names.
        table: Precision table.
    """
    alone = {name: table.curve(0.5, of=slice(index, index + 1)) for index, name in enumerate(classes)}
    means = {name: table.curve(threshold) for name, threshold in IOU_THRESHOLDS.items()}
    return {
        "means": {name: curve for name, curve in means.items() if curve},
        "classes": {name: curve for name, curve in alone.items() if curve},
    }


def format_dense_report(report: DenseReport) -> str:
    """Return the report as a text table."""
    width = max(len(name) for name in [*report.scores, *report.per_class, "images"])
    lines = [f"{'images':<{width}} {report.images:>8}" + (f" ({report.skipped} skipped)" if report.skipped else "")]
    lines += [f"{name:<{width}} {'-' if value < 0 else f'{value:.4f}':>8}" for name, value in report.scores.items()]
    if report.max_detections:
        at = "" if report.headline == report.max_detections[-1] else f", box_ap and mask_ap at {report.headline}"
        lines.append(
            f"at most {report.max_detections[-1]} detections per image{at}; computed by {report.setup['backend']}"
        )
    shown = _shown_columns(report)
    lines += ["", " ".join([f"{'class':<{width}}", *(f"{name:>9}" for name in shown)])]
    for name, row in report.per_class.items():
        lines.append(" ".join([f"{name:<{width}}", *(f"{_cell(row[column]):>9}" for column in shown)]))
    absent = report.absent_classes()
    if absent:
        counted = "; miou counts those that are predicted as 0" if report.confusion else ""
        lines += ["", f"not in this split, left out of means: {shorten(absent)}{counted}"]
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def _shown_columns(report: DenseReport) -> list[str]:
    """Return the columns of the table in a terminal; files have all columns."""
    columns = list(next(iter(report.per_class.values())))
    return [name for name in columns if name.split("_")[-1] not in SIZES and "_ar_" not in name]


def dense_page(report: DenseReport, *, worst: Callable[[Path], None] | None = None) -> Page:
    """Return the report's page.

    Args:
        report: The report.
        worst: Draws the worst-scoring images; None omits them.
    """
    from piip.evaluation.report.plots import class_bars, confusion, precision_recall

    images: dict[str, Callable[[Path], None]] = {}
    for kind, curves in report.curves.items():
        images[f"precision_recall_{kind}.png"] = partial(
            precision_recall, means=curves["means"], classes=curves["classes"], title=kind
        )
    for column in [name for name in ("mask_ap", "box_ap", "iou") if name in _shown_columns(report)]:
        values = {name: row[column] for name, row in report.per_class.items()}
        images[f"per_class_{column}.png"] = partial(class_bars, values=values, label=column)
    if report.confusion:
        images["confusion.png"] = partial(
            confusion, counts=report.confusion, names=list(report.per_class), unit="pixels"
        )
    if worst is not None:
        images["worst.png"] = worst
    facts: dict[str, Value] = {"images": report.images, "skipped": report.skipped}
    facts |= {"classes not in the split": shorten(report.absent_classes())} if report.absent_classes() else {}
    facts |= {name: _fact(value) for name, value in report.setup.items()}
    if report.max_detections:
        facts["maximum detections per image"] = _fact(report.max_detections)
    return Page(
        title="Evaluation",
        facts=facts,
        scores=_score_rows(report),
        classes=[{"class": name, **row} for name, row in report.per_class.items()],
        numbers={**report.to_dict(), "curves": report.curves, "confusion": report.confusion},
        images=images,
    )


def _fact(value: Any) -> Value:
    return " ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else value


def _score_rows(report: DenseReport) -> list[dict[str, Value]]:
    """Return the table of scores: boxes and masks side by side, recalls with their limit."""
    if not report.max_detections:
        return [{"score": name, "value": value} for name, value in report.scores.items()]
    labels = {"ap": f"ap at {report.headline}"}
    rows: list[dict[str, Value]] = []
    for part in (*NAMES, *recall_names(report.max_detections)):
        values = {kind: report.scores[f"{kind}_{part}"] for kind in report.curves}
        known = {kind: None if value < 0 else value for kind, value in values.items()}
        rows.append({"score": labels.get(part, part), **known})
    return rows
