"""Evaluation of a saved classifier on a labelled image folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from piip.data.image_files import read_batches
from piip.data.image_folder import ImageFolder
from piip.data.image_reading import ReadOptions, read_rgb
from piip.evaluation.report.page import Page, Value, write_page
from piip.evaluation.report.sheet import SheetRow, Worst, write_sheet
from piip.export.int8 import Calibration
from piip.export.runtime import runtime_device
from piip.inference.class_predictor import ClassPredictor
from piip.inference.processes import ALONE, Processes
from piip.output import writable_folder


@dataclass(frozen=True)
class EvaluationReport:
    """Accuracy of a classifier.

    Args:
        images: Images that were read.
        skipped: Images that could not be read.
        top1: Fraction of images whose class is predicted first, in [0, 1].
        top5: Fraction of images whose class is among the first five predictions, in [0, 1].
        mean_class: Mean of the classes' accuracies, in [0, 1].
        per_class: Accuracy of every class, in [0, 1]; None for a class without readable images.
        per_class_top5: Top-5 accuracy of every class, in the same form.
        confusion: Number of images of class i (row) predicted as class j (column).
    """

    images: int
    skipped: int
    top1: float
    top5: float
    mean_class: float
    per_class: dict[str, float | None]
    per_class_top5: dict[str, float | None]
    confusion: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return dataclasses.asdict(self)


def evaluate(
    model_dir: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    dtype: str = "f32",
    runtime: str = "torch",
    calibrate: str | Path | None = None,
    on_error: str = "stop",
    out: str | Path | None = None,
    processes: Processes = ALONE,
) -> EvaluationReport:
    """Evaluate a saved classifier on one split.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        data: Folder with one folder per split, each with one folder per class.
        split: The split's folder name.
        batch_size: Images per batch.
        workers: Data loading processes; 0 loads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        runtime: Where the model runs, and with which images int8 is calibrated, as in `piip.Predictor`.
        calibrate: See `runtime`.
        on_error: "stop" at an unreadable image, or "skip" it with a warning that names it.
        out: Folder for the report; None writes nothing.
        processes: Processes that share the images; the first one counts, all return the report.

    Raises:
        ValueError: Model or data are missing, their classes differ, or an image is unreadable.
    """
    if out is not None:
        writable_folder(out)
    predictor = ClassPredictor(
        model_dir,
        device=processes.device(runtime_device(device, runtime)),
        dtype=dtype,
        runtime=runtime,
        calibration=Calibration(calibrate) if calibrate is not None else None,
    )
    folder = ImageFolder(Path(data) / split, expected_classes=predictor.classes, options=predictor.options)
    labels = torch.tensor([label for _, label in folder.samples])
    num_classes = len(predictor.classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    hits = torch.zeros(num_classes, dtype=torch.int64)
    images, worst = 0, Worst()
    found = _logits(predictor, folder, processes.own(len(labels), block=batch_size), batch_size, workers, on_error)
    for index, logits in processes.in_order(found, len(labels), block=batch_size):
        label = labels[index]
        best = logits.topk(min(5, num_classes)).indices
        hits[label] += (best == label).any()
        confusion[label, best[0]] += 1
        images += 1
        if out is not None:
            _rank(worst, folder, index, logits.softmax(0))
    if not processes.is_first:
        return processes.share(None)
    if images == 0:
        raise ValueError(f"None of the {len(labels)} images in {folder.root} can be read.")
    report = _report(predictor.classes, confusion, hits, skipped=len(labels) - images)
    if out is not None:
        write_page(classifier_page(report, {"model": str(model_dir), "split": split}, worst.rows()), out)
    return processes.share(report)


def _logits(
    predictor: ClassPredictor, folder: ImageFolder, indices: list[int], batch_size: int, workers: int, on_error: str
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield index and logits (K,) of those of the images that can be read."""
    batches = read_batches(
        [folder.samples[index][0] for index in indices],
        predictor.transform,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        options=predictor.options,
    )
    for places, batch in batches:
        for place, logits in zip(places, predictor.logits(batch), strict=True):
            yield indices[place], logits


