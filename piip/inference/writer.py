"""Predictions as files: one JSON file in COCO format, semantic masks and drawn images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from piip.data.image_reading import AS_STORED, ReadOptions, read_rgb, stored_shape
from piip.fields import one_of
from piip.inference.formats import RESULT_FORMATS
from piip.inference.predictions import Prediction
from piip.output import writable_folder, write_json

RESULTS_NAME = "predictions.json"
LEGEND_NAME = "legend.png"


def write_predictions(
    predictions: Iterable[Prediction],
    out: str | Path,
    *,
    classes: Sequence[str],
    category_ids: Sequence[int] | None = None,
    draw: bool = True,
    options: ReadOptions = AS_STORED,
    formats: Sequence[str] = (),
) -> Iterator[Prediction]:
    """Write predictions of files and yield them.

    `predictions.json` is a COCO file with "images" (also "path", "summary", the class of classifiers, and written
    files), "categories" and the "annotations" of detections with their scores. It is written at the end, even if an
    error ends the iteration. `index/NAME.png` are semantic masks, `drawn/NAME.png` images with the predictions drawn.

    Args:
        predictions: Predictions of files; nothing is written before the iteration starts.
        out: Output directory.
        classes: Names of the model's classes.
        category_ids: Ids of the classes; None counts them from 1.
        draw: Also draw images.
        options: How 16-bit and multi-page files are read.
        formats: Other files to write: "csv" or "yolo"; see `piip.inference.formats`.

    Yields:
        The predictions.

    Raises:
        ValueError: The directory cannot be written to, or a format is unknown or not for the model's task.
    """
    for name in formats:
        one_of("formats", name, RESULT_FORMATS)
    out = writable_folder(out)
    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        for number, prediction in enumerate(predictions, start=1):
            path = Path(str(prediction.path))
            name = f"{number:04d}_{path.stem}.png"  # several folders may have files with the same name
            height, width = prediction.size or stored_shape(path)
            entry = {"id": number, "file_name": path.name, "width": width, "height": height, "path": str(path)}
            entry |= {"summary": prediction.summary(), **prediction.facts()}
            mask = prediction.semantic_mask()
            if mask is not None:
                entry["index"] = _save(mask, out / "index" / name)
            if draw and prediction.is_drawn:
                image = read_rgb(path, upright=True, options=options)
                entry["drawn"] = _save(prediction.draw(image), out / "drawn" / name)
                legend = prediction.legend()
                if legend is not None and not images:
                    _save(legend, out / "drawn" / LEGEND_NAME)
            images.append(entry)
            rows += [prediction.row()] if formats else []
            annotations += prediction.annotations(number)
            yield prediction
    finally:
        ids = category_ids or range(1, len(classes) + 1)
        content = {
            "images": _with_file_names(images),
            "categories": [{"id": key, "name": name} for key, name in zip(ids, classes, strict=True)],
            "annotations": [{"id": key, **row} for key, row in enumerate(annotations, start=1)],
            "classes": list(classes),
        }
        write_json(content, out / RESULTS_NAME)
        named = [
            {**image, **row} for image, row in zip(images, rows, strict=False)
        ]  # an error ends the iteration early
        for name in formats if named else ():
            RESULT_FORMATS[name](named, out, classes)


def _with_file_names(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the images with names relative to the folder that all of them share, as COCO files have them."""
    folders = [str(Path(image["path"]).absolute().parent) for image in images]
    try:
        common = os.path.commonpath(folders) if folders else ""
    except ValueError:  # on different drives
        return images
    for image in images:
        image["file_name"] = Path(os.path.relpath(Path(image["path"]).absolute(), common)).as_posix()
    return images


def _save(image: Image, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return str(path)
