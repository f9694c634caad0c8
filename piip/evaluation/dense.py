"""Evaluation of a saved detector or segmentor on a labelled split."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from piip.data.coco import CocoInstances
from piip.data.collate import reduce_zero_label
from piip.data.semantic_masks import SemanticMasks
from piip.evaluation.metrics.coco import (
    OFFICIAL_RULE,
    TASK_IOU_TYPES,
    MetricRule,
    Scores,
    annotated_iou_types,
    to_results,
)
from piip.evaluation.metrics.matching import box_agreement
from piip.evaluation.metrics.precision_tables import check_metric, count_objects, count_results
from piip.evaluation.metrics.semantic import SemanticMetric
from piip.evaluation.report.dense import DenseReport, class_rows, curves_of, dense_page, format_dense_report
from piip.evaluation.report.drawing import draw_map, draw_objects
from piip.evaluation.report.page import write_page
from piip.evaluation.report.sheet import SheetRow, Worst, write_sheet
from piip.export.int8 import Calibration
from piip.export.runtime import runtime_device
from piip.inference.dense_predictor import DensePredictor, load_dense_predictor
from piip.inference.processes import ALONE, Processes
from piip.output import writable_folder, write_json
from piip.structures import IGNORE_INDEX

__all__ = ["DenseReport", "evaluate_dense", "format_dense_report"]

logger = logging.getLogger("piip")

RESULTS_NAME = "results.json"
CONFIDENT = 0.5  # minimum score of detections for ranking and drawing images
WORST_HEADS = ("image", "truth", "prediction")


def evaluate_dense(
    model_dir: str | Path,
    data: str | Path,
    *,
    split: str,
    images: str,
    workers: int = 2,
    device: str = "auto",
    dtype: str = "f32",
    runtime: str = "torch",
    calibrate: str | Path | None = None,
    max_detections: Sequence[int] | None = None,
    official: bool = False,
    backend: str | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    on_error: str = "stop",
    out: str | Path | None = None,
    processes: Processes = ALONE,
) -> DenseReport:
    """Evaluate a saved detector or segmentor on one split.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub.
        data: Folder that the other paths are relative to.
        split: The split's COCO file, or its folder of semantic masks.
        images: Folder of the split's images.
        workers: Data loading processes; 0 loads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        runtime: Where the model runs, and with which images int8 is calibrated, as in `piip.Predictor`.
        calibrate: See `runtime`.
        max_detections: Three limits on detections per image; None uses the model's.
        official: Evaluate as the authors did, see docs/evaluation.md: limits 100, 300 and 1000, average precision at
            100 and all else at 1000, the head's own number of detections, no test-time augmentation, pycocotools.
        backend: "faster-coco-eval" or "pycocotools"; None uses the first, or with `official` the second.
        scales: Test-time augmentation: factors on the image size; None uses the model's.
        flip: Test-time augmentation: also predict on flipped images; None uses the model's.
        on_error: "stop" at a missing or unreadable image, or "skip" it with a warning: it does not count.
        out: Folder for the report and `results.json`, the detections in COCO format; None writes nothing.
        processes: Processes that share the images; the first one computes the metrics, all return the report.

    Raises:
        ValueError: Model or data are missing, their classes differ, or options contradict `official`.
    """
    if official:
        if max_detections is not None or scales is not None or flip:
            raise ValueError(
                "official sets limits and test-time augmentation: remove max_detections, scales and flip, or "
                "remove official."
            )
        scales, flip = (1.0,), False
    predictor = load_dense_predictor(
        model_dir,
        device=processes.device(runtime_device(device, runtime)),
        dtype=dtype,
        scales=scales,
        flip=flip,
        runtime=runtime,
        calibration=Calibration(calibrate) if calibrate is not None else None,
    )
    if not predictor.model.max_detections and (official or max_detections is not None or backend is not None):
        raise ValueError(
            "official, max_detections and backend are for detectors; the model is a segmentor: remove them."
        )
    root = Path(data)
    config = predictor.tta.config
    setup = {"model": str(model_dir), "split": split, "scales": list(config.test_scales), "flip": config.flip_test}
    folder = None if out is None else writable_folder(out)
    run = Run(predictor, root / split, root / images, workers, on_error, setup, folder, processes)
    rule = OFFICIAL_RULE if official else MetricRule(tuple(max_detections or predictor.max_detections))
    evaluation = EVALUATIONS[predictor.model.task]
    report: DenseReport = processes.share(evaluation(run, rule._replace(backend=backend or rule.backend), official))
    return report


class Run(NamedTuple):
    """One evaluation.

    Attributes:
        predictor: The model.
        split: The split's COCO file, or its folder of semantic masks.
        images: Folder of its images.
        workers: Data loading processes.
        on_error: "stop" or "skip" at an unreadable image.
        setup: Settings of the evaluation, for the report.
        out: Folder for the report; None writes nothing.
        processes: Processes that share the images.
    """

    predictor: DensePredictor
    split: Path
    images: Path
    workers: int
    on_error: str
    setup: dict[str, Any]
    out: Path | None
    processes: Processes


def _predictions(
    run: Run, images: CocoInstances | SemanticMasks, *, max_detections: int | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the index of every readable image and its prediction, in the first process."""
    images.transform = run.predictor.tta  # type: ignore[assignment] # a sample here is an image at several sizes
    own = Subset(images, run.processes.own(len(images)))
    loader = DataLoader(own, batch_size=1, num_workers=run.workers, collate_fn=itemgetter(0))
    found = (
        (batches[0].indices[0], run.predictor.run(batches, max_detections=max_detections))
        for batches in loader
        if batches is not None  # None: unreadable and skipped
    )
    return run.processes.in_order(found, len(images))


