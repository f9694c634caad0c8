"""COCO average precision of boxes and masks.

Two programs count it: pycocotools is the reference, faster-coco-eval the default (equal, tested, several times faster).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

COUNTERS = ("faster-coco-eval", "pycocotools")
DETECTIONS = (1, 10, 100)  # COCO's own; the last one is the limit of the headline
KINDS = {"box": "bbox", "mask": "segm"}
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
RECALLS = ("ar_first", "ar_second", "ar", "ar_small", "ar_medium", "ar_large")


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
    counter: str = "faster-coco-eval",
    image_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return average precision and recall of boxes and masks, as names such as "mask_ap" and "box_ap50", in [0, 1].

    Args:
        content: A COCO file's content.
        results: What `to_results` returns, of all images.
        kinds: What is counted: "box", "mask" or both.
        detections: Three rising limits on detections an image; all precisions are at the last one.
        counter: "faster-coco-eval" or "pycocotools".
        image_ids: Images to count; None for all.

    Returns:
        -1 where there are no objects of a size.

    Raises:
        ValueError: An unknown kind or counter, or limits that do not rise.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds has {unknown[0]!r}, expected {' or '.join(KINDS)}.")
    if counter not in COUNTERS:
        raise ValueError(f"counter is {counter!r}, expected one of {', '.join(COUNTERS)}.")
    if len(detections) != 3 or sorted(detections) != list(detections):
        raise ValueError(f"detections is {tuple(detections)}, expected three rising limits such as 1 10 100.")
    scores: dict[str, float] = {}
    for name in kinds:
        values = _count(content, results, KINDS[name], detections, counter, image_ids)
        scores |= {f"{name}_{part}": value for part, value in zip((*NAMES, *RECALLS), values, strict=True)}
    return scores


def _count(
    content: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    detections: Sequence[int],
    counter: str,
    image_ids: Sequence[int] | None,
) -> list[float]:
    if not results:
        return [0.0] * (len(NAMES) + len(RECALLS))
    coco_class, counting_class = _classes(counter)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.10 with numpy 2
        truth = coco_class()
        truth.dataset = _completed(content)
        truth.createIndex()
        # masks have areas of their own: pycocotools takes the box's where it finds one
        kept = [{k: v for k, v in row.items() if not (kind == "segm" and k == "bbox")} for row in results]
        counting = counting_class(truth, truth.loadRes(kept), kind)
        counting.params.maxDets = list(detections)
        if image_ids is not None:
            counting.params.imgIds = list(image_ids)
        counting.evaluate()
        counting.accumulate()
    return _summary(counting, detections)


def _classes(counter: str) -> tuple[Any, Any]:
    if counter == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with the fields that counting relies on and that files may lack."""
    completed = []
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        outline = entry.get("segmentation") or [corners]  # the box, as in training
        completed.append({"iscrowd": 0, "area": width * height, **entry, "segmentation": outline})
    return {**content, "annotations": completed}


def _summary(counting: Any, detections: Sequence[int]) -> list[float]:
    """Read the twelve numbers off the counted tables; pycocotools' own summary fixes 100 detections."""
    precision, recall = np.asarray(counting.eval["precision"]), np.asarray(counting.eval["recall"])

    def mean(values: np.ndarray) -> float:
        known = values[values > -1]
        return float(known.mean()) if known.size else -1.0

    thresholds = [round(float(value), 2) for value in counting.params.iouThrs]
    last = len(detections) - 1
    rows = [precision[:, :, :, 0, last], *(precision[thresholds.index(t), :, :, 0, last] for t in (0.5, 0.75))]
    rows += [precision[:, :, :, size, last] for size in (1, 2, 3)]
    rows += [recall[:, :, 0, index] for index in range(len(detections))]
    rows += [recall[:, :, size, last] for size in (1, 2, 3)]
    return [mean(row) for row in rows]
