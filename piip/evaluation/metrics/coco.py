"""COCO average precision of boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from piip.deprecation import deprecated
from piip.evaluation.metrics.precision_tables import BACKENDS, IOU_TYPES, count_results

MAX_DETECTIONS = (1, 10, 100)  # COCO's own; the last one is the limit of the headline
TASK_IOU_TYPES = {"detection": ("box",), "instance": ("box", "mask")}  # what is compared, by task
OLD_RECALLS = ("ar_first", "ar_second", "ar")  # names of version 0.1 for the recalls at the three limits


class MetricRule(NamedTuple):
    """How average precision is computed.

    Attributes:
        max_detections: Three increasing limits on detections per image.
        headline: Index of the limit for "ap"; all other precisions are at the last limit.
        backend: "faster-coco-eval" or "pycocotools".
    """

    max_detections: tuple[int, ...] = MAX_DETECTIONS
    headline: int = -1
    backend: str = BACKENDS[0]


# Source: the authors' evaluation, MMDetection 2 with its limits and pycocotools.
OFFICIAL_RULE = MetricRule((100, 300, 1000), 0, "pycocotools")


class Scores(dict[str, float]):
    """Metrics by name; the names of version 0.1 for recalls ("box_ar_first") are still read.

    Args:
        values: Metrics by their current names.
        max_detections: The limits in the names of recalls.
    """

    def __init__(self, values: Mapping[str, float], max_detections: Sequence[int] = MAX_DETECTIONS) -> None:
        super().__init__(values)
        self._max_detections = tuple(max_detections)

    def __missing__(self, name: str) -> float:
        kind, _, metric = name.partition("_")
        if metric not in OLD_RECALLS:
            raise KeyError(name)
        current = f"{kind}_ar_{self._max_detections[OLD_RECALLS.index(metric)]}"
        value = self[current]
        deprecated(f"The metric {name}", current)
        return value


def annotated_iou_types(content: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """Return what can be compared: without "mask" where no object of the file has an outline.

    Args:
        content: A COCO file's content.
        task: "detection" or "instance".
    """
    has_masks = any(entry.get("segmentation") for entry in content["annotations"])
    return tuple(name for name in TASK_IOU_TYPES[task] if name != "mask" or has_masks)


def to_results(prediction: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return one image's detections in COCO's results format.

    Args:
        prediction: "boxes" (N, 4), "scores" (N,), "labels" (N,) and, where the model predicts them, "masks" bool
            (N, H, W), in original pixels.
        image_id: The image's id.
        category_ids: The id of every class.
    """
    boxes = prediction["boxes"].float().cpu().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    results: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [float(number) for number in box],
            "score": score,
        }
        for box, score, label in zip(boxes, prediction["scores"].tolist(), prediction["labels"].tolist(), strict=True)
    ]
    if "masks" in prediction:
        for result, segmentation in zip(results, _encode(prediction["masks"]), strict=True):
            result["segmentation"] = segmentation
    return results


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """Return masks (N, H, W) as RLE for JSON."""
    from faster_coco_eval.core import mask as coder

    if not len(masks):
        return []
    coded = coder.encode(np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0)))
    return [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in coded]


def score_results(
    content: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_types: Sequence[str] = tuple(IOU_TYPES),
    max_detections: Sequence[int] = MAX_DETECTIONS,
    headline: int = -1,
    backend: str = BACKENDS[0],
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Return average precision and recall of boxes and masks, as names such as "mask_ap" and "box_ap50", in [0, 1].

    Args:
        content: A COCO file's content.
        results: Detections of all images, from `to_results`.
        iou_types: Objects to compare: "box", "mask" or both.
        max_detections: Three increasing limits on detections per image.
        headline: Index of the limit for "ap"; all other precisions are at the last limit.
        backend: "faster-coco-eval" or "pycocotools".
        image_ids: Images to evaluate; None for all.

    Returns:
        The metrics; -1 if there are no objects of a size.

    Raises:
        ValueError: A type or backend is unknown, or limits do not increase.
    """
    scores: dict[str, float] = {}
    for iou_type in iou_types:
        tables = count_results(
            content, results, iou_type, max_detections=max_detections, backend=backend, image_ids=image_ids
        )
        scores |= {f"{iou_type}_{name}": value for name, value in tables.scores(headline=headline).items()}
    return Scores(scores, max_detections)