def _evaluate_detections(run: Run, rule: MetricRule, official: bool) -> DenseReport | None:
    predictor, out = run.predictor, run.out
    data = CocoInstances(
        run.split, run.images, on_error=run.on_error, expected_classes=predictor.classes, options=predictor.options
    )
    iou_types = annotated_iou_types(data.ground_truth(), predictor.model.task)
    check_metric(iou_types, rule.max_detections, rule.backend)
    if iou_types != TASK_IOU_TYPES[predictor.model.task]:
        logger.warning("%s has boxes only: masks are not evaluated.", run.split)
    limit = predictor.model.max_detections if official else rule.max_detections[-1]
    results: list[dict[str, Any]] = []
    seen: list[int] = []
    worst = Worst()
    for index, values in _predictions(run, data, max_detections=limit):
        seen.append(data.samples[index][1])
        results += to_results(values, seen[-1], data.label_ids)
        if out is not None:
            _rank_detections(worst, data, index, values)
    if not run.processes.is_first:
        return None
    _check_seen(seen, data)
    if out is not None:  # before the metrics, which may fail; predictions take longer
        ids = dict(zip(data.label_ids, data.category_ids, strict=True))
        own = [{**row, "category_id": ids[row["category_id"]]} for row in results]
        write_json(own, out / RESULTS_NAME)
    content, limits, backend = data.ground_truth(seen), rule.max_detections, rule.backend
    tables = {
        name: count_results(content, results, name, max_detections=limits, backend=backend, image_ids=seen)
        for name in iou_types
    }
    scores = {kind: table.scores(headline=rule.headline) for kind, table in tables.items()}
    objects = count_objects(content, data.label_ids, seen)
    report = DenseReport(
        images=len(seen),
        skipped=len(data) - len(seen),
        scores=Scores({f"{kind}_{name}": value for kind, row in scores.items() for name, value in row.items()}, limits),
        per_class=class_rows(predictor.classes, objects, tables, rule.headline),
        setup=run.setup | {"backend": backend, "official": official},
        max_detections=limits,
        headline=limits[rule.headline],
        curves={kind: curves_of(predictor.classes, table) for kind, table in tables.items()},
    )
    _write(report, worst, out)
    return report


