"""Bad data, as files of people have it: handled, or refused with file and place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
import yaml
from PIL import Image

from piip.cli import main
from piip.data.coco import CocoInstances
from piip.data.coco_file import read_coco
from piip.data.collate import DenseTransform, PadTogether
from piip.data.dense_images import DenseImages
from piip.data.image_check import check_splits
from piip.data.image_reading import read_rgb
from piip.data.orientation import turn_upright, upright_shape
from piip.data.semantic_masks import SemanticMasks
from piip.data.transforms.dense import DenseTransformConfig
from piip.evaluation.metrics.coco import score_results, to_results

ORIENTATION = 0x0112
KINDS = ("coco", "semantic_masks")


def loaded(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def opened(root: Path, kind: str, *, reduce_zero_label: bool = True, **options: Any) -> DenseImages:
    """Open the training split of one of the two layouts of `shapes`."""
    data: DenseImages = (
        CocoInstances(root / "train.json", root / "train", **options)
        if kind == "coco"
        else SemanticMasks(root / "annotations/train", root / "images/train", **options)
    )
    reduces = kind == "semantic_masks" and reduce_zero_label
    config = DenseTransformConfig(reduce_zero_label=reduces, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    data.transform = DenseTransform(config, train=False)
    return data


def write(root: Path, kind: str) -> Path:
    """Write a data set of three images; return the first one's file."""
    if kind == "coco":
        shapes.write_coco(root, "train", 3)
        return root / "train" / "1.png"
    shapes.write_semantic_masks(root, "train", 3)
    return root / "images/train/1.jpg"


def rename(root: Path, path: Path, suffix: str) -> Path:
    """Give the first image another suffix, in the COCO file as well."""
    path.unlink()
    listing = root / "train.json"
    if listing.is_file():
        listing.write_text(listing.read_text().replace(f'"{path.name}"', f'"{path.stem}{suffix}"'))
    return path.with_suffix(suffix)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", ".png"), ("LA", ".png"), ("L", ".jpg"), ("CMYK", ".jpg"), ("CMYK", ".tif"), ("P", ".png"), ("1", ".png")],
)
def test_pictures_of_every_mode_are_read(tmp_path: Path, kind: str, mode: str, suffix: str) -> None:
    path = write(tmp_path, kind)
    picture = loaded(path).convert("RGB")
    path = rename(tmp_path, path, suffix)
    picture.convert(mode).save(path)
    sample = opened(tmp_path, kind)[0]
    assert sample.image.shape == (3, picture.height, picture.width)
    assert sample.image.std() > 0.1
    if mode == "RGBA":  # opaque: the very pixels
        assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(picture))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_of_16_bits_are_scaled(tmp_path: Path, kind: str, suffix: str) -> None:
    path = write(tmp_path, kind)
    grey = np.asarray(loaded(path).convert("L"))
    path = rename(tmp_path, path, suffix)
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(path)
    image = opened(tmp_path, kind)[0].image
    assert torch.equal(image[0], (torch.from_numpy(grey.copy()).float() / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_32_bits_are_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    size = loaded(path).size
    path = rename(tmp_path, path, ".tif")
    Image.new("F", size, 0.5).save(path)
    with pytest.raises(ValueError, match=r"1.tif cannot be read .*mode is F, 32 bits per pixel; save it with 8 or 16"):
        opened(tmp_path, kind)[0]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [half, lambda path: path.write_bytes(b""), lambda path: path.write_text("<html>")])
def test_damaged_pictures_stop_or_are_skipped(
    tmp_path: Path, kind: str, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, kind)
    picture = loaded(path).convert("RGB")
    path = rename(tmp_path, path, ".jpeg")
    picture.save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"1.jpeg cannot be read .*Replace it, or continue with --data.on_error skip"):
        opened(tmp_path, kind)[0]
    data = opened(tmp_path, kind, on_error="skip", train=True)
    assert data[0].position == 1
    assert data[0].position == 1
    assert caplog.text.count("1.jpeg cannot be read") == 1
    assert opened(tmp_path, kind, on_error="skip")[0] is None  # counted once or not at all where it is measured


