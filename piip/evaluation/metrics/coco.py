"""COCO average precision of boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from piip.evaluation.metrics.precision_tables import COUNTERS, KINDS, count_results

DETECTIONS = (1, 10, 100)  # COCO's own; the last one is the limit of the headline


class CountingRule(NamedTuple):
    """How average precision is counted.

    Attributes:
        detections: Three rising limits on detections an image.
        headline: Place of the limit that "ap" is counted at; all other precisions are at the last one.
        counter: "faster-coco-eval" or "pycocotools".
    """

    detections: tuple[int, ...] = DETECTIONS
    headline: int = -1
    counter: str = COUNTERS[0]


# Source: the authors' evaluation, MMDetection 2 with its limits and pycocotools.
OFFICIAL_RULE = CountingRule((100, 300, 1000), 0, "pycocotools")


def to_results(prediction: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return one image's instances as COCO writes them.

    Args:
        prediction: "boxes" (N, 4), "scores" (N,), "labels" (N,) and, where the model finds them, "masks" bool
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
    """Return masks (N, H, W) as run lengths that JSON can hold."""
    from faster_coco_eval.core import mask as coder

    if not len(masks):
        return []
    coded = coder.encode(np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0)))
    return [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in coded]


def score_results(
    content: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    kinds: Sequence[str] = tuple(KINDS),
    detections: Sequence[int] = DETECTIONS,
    headline: int = -1,
    counter: str = "faster-coco-eval",
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return average precision and recall of boxes and masks, as names such as "mask_ap" and "box_ap50", in [0, 1].

    Args:
        content: A COCO file's content.
        results: What `to_results` returns, of all images.
        kinds: What is counted: "box", "mask" or both.
        detections: Three rising limits on detections an image.
        headline: Place of the limit that "ap" is counted at; all other precisions are at the last one.
        counter: "faster-coco-eval" or "pycocotools".
        image_ids: Images to count; None for all.

    Returns:
        -1 where there are no objects of a size.

    Raises:
        ValueError: An unknown kind or counter, or limits that do not rise.
    """
    scores: dict[str, float] = {}
    for kind in kinds:
        tables = count_results(content, results, kind, detections=detections, counter=counter, image_ids=image_ids)
        scores |= {f"{kind}_{name}": value for name, value in tables.scores(headline=headline).items()}
    return scores
