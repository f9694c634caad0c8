"""No traceback for anything in a user's annotation file: every field with every kind of value."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes

from piip.data import coco_bulk, coco_file
from piip.data.coco import CocoInstances
from piip.data.coco_file import read_coco
from piip.evaluation.metrics.coco import score_results

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, 10**30, float("nan"), float("inf"), "", "1", "-1", "x", "1.5",
    [], [1], [[]], [[1]], [None], ["a", "b", "c", "d"], [1, 2, 3, 4], [1e308] * 4, [10**400] * 4, [float("nan")] * 4,
    [[1, 2, 3, 4, 5, 6]], [["a"] * 6], [[1, 2, 3, 4, 5, None]], [[[1, 2], [3, 4], [5, 6]]], {}, {"size": 1},
    {"size": [64, 96], "counts": None}, {"size": [64, 96], "counts": [None]}, {"size": [64, 96], "counts": ["a"]},
    {"size": ["64", 96], "counts": "x"}, {"size": [10**9, 10**9], "counts": "x"}, {"size": [64, 96], "counts": [1, -1]},
    {"size": [64, 96], "counts": [6144]}, {"size": [64, 96], "counts": "\x00\xff"}, {"counts": [1], "size": []},
]  # fmt: skip
FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation"),
    "categories": ("id", "name", "supercategory"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("coco")
    return root, shapes.write_coco(root, "train", 2)


def reads_or_refuses(root: Path, content: Any) -> bool:
    """Open, read and count a file; return whether it was usable. Anything but ValueError is a failure."""
    (root / "odd.json").write_text(json.dumps(content))
    try:
        data = CocoInstances(root / "odd.json", root / "train", train=True)
        for index in range(len(data)):
            data.read_target(index, (64, 96) if data.samples[index][0].name == "1.png" else (80, 64))
        score_results(CocoInstances(root / "odd.json", root / "train").ground_truth(), [])
    except ValueError as error:
        message = str(error)
    else:
        return True
    assert "\n" not in message
    assert len(message) < 5000
    return False


@pytest.mark.parametrize(("section", "field"), [(section, field) for section in FIELDS for field in FIELDS[section]])
def test_every_field_with_every_kind_of_value(written, section: str, field: str) -> None:
    root, content = written
    for value in ODD:
        for rows in (slice(0, 1), slice(None)):
            odd = copy.deepcopy(content)
            for row in odd[section][rows]:
                row[field] = copy.deepcopy(value)
            reads_or_refuses(root, odd)
    missing = copy.deepcopy(content)
    missing[section][0].pop(field, None)
    optional = {"annotations": {"id", "bbox", "iscrowd", "area", "segmentation"}, "images": {"height", "width"}}
    optional["categories"] = {"supercategory"}
    assert reads_or_refuses(root, missing) == (field in optional[section])


def looked_at_one_by_one(rows: Any, images: Any, categories: Any) -> coco_bulk.Regular:
    unknown = np.zeros((len(rows), 4))
    return coco_bulk.Regular(np.zeros(len(rows), bool), unknown, unknown[:, :2])


@pytest.mark.parametrize("field", FIELDS["annotations"])
def test_annotations_at_once_are_those_one_by_one(written, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, content = written
    for value in ODD:
        odd = copy.deepcopy(content)
        for row in odd["annotations"][1:3]:
            row[field] = copy.deepcopy(value)
        (root / "odd.json").write_text(json.dumps(odd))
        seen = []
        for find in (coco_bulk.find_regular, looked_at_one_by_one):
            monkeypatch.setattr(coco_file, "find_regular", find)
            content_read, findings = coco_file.check_coco(root / "odd.json")
            seen.append((content_read, findings.problems, findings.notes()))
        assert seen[0] == seen[1]


@pytest.mark.parametrize("section", FIELDS)
def test_every_section_and_entry_with_every_kind_of_value(written, section: str) -> None:
    root, content = written
    for value in ODD:
        assert not reads_or_refuses(root, value)
        odd = copy.deepcopy(content)
        odd[section] = copy.deepcopy(value)
        reads_or_refuses(root, odd)
        odd[section] = [*copy.deepcopy(content[section]), copy.deepcopy(value)]
        assert not reads_or_refuses(root, odd)


@pytest.mark.parametrize(
    ("encode", "usable"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.encode(), True),
        (lambda text: text.encode("utf-16"), True),
        (lambda text: text.replace("disc", "di\u00df").encode("cp1252"), True),
        (lambda text: b"", False),
        (lambda text: b"\x00" * 100, False),
        (lambda text: text.encode()[:-20], False),
        (lambda text: b"[" * 100_000, False),
        (lambda text: b"\xff\xfe\xfa", False),
    ],
)
def test_encodings(written, encode, usable: bool) -> None:
    root, content = written
    path = root / "encoded.json"
    path.write_bytes(encode(json.dumps(content, ensure_ascii=False)))
    if usable:
        assert len(read_coco(path)["annotations"]) == len(content["annotations"])
        assert CocoInstances(path, root / "train").classes[0] == "box"
    else:
        with pytest.raises(ValueError, match=r"encoded\.json"):
            read_coco(path)
