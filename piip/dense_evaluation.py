"""Evaluation of an exported detector or segmentor on a labelled split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from piip.data.coco import CocoInstances, read_coco
from piip.data.index_maps import IndexMaps
from piip.data.samples import reduce_zero_label
from piip.dense_prediction import DensePredictor
from piip.scores.coco import score_results, to_results
from piip.scores.semantic import ClassOverlap

RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class DenseReport:
    """How good a detector or segmentor is.

    Args:
        images: Images that were evaluated.
        scores: Instances: average precision and recall, see `score_results`; classes of pixels: "miou", "aacc", "macc";
            all in [0, 1].
        per_class: Intersection over union of every class, None where it does not occur; empty for instances.
        detections: Limits on instances an image.
    """

    images: int
    scores: dict[str, float]
    per_class: dict[str, float | None] = field(default_factory=dict)
    detections: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        limits = {"detections": list(self.detections)} if self.detections else {}
        classes = {"per_class": self.per_class} if self.per_class else {}
        return {"images": self.images, **self.scores, **limits, **classes}


def evaluate_dense(
    model_dir: str | Path,
    data: str | Path,
    *,
    split: str,
    images: str,
    workers: int = 2,
    device: str = "auto",
    dtype: str = "f32",
    detections: Sequence[int] | None = None,
    counter: str = "faster-coco-eval",
    out: str | Path | None = None,
) -> DenseReport:
    """Run an exported detector or segmentor over one split.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub.
        data: Folder that the other paths start from.
        split: The split's COCO file, or its folder of index PNGs.
        images: Folder of the split's images.
        workers: Reading processes; 0 reads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        detections: Three limits on instances an image; None takes the model's.
        counter: "faster-coco-eval" or "pycocotools".
        out: Folder for `results.json`, the instances as COCO writes them; None writes nothing.

    Raises:
        ValueError: No model, no data, or other classes than the model's.
    """
    predictor = DensePredictor(model_dir, device=device, dtype=dtype)
    root = Path(data)
    if predictor.kind == "upernet":
        maps = IndexMaps(
            root / split,
            root / images,
            num_classes=len(predictor.classes),
            expected_classes=predictor.classes,
        )
        return _evaluate_maps(predictor, maps, workers)
    truth = CocoInstances(root / split, root / images, expected_classes=predictor.classes)
    limits = tuple(detections or predictor.detections)
    return _evaluate_instances(predictor, truth, workers, limits, counter, out)


def _batches(predictor: DensePredictor, images: CocoInstances | IndexMaps, workers: int) -> Any:
    images.transform = predictor.transform
    return DataLoader(images, batch_size=1, num_workers=workers, collate_fn=predictor.collate)


def _evaluate_instances(
    predictor: DensePredictor,
    truth: CocoInstances,
    workers: int,
    limits: tuple[int, ...],
    counter: str,
    out: str | Path | None,
) -> DenseReport:
    results: list[dict[str, Any]] = []
    for batch in _batches(predictor, truth, workers):
        values = predictor.run(batch, most=limits[-1])
        results += to_results(values, truth.image_ids[batch.indices[0]], truth.category_ids)
    if out is not None:  # before counting, which may fail: the predictions took longer
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / RESULTS_NAME).write_text(json.dumps(results) + "\n", encoding="utf-8")
    scores = score_results(
        read_coco(truth.file),
        results,
        kinds=predictor.model.finds,
        detections=limits,
        counter=counter,
        image_ids=truth.image_ids,
    )
    return DenseReport(len(truth), scores, detections=limits)


def _evaluate_maps(predictor: DensePredictor, maps: IndexMaps, workers: int) -> DenseReport:
    overlap = ClassOverlap(len(predictor.classes))
    for batch in _batches(predictor, maps, workers):
        guess = predictor.run(batch)["labels"]
        shape = batch.frames[0].original
        truth = maps.read_truth(batch.indices[0], shape)["labels"]
        overlap.add(guess, reduce_zero_label(truth) if predictor.transform.config.reduce_zero_label else truth)
    classes = {
        name: None if value != value else value  # NaN: the class does not occur
        for name, value in zip(predictor.classes, overlap.class_overlap().tolist(), strict=True)
    }
    return DenseReport(len(maps), overlap.scores(), per_class=classes)


def format_dense_report(report: DenseReport) -> str:
    """Return the report as a table for people."""
    width = max(len(name) for name in [*report.scores, *report.per_class, "images"])
    lines = [f"{'images':<{width}} {report.images:>8}"]
    lines += [f"{name:<{width}} {'-' if value < 0 else f'{value:.4f}':>8}" for name, value in report.scores.items()]
    if report.detections:
        lines.append(f"at most {report.detections[-1]} instances an image")
    if report.per_class:
        lines += ["", f"{'class':<{width}} {'IoU':>8}"]
        lines += [
            f"{name:<{width}} {'-' if value is None else f'{value:.4f}':>8}" for name, value in report.per_class.items()
        ]
    return "\n".join(lines)