def _rank(worst: Worst, folder: ImageFolder, index: int, probs: torch.Tensor) -> None:
    """Add an image, ranked by the probability of its true class among all (K,)."""
    path, label = folder.samples[index]
    own, (first, predicted) = float(probs[label]), [part.item() for part in probs.max(0)]
    caption = f"{path.name}: {folder.classes[label]} {own:.0%}, taken for {folder.classes[int(predicted)]} {first:.0%}"
    if int(predicted) != label:
        worst.add(own, index, partial(_sheet_row, caption, path, folder.options))


def _sheet_row(caption: str, path: Path, options: ReadOptions) -> SheetRow:
    return SheetRow(caption, [read_rgb(path, options=options)])


def _report(classes: list[str], confusion: torch.Tensor, hits: torch.Tensor, *, skipped: int) -> EvaluationReport:
    totals = confusion.sum(1)
    images = int(totals.sum())
    present = totals > 0
    accuracy = confusion.diagonal() / totals.clamp(min=1)  # (K,)

    def by_name(fractions: torch.Tensor) -> dict[str, float | None]:
        rows = zip(classes, fractions.tolist(), present.tolist(), strict=True)
        return {name: value if seen else None for name, value, seen in rows}

    return EvaluationReport(
        images=images,
        skipped=skipped,
        top1=int(confusion.diagonal().sum()) / images,
        top5=int(hits.sum()) / images,
        mean_class=float(accuracy[present].mean()),
        per_class=by_name(accuracy),
        per_class_top5=by_name(hits / totals.clamp(min=1)),
        confusion=confusion.tolist(),
    )


def classifier_page(report: EvaluationReport, setup: Mapping[str, str], worst: Sequence[SheetRow] = ()) -> Page:
    """Return the report's page.

    Args:
        report: The report.
        setup: Evaluated "model" and "split".
        worst: The worst-scoring images.
    """
    from piip.evaluation.report.plots import class_bars, confusion

    names = list(report.per_class)
    images: dict[str, Callable[[Path], None]] = {
        "per_class_top1.png": partial(class_bars, values=report.per_class, label="top-1"),
        "confusion.png": partial(confusion, counts=report.confusion, names=names, unit="images"),
    }
    if worst:
        images["worst.png"] = partial(write_sheet, rows=worst, heads=("lowest probability of the true class",))
    columns = list(map(sum, zip(*report.confusion, strict=True)))
    classes: list[dict[str, Value]] = [
        {
            "class": name,
            "images": sum(row),
            "top1": report.per_class[name],
            "top5": report.per_class_top5[name],
            "precision": row[index] / columns[index] if columns[index] else None,
        }
        for index, (name, row) in enumerate(zip(names, report.confusion, strict=True))
    ]
    return Page(
        title="Evaluation",
        facts={**setup, "images": report.images, "skipped": report.skipped},
        scores=[
            {"score": "top-1", "value": report.top1},
            {"score": "top-5", "value": report.top5},
            {"score": "mean class", "value": report.mean_class},
        ],
        classes=classes,
        numbers={**report.to_dict(), **setup},
        images=images,
    )


def format_report(report: EvaluationReport, *, confusions: int = 5) -> str:
    """Return the report as a text table, with the most frequent confusions.

    Args:
        report: The report.
        confusions: Number of confusions to list.
    """
    width = max(len("mean class"), *(len(name) for name in report.per_class))
    counts = [sum(row) for row in report.confusion]
    lines = [
        f"{'images':<{width}} {report.images:>8}" + (f" ({report.skipped} skipped)" if report.skipped else ""),
        f"{'top-1':<{width}} {report.top1:>8.4f}",
        f"{'top-5':<{width}} {report.top5:>8.4f}",
        f"{'mean class':<{width}} {report.mean_class:>8.4f}",
        "",
        f"{'class':<{width}} {'accuracy':>8} {'images':>8}",
    ]
    for (name, value), count in zip(report.per_class.items(), counts, strict=True):
        lines.append(f"{name:<{width}} {'-' if value is None else f'{value:.4f}':>8} {count:>8}")
    names = list(report.per_class)
    wrong = sorted(
        ((n, names[i], names[j]) for i, row in enumerate(report.confusion) for j, n in enumerate(row) if i != j and n),
        reverse=True,
    )
    if wrong:
        lines += ["", "most frequent confusions"]
        lines += [f"{count:>8} {true} taken for {predicted}" for count, true, predicted in wrong[:confusions]]
    return "\n".join(lines)