def _check_seen(seen: Sequence[Any], data: CocoInstances | SemanticMasks) -> None:
    """Raise an error if no image of the split could be read."""
    if not seen:
        raise ValueError(f"None of the {len(data)} images of {data.root} can be read: check the disk.")


def _rank_detections(worst: Worst, data: CocoInstances, index: int, values: dict[str, Tensor]) -> None:
    kept = values["scores"] >= CONFIDENT
    found = {name: value[kept] for name, value in values.items()}
    truth = data.read_target(index, data.stated_size(index))
    score = box_agreement(found, truth)
    caption = f"{data.samples[index][0].name}: {score:.2f}, {len(truth['labels'])} objects, {int(kept.sum())} found"

    def draw() -> SheetRow:
        image = data.read_image(index)
        true = data.read_target(index, data.stated_size(index))
        if "masks" not in found:
            del true["masks"]
        return SheetRow(caption, [image, *(_with_objects(image, objects) for objects in (true, found))])

    worst.add(score, index, draw)


def _with_objects(image: Image.Image, objects: dict[str, Tensor]) -> Image.Image:
    masks = objects["masks"].numpy() if "masks" in objects else None
    return draw_objects(image, objects["boxes"].tolist(), objects["labels"].tolist(), masks)


def _evaluate_masks(run: Run, rule: MetricRule, official: bool) -> DenseReport | None:
    predictor, out, classes = run.predictor, run.out, run.predictor.classes
    data = SemanticMasks(
        run.split,
        run.images,
        num_classes=len(classes),
        on_error=run.on_error,
        expected_classes=classes,
        image_suffix=predictor.naming[0],
        mask_suffix=predictor.naming[1],
        options=predictor.options,
    )
    metric = SemanticMetric(len(classes))
    seen: list[int] = []
    worst = Worst()
    for index, values in _predictions(run, data):
        predicted = values["labels"]
        seen.append(index)
        target = data.read_target(index, (predicted.shape[0], predicted.shape[1]))["labels"]
        target = reduce_zero_label(target) if predictor.tta.config.reduce_zero_label else target
        metric.add(predicted, target)
        if out is not None:
            _rank_mask(worst, data, index, predicted, target)
    if not run.processes.is_first:
        return None
    _check_seen(seen, data)
    if not metric.counts.any():
        reduced = "on" if predictor.tta.config.reduce_zero_label else "off"
        raise ValueError(f"{data.root} has only ignored pixels (the model's reduce_zero_label is {reduced}).")
    report = DenseReport(
        images=len(seen),
        skipped=len(data) - len(seen),
        scores=metric.scores(),
        per_class=dict(zip(classes, metric.class_scores(), strict=True)),
        setup=run.setup,
        confusion=metric.counts.tolist(),
    )
    _write(report, worst, out)
    return report


def _rank_mask(worst: Worst, data: SemanticMasks, index: int, predicted: Tensor, target: Tensor) -> None:
    path, metric = data.samples[index][0], SemanticMetric(len(data.classes))
    metric.add(predicted, target)
    score = metric.scores()["miou"]
    if score != score:  # NaN: nothing but ignored pixels
        return
    predicted, target = predicted.to(torch.uint8), target.to(torch.uint8)

    def draw() -> SheetRow:
        image = data.read_image(index)
        drawn = [draw_map(image, labels.numpy(), (target == IGNORE_INDEX).numpy()) for labels in (target, predicted)]
        return SheetRow(f"{path.name}: mIoU {score:.2f}", [image, *drawn])

    worst.add(score, index, draw)


def _write(report: DenseReport, worst: Worst, out: str | Path | None) -> None:
    if out is None:
        return
    rows = worst.rows()

    def draw(path: Path) -> None:
        write_sheet(path, rows, heads=WORST_HEADS)

    write_page(dense_page(report, worst=draw if rows else None), out)


# By the task of the model's head.
EVALUATIONS = {"detection": _evaluate_detections, "instance": _evaluate_detections, "semantic": _evaluate_masks}
