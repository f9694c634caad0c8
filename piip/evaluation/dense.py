"""Evaluation of an exported detector or segmentor on a labelled split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from piip.data.coco import CocoInstances, read_coco
from piip.data.collate import Batch, reduce_zero_label
from piip.data.image_folder import read_rgb
from piip.data.semantic_masks import IndexMaps
from piip.data.transforms.geometry import IGNORED
from piip.evaluation.metrics.coco import OFFICIAL_RULE, CountingRule, to_results
from piip.evaluation.metrics.matching import box_agreement
from piip.evaluation.metrics.precision_tables import check_counting, count_objects, count_results
from piip.evaluation.metrics.semantic import ClassOverlap
from piip.evaluation.report.dense import DenseReport, class_rows, curves_of, dense_page, format_dense_report
from piip.evaluation.report.drawing import draw_map, draw_objects
from piip.evaluation.report.page import write_page
from piip.evaluation.report.sheet import SheetRow, Worst, write_sheet
from piip.inference.dense_predictor import DensePredictor

__all__ = ["DenseReport", "evaluate_dense", "format_dense_report"]

RESULTS_NAME = "results.json"
SURE = 0.5  # instances of a lower score do not count where pictures are ranked and drawn
WORST_HEADS = ("picture", "truth", "prediction")


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
    official: bool = False,
    counter: str | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
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
        official: Measure as the authors did, see docs/evaluation.md: limits 100, 300 and 1000, average precision at
            100 and all else at 1000, the head's own number of instances, one view, pycocotools.
        counter: "faster-coco-eval" or "pycocotools"; None is the first, or where `official`, the second.
        scales: Factors on the size that pictures are looked at with; None takes the model's.
        flip: Also look at every picture flipped left to right; None takes the model's.
        out: Folder for the report and `results.json`, the instances as COCO writes them; None writes nothing.

    Raises:
        ValueError: No model, no data, other classes than the model's, or options that contradict `official`.
    """
    if official:
        if detections is not None or scales is not None or flip:
            raise ValueError("official fixes limits and views: leave out detections, scales and flip, or official.")
        scales, flip = (1.0,), False
    predictor = DensePredictor(model_dir, device=device, dtype=dtype, scales=scales, flip=flip)
    root = Path(data)
    config = predictor.views.config
    setup = {"model": str(model_dir), "split": split, "scales": list(config.test_scales), "flip": config.flip_test}
    if predictor.kind == "upernet":
        maps = IndexMaps(
            root / split,
            root / images,
            num_classes=len(predictor.classes),
            expected_classes=predictor.classes,
        )
        return _evaluate_maps(predictor, maps, workers, setup, out)
    truth = CocoInstances(root / split, root / images, expected_classes=predictor.classes)
    rule = OFFICIAL_RULE if official else CountingRule(tuple(detections or predictor.detections))
    rule = rule._replace(counter=counter or rule.counter)
    check_counting(predictor.model.finds, rule.detections, rule.counter)
    setup |= {"counter": rule.counter, "official": official}
    return _evaluate_instances(predictor, truth, workers, rule, setup, out)


def _batches(
    predictor: DensePredictor, images: CocoInstances | IndexMaps, workers: int
) -> Iterator[tuple[int, list[Batch]]]:
    """Yield the place of every image and its views."""
    images.transform = predictor.views  # type: ignore[assignment] # a sample here is a picture at several sizes
    for batches in DataLoader(images, batch_size=1, num_workers=workers, collate_fn=itemgetter(0)):
        yield batches[0].indices[0], batches


