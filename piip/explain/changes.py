"""Comparing two predictions for the same image, in the terms of their task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from piip.explain.explanation import Change
from piip.inference.predictions import ClassPrediction, InstancePrediction, Prediction, SemanticPrediction

SAME_OBJECT = 0.5  # IoU of boxes from which two detections of a class are the same object


def compare_classes(before: ClassPrediction, after: ClassPrediction) -> Change:
    """Return the loss of probability of the class that was the most probable one.

    Args:
        before: The result with all classes.
        after: The other result, with all classes.
    """
    probability = dict(after.top)[before.label]
    becomes = "" if after.label == before.label else f"; most probable is {after.label} with {after.score:.1%}"
    return Change(
        f"loss of the probability of {before.label}",
        max(0.0, before.score - probability),
        f"{before.label}: {before.score:.1%} becomes {probability:.1%}{becomes}",
        {"label": before.label, "before": before.score, "after": probability, "new_label": after.label},
    )


def compare_detections(before: InstancePrediction, after: InstancePrediction) -> Change:
    """Return how many of the counted detections are lost.

    Detections with a score of at least the threshold are matched, best first, with those of the same class in the other
    result whose boxes have the highest IoU, from 0.5.

    Args:
        before: The result.
        after: The other result.
    """
    first, second = _counted(before), _counted(after)
    kept = _matches(first, second)
    lost, new = len(first[0]) - kept, len(second[0]) - kept
    values = {"kept": kept, "lost": lost, "new": new}
    share = lost / max(len(first[0]), 1)
    return Change("detections lost", share, f"{kept} of {kept + lost} detections kept, {lost} lost, {new} new", values)


def _counted(prediction: InstancePrediction) -> tuple[Tensor, Tensor]:
    chosen = prediction.scores >= prediction.score_threshold
    return prediction.boxes[chosen], prediction.labels[chosen]


def _matches(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> int:
    overlaps = box_iou(first[0], second[0])
    overlaps[first[1][:, None] != second[1][None]] = 0
    kept = 0
    for index in range(len(overlaps)):
        if overlaps.shape[1] and overlaps[index].max() >= SAME_OBJECT:
            overlaps[:, overlaps[index].argmax()] = 0
            kept += 1
    return kept


def compare_masks(before: SemanticPrediction, after: SemanticPrediction) -> Change:
    """Return the share of pixels whose class changes.

    Args:
        before: The result.
        after: The other result.
    """
    changed = float((before.labels != after.labels).float().mean())
    pairs = before.labels.long() * len(before.classes) + after.labels.long()
    counts = torch.bincount(pairs[before.labels != after.labels].flatten())
    most = ""
    if len(counts):
        old, new = divmod(int(counts.argmax()), len(before.classes))
        most = f", most often {before.classes[old]} to {before.classes[new]}"
    return Change(
        "pixels that change class", changed, f"{changed:.1%} of the pixels change class{most}", {"changed": changed}
    )


# By the kind of prediction.
CHANGES: Mapping[type[Prediction], Callable[[Any, Any], Change]] = {
    ClassPrediction: compare_classes,
    InstancePrediction: compare_detections,
    SemanticPrediction: compare_masks,
}
