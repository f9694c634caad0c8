"""Data as people have it: COCO files of labelling tools, folders with links, odd masks, images of many kinds."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from PIL import Image
from tiny_run import write_model

import piip
from piip.cli import main
from piip.data import image_reading, loader
from piip.data.coco import CocoInstances
from piip.data.coco_file import read_coco
from piip.data.findings import Findings
from piip.data.formats import DATA_FORMATS
from piip.data.image_check import check_splits
from piip.data.image_folder import ImageFolder
from piip.data.image_reading import ReadOptions, read_rgb
from piip.data.listing import find_images, list_images
from piip.data.loader import check_shared_memory
from piip.data.semantic_masks import SemanticMasks
from piip.data.splitting import held_out
from piip.recipe import DataConfig, Recipe
from piip.training.callbacks import is_measured

Change = Callable[[dict[str, Any]], Any]


def opened(root: Path, change: Change | None = None, **options: Any) -> CocoInstances:
    """Write a COCO file of four images, change its content, and open it."""
    if not (root / "train").is_dir():
        shapes.write_coco(root, "train", 4)
    content = json.loads((root / "train.json").read_text())
    if change is not None:
        change(content)
    (root / "changed.json").write_text(json.dumps(content))
    return CocoInstances(root / "changed.json", root / "train", **options)


def boxes(data: CocoInstances) -> list[Any]:
    return [data.read_target(index, data.stated_size(index))["boxes"].tolist() for index in range(len(data))]


def each(section: str, **fields: Callable[[Any], Any]) -> Change:
    """Return a change of fields of all entries of a section."""

    def change(content: dict[str, Any]) -> None:
        for row in content[section]:
            row.update({name: make(row) for name, make in fields.items()})

    return change


@pytest.mark.parametrize(
    "change",
    [
        each("annotations", iscrowd=lambda row: "0"),
        each("annotations", iscrowd=lambda row: None),
        each("annotations", iscrowd=lambda row: False),
        each("annotations", id=lambda row: row["id"] - 1),
        each("annotations", id=lambda row: 7),
        each("annotations", id=lambda row: None),
        each("annotations", image_id=lambda row: str(row["image_id"])),
        each("annotations", area=lambda row: None),
        each("images", id=lambda row: float(row["id"])),
        each("images", height=lambda row: None, width=lambda row: None),
        each("images", file_name=lambda row: "C:\\data\\train\\" + row["file_name"]),
        each("images", file_name=lambda row: "https://host/a/train/" + row["file_name"] + "?v=1"),
        lambda content: (
            content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
            or each("categories", supercategory=lambda row: "shapes" if row["id"] else "none")(content)
        ),
        lambda content: content["categories"].append({"id": 99, "name": "box"}),
    ],
)
def test_the_same_objects_written_in_another_way(tmp_path: Path, change: Change) -> None:
    plain, other = opened(tmp_path, train=True), opened(tmp_path, change, train=True)
    assert other.classes == plain.classes == ["box", "disc"]
    assert boxes(other) == boxes(plain)
    ids = [row["id"] for row in other.ground_truth()["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_names_are_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    opened(tmp_path)
    os.rename(tmp_path / "train" / "1.png", tmp_path / "train" / unicodedata.normalize("NFD", "é.png"))
    data = opened(tmp_path, lambda content: content["images"][0].update(file_name="é.png"))
    assert data.samples[0][0].is_file()


def test_a_name_that_fits_two_files_is_missing(tmp_path: Path) -> None:
    opened(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / "train" / folder).mkdir()
        (tmp_path / "train" / folder / "x.png").write_bytes((tmp_path / "train" / "1.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 of 4 images in .* are missing: .*c/x\.png"):
        opened(tmp_path, lambda content: content["images"][0].update(file_name="c/x.png"))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = "x"
        content["annotations"][1]["category_id"] = 77
        content["images"][2]["height"] = -1

    with pytest.raises(ValueError, match=r"3 problems: .*height -1.*bbox 'x'.*unknown category_id 77"):
        opened(tmp_path, change)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    def renumber(content: dict[str, Any]) -> None:
        for row in content["categories"]:
            row["id"] = 30 - row["id"]
        for row in content["annotations"]:
            row["category_id"] = 30 - row["category_id"]
        content["categories"].reverse()

    plain = opened(tmp_path, expected_classes=["box", "disc"])
    other = opened(tmp_path, renumber, expected_classes=["box", "disc"])
    assert other.ground_truth() == {**plain.ground_truth(), "annotations": other.ground_truth()["annotations"]}
    labels = [[row["category_id"] for row in data.ground_truth()["annotations"]] for data in (plain, other)]
    assert labels[0] == labels[1]
    assert (plain.category_ids, other.category_ids) == ([10, 20], [20, 10])


def test_classes_that_one_side_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = opened(tmp_path, expected_classes=["cell", "box", "disc"])
    assert data.category_ids[1:] == [10, 20]
    assert data.category_ids[0] not in (10, 20)
    assert "classes are not in the file; nothing is measured for them (1): cell" in caplog.text
    with pytest.raises(
        ValueError, match=r"objects have the class 'disc', expected one of box, disk \(perhaps 'disk'\)"
    ):
        opened(tmp_path, expected_classes=["box", "disk"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            each("annotations", bbox=lambda row: [*row["bbox"][:2], row["bbox"][0] + row["bbox"][2], 60.0]),
            "all would fit as x1, y1, x2, y2",
        ),
        (each("annotations", bbox=lambda row: [0, 0, 9, 9]), "boxes overlap the bounding box of their outline"),
        (lambda content: content["images"].append(content["images"][0]), "images listed twice count once"),
        (
            lambda content: content["annotations"][0].update(segmentation=[[1, 1, 5, 5]], id=71),
            "fewer than three different points are left out (1): id 71",
        ),
    ],
)
def test_what_looks_odd_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Change, said: str) -> None:
    opened(tmp_path, change, train=True)
    assert said in caplog.text


def test_fractions_and_files_without_objects_are_refused(tmp_path: Path) -> None:
    fractions = each("annotations", bbox=lambda row: [0.1, 0.2, 0.3, 0.3], segmentation=lambda row: [])
    with pytest.raises(ValueError, match="all boxes lie between 0 and 1, expected pixels"):
        opened(tmp_path, fractions)
    with pytest.raises(ValueError, match=r"no usable images: .* annotations are crowds \(iscrowd 1\)"):
        opened(tmp_path, each("annotations", iscrowd=lambda row: 1), train=True)
    assert not opened(tmp_path, each("annotations", iscrowd=lambda row: 1)).has_objects
    assert not any(is_measured(value) for value in (-1.0, float("nan")))


def test_swapped_sizes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    swap = each("images", height=lambda row: row["width"], width=lambda row: row["height"])
    plain, other = opened(tmp_path, train=True), opened(tmp_path, swap, train=True)
    for index in range(4):
        shape = plain.stated_size(index)
        assert other.read_target(index, shape)["boxes"].tolist() == plain.read_target(index, shape)["boxes"].tolist()
    assert "swapped" in caplog.text


def test_missing_images_are_an_error_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path)
    (tmp_path / "train" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 images in .* are missing: .*2\.png.* --on-error skip"):
        opened(tmp_path)
    assert len(opened(tmp_path, on_error="skip")) == 3
    assert "images are missing and are left out (1)" in caplog.text


def test_folders_with_links_circles_and_other_files(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "in", root / ".ipynb_checkpoints", elsewhere):
        folder.mkdir(parents=True)
    image = Image.new("RGB", (8, 8))
    for path in (root / "a.JPG", root / "in" / "b.gif", root / ".ipynb_checkpoints" / "c.png", elsewhere / "d.webp"):
        image.save(path)
    image.save(root / "in" / "without", format="PNG")
    (root / "notes.txt").write_text("x")
    (root / "link").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(root, target_is_directory=True)
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    findings = Findings(root)
    names = [str(path.relative_to(root)) for path in list_images(root, findings)]
    assert names == ["a.JPG", "in/b.gif", "in/without", "link/d.webp"]
    told = " ".join(findings.notes())
    assert "without the suffix of an image are left out (1): notes.txt" in told
    assert "not followed (1)" in told
    assert "that lead nowhere are left out (1)" in told
    assert find_images(str(root / "a.JPG")) == [root / "a.JPG"]


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reading, "_said", set())


@pytest.mark.usefixtures("unsaid")
def test_16_bit_pages_and_inks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65
    Image.fromarray(grey).save(tmp_path / "a.tif")
    dark = np.asarray(read_rgb(tmp_path / "a.tif"))
    assert "its data have 12 bits, set the white level to 4095" in caplog.text
    bright = np.asarray(read_rgb(tmp_path / "a.tif", options=ReadOptions(white_level=4095)))
    assert dark.max() == 15
    assert bright.max() == 255
    pages = [Image.new("L", (4, 4), value) for value in (10, 20)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    assert read_rgb(tmp_path / "b.tif").getpixel((0, 0)) == (10, 10, 10)
    assert "b.tif has 2 pages" in caplog.text
    assert read_rgb(tmp_path / "b.tif", options=ReadOptions(page=1)).getpixel((0, 0)) == (20, 20, 20)
    with pytest.raises(ValueError, match=r"it has 2 page\(s\), there is no page 2"):
        read_rgb(tmp_path / "b.tif", options=ReadOptions(page=2))
    Image.new("CMYK", (4, 4)).save(tmp_path / "c.tif")
    read_rgb(tmp_path / "c.tif")
    assert "c.tif has four channels" in caplog.text


def masks(root: Path, **options: Any) -> SemanticMasks:
    if not (root / "images").is_dir():
        shapes.write_semantic_masks(root, "train", 3)
    folders = root / "annotations/train", root / "images/train"
    return SemanticMasks(*folders, train=True, **{"reduce_zero_label": True, **options})


def recoded(root: Path, make: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (root / "annotations/train").iterdir():
        Image.fromarray(make(np.asarray(Image.open(path))).astype(np.uint8)).save(path)


def test_masks_are_judged_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_splits([masks(tmp_path)], show=False)
    assert not caplog.text
    recoded(tmp_path, lambda labels: np.where(labels == 2, 1, labels))
    check_splits([masks(tmp_path)], show=False)
    assert "classes without a pixel in the masks cannot be learned (1): disc" in caplog.text
    recoded(tmp_path, lambda labels: np.where(labels > 0, 255, 0))
    with pytest.raises(ValueError, match="only the values 0 and 255"):
        check_splits([masks(tmp_path, reduce_zero_label=False)], show=False)
    with pytest.raises(ValueError, match=r"all pixels are to be ignored: the masks have only 0, 255"):
        check_splits([masks(tmp_path)], show=False)
    (tmp_path / "classes.txt").write_text("\n".join(f"c{index}" for index in range(300)))
    with pytest.raises(ValueError, match="has 300 classes, expected at most 255"):
        masks(tmp_path)


def test_masks_of_other_names_and_formats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks(tmp_path)
    folder = tmp_path / "annotations/train"
    Image.open(folder / "1.png").save(folder / "1.tif")
    (folder / "1.png").unlink()
    os.rename(folder / "2.png", folder / unicodedata.normalize("NFD", "é.PNG"))
    os.rename(tmp_path / "images/train/2.jpg", tmp_path / "images/train" / unicodedata.normalize("NFC", "é.JPG"))
    assert len(masks(tmp_path)) == 3
    os.rename(folder / unicodedata.normalize("NFD", "é.PNG"), folder / "2.png")
    os.rename(tmp_path / "images/train" / unicodedata.normalize("NFC", "é.JPG"), tmp_path / "images/train/2.jpg")
    (folder / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 semantic masks are missing: .*2\.png\..* data\.mask_suffix"):
        masks(tmp_path)
    assert len(masks(tmp_path, on_error="skip")) == 2
    assert "semantic masks are missing" in caplog.text
    (tmp_path / "images/train/3.png").write_bytes((tmp_path / "images/train/3.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"3\.jpg and .*3\.png share the semantic mask 3\.png"):
        masks(tmp_path, on_error="skip")


def test_masks_with_ends_of_their_own(tmp_path: Path) -> None:
    masks(tmp_path)
    for path in (tmp_path / "images/train").iterdir():
        path.rename(path.with_name(f"{path.stem}_photo.jpg"))
    for path in (tmp_path / "annotations/train").iterdir():
        path.rename(path.with_name(f"{path.stem}_ids.png"))
    assert len(masks(tmp_path, image_suffix="_photo.jpg", mask_suffix="_ids.png")) == 3


def test_a_validation_split_of_the_training_images(tmp_path: Path) -> None:
    samples = [(Path(f"slide{number // 4}/{number}.png"), number % 2) for number in range(40)]
    held = held_out(samples, 0.2, seed=3, group="(slide[0-9]+)", by_class=False)
    slides = {path.parts[0] for path in held}
    assert len(held) == 8
    assert not slides & {path.parts[0] for path, _ in samples if path not in held}
    assert held == held_out(samples, 0.2, seed=3, group="(slide[0-9]+)", by_class=False)
    by_class = held_out(samples, 0.1, seed=3, group=None, by_class=True)
    assert sorted(int(path.stem) % 2 for path in by_class) == [0, 0, 1, 1]
    for group, message in (
        ("[", "not a regular expression"),
        ("x", "does not match slide0/0.png"),
        ("s", "two groups"),
    ):
        with pytest.raises(ValueError, match=message):
            held_out(samples, 0.2, seed=3, group=group, by_class=False)
    shapes.write_coco(tmp_path, "train", 10)
    data = DataConfig(kind="coco", root=str(tmp_path), train="train.json", train_images="train", val_fraction=0.3)
    train, val = DATA_FORMATS["coco"].open(data, 0, None)
    assert val is not None
    assert (len(train), len(val)) == (7, 3)
    assert boxes(val)  # type: ignore[arg-type]
    assert not {path for path, _ in train.samples} & {path for path, _ in val.samples}


@pytest.mark.parametrize(
    "fields",
    [
        {"data": {"kind": "coco"}, "regularize": {"mixup": 0.2}},
        {"data": {"kind": "coco", "transform": {"hflip": 0.1}}},
        {"data": {"kind": "folder", "dense": {"crop": 32}}},
        {"data": {"kind": "semantic_masks", "max_detections": [1, 2, 3]}},
        {"data": {"kind": "folder", "mask_suffix": ".tif"}},
    ],
)
def test_fields_without_effect_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has no effect on data of kind"):
        Recipe.from_dict({"model": {"name": "piip_tsb_1120_896_448.deit3_coco_mask_rcnn"}, **fields})


def test_too_little_shared_memory_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (torch.zeros(2, 3, 64, 64), [{"boxes": torch.zeros(5, 4)}])
    check_shared_memory(batch, workers=2, folder=str(tmp_path))
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_300_000))
    with pytest.raises(
        ValueError, match=r"has 1\.3 MB free, 2 loading processes need about 1\.4 MB: set data\.workers"
    ):
        check_shared_memory(batch, workers=2, folder=str(tmp_path))
    check_shared_memory(batch, workers=0, folder=str(tmp_path))


def test_sizes_from_the_images_and_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(content: dict[str, Any]) -> None:
        each("images", height=lambda row: None, width=lambda row: None)(content)
        each("annotations", score=lambda row: 0.3)(content)
        content["annotations"][0].update(bbox=[500, 500, 20, 20], segmentation=[])

    data = opened(tmp_path, change, train=True)
    assert sum(data.class_counts().values()) == len(data.ground_truth()["annotations"]) - 1
    assert "annotations without box area inside their image are left out (1)" in caplog.text
    assert "annotations have scores, as predictions do" in caplog.text


def test_predictor_takes_what_people_pass(tmp_path: Path) -> None:
    predictor = piip.Predictor(write_model(tmp_path / "model"), device="cpu")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    for given in (image, np.asarray(image), str(tmp_path / "a.png"), tmp_path / "a.png"):
        for rows in (predictor.predict(given), predictor.predict([given])):
            assert len(rows) == 1
            assert rows[0].label == predictor.predict(image)[0].label
    assert len(list(predictor.predict_paths(str(tmp_path / "a.png")))) == 1
    for wrong in (3, None, b"a.png", [3], np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), {"a": image}):
        with pytest.raises(TypeError, match="expected a Pillow image, an array uint8"):
            predictor.predict(wrong)


def test_predictions_are_a_coco_file_and_broken_images_cost_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO

    images = Path(piip.__file__).parent / "assets/nuclei/images"
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name, target in (("ihc.png", "a.png"), ("nuclei_d7d12a2a.png", "more/c.png")):
        (tmp_path / "in" / target).write_bytes((images / name).read_bytes())
    (tmp_path / "in" / "b.png").write_bytes((images / "ihc.png").read_bytes()[:2000])
    model = images.parent / "model"
    arguments = ["predict", str(model), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--formats", "csv", "yolo"])
    assert caught.value.code == 1
    assert "1 of 3 images could not be read" in capsys.readouterr().err
    found = COCO(str(tmp_path / "out" / "predictions.json"))
    assert [row["file_name"] for row in found.dataset["images"]] == ["a.png", "more/c.png"]
    rows = found.dataset["annotations"]
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["area"] > 0 and row["iscrowd"] == 0 for row in rows[:50])
    again = CocoInstances(tmp_path / "out" / "predictions.json", tmp_path / "in", train=True)
    assert again.classes == ["nucleus"]
    assert (tmp_path / "out" / "labels" / "more" / "c.txt").is_file()
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == len(rows) + 1


def test_data_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path)
    file, out = str(tmp_path / "train.json"), str(tmp_path / "out")
    main(["data", "check", file, "--images", str(tmp_path / "train"), "--out", out, "--json"])
    check = json.loads(capsys.readouterr().out)
    assert check["usable"]
    assert check["splits"][0]["images"] == 4
    with Image.open(check["sheet"]) as sheet:
        assert sheet.width > 300
    content = json.loads(Path(file).read_text())
    content["annotations"][0]["bbox"] = None
    content["annotations"][0]["segmentation"] = None
    Path(file).write_text(json.dumps(content))
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", file, "--out", out])
    assert caught.value.code == 2
    assert "must be fixed" in capsys.readouterr().out
    shapes.write_semantic_masks(tmp_path / "masks", "train", 3)
    folders = [str(tmp_path / "masks" / name / "train") for name in ("annotations", "images")]
    (tmp_path / "masks" / "classes.txt").write_text("ground\nbox\ndisc\n")
    main(["data", "check", folders[0], "--images", folders[1], "--out", out])
    assert "pixels by class: ground" in capsys.readouterr().out


def test_data_check_takes_train_and_val_for_splits_not_classes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "check", str(images), "--out", str(tmp_path / "out"), "--json"])
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert [Path(split["path"]) for split in splits] == [images / "train", images / "val"]
    assert all(sum(split["classes"].values()) == split["images"] > 0 for split in splits)


def test_image_folders_say_what_is_left_out(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "set"
    for name in ("red", "green"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / name / "a.png")
    (root / "red" / "b.doc").write_text("x")
    (root / "readme.md").write_text("x")
    folder = ImageFolder(root, expected_classes=["blue", "green", "red"])
    assert folder.class_counts() == {"blue": 0, "green": 1, "red": 1}
    for said in ("b.doc", "readme.md", "classes have no folder; nothing is measured for them (1): blue"):
        assert said in caplog.text


def test_annotations_of_other_encodings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = shapes.write_coco(tmp_path, "train", 1)
    content["categories"][0]["name"] = "Straße"
    (tmp_path / "train.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("cp1252"))
    assert read_coco(tmp_path / "train.json")["categories"][0]["name"] == "Straße"
    assert "not UTF-8; it is read as cp1252" in caplog.text