def _evaluate_instances(
    predictor: DensePredictor,
    truth: CocoInstances,
    workers: int,
    rule: CountingRule,
    setup: dict[str, Any],
    out: str | Path | None,
) -> DenseReport:
    most = predictor.model.detections if setup["official"] else rule.detections[-1]
    results: list[dict[str, Any]] = []
    worst = Worst()
    for index, batches in _batches(predictor, truth, workers):
        values = predictor.run(batches, most=most)
        results += to_results(values, truth.image_ids[index], truth.category_ids)
        if out is not None:
            _rank_instances(worst, truth, index, values)
    if out is not None:  # before counting, which may fail: the predictions took longer
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / RESULTS_NAME).write_text(json.dumps(results) + "\n", encoding="utf-8")
    content = read_coco(truth.file)
    tables = {
        kind: count_results(
            content, results, kind, detections=rule.detections, counter=rule.counter, image_ids=truth.image_ids
        )
        for kind in predictor.model.finds
    }
    scores = {kind: table.scores(headline=rule.headline) for kind, table in tables.items()}
    objects = count_objects(content, truth.category_ids, truth.image_ids)
    report = DenseReport(
        images=len(truth),
        scores={f"{kind}_{name}": value for kind, found in scores.items() for name, value in found.items()},
        per_class=class_rows(predictor.classes, objects, tables, rule.headline),
        setup=setup,
        detections=rule.detections,
        headline=rule.detections[rule.headline],
        curves={kind: curves_of(predictor.classes, table) for kind, table in tables.items()},
    )
    _write(report, worst, out)
    return report


def _rank_instances(worst: Worst, data: CocoInstances, index: int, values: dict[str, Tensor]) -> None:
    kept = values["scores"] >= SURE
    found = {name: value[kept] for name, value in values.items()}
    truth = data.read_truth(index, data.shapes[index])
    score = box_agreement(found, truth)
    caption = f"{data.samples[index][0].name}: {score:.2f}, {len(truth['labels'])} objects, {int(kept.sum())} found"

    def draw() -> SheetRow:
        picture, true = read_rgb(data.samples[index][0], upright=True), data.read_truth(index, data.shapes[index])
        if "masks" not in found:
            del true["masks"]
        return SheetRow(caption, [picture, *(_with_objects(picture, objects) for objects in (true, found))])

    worst.add(score, index, draw)


def _with_objects(picture: Image.Image, objects: dict[str, Tensor]) -> Image.Image:
    masks = objects["masks"].numpy() if "masks" in objects else None
    return draw_objects(picture, objects["boxes"].tolist(), objects["labels"].tolist(), masks)


def _evaluate_maps(
    predictor: DensePredictor, maps: IndexMaps, workers: int, setup: dict[str, Any], out: str | Path | None
) -> DenseReport:
    overlap = ClassOverlap(len(predictor.classes))
    worst = Worst()
    for index, batches in _batches(predictor, maps, workers):
        guess = predictor.run(batches)["labels"]
        truth = maps.read_truth(index, batches[0].frames[0].original)["labels"]
        truth = reduce_zero_label(truth) if predictor.views.config.reduce_zero_label else truth
        overlap.add(guess, truth)
        if out is not None:
            _rank_map(worst, maps.samples[index][0], index, guess, truth, len(predictor.classes))
    if not overlap.counts.any():
        reduced = "on" if predictor.views.config.reduce_zero_label else "off"
        raise ValueError(f"{maps.root} has no pixel of a class (the model's reduce_zero_label is {reduced}).")
    report = DenseReport(
        images=len(maps),
        scores=overlap.scores(),
        per_class=dict(zip(predictor.classes, overlap.class_scores(), strict=True)),
        setup=setup,
        confusion=overlap.counts.tolist(),
    )
    _write(report, worst, out)
    return report


def _rank_map(worst: Worst, path: Path, index: int, guess: Tensor, truth: Tensor, num_classes: int) -> None:
    overlap = ClassOverlap(num_classes)
    overlap.add(guess, truth)
    score = overlap.scores()["miou"]
    if score != score:  # NaN: nothing but ignored pixels
        return
    guess, truth = guess.to(torch.uint8), truth.to(torch.uint8)

    def draw() -> SheetRow:
        picture = read_rgb(path, upright=True)
        drawn = [draw_map(picture, labels.numpy(), (truth == IGNORED).numpy()) for labels in (truth, guess)]
        return SheetRow(f"{path.name}: mIoU {score:.2f}", [picture, *drawn])

    worst.add(score, index, draw)


def _write(report: DenseReport, worst: Worst, out: str | Path | None) -> None:
    if out is None:
        return
    rows = worst.rows()

    def draw(path: Path) -> None:
        write_sheet(path, rows, heads=WORST_HEADS)

    write_page(dense_page(report, worst=draw if rows else None), out)
