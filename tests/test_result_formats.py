"""Predictions as CSV and YOLO files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from piip.inference.formats import RESULT_FORMATS

CLASSES = ["cat", "big dog", 'a "b": c']


def detected(name: str, **changes: Any) -> dict[str, Any]:
    row = {"file_name": name, "width": 100, "height": 50, "boxes": [[10.0, 5.0, 20.0, 30.0], [0.0, 0.0, 100.0, 50.0]]}
    return {**row, "scores": [0.9, 0.25], "class_names": ["big dog", "cat"], "category_ids": [2, 1], **changes}


def nothing(name: str) -> dict[str, Any]:
    return detected(name, boxes=[], scores=[], class_names=[])


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_detections_as_csv(tmp_path: Path) -> None:
    (path,) = RESULT_FORMATS["csv"]([detected("in/a, b.png"), nothing("c.png")], tmp_path / "out", CLASSES)
    assert table(path) == [
        ["file_name", "x1", "y1", "x2", "y2", "score", "class"],
        ["in/a, b.png", "10.0", "5.0", "30.0", "35.0", "0.9", "big dog"],
        ["in/a, b.png", "0.0", "0.0", "100.0", "50.0", "0.25", "cat"],
    ]
    assert len(table(RESULT_FORMATS["csv"]([], tmp_path, CLASSES)[0])) == 1


def test_classes_as_csv(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "class": "cat", "score": 0.75, "top": [("cat", 0.75), ("big dog", 0.25)]},
        {"file_name": "b.png", "class": "big dog", "score": 1.0},
    ]
    (path,) = RESULT_FORMATS["csv"](rows, tmp_path, CLASSES)
    assert table(path) == [
        ["file_name", "class", "score", "class_2", "score_2"],
        ["a.png", "cat", "0.75", "big dog", "0.25"],
        ["b.png", "big dog", "1.0"],
    ]


def test_detections_as_yolo_labels(tmp_path: Path) -> None:
    rows = [detected(str(tmp_path / "in/x/a.png")), nothing(str(tmp_path / "in/y/a.png"))]
    files = RESULT_FORMATS["yolo"](rows, tmp_path / "out", CLASSES)
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [
        "labels/x/a.txt",
        "labels/y/a.txt",
        "data.yaml",
        "classes.txt",
    ]
    first = "1 0.200000 0.400000 0.200000 0.600000 0.90000\n"
    assert files[0].read_text() == first + "0 0.500000 0.500000 1.000000 1.000000 0.25000\n"
    assert files[1].read_text() == ""
    assert yaml.safe_load(files[2].read_text()) == {"nc": 3, "names": CLASSES}
    assert files[3].read_text().splitlines() == CLASSES


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("yolo", [detected("a.png"), detected("a.jpg")], "first a.txt"),
        ("yolo", [{"file_name": "a.png", "class": "cat", "score": 1.0}], "yolo is for detectors"),
        ("csv", [detected("a.png", scores=[0.5])], "2 boxes, 1 scores and 2 class_names"),
        ("csv", [detected("a.png", class_names=["cat", "cow"])], "has the class 'cow'"),
        ("csv", [detected("a.png"), {"file_name": "b.png", "class": "cat", "score": 1.0}], "b.png has no boxes"),
        ("csv", [{"file_name": "b.png", "class": "cat", "score": 1.0}, detected("a.png")], "a.png has no class"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, name: str, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RESULT_FORMATS[name](rows, tmp_path / "out", CLASSES)
    assert not (tmp_path / "out").exists()
