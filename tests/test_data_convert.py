"""Conversion of other tools' data sets: small samples of every kind, read back by our own readers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piip.cli import main
from piip.data.coco import CocoInstances
from piip.data.conversion.color_table import read_colors
from piip.data.semantic_masks import SemanticMasks

WIDTH, HEIGHT = 40, 30
POLYGON = [4.0, 6.0, 20.5, 6.0, 20.5, 16.0]  # in pixels
RELATIVE = " ".join(str(value / (WIDTH, HEIGHT)[place % 2]) for place, value in enumerate(POLYGON))


@pytest.fixture
def needs() -> Callable[[str], Any]:
    return lambda package: pytest.importorskip(package, reason=f"needs {package} of the extra convert")


def add_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)


def add_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_mask(path: Path, values: Any, palette: Sequence[int] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        image.putpalette(palette)
    image.save(path)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    main(["data", "convert", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["data", "convert", *map(str, words)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def boxes(out: Path, split: str) -> list[tuple[str, list[float]]]:
    data = CocoInstances(out / f"{split}.json", out / "images")
    targets = [data.read_target(index, data.shapes[index]) for index in range(len(data))]
    return [
        (data.classes[label], [round(number, 3) for number in box])
        for target in targets
        for label, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
    ]


def test_yolo_with_data_yaml(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("supervision")
    root, out = tmp_path / "src", tmp_path / "out"
    add_text(root / "data.yaml", "path: .\ntrain: images/fit\nval: images/held\nnames: {0: cat, 1: dog}\n")
    for folder in ("fit", "held"):
        add_image(root / f"images/{folder}/a.png")
    add_text(root / "labels/fit/a.txt", f"1 0.5 0.5 0.2 0.4\n0 {RELATIVE}\n")
    add_text(root / "labels/fit/lost.txt", "0 0.5 0.5 0.2 0.4\n")
    report = run(capsys, root, out)
    assert (report["format"], report["is_guessed"]) == ("yolo", True)
    assert report["splits"] == {"train": {"images": 1, "objects": 2}, "val": {"images": 1, "objects": 0}}
    assert report["classes"] == {"cat": 1, "dog": 1}
    assert report["left_out"] == {"text files without an image": {"count": 1, "first": ["labels/fit/lost.txt"]}}
    assert boxes(out, "train") == [("dog", [16, 9, 24, 21]), ("cat", [4, 6, 20.5, 16])]
    entries = json.loads((out / "train.json").read_text())["annotations"]
    assert entries[1]["segmentation"][0] == pytest.approx(POLYGON)  # not drawn to whole pixels
    assert entries[1]["area"] == pytest.approx(16.5 * 10 / 2)


def test_yolo_without_data_yaml_beside_images(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("supervision")
    root, out = tmp_path / "src", tmp_path / "out"
    add_image(root / "a.png")
    add_text(root / "a.txt", "2 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.001 0.001")
    report = run(capsys, root, out, "--link")
    assert report["classes"] == {"class_0": 0, "class_1": 0, "class_2": 1}
    assert len(report["notes"]) == 2
    assert report["left_out"]["objects of less than a pixel inside their image"]["count"] == 1
    assert boxes(out, "all") == [("class_2", [16, 9, 24, 21])]
    assert (out / "images/all/a.png").is_symlink()


def test_yolo_with_folders_of_splits(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("supervision")
    root, out = tmp_path / "src", tmp_path / "out"
    add_text(
        root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: [cat]\nkpt_shape: [1, 2]\n"
    )
    for split in ("train", "valid"):
        add_image(root / f"{split}/images/a.jpg")
        add_text(root / f"{split}/labels/a.txt", "0 0.5 0.5 0.2 0.4 0.1 0.1\n")
    report = run(capsys, root, out)
    assert report["splits"] == {split: {"images": 1, "objects": 1} for split in ("train", "val")}
    assert report["left_out"]["lists of keypoints"]["count"] == 2
    assert boxes(out, "val") == [("cat", [16, 9, 24, 21])]
    add_text(root / "data.yaml", "names: {cat: 0}\n")
    assert "expected a list, or names by class number" in failure(capsys, root, tmp_path / "other")


@pytest.mark.parametrize(("name", "words"), [("voc", "a.xml is not an XML"), ("labelme", "a.json is not a JSON")])
def test_damaged_files_are_named(tmp_path: Path, needs: Any, capsys: Any, name: str, words: str) -> None:
    needs("supervision")
    add_text(tmp_path / "src" / words.split()[0], "<annotation>")
    assert words in failure(capsys, tmp_path / "src", tmp_path / "out", "--format", name)


@pytest.mark.parametrize("line", ["0 0.5 0.5", "3 0.5 0.5 0.1 0.1", "0 x 0.5 0.1 0.1"])
def test_wrong_yolo_lines_are_named(tmp_path: Path, needs: Any, capsys: Any, line: str) -> None:
    needs("supervision")
    root = tmp_path / "src"
    add_image(root / "a.png")
    add_text(root / "a.txt", f"0 0.5 0.5 0.2 0.4\n{line}\n")
    add_text(root / "classes.txt", "cat\n")
    assert "a.txt line 2" in failure(capsys, root, tmp_path / "out", "--format", "yolo")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_voc_with_lists_of_splits(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("supervision")
    root, out = tmp_path / "src", tmp_path / "out"
    box = "<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>20</xmax><ymax>16</ymax></bndbox>"
    for name in "ab":
        add_image(root / f"JPEGImages/{name}.jpg")
        add_text(root / f"ImageSets/Main/{'train' if name == 'a' else 'val'}.txt", name)
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        objects = f"<object><name>dog</name>{box}</object>" if name == "a" else ""
        add_text(
            root / f"Annotations/{name}.xml",
            f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>",
        )
    report = run(capsys, root, out)
    assert report["format"] == "voc"
    assert report["splits"] == {"train": {"images": 1, "objects": 1}, "val": {"images": 1, "objects": 0}}
    assert boxes(out, "train") == [("dog", [4, 6, 20, 16])]  # pixels are counted from 1 there


def test_labelme(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("supervision")
    root, out = tmp_path / "src", tmp_path / "out"
    add_image(root / "a.png")
    points = [POLYGON[:2], POLYGON[2:4], POLYGON[4:]]
    shapes = [
        {"label": "cat", "points": points, "shape_type": "polygon", "group_id": None},
        {"label": "dog", "points": [[9, 8], [1, 2]], "shape_type": "rectangle", "group_id": None},
        {"label": "cat", "points": points, "shape_type": "polygon", "group_id": 1},
        {"label": "cat", "points": [[22, 6], [30, 6], [30, 16]], "shape_type": "polygon", "group_id": 1},
        {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
    ]
    content = {"imagePath": "..\\b\\a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    add_text(root / "a.json", json.dumps(content))
    report = run(capsys, root, out)
    assert report["format"] == "labelme"
    assert report["left_out"] == {"shapes of the type point": {"count": 1, "first": ["a.json"]}}
    assert boxes(out, "all") == [("cat", [4, 6, 20.5, 16]), ("dog", [1, 2, 9, 8]), ("cat", [4, 6, 30, 16])]
    content["imageWidth"] = WIDTH + 1
    add_text(root / "a.json", json.dumps(content))
    assert "says its image is 30x41" in failure(capsys, root, tmp_path / "other")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_cvat(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("datumaro")
    root, out = tmp_path / "src", tmp_path / "out"
    add_image(root / "images/a.png")
    points = ";".join(f"{x},{y}" for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True))
    shapes = (
        '<box label="dog" xtl="1" ytl="2" xbr="9" ybr="8"/>'
        f'<polygon label="cat" points="{points}"/>'
        '<mask label="cat" rle="1,3,2" left="4" top="5" width="3" height="2"/>'
        '<points label="cat" points="1,1"/><ellipse label="cat" cx="1" cy="1" rx="1" ry="1"/>'
    )
    image = f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    labels = "<labels><label><name>cat</name></label><label><name>dog</name></label></labels>"
    add_text(root / "annotations.xml", f"<annotations><meta><task>{labels}</task></meta>{image}</annotations>")
    report = run(capsys, root, out)
    assert (report["format"], report["classes"]) == ("cvat", {"cat": 2, "dog": 1})
    assert {reason.split()[-1] for reason in report["left_out"]} == {"points", "ellipse"}
    assert boxes(out, "all") == [("dog", [1, 2, 9, 8]), ("cat", [4, 6, 20.5, 16]), ("cat", [4, 5, 7, 7])]
    data = CocoInstances(out / "all.json", out / "images")
    mask = data.read_target(0, (HEIGHT, WIDTH))["masks"][2]
    assert mask.nonzero().tolist() == [[5, 5], [5, 6], [6, 4]]


def test_other_formats_by_name(tmp_path: Path, needs: Any, capsys: Any) -> None:
    needs("datumaro")
    root = tmp_path / "src"
    add_image(root / "image_2/a.png")
    add_text(root / "label_2/a.txt", "Car 0 0 0 1 2 9 8 0 0 0 0 0 0 0\n")
    assert "expected masks, yolo, voc" in failure(capsys, root, tmp_path / "out", "--format", "nothing")
    main(["data", "convert", str(root), str(tmp_path / "out"), "--format", "kitti_detection"])
    assert "1 objects" in capsys.readouterr().out


def test_a_missing_library_is_named(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision.dataset.formats.yolo", None)
    add_image(tmp_path / "src/a.png")
    assert 'pip install "piip[convert]"' in failure(capsys, tmp_path / "src", tmp_path / "out", "--format", "yolo")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", {"images": [], "annotations": [], "categories": []}, "read as it is"),
        ("a.json", [{"data": {}, "annotations": []}], "Label Studio: export it as COCO"),
        ("meta.json", {"classes": [], "tags": []}, "Supervisely project: export it as COCO"),
        ("other.json", {}, "cannot be guessed"),
    ],
)
def test_what_needs_no_conversion_or_has_none(tmp_path: Path, capsys: Any, name: str, content: Any, words: str) -> None:
    add_text(tmp_path / "src" / name, json.dumps(content))
    assert words in failure(capsys, tmp_path / "src", tmp_path / "out")


def semantic(out: Path, split: str) -> tuple[list[str], np.ndarray]:
    data = SemanticMasks(out / "annotations" / split, out / "images" / split)
    shape = data.shapes[0]
    return data.classes, data.read_target(0, shape)["labels"].numpy()


COLORS = [[[0, 0, 0], [255, 0, 0], [255, 0, 0]], [[0, 0, 255], [9, 9, 9], [0, 0, 0]]]
TABLE = "# colours\nground 0 0 0\nbig tree #ff0000\nwater:0,0,255::\nignore 9 9 9\n"


def test_colour_masks(tmp_path: Path, capsys: Any) -> None:
    root, out = tmp_path / "src", tmp_path / "out"
    for split in ("train", "val"):
        add_image(root / f"images/{split}/a.jpg", (3, 2))
        add_mask(root / f"masks/{split}/a_mask.png", COLORS)
    add_image(root / "images/val/b.jpg", (3, 2))
    add_text(root / "colors.txt", TABLE)
    report = run(capsys, root, out, "--colors", root / "colors.txt")
    assert report["format"] == "masks"
    assert report["splits"] == {"train": {"images": 1, "masks": 1}, "val": {"images": 1, "masks": 1}}
    assert report["classes"] == {"ground": 4, "big tree": 4, "water": 2}
    assert report["left_out"] == {"images without a mask": {"count": 1, "first": ["b.jpg"]}}
    classes, labels = semantic(out, "val")
    assert classes == ["ground", "big tree", "water"]
    assert labels.tolist() == [[0, 1, 1], [2, 255, 0]]


def test_palette_masks_by_colour_and_by_index(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "src"
    add_image(root / "JPEGImages/a.jpg", (3, 1))
    add_mask(root / "SegmentationClass/a.png", [[0, 2, 1]], palette=[0, 0, 0, 255, 0, 0, 0, 0, 255])
    add_text(tmp_path / "colors.txt", TABLE)
    run(capsys, root, tmp_path / "first", "--colors", tmp_path / "colors.txt")
    assert semantic(tmp_path / "first", "all")[1].tolist() == [[0, 2, 1]]
    report = run(capsys, root, tmp_path / "second")
    assert report["classes"] == {"class_0": 1, "class_1": 1, "class_2": 1}
    assert semantic(tmp_path / "second", "all")[1].tolist() == [[0, 2, 1]]


def test_unknown_colours_are_counted_and_refused(tmp_path: Path, capsys: Any) -> None:
    add_mask(tmp_path / "src/a.png", COLORS)
    add_text(tmp_path / "colors.txt", "ground 0 0 0\nwater 0 0 255\n")
    error = failure(capsys, tmp_path / "src", tmp_path / "out", "--colors", tmp_path / "colors.txt")
    assert "3 pixels have 2 colours" in error
    assert "#ff0000 (2 pixels, first in a.png)" in error
    assert not (tmp_path / "out").exists()
    assert "pass --colors" in failure(capsys, tmp_path / "src", tmp_path / "out", "--format", "masks")


def test_two_valued_masks(tmp_path: Path, capsys: Any) -> None:
    root, out = tmp_path / "masks", tmp_path / "out"
    add_image(tmp_path / "photos/a.jpg", (3, 1))
    add_mask(root / "a.png", [[0, 255, 0]])
    report = run(capsys, root, out, "--format", "masks", "--images", tmp_path / "photos")
    assert report["classes"] == {"background": 2, "object": 1}
    assert semantic(out, "all") == (["background", "object"], pytest.approx(np.array([[0, 1, 0]])))


def test_masks_of_another_size_or_value_are_refused(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "src"
    add_image(root / "images/a.jpg", (4, 1))
    add_mask(root / "masks/a.png", [[0, 3, 255]])
    assert "(1, 3), its image (1, 4)" in failure(capsys, root, tmp_path / "out")
    add_text(root / "classes.txt", "a\nb\n")
    assert "first 3 in a.png" in failure(capsys, root, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "a 1 2\n", "a 1 2 300\n", "a 1 2 3\nb #010203\n"])
def test_wrong_tables_of_colours(tmp_path: Path, text: str) -> None:
    add_text(tmp_path / "colors.txt", text)
    with pytest.raises(ValueError, match="expected"):
        read_colors(tmp_path / "colors.txt")


def test_the_output_is_a_new_folder_elsewhere(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "src"
    add_mask(root / "a.png", [[0, 1]])
    assert "is inside" in failure(capsys, root, root / "out", "--format", "masks")
    assert "not an empty folder" in failure(capsys, root, root, "--format", "masks")
    assert "--colors and --images are for masks" in failure(
        capsys, root, tmp_path / "out", "--format", "voc", "--colors", "x"
    )
