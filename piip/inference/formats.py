"""Predictions as tables and text files for other tools: CSV, and labels in YOLO's layout.

Every writer is called as `write(rows, out_dir, classes)` and returns the files that it wrote. A row is a dict of one
image, with plain values:

- of a detector: "file_name", "width" and "height" in pixels, "boxes" (x, y, width, height in pixels, as in COCO files),
  "scores" in [0, 1] and "class_names", one entry per detection each; other keys, such as "category_ids", are not used;
- of a classifier: "file_name", "class", "score", and "top": pairs of a class and its score, best first.

To add a format: write a function like those here and add it to `RESULT_FORMATS`.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from piip.data.findings import NAMES_SHOWN

Rows = Sequence[Mapping[str, Any]]
CSV_NAME = "predictions.csv"
DETECTION_COLUMNS = ("file_name", "x1", "y1", "x2", "y2", "score", "class")


def write_csv(rows: Rows, out_dir: str | Path, classes: Sequence[str]) -> list[Path]:
    """Write predictions.csv: a row per detection, or per image of a classifier.

    Columns are file_name, x1, y1, x2, y2 (pixels), score and class; of classifiers file_name, class and score, then
    class_2, score_2, ... for the other classes of "top". Images without detections have no row.

    Args:
        rows: Predictions; see the module.
        out_dir: Output folder; it may exist.
        classes: Names of the model's classes.

    Returns:
        The file.

    Raises:
        ValueError: A row is of another kind than the first, incomplete, or has an unknown class.
    """
    if rows and "boxes" not in rows[0]:
        lines = [_of_classifier(row, classes) for row in rows]
        ranks = range(2, 2 + max(len(line) - 3 for line in lines) // 2)
        columns = ("file_name", "class", "score", *(f"{name}_{rank}" for rank in ranks for name in ("class", "score")))
    else:
        columns = DETECTION_COLUMNS
        lines = [
            [row["file_name"], *(round(side, 2) for side in (x, y, x + width, y + height)), round(score, 5), name]
            for row in rows
            for (x, y, width, height), score, name in _detections(row, classes)
        ]
    path = Path(out_dir) / CSV_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *lines])
    return [path]


def write_yolo(rows: Rows, out_dir: str | Path, classes: Sequence[str]) -> list[Path]:
    """Write labels/NAME.txt per image, with lines `class cx cy w h score` relative to the image; and data.yaml.

    Files are in the folders of their images, below the folder that all images share. An image without detections has an
    empty file. data.yaml has the class names only; add the images' folders to train on them.

    Args:
        rows: Predictions of a detector; see the module.
        out_dir: Output folder; it may exist.
        classes: Names of the model's classes.

    Returns:
        The files, data.yaml and classes.txt last.

    Raises:
        ValueError: The rows are not those of a detector, incomplete, have an unknown class, or two images would have
            the same file.
    """
    out = Path(out_dir)
    numbers = {name: number for number, name in enumerate(classes)}
    texts = []
    for row in rows:
        sides = row.get("width"), row.get("height")
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"{_name(row)} has the size {sides}, expected width and height: yolo is for detectors.")
        texts.append("".join(_yolo_line(row, numbers, *each) for each in _detections(row, classes)))
    files = [out / "labels" / name for name in _label_names([_name(row) for row in rows])]
    names = [json.dumps(name, ensure_ascii=False) for name in classes]  # quoted as YAML reads it
    texts += [f"nc: {len(names)}\nnames: [{', '.join(names)}]\n", "".join(f"{name}\n" for name in classes)]
    files += [out / "data.yaml", out / "classes.txt"]
    for path, text in zip(files, texts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return files


# By the name that users give.
RESULT_FORMATS: dict[str, Callable[[Rows, str | Path, Sequence[str]], list[Path]]] = {
    "csv": write_csv,
    "yolo": write_yolo,
}


def _name(row: Mapping[str, Any]) -> str:
    return str(row["file_name"])


def _of_classifier(row: Mapping[str, Any], classes: Sequence[str]) -> list[Any]:
    if "class" not in row:
        raise ValueError(f"{_name(row)} has no class, expected predictions of a classifier as in the first row.")
    top = [(name, score) for name, score in row.get("top", ()) if name != row["class"]]
    pairs = [(row["class"], row["score"]), *top]
    _check_known(row, [name for name, _ in pairs], classes)
    return [_name(row), *(value for name, score in pairs for value in (name, round(score, 5)))]


def _detections(row: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[Sequence[float], float, str]]:
    parts = [row.get(name) for name in ("boxes", "scores", "class_names")]
    if any(part is None for part in parts):
        raise ValueError(f"{_name(row)} has no boxes, scores and class_names, expected predictions of a detector.")
    boxes, scores, names = (list(part or ()) for part in parts)
    if not len(boxes) == len(scores) == len(names):
        raise ValueError(
            f"{_name(row)} has {len(boxes)} boxes, {len(scores)} scores and {len(names)} class_names, expected as many "
            "of each."
        )
    _check_known(row, names, classes)
    return list(zip(boxes, scores, names, strict=True))


def _check_known(row: Mapping[str, Any], names: Sequence[str], classes: Sequence[str]) -> None:
    unknown = sorted({*names} - {*classes})
    if unknown:
        raise ValueError(f"{_name(row)} has the class {unknown[0]!r}, expected one of the {len(classes)} of the model.")


def _yolo_line(
    row: Mapping[str, Any], numbers: Mapping[str, int], box: Sequence[float], score: float, name: str
) -> str:
    x, y, width, height = box
    across, down = row["width"], row["height"]
    values = ((x + width / 2) / across, (y + height / 2) / down, width / across, height / down)
    return f"{numbers[name]} {' '.join(f'{value:.6f}' for value in values)} {score:.5f}\n"


def _label_names(file_names: Sequence[str]) -> list[str]:
    """Return the names of label files: the paths below the folder that all images share, ending in .txt.

    Raises:
        ValueError: Two images have the same one.
    """
    paths = [os.path.abspath(name) for name in file_names]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = [os.path.splitext(os.path.relpath(path, shared))[0] + ".txt" for path in paths]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise ValueError(
            f"{len(doubled)} label files belong to several images that differ in their suffix, first "
            f"{', '.join(doubled[:NAMES_SHOWN])}: predict these images in separate runs, or rename them."
        )
    return names
