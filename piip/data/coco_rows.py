"""Annotations as they are kept: as tuples, with polygons as bytes, which are packed in half the time."""

from __future__ import annotations

from array import array
from typing import Any

FIELDS = ("own_id", "image_id", "category_id", "bbox", "iscrowd", "area")
Compact = tuple[Any, ...]


def compact(row: dict[str, Any]) -> Compact:
    """Return an annotation as `restored` takes it.

    Args:
        row: An annotation of `read_coco`.
    """
    outline = row["segmentation"]
    if type(outline) is list:
        outline = [array("d", polygon).tobytes() for polygon in outline]
    return (
        row["own_id"],
        row["image_id"],
        row["category_id"],
        row["bbox"],
        row["iscrowd"],
        row["area"],
        outline,
    )


def restored(kept: Compact) -> dict[str, Any]:
    """Return an annotation of `read_coco` without its number."""
    *values, outline = kept
    if type(outline) is list:
        outline = [array("d", polygon).tolist() for polygon in outline]
    return {**dict(zip(FIELDS, values, strict=True)), "segmentation": outline}
