"""Readers by datumaro: CVAT, and by name every other format that it knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piip.data.conversion.source import (
    NO_SPLIT,
    SPLITS,
    LeftOut,
    Source,
    SourceImage,
    SourceObject,
    need,
    read_shape,
    run_lengths,
)

UNNAMED = ("", "default", "annotations")  # subsets that are none
UNREAD = ("ellipse", "skeleton", "cuboid")  # elements of CVAT's files that datumaro passes over


def read_cvat(root: Path) -> Source:
    """Read CVAT's own XML ("CVAT for images"): boxes, polygons and masks; others are counted.

    Args:
        root: Folder of the data set.

    Raises:
        ValueError: datumaro is missing or cannot read the data set.
    """
    source = read_by_name(root, "cvat")
    parse = need("defusedxml.ElementTree", "The format cvat").iterparse
    for file in sorted(root.rglob("*.xml")):
        for _, element in parse(file):
            if element.tag in UNREAD:
                source.left_out.add(f"shapes of the type {element.tag}", file.name)
    return source


def read_by_name(root: Path, name: str) -> Source:
    """Read a data set with datumaro.

    Args:
        root: Folder of the data set.
        name: datumaro's name of its format.

    Raises:
        ValueError: datumaro is missing, does not know the format, or cannot read the data set.
    """
    datumaro = need("datumaro", f"The format {name}")
    known = sorted(datumaro.Environment().importers)
    if name not in known:
        raise ValueError(f"The format {name!r} is unknown, expected masks, yolo, voc, labelme or {', '.join(known)}.")
    try:
        dataset = datumaro.Dataset.import_from(str(root), name)
        names = [each.name for each in dataset.categories()[datumaro.AnnotationType.label].items]
    except Exception as error:  # the library raises errors of many classes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"datumaro cannot read {root} as {name}: {reason}.") from error
    left_out = LeftOut()

    def images() -> Iterator[SourceImage]:
        for item in dataset:
            path = Path(getattr(item.media, "path", ""))
            if not path.is_file():
                left_out.add("annotated images without a file", str(item.id))
                continue
            shape = read_shape(path, left_out)
            if shape is not None:
                split = SPLITS.get(item.subset.lower(), NO_SPLIT if item.subset.lower() in UNNAMED else item.subset)
                objects = [_object(each, names, shape, path.name, left_out) for each in item.annotations]
                kept = [each for each in objects if each is not None]
                yield SourceImage(path, f"{item.id}{path.suffix}", split, shape, kept)

    return Source(names, images(), left_out)


def _object(each: Any, names: list[str], shape: tuple[int, int], where: str, left_out: LeftOut) -> SourceObject | None:
    kind = each.type.name
    if kind not in ("bbox", "polygon", "mask") or each.label is None:
        left_out.add(f"annotations of the type {kind}{'' if each.label is not None else ' without a class'}", where)
        return None
    outline: Any = None
    if kind == "polygon":
        outline = [[float(value) for value in each.points]]
    if kind == "mask":
        if not each.image.any():
            left_out.add("empty masks", where)
            return None
        if each.image.shape != shape:
            raise ValueError(f"{where} has a mask of {each.image.shape}, its image is {shape} (height, width).")
        outline = run_lengths(each.image)
    left, top, width, height = (float(value) for value in each.get_bbox())
    return SourceObject(names[each.label], (left, top, left + width, top + height), outline)
