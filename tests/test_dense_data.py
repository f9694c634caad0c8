"""Instances in COCO format, semantic masks, and how pictures and truths are prepared together."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from PIL import Image

from piip.data.coco import CocoInstances
from piip.data.collate import DenseTransform, PadTogether, reduce_zero_label
from piip.data.semantic_masks import SemanticMasks
from piip.data.sources.near_duplicates import group_similar
from piip.data.sources.nuclei import convert_nuclei, split_groups
from piip.data.sources.nuclei_semantic import semantic_mask, write_semantic_nuclei
from piip.data.transforms.dense import DenseTransformConfig, resized_shape
from piip.data.transforms.official_resize import resize_like_opencv

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return tmp_path, shapes.write_coco(tmp_path, "train", 4)


def opened(root: Path, content: dict[str, Any] | None = None, **options: Any) -> CocoInstances:
    if content is not None:
        (root / "train.json").write_text(json.dumps(content))
    return CocoInstances(root / "train.json", root / "train", **options)


def test_masks_fill_their_boxes_from_polygons_and_run_lengths(coco) -> None:
    root, content = coco
    data = opened(root)
    assert data.classes == ["box", "disc"]
    for index in range(len(data)):
        truth = data.read_target(index, data.shapes[index])
        assert len(truth["boxes"]) == sum(entry["image_id"] == index + 1 for entry in content["annotations"])
        for box, mask in zip(truth["boxes"], truth["masks"], strict=True):
            rows, columns = mask.nonzero().T
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(id=1), "the id 1 occurs more than once in images"),
        (
            lambda c: c["annotations"][2].update(category_id=7),
            r"annotations\[2\] \(id 3\) has an unknown category_id 7",
        ),
        (lambda c: c["annotations"][0].update(image_id=99), "unknown image_id 99"),
        (lambda c: c["annotations"][3].pop("bbox"), r"annotations\[3\] has no field 'bbox'"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "images in .* are missing: .*gone.png"),
        (lambda c: c.pop("categories"), "no list 'categories'"),
    ],
)
def test_wrong_files_are_explained(coco, change, message: str) -> None:
    root, content = coco
    change(content)
    with pytest.raises(ValueError, match=message):
        opened(root, content)


def test_missing_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no annotation file"):
        opened(tmp_path)
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        opened(tmp_path)
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        opened(tmp_path)


def test_odd_annotations_are_clipped_left_out_or_kept_for_evaluation(coco, caplog: pytest.LogCaptureFixture) -> None:
    root, content = coco
    before = len(opened(root).read_target(0, (64, 96))["boxes"])
    first = {"image_id": 1, "category_id": 10, "iscrowd": 0}
    content["annotations"] += [
        {**first, "id": 901, "bbox": [90, 60, 20, 20]},  # reaches outside
        {**first, "id": 902, "bbox": [5, 5, 0, 10]},  # no area
        {**first, "id": 903, "bbox": [200, 5, 10, 10]},  # outside
        {**first, "id": 904, "bbox": [5, 5, 10, 10], "iscrowd": 1},
    ]
    content["images"].append({"id": 50, "file_name": "1.png", "height": 64, "width": 96})  # without objects
    data = opened(root, content)
    truth = data.read_target(0, (64, 96))
    assert len(truth["boxes"]) == before + 1
    assert truth["boxes"][-1].tolist() == [90, 60, 96, 64]
    assert int(truth["masks"][-1].sum()) == 24  # a box without segmentation is its own mask
    assert len(data) == 5
    caplog.clear()
    assert len(opened(root, train=True)) == 4
    assert "annotations without box area inside their image are left out (2): id 902, id 903." in caplog.text
    assert "1 of 5 images have no objects and are left out: 1.png. Use data.keep_empty true" in caplog.text
    assert "annotations are crowds (iscrowd 1) and are left out in training" in caplog.text
    assert len(opened(root, train=True, keep_empty=True)) == 5
    assert data.read_target(4, (64, 96))["masks"].shape == (0, 64, 96)


def test_pictures_of_another_size_than_the_file_says_are_named(coco) -> None:
    root, _ = coco
    Image.new("RGB", (64, 96)).save(root / "train" / "1.png")
    data = opened(root)
    data.transform = DenseTransform(DenseTransformConfig(**PLAIN), train=False)
    with pytest.raises(ValueError, match=r"1.png is 96x64 .* has 64x96. Its annotations ignore the EXIF"):
        data[0]
    skipping = opened(root, on_error="skip", train=True)
    skipping.transform = data.transform
    assert skipping[0].position == 1


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "P", "I;16", "LA"])
def test_pictures_of_any_mode_are_read(coco, mode: str) -> None:
    root, _ = coco
    picture = Image.open(root / "train" / "1.png")
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 256
        Image.fromarray(grey).save(root / "train" / "1.png")
    else:
        suffix = "TIFF" if mode == "CMYK" else "PNG"
        picture.convert(mode).save(root / "train" / "1.png", format=suffix)
    data = opened(root)
    data.transform = DenseTransform(DenseTransformConfig(**PLAIN), train=False)
    assert data[0].image.shape == (3, 64, 96)


def test_augmentation_keeps_boxes_and_masks_together(coco) -> None:
    root, _ = coco
    data = opened(root, train=True)
    config = DenseTransformConfig(crop=48, scale_jitter=(0.7, 1.6), hflip=0.5, vflip=0.5, color_jitter=0.3, **PLAIN)
    data.transform = DenseTransform(config, train=True)
    for epoch in range(6):
        data.set_epoch(epoch)
        for index in range(len(data)):
            sample = data[index]
            again = data[index]
            assert torch.equal(sample.image, again.image)
            assert max(sample.image.shape[1:]) <= 48
            for box, mask in zip(sample.target["boxes"], sample.target["masks"], strict=True):
                rows, columns = mask.nonzero().T
                # masks are resized to whole pixels, and a crop may cut off the corner of a box that a disc fills not
                assert box[0] - 2 <= columns.min() <= columns.max() + 1 <= box[2] + 2
                assert box[1] - 2 <= rows.min() <= rows.max() + 1 <= box[3] + 2
    assert not torch.equal(data[0].image, (data.set_epoch(9), data[0])[1].image)


def test_batches_are_padded_at_the_right_and_bottom(coco) -> None:
    root, _ = coco
    data = opened(root)
    data.transform = DenseTransform(DenseTransformConfig(**PLAIN), train=False)
    batch = PadTogether(32)([data[0], data[1]])
    assert batch.image.shape == (2, 3, 96, 96)
    assert batch.image_infos[0].size == (64, 96)
    assert batch.image_infos[1].batch == (96, 96)
    assert not batch.image[0, :, 64:].any()
    assert batch.targets[0]["masks"].shape[1:] == (96, 96)
    assert batch.indices == [0, 1]


@pytest.mark.parametrize(
    ("shape", "short", "long", "want"),
    [((100, 200), 50, None, (50, 100)), ((100, 200), 50, 80, (40, 80)), ((101, 200), None, None, (101, 200))],
)
def test_sizes_follow_the_shorter_side_within_the_longer(shape, short, long, want) -> None:
    assert resized_shape(shape, short, long) == want


def test_official_resize_equals_opencv_within_one_grey_level() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for height, width in ((40, 60), (97, 33), (50, 121), (8, 8)):
        picture = rng.integers(0, 256, (50, 61, 3)).astype(np.uint8)
        want = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        assert abs(resize_like_opencv(picture, (height, width)).astype(int) - want).max() <= 1


def test_official_resize_is_bilinear_without_antialiasing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 61, 3)).astype(np.uint8)
    for size in ((40, 60), (97, 33), (25, 121)):
        as_map = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        want = torch.nn.functional.interpolate(as_map, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        assert abs(resize_like_opencv(picture, size) - want.numpy()).max() <= 1
    assert resize_like_opencv(picture, (50, 61)) is picture


def test_semantic_masks_are_read_and_reduced(tmp_path: Path) -> None:
    shapes.write_semantic_masks(tmp_path, "train", 2)
    data = SemanticMasks(tmp_path / "annotations/train", tmp_path / "images/train")
    assert data.classes == ["box", "disc"]
    labels = data.read_target(0, (64, 64))["labels"]
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    reduced = reduce_zero_label(torch.tensor([0, 1, 2, 255]))
    assert reduced.tolist() == [255, 0, 1, 255]
    with pytest.raises(ValueError, match="its image"):
        data.read_target(0, (64, 65))
    (tmp_path / "annotations/train/2.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 semantic masks are missing"):
        SemanticMasks(tmp_path / "annotations/train", tmp_path / "images/train")
    (tmp_path / "classes.txt").unlink()
    shapes.draw_shapes(0, (64, 64))
    (tmp_path / "annotations/train/2.png").write_bytes((tmp_path / "annotations/train/1.png").read_bytes())
    with pytest.raises(ValueError, match=r"class names of .* are unknown"):
        SemanticMasks(tmp_path / "annotations/train", tmp_path / "images/train")


def test_similar_pictures_and_tiles_stay_together() -> None:
    rng = np.random.default_rng(0)
    scene = np.cumsum(np.cumsum(rng.normal(size=(128, 128, 3)), 0), 1)
    scene = ((scene - scene.min()) / np.ptp(scene) * 255).astype(np.uint8)
    others = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    pictures = {"left": scene[:64, :64], "right": scene[:64, 64:], "a": others[0], "b": others[1]}
    pictures["a_turned"] = np.rot90(others[0]).copy()
    groups = group_similar(pictures)
    assert sorted(map(sorted, groups)) == [["a", "a_turned"], ["b"], ["left", "right"]]
    names = [[f"{group}{i}" for i in range(2)] for group in "abcdefghij"]
    chosen = split_groups(names, {name: (8, 8) for group in names for name in group})
    assert {split: len(parts) for split, parts in chosen.items()} == {"test": 2, "val": 2, "train": 16}
    assert all({name[0] + "0", name[0] + "1"} <= set(parts) for parts in chosen.values() for name in parts)


def test_the_nuclei_archive_becomes_a_coco_set(tmp_path: Path) -> None:
    archive = tmp_path / "nuclei.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for number in range(8):
            picture, objects = shapes.draw_shapes(number, (64, 64))
            folder = tmp_path / "one.png"
            Image.fromarray(picture).save(folder)
            content.write(folder, f"repo/stage1_train/id{number}/images/id{number}.png")
            for part, (_, mask) in enumerate(objects):
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder)
                content.write(folder, f"repo/stage1_train/id{number}/masks/{part}.png")
    report = convert_nuclei(archive, tmp_path / "out")
    assert sum(split["images"] for split in report.values()) == 8
    data = CocoInstances(tmp_path / "out/train.json", tmp_path / "out/images", train=True)
    truth = data.read_target(0, data.shapes[0])
    assert data.classes == ["nucleus"]
    assert len(truth["boxes"]) > 0
    pixels = write_semantic_nuclei(tmp_path / "out")
    folder = tmp_path / "out" / "semantic"
    masks = SemanticMasks(folder / "annotations/train", folder / "images/train")
    assert masks.classes == ["background", "interior", "border"]
    assert len(masks) == report["train"]["images"]
    assert sum(pixels["train"].values()) == 64 * 64 * len(masks)
    assert min(pixels["train"].values()) > 0
    labels = masks.read_target(0, (64, 64))["labels"]
    inside = torch.zeros(64, 64, dtype=torch.bool)
    for mask in truth["masks"]:
        inside |= mask
    assert torch.equal(labels > 0, inside)
    with pytest.raises(ValueError, match="is not empty"):
        convert_nuclei(archive, tmp_path / "out")
    with pytest.raises(ValueError, match="no readable zip archive"):
        convert_nuclei(tmp_path / "one.png", tmp_path / "other")


def test_nuclei_that_touch_are_parted_by_their_borders() -> None:
    from faster_coco_eval.core import mask as coder

    nuclei = np.zeros((3, 20, 24), np.uint8)
    nuclei[0, :, :8] = 1  # at three sides of the image, which are no outline
    nuclei[1, 4:14, 8:18] = 1  # beside the first
    nuclei[2, 12:16, 16:20] = 1  # over a corner of the second
    labels = semantic_mask([coder.encode(np.asfortranarray(nucleus)) for nucleus in nuclei], (20, 24))
    want = np.zeros((20, 24), np.uint8)
    want[:, :8], want[:, :6] = 2, 1
    want[4:14, 8:18], want[6:12, 10:16] = 2, 1
    want[12:16, 16:20] = 2
    assert np.array_equal(labels, want)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 0}, "crop is 0"),
        ({"scale_jitter": (2.0, 1.0)}, "increasing range"),
        ({"hflip": 1.5}, "probability"),
        ({"resize": "area"}, "expected one of plain, official"),
        ({"train_short_sides": (0,)}, "train_short_sides"),
        ({"color_jitter": -1.0}, "color_jitter"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
    ],
)
def test_wrong_numbers_are_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseTransformConfig(**values)


def test_sides_are_drawn_for_training() -> None:
    config = DenseTransformConfig(train_short_sides=(32, 48), hflip=0.0, **PLAIN)
    random.seed(0)
    sizes = {
        tuple(
            DenseTransform(config, train=True)(
                Image.new("RGB", (64, 64)), {"labels": torch.zeros(64, 64)}, 0
            ).image.shape
        )
        for _ in range(20)
    }
    assert sizes == {(3, 32, 32), (3, 48, 48)}
