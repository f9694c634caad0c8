"""What is measured of a trained model, by the task of its head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from piip.compare.config import SplitConfig
from piip.evaluation.classification import evaluate
from piip.evaluation.dense import evaluate_dense
from piip.evaluation.metrics.coco import TASK_IOU_TYPES
from piip.evaluation.metrics.precision_tables import NAMES, recall_names
from piip.fields import nearest_names
from piip.recipe import Recipe
from piip.tables import Table

Scores = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """The metrics of a task.

    Args:
        validated: Metrics that training records of the validation split, as "val/NAME"; the first one chooses the best
            checkpoint.
        names: Recipe -> all metrics of an evaluation.
        evaluate: Model directory, recipe, split and device -> these metrics of the split.
    """

    validated: tuple[str, ...]
    names: Callable[[Recipe], tuple[str, ...]]
    evaluate: Callable[[Path, Recipe, SplitConfig, str], Scores]


def _evaluate_classes(model: Path, recipe: Recipe, split: SplitConfig, device: str) -> Scores:
    data = recipe.data
    report = evaluate(
        model,
        data.root,
        split=split.split,
        batch_size=data.batch_size,
        workers=data.workers,
        device=device,
        on_error=data.on_error,
    )
    return {"top1": report.top1, "top5": report.top5, "mean_class": report.mean_class}


def _evaluate_dense(model: Path, recipe: Recipe, split: SplitConfig, device: str) -> Scores:
    data = recipe.data
    assert split.images is not None  # `measured_split` sees to it
    report = evaluate_dense(
        model,
        data.root,
        split=split.split,
        images=split.images,
        workers=data.workers,
        device=device,
        on_error=data.on_error,
    )
    return dict(report.scores)


def _precisions(recipe: Recipe, task: str) -> tuple[str, ...]:
    return tuple(
        f"{kind}_{name}"
        for kind in TASK_IOU_TYPES[task]
        for name in (*NAMES, *recall_names(recipe.data.max_detections))
    )


# By the task of the head; `register` adds one.
MEASURES: Table[Measure, None] = Table.of(
    "task that can be compared",
    {
        "classification": Measure(("top1", "top5"), lambda recipe: ("top1", "top5", "mean_class"), _evaluate_classes),
        "semantic": Measure(("miou", "aacc", "macc"), lambda recipe: ("miou", "aacc", "macc"), _evaluate_dense),
        "instance": Measure(
            ("mask_ap", "mask_ap50", "box_ap", "box_ap50"),
            lambda recipe: _precisions(recipe, "instance"),
            _evaluate_dense,
        ),
        "detection": Measure(("box_ap", "box_ap50"), lambda recipe: _precisions(recipe, "detection"), _evaluate_dense),
    },
)


def check_metrics(metrics: tuple[str, ...], measure: Measure, recipe: Recipe, *, is_tuned: bool) -> None:
    """Raise an error for metrics that no evaluation will have.

    Args:
        metrics: The metrics to report, the headline first.
        measure: The metrics of the task.
        recipe: A recipe of the comparison.
        is_tuned: Whether the headline chooses learning rates.

    Raises:
        ValueError: A metric is unknown, or the headline is none that training validates.
    """
    known = measure.names(recipe)
    for name in metrics:
        if name not in known:
            raise ValueError(f"metrics has {name!r}, which is not measured here. {nearest_names(name, known)}")
    if is_tuned and metrics[0] not in measure.validated:
        raise ValueError(
            f"metrics starts with {metrics[0]!r}, but training validates {', '.join(measure.validated)} only: rates "
            "are chosen by the first metric, put one of these there."
        )


def measured_split(recipe: Recipe, test: SplitConfig | None, *, is_dense: bool) -> SplitConfig:
    """Return the split that is measured at the end.

    Args:
        recipe: A recipe of the comparison.
        test: The comparison's; None for the validation split.
        is_dense: Whether the head is that of a detector or segmentor.

    Raises:
        ValueError: There is no split, or its images are missing.
    """
    data = recipe.data
    if test is None:
        if data.val is None or data.val_fraction:
            raise ValueError("There is no validation split to measure: name one with test: {split: ...}.")
        return SplitConfig(data.val, data.val_images if is_dense else None)
    if is_dense != (test.images is not None):
        need = "needs images: FOLDER" if is_dense else "has images, which classifiers do not take: remove it"
        raise ValueError(f"test {need}, as `piip evaluate --help` says.")
    return test
