"""Tables of precision and recall over IoU, recall, class, size and number of detections, as COCO counts them.

Two programs count: pycocotools is the reference, faster-coco-eval the default (equal, tested, several times faster).
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

COUNTERS = ("faster-coco-eval", "pycocotools")
KINDS = {"box": "bbox", "mask": "segm"}
SIZES = ("small", "medium", "large")  # areas below 32², from there below 96², and from there on, in pixels
NAMES = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in SIZES))
RECALLS = ("ar_first", "ar_second", "ar", *(f"ar_{size}" for size in SIZES))
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # IoU, COCO's own
Row = Mapping[str, Any]
Floats = NDArray[np.float64]


class PrecisionTables(NamedTuple):
    """What was counted; -1 where there are no objects.

    Attributes:
        precision: (T, R, K, S, M).
        recall: (T, K, S, M).
    """

    precision: Floats
    recall: Floats

    def scores(self, *, headline: int = -1, of: slice = slice(None)) -> dict[str, float]:
        """Return the twelve numbers `NAMES` and `RECALLS`, in [0, 1], or -1 where there are no objects.

        pycocotools' own summary fixes 100 detections for "ap".

        Args:
            headline: Place of the limit on detections that "ap" is counted at; all others are at the last.
            of: Classes.
        """
        precision, recall = self.precision[:, :, of], self.recall[:, of]
        half, three_quarters = (THRESHOLDS.index(value) for value in (0.5, 0.75))
        sizes = range(1, 1 + len(SIZES))
        parts = [precision[..., 0, headline], precision[half, ..., 0, -1], precision[three_quarters, ..., 0, -1]]
        parts += [precision[..., size, -1] for size in sizes]
        parts += [recall[..., 0, limit] for limit in range(recall.shape[-1])]
        parts += [recall[..., size, -1] for size in sizes]
        return dict(zip((*NAMES, *RECALLS), map(_mean, parts), strict=True))

    def curve(self, threshold: float | None = None, *, of: slice = slice(None)) -> list[float]:
        """Return the precision at the recalls 0, 0.01 to 1, mean of classes that occur; empty where none does.

        Args:
            threshold: IoU; None is the mean of all.
            of: Classes.
        """
        chosen = slice(None) if threshold is None else [THRESHOLDS.index(threshold)]
        precision = self.precision[chosen][:, :, of, 0, -1]  # (T, R, K)
        known = precision[:, :, (precision > -1).all((0, 1))]
        return known.mean((0, 2)).tolist() if known.size else []


def _mean(values: Floats) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def check_counting(kinds: Sequence[str], detections: Sequence[int], counter: str) -> None:
    """Check what to count and with what, which costs less before predicting than after.

    Args:
        kinds: "box" or "mask" each.
        detections: Three rising limits on detections an image.
        counter: "faster-coco-eval" or "pycocotools".

    Raises:
        ValueError: An unknown kind or counter, one that is not installed, or limits that do not rise.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds has {kind!r}, expected {' or '.join(KINDS)}.")
    if counter not in COUNTERS:
        raise ValueError(f"counter is {counter!r}, expected one of {', '.join(COUNTERS)}.")
    if importlib.util.find_spec(counter.replace("-", "_")) is None:
        raise ValueError(f"The counter {counter} is not installed. Use: pip install {counter}")
    if len(detections) != 3 or sorted(detections) != list(detections) or detections[0] < 1:
        raise ValueError(f"detections is {tuple(detections)}, expected three rising limits such as 1 10 100.")


def count_results(
    content: Row,
    results: Sequence[Row],
    kind: str,
    *,
    detections: Sequence[int],
    counter: str = COUNTERS[0],
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> PrecisionTables:
    """Compare instances with a COCO file's objects.

    Args:
        content: The file's content.
        results: Instances as COCO writes them, of all images; may be none.
        kind: "box" or "mask".
        detections: Three rising limits on detections an image.
        counter: "faster-coco-eval" or "pycocotools".
        image_ids: Images to count; None for all.
        category_ids: Classes to count; None for all.

    Returns:
        The tables, classes by rising id.

    Raises:
        ValueError: An unknown kind or counter, or limits that do not rise.
    """
    check_counting([kind], detections, counter)
    coco_class, counting_class = _classes(counter)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.10 with numpy 2
        truth = coco_class()
        truth.dataset = _completed(content)
        truth.createIndex()
        counting = counting_class(truth, _found(truth, coco_class, results, KINDS[kind]), KINDS[kind])
        counting.params.maxDets = list(detections)
        if image_ids is not None:
            counting.params.imgIds = list(image_ids)
        if category_ids is not None:
            counting.params.catIds = list(category_ids)
        counting.evaluate()
        counting.accumulate()
    return PrecisionTables(np.asarray(counting.eval["precision"]), np.asarray(counting.eval["recall"]))


def _classes(counter: str) -> tuple[Any, Any]:
    if counter == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _found(truth: Any, coco_class: Any, results: Sequence[Row], kind: str) -> Any:
    """Return the results as the counting program wants them."""
    if results:
        # masks have areas of their own: pycocotools takes the box's where it finds one
        return truth.loadRes(
            [{k: v for k, v in row.items() if not (kind == "segm" and k == "bbox")} for row in results]
        )
    nothing = coco_class()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _completed(content: Row) -> dict[str, Any]:
    """Return the content with the fields that counting relies on and that files may lack."""
    completed = []
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        outline = entry.get("segmentation") or [corners]  # the box, as in training
        completed.append({"iscrowd": 0, "area": width * height, **entry, "segmentation": outline})
    return {**content, "annotations": completed}


def count_objects(content: Row, category_ids: Sequence[int], image_ids: Sequence[int]) -> list[int]:
    """Return how many objects of every class the images have, without crowds.

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