def test_empty_files_are_found_before_the_first_step(tmp_path: Path) -> None:
    path = write(tmp_path, "coco")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1.png cannot be opened \(UnidentifiedImageError\)\. Replace it"):
        check_splits([opened(tmp_path, "coco")], show=False)
    skipping = opened(tmp_path, "coco", on_error="skip", train=True)
    check_splits([skipping], show=False)
    assert skipping[0].position == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Stored by hand so that undoing the orientation gives the picture again."""
    pixels = np.asarray(Image.fromarray(shapes.draw_shapes(3, (64, 96))[0]))
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned{suffix}"
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    with Image.open(path) as picture:
        assert upright_shape(picture) == (64, 96)
    found = np.asarray(read_rgb(path, upright=True)).astype(int)
    assert np.abs(found - pixels).mean() < 1
    twice = turn_upright(turn_upright(loaded(path)))
    assert (twice.height, twice.width) == (64, 96)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x05\0"])
def test_damaged_exif_is_no_damaged_picture(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg", upright=True).size == (8, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_annotations_belong_to_the_upright_picture(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    picture = loaded(path).convert("RGB")
    want = opened(tmp_path, kind)[0]
    path = rename(tmp_path, path, ".tiff" if kind == "coco" else ".png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    found = opened(tmp_path, kind)[0]
    assert torch.equal(found.image, want.image)
    for name, values in want.target.items():
        assert torch.equal(found.target[name], values)


def test_annotations_of_the_stored_picture_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "coco")
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    loaded(path).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"1.png is 96x64 .*after rotation.* has 64x96. Its annotations ignore"):
        opened(tmp_path, "coco")[0]


def test_an_index_map_may_be_turned_too(tmp_path: Path) -> None:
    write(tmp_path, "semantic_masks")
    path = tmp_path / "annotations/train/1.png"
    want = opened(tmp_path, "semantic_masks")[0].target["labels"]
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    loaded(path).transpose(Image.Transpose.ROTATE_180).save(path, exif=exif)
    assert torch.equal(opened(tmp_path, "semantic_masks")[0].target["labels"], want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(height=0), r"images\[1\] \(id 2, 2.png\) has the height 0, expected"),
        (lambda c: c["images"][0].update(width="96"), r"has the width '96', expected an integer"),
        (lambda c: c["images"][0].update(id="one"), r"images\[0\] has the id 'one', expected an integer"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotations\[0\] \(id 1, on 1.png\) has the bbox \[1,",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), r"nan\], expected x, y, width and height"),
        (lambda c: c["annotations"][0].update(bbox=None, segmentation=None), "has the bbox None"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 5, 9, 9, 2]]), "has a polygon of 7 numbers"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 5, 9, None]]), "values that are not finite"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 5, 1e9, 9]]), "polygon from 1 to 1000000000"),
        (lambda c: c["annotations"][0].update(segmentation=[7]), "has a polygon of 1 numbers, expected"),
        (lambda c: c["annotations"][0].update(segmentation="x"), "is neither a list of polygons nor RLE"),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [96, 64], "counts": [6144]}),
            r"segmentation of the size \[96, 64\], the image \[64, 96\] \(height, width\)",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [64, 96], "counts": [6100, 4]}),
            "has counts of 6104 pixels, its image has 6144",
        ),
    ],
)
def test_wrong_annotations_are_named_with_their_place(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    content = shapes.write_coco(tmp_path, "train", 3)
    change(content)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "coco")


def test_damaged_run_lengths_are_named_when_they_are_read(tmp_path: Path) -> None:
    content = shapes.write_coco(tmp_path, "train", 3)
    content["annotations"][0]["segmentation"] = {"size": [64, 96], "counts": "zzzz"}
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train.json: the outline of annotation 1 is damaged"):
        opened(tmp_path, "coco")[0]
    assert opened(tmp_path, "coco", on_error="skip")[0] is None


def test_outlines_of_all_three_forms_are_one_mask(tmp_path: Path) -> None:
    content = shapes.write_coco(tmp_path, "train", 1)
    mask = np.zeros((64, 96), np.uint8)
    mask[10:30, 20:50] = 1
    counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=0)), prepend=0).tolist()
    counts.append(64 * 96 - sum(counts))
    compressed = to_results(
        {
            "boxes": torch.zeros(1, 4),
            "scores": torch.zeros(1),
            "labels": torch.zeros(1).long(),
            "masks": torch.from_numpy(mask.astype(bool))[None],
        },
        1,
        [10],
    )[0]["segmentation"]
    outlines = [[[20, 10, 50, 10, 50, 30, 20, 30]], {"size": [64, 96], "counts": counts}, compressed, None, []]
    row = {"image_id": 1, "category_id": 10, "bbox": [20, 10, 30, 20], "iscrowd": 0}
    content["annotations"] = [{**row, "id": i + 1, "segmentation": outline} for i, outline in enumerate(outlines)]
    (tmp_path / "train.json").write_text(json.dumps(content))
    masks = opened(tmp_path, "coco")[0].target["masks"]
    assert len(masks) == 5
    assert (masks == torch.from_numpy(mask.astype(bool))).all()


def test_crowds_are_neither_objects_nor_mistakes(tmp_path: Path) -> None:
    """What is found inside a crowd counts for nothing."""
    content = shapes.write_coco(tmp_path, "train", 1)
    crowd = {"image_id": 1, "category_id": 10, "bbox": [0, 0, 96, 64], "iscrowd": 1, "id": 900, "area": 6144}
    crowd["segmentation"] = {"size": [64, 96], "counts": [0, 6144]}
    content["annotations"].append(crowd)
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = opened(tmp_path, "coco")
    truth = data.read_target(0, (64, 96))
    assert len(truth["boxes"]) == len(content["annotations"]) - 1
    results = to_results({**truth, "scores": torch.ones(len(truth["labels"]))}, 1, [10, 20])
    box = torch.tensor([[60.0, 2, 66, 8]])
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 2:8, 60:66] = True
    extra = to_results(
        {"boxes": box, "scores": torch.tensor([2.0]), "labels": torch.tensor([0]), "masks": mask}, 1, [10]
    )
    for backend in ("faster-coco-eval", "pycocotools"):
        scores = score_results(read_coco(tmp_path / "train.json"), results + extra, backend=backend)
        assert scores["mask_ap"] == pytest.approx(1)
        assert scores["box_ap"] == pytest.approx(1)


def test_odd_annotations_can_be_counted(tmp_path: Path) -> None:
    """Evaluation reads the file as it is, as the COCO tools do: objects that nobody can find cost recall."""
    content = shapes.write_coco(tmp_path, "train", 2)
    row = {"image_id": 1, "category_id": 10, "iscrowd": 0}
    content["annotations"] += [
        {**row, "id": 901, "bbox": [5, 5, 0, 10]},
        {**row, "id": 902, "bbox": [200, 5, 10, 10], "segmentation": [[200, 5, 210, 5, 210, 15]]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = CocoInstances(tmp_path / "train.json", tmp_path / "train")
    results = []
    for index, image_id in enumerate(data.image_ids):
        truth = data.read_target(index, data.shapes[index])
        results += to_results({**truth, "scores": torch.ones(len(truth["labels"]))}, image_id, data.category_ids)
    for backend in ("faster-coco-eval", "pycocotools"):
        assert 0.5 < score_results(read_coco(data.file), results, backend=backend)["mask_ap"] < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda labels: Image.fromarray(np.where(labels == 2, 7, labels)),
            r"has the value 7 \(\d+ pixels\), expected 0 to",
        ),
        (lambda labels: Image.fromarray(labels).convert("RGB"), "has the mode RGB, expected 8-bit class indices"),
        (lambda labels: Image.fromarray(labels.astype(np.uint16)), "has the mode I;16, expected 8-bit class indices"),
        (lambda labels: Image.fromarray(labels).convert("LA"), "has the mode LA"),
        (lambda labels: Image.fromarray(labels[:60]), r"is \(60, 64\), its image \(64, 64\)"),
    ],
)
def test_wrong_semantic_masks_are_named(tmp_path: Path, make: Callable[[Any], Image.Image], message: str) -> None:
    write(tmp_path, "semantic_masks")
    path = tmp_path / "annotations/train/1.png"
    make(np.asarray(loaded(path))).save(path)
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path, "semantic_masks")[0]
    assert str(path) in str(caught.value)
    assert opened(tmp_path, "semantic_masks", on_error="skip")[0] is None


def test_a_broken_index_map_is_named(tmp_path: Path) -> None:
    write(tmp_path, "semantic_masks")
    half(tmp_path / "annotations/train/1.png")
    with pytest.raises(ValueError, match=r"The semantic mask .*1.png cannot be read"):
        opened(tmp_path, "semantic_masks")[0]


def test_a_map_counted_from_one_asks_for_the_option(tmp_path: Path) -> None:
    write(tmp_path, "semantic_masks")
    with pytest.raises(ValueError, match=r"has the value 2 .*expected 0 to 1 or 255 .*set reduce_zero_label"):
        opened(tmp_path, "semantic_masks", reduce_zero_label=False)[0]


def test_palettes_are_colours_of_indices(tmp_path: Path) -> None:
    write(tmp_path, "semantic_masks")
    want = opened(tmp_path, "semantic_masks")[0].target["labels"]
    path = tmp_path / "annotations/train/1.png"
    labels = loaded(path)
    palette = Image.new("P", labels.size)
    palette.putdata(labels.tobytes())
    palette.putpalette([0, 0, 0, 250, 10, 10, 10, 250, 10])
    palette.save(path)
    assert loaded(path).mode == "P"
    assert torch.equal(opened(tmp_path, "semantic_masks")[0].target["labels"], want)


@pytest.mark.parametrize("text", ["box\ndisc", "box\r\ndisc\r\n", "\ufeffbox\ndisc\n\n"])
def test_lists_of_classes_as_editors_write_them(tmp_path: Path, text: str) -> None:
    write(tmp_path, "semantic_masks")
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert opened(tmp_path, "semantic_masks").classes == ["box", "disc"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("box\n\ndisc\n", "classes.txt line 2 is empty"), ("box\nbox\n", "classes.txt line 2 repeats the class 'box'")],
)
def test_wrong_lists_of_classes_are_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "semantic_masks")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "semantic_masks")


def test_an_image_without_objects_or_known_pixels_is_a_sample(tmp_path: Path) -> None:
    content = shapes.write_coco(tmp_path, "train", 2)
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 1]
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = opened(tmp_path, "coco")
    batch = PadTogether(32)([data[0], data[1]])
    assert batch.targets[0]["masks"].shape == (0, 96, 96)
    assert len(opened(tmp_path, "coco", train=True)) == 1
    content["annotations"] = []
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has no usable images"):
        opened(tmp_path, "coco", train=True)
    maps = tmp_path / "maps"
    maps.mkdir()
    write(maps, "semantic_masks")
    Image.new("L", (64, 64), 255).save(maps / "annotations/train/1.png")
    assert set(opened(maps, "semantic_masks")[0].target["labels"].unique().tolist()) == {255}


def test_a_wrong_map_ends_training_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "semantic_masks")
    shapes.write_semantic_masks(tmp_path, "val", 1)
    path = tmp_path / "annotations/val/1.png"
    Image.new("L", (64, 64), 9).save(path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(shapes.dense_recipe(tmp_path, tmp_path / "run", "semantic_masks")))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--device", "cpu", "--progress", "none"])
    assert caught.value.code == 2
    assert f"{path} has the value 9 (4096 pixels)" in capsys.readouterr().err.splitlines()[-1]
