"""Evaluation of an exported classifier on a labelled image folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from piip.data.image_folder import ImageFolder
from piip.data.reading import read_batches
from piip.prediction import ClassPredictor


@dataclass(frozen=True)
class EvaluationReport:
    """How often a classifier is right.

    Args:
        images: Images that were read.
        skipped: Images that could not be read.
        top1: Share of images whose class comes first, in [0, 1].
        top5: Share of images whose class is among the first five, in [0, 1].
        mean_class: Mean of the classes' accuracies, in [0, 1].
        per_class: Accuracy of every class, in [0, 1]; None for a class without readable images.
        confusion: Number of images of class i (row) taken for class j (column).
    """

    images: int
    skipped: int
    top1: float
    top5: float
    mean_class: float
    per_class: dict[str, float | None]
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
    on_error: str = "stop",
) -> EvaluationReport:
    """Run an exported classifier over one split.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        data: Folder with one folder a split, each with one folder a class.
        split: The split's folder name.
        batch_size: Images at a time.
        workers: Reading processes; 0 reads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        on_error: "stop" at an unreadable image, or "skip" it with a warning that names it.

    Raises:
        ValueError: No model, no data, other classes than the model's, or an unreadable image.
    """
    predictor = ClassPredictor(model_dir, device=device, dtype=dtype)
    folder = ImageFolder(Path(data) / split, expected_classes=predictor.classes)
    labels = torch.tensor([label for _, label in folder.samples])
    num_classes = len(predictor.classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    images = hits = 0
    for indices, batch in read_batches(
        [path for path, _ in folder.samples],
        predictor.transform,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
    ):
        label = labels[indices]  # (B,)
        best = predictor.logits(batch).topk(min(5, num_classes)).indices  # (B, 5)
        hits += int((best == label[:, None]).sum())
        confusion += torch.bincount(label * num_classes + best[:, 0], minlength=num_classes**2).view_as(confusion)
        images += len(label)
    if images == 0:
        raise ValueError(f"None of the {len(labels)} images in {folder.root} can be read.")
    return _report(predictor.classes, confusion, images=images, hits=hits, skipped=len(labels) - images)


def _report(classes: list[str], confusion: torch.Tensor, *, images: int, hits: int, skipped: int) -> EvaluationReport:
    totals = confusion.sum(1)
    present = totals > 0
    accuracy = confusion.diagonal() / totals.clamp(min=1)  # (K,)
    return EvaluationReport(
        images=images,
        skipped=skipped,
        top1=int(confusion.diagonal().sum()) / images,
        top5=hits / images,
        mean_class=float(accuracy[present].mean()),
        per_class={
            name: float(value) if seen else None
            for name, value, seen in zip(classes, accuracy, present.tolist(), strict=True)
        },
        confusion=confusion.tolist(),
    )


def format_report(report: EvaluationReport, *, confusions: int = 5) -> str:
    """Return the report as a table for people, with the most frequent confusions.

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
        lines += [f"{count:>8} {true} taken for {guess}" for count, true, guess in wrong[:confusions]]
    return "\n".join(lines)
