"""Tables of precision and recall over IoU, recall, class, size and number of detections, as COCO computes them.

Two backends: pycocotools is the reference, faster-coco-eval the default (tested to be equal, several times faster).
Axes: T IoU thresholds, R recall points, K classes, S sizes (all, small, medium, large), M limits on detections.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BACKENDS = ("faster-coco-eval", "pycocotools")
IOU_TYPES = {"box": "bbox", "mask": "segm"}
SIZES = ("small", "medium", "large")  # areas below 32², from 32² to 96², and above, in pixels
NAMES = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in SIZES))
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # IoU, COCO's own
Row = Mapping[str, Any]
Floats = NDArray[np.float64]


def recall_names(max_detections: Sequence[int]) -> tuple[str, ...]:
    """Return the names of average recalls: one per limit on detections, e.g. "ar_100", and one per size.

    Args:
        max_detections: Three increasing limits on detections per image.
    """
    return (*(f"ar_{limit}" for limit in max_detections), *(f"ar_{size}" for size in SIZES))


class PrecisionTables(NamedTuple):
    """Precision and recall; -1 if there are no objects.

    Attributes:
        precision: (T, R, K, S, M).
        recall: (T, K, S, M).
        max_detections: The M limits on detections per image.
    """

    precision: Floats
    recall: Floats
    max_detections: tuple[int, ...]

    def scores(self, *, headline: int = -1, of: slice = slice(None)) -> dict[str, float]:
        """Return the twelve numbers `NAMES` and `recall_names`, in [0, 1], or -1 if there are no objects.

        pycocotools' own summary always uses 100 detections for "ap".

        Args:
            headline: Index of the limit on detections for "ap"; all other precisions are at the last limit.
            of: Classes.
        """
        precision, recall = self.precision[:, :, of], self.recall[:, of]
        half, three_quarters = (THRESHOLDS.index(value) for value in (0.5, 0.75))
        sizes = range(1, 1 + len(SIZES))
        parts = [precision[..., 0, headline], precision[half, ..., 0, -1], precision[three_quarters, ..., 0, -1]]
        parts += [precision[..., size, -1] for size in sizes]
        parts += [recall[..., 0, limit] for limit in range(recall.shape[-1])]
        parts += [recall[..., size, -1] for size in sizes]
        return dict(zip((*NAMES, *recall_names(self.max_detections)), map(_mean, parts), strict=True))

    def curve(self, threshold: float | None = None, *, of: slice = slice(None)) -> list[float]:
        """Return the precision at the recalls 0, 0.01, ..., 1, mean of the classes that occur; empty if none does.

        Args:
            threshold: IoU threshold; None averages over all.
            of: Classes.
        """
        chosen = slice(None) if threshold is None else [THRESHOLDS.index(threshold)]
        precision = self.precision[chosen][:, :, of, 0, -1]  # (T, R, K)
        known = precision[:, :, (precision > -1).all((0, 1))]
        return known.mean((0, 2)).tolist() if known.size else []


def _mean(values: Floats) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def check_metric(iou_types: Sequence[str], max_detections: Sequence[int], backend: str) -> None:
    """Check the settings of the metric before predicting, which takes longer.

    Args:
        iou_types: "box" or "mask" each.
        max_detections: Three increasing limits on detections per image.
        backend: "faster-coco-eval" or "pycocotools".

    Raises:
        ValueError: A type or backend is unknown, a backend is not installed, or limits do not increase.
    """
    for iou_type in iou_types:
        if iou_type not in IOU_TYPES:
            raise ValueError(f"iou_types has {iou_type!r}, expected {' or '.join(IOU_TYPES)}.")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if importlib.util.find_spec(backend.replace("-", "_")) is None:
        raise ValueError(f"The backend {backend} is not installed. Use: pip install {backend}")
    limits = list(max_detections)
    if len(limits) != 3 or sorted(set(limits)) != limits or limits[0] < 1:
        raise ValueError(f"max_detections is {tuple(limits)}, expected three increasing limits such as 1 10 100.")


def count_results(
    content: Row,
    results: Sequence[Row],
    iou_type: str,
    *,
    max_detections: Sequence[int],
    backend: str = BACKENDS[0],
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> PrecisionTables:
    """Return the tables of detections against the objects of a COCO file.

    Args:
        content: The file's content.
        results: Detections of all images in COCO's results format; may be empty.
        iou_type: "box" or "mask".
        max_detections: Three increasing limits on detections per image.
        backend: "faster-coco-eval" or "pycocotools".
        image_ids: Images to evaluate; None for all.
        category_ids: Classes to evaluate; None for all.

    Returns:
        The tables, with classes sorted by id.

    Raises:
        ValueError: A type or backend is unknown, or limits do not increase.
    """
    check_metric([iou_type], max_detections, backend)
    coco_class, eval_class = _classes(backend)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.10 with numpy 2
        target = coco_class()
        target.dataset = _completed(content)
        target.createIndex()
        evaluation = eval_class(target, _loaded(target, coco_class, results, IOU_TYPES[iou_type]), IOU_TYPES[iou_type])
        evaluation.params.maxDets = list(max_detections)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        if category_ids is not None:
            evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
    return PrecisionTables(precision, recall, tuple(max_detections))


def _classes(backend: str) -> tuple[Any, Any]:
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _loaded(target: Any, coco_class: Any, results: Sequence[Row], coco_type: str) -> Any:
    """Return the results in the form of the backend."""
    if results:
        # remove boxes, whose areas pycocotools would use instead of those of the masks
        return target.loadRes(
            [{k: v for k, v in row.items() if not (coco_type == "segm" and k == "bbox")} for row in results]
        )
    nothing = coco_class()
    nothing.dataset = {**target.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _completed(content: Row) -> dict[str, Any]:
    """Return the content with optional fields that the backends require."""
    completed = []
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        outline = entry.get("segmentation") or [corners]  # default: the box, as in training
        completed.append({"iscrowd": 0, "area": width * height, **entry, "segmentation": outline})
    return {**content, "annotations": completed}


def count_objects(content: Row, category_ids: Sequence[int], image_ids: Sequence[int]) -> list[int]:
    """Return the number of objects of every class in the images, without crowds.

    Args:
        content: A COCO file's content.
        category_ids: The classes.
        image_ids: The images.
    """
    images = set(image_ids)
    counts = Counter(
        entry["category_id"]
        for entry in content["annotations"]
        if entry["image_id"] in images and not entry.get("iscrowd")
    )
    return [counts[category] for category in category_ids]
