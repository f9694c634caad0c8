"""The land-cover data sets, on a small made-up planet and without network access."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.data.semantic_masks import SemanticMasks
from piip.data.sources.landcover import PLAN, check_target
from piip.data.sources.landcover_build import LandcoverPlan, select_patches, write_datasets
from piip.data.sources.landcover_map import (
    CLASSES,
    IGNORE,
    SPLITS,
    SplitPlan,
    cap_class,
    class_counts,
    majority_class,
    merge_classes,
    resample_nearest,
)
from piip.data.sources.landcover_samples import export_demo_subset
from piip.data.sources.packages import PinnedFile, read_pinned

SMALL = LandcoverPlan(
    classification=SplitPlan(
        size=16, val_bands=((48, 72),), test_bands=((96, 120),), guard=16, train_stride=4,
        eval_stride=8,
    ),
    segmentation=SplitPlan(
        size=24, val_bands=((48, 72),), test_bands=((96, 120),), guard=16, train_stride=8,
        eval_stride=24,
    ),
    core=4,
    train_cap=20,
    eval_cap=6,
)  # fmt: skip


def planet() -> tuple[np.ndarray, np.ndarray]:
    """A photograph of 96x192 px and a map of 128x256 with blocks of every IGBP class."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 17, (8, 16), dtype=np.uint8)
    photo = rng.integers(0, 120, (96, 192, 3), dtype=np.uint8)
    return photo, np.kron(blocks, np.ones((16, 16), dtype=np.uint8))


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file under a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


def covered(plan: SplitPlan, split: str, height: int, width: int) -> np.ndarray:
    """Columns that any window of a split touches, as booleans, (width,)."""
    columns = np.zeros(width, dtype=bool)
    for _, left in plan.windows(split, height=height, width=width).tolist():
        columns[left : left + plan.size] = True
    return columns


@pytest.mark.parametrize(
    ("plan", "height", "width"),
    [
        (PLAN.classification, 2700, 5400),
        (PLAN.segmentation, 2700, 5400),
        (SMALL.classification, 96, 192),
        (SMALL.segmentation, 96, 192),
    ],
)
def test_splits_share_no_pixel_and_keep_the_guard_gap(plan: SplitPlan, height: int, width: int) -> None:
    used = {split: np.flatnonzero(covered(plan, split, height, width)) for split in SPLITS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        distance = np.abs(used[first][:, None] - used[second][None])
        around = np.minimum(distance, width - distance)  # the date line is no border
        assert around.min() > plan.guard
    for split in SPLITS:
        windows = plan.windows(split, height=height, width=width)
        assert len(np.unique(windows, axis=0)) == len(windows)
        assert windows.min() >= 0
        assert (windows.max(axis=0) + plan.size <= (height, width)).all()


def test_a_classifier_saw_no_held_out_pixel_of_the_segmentation_set() -> None:
    train = covered(PLAN.classification, "train", 2700, 5400)
    for split in ("val", "test"):
        assert not (train & covered(PLAN.segmentation, split, 2700, 5400)).any()
        assert not (
            covered(PLAN.classification, split, 2700, 5400) & covered(PLAN.segmentation, "train", 2700, 5400)
        ).any()


def test_segmentation_tiles_overlap_only_in_training() -> None:
    for split in ("val", "test"):
        windows = PLAN.segmentation.windows(split, height=2700, width=5400)
        apart = np.abs(windows[:, None] - windows[None]).max(axis=2)
        assert apart[~np.eye(len(windows), dtype=bool)].min() >= PLAN.segmentation.size


@pytest.mark.parametrize(("pixels", "expected"), [(9, -1), (10, 3), (16, 3)])
def test_majority_looks_at_the_core_only(pixels: int, expected: int) -> None:
    labels = np.full((16, 16), 1, dtype=np.uint8)
    core = np.full(16, IGNORE, dtype=np.uint8)
    core[:pixels] = 3
    labels[6:10, 6:10] = core.reshape(4, 4)
    window = np.array([[0, 0]])
    found = majority_class(labels, window, size=16, core=4, min_cover=0.6, num_classes=5)
    assert found.tolist() == [expected]


def test_class_counts_equal_counting_by_hand() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (20, 30), dtype=np.uint8)
    windows = np.array([[0, 0], [3, 7], [12, 22]])
    counts = class_counts(labels, windows, size=8, num_classes=4)
    for (top, left), row in zip(windows, counts, strict=True):
        crop = labels[top : top + 8, left : left + 8]
        assert row.tolist() == np.bincount(crop.ravel(), minlength=4).tolist()


def test_cap_keeps_order_and_number() -> None:
    windows = np.stack([np.arange(50), np.arange(50)], axis=1)
    kept = cap_class(windows, 12, np.random.default_rng(0))
    assert len(kept) == 12
    assert (np.diff(kept[:, 0]) > 0).all()
    assert cap_class(windows, 50, np.random.default_rng(0)) is windows


def test_caps_hold_in_every_split() -> None:
    photo, igbp = planet()
    labels = merge_classes(resample_nearest(igbp, 96, 192), photo)
    patches = select_patches(labels, SMALL, seed=0)
    assert max(len(windows) for windows in patches["train"].values()) == SMALL.train_cap
    for split in ("val", "test"):
        assert max(len(windows) for windows in patches[split].values()) <= SMALL.eval_cap


def test_merge_ignores_poles_ice_shelves_and_rare_classes() -> None:
    igbp = np.zeros((180, 17), dtype=np.uint8)
    igbp[90] = np.arange(17)
    photo = np.zeros((180, 17, 3), dtype=np.uint8)
    photo[150, 3] = 255
    merged = merge_classes(igbp, photo)
    expected = [0, 2, 1, 2, 2, 2, 3, 3, 4, 5, 6, IGNORE, 7, IGNORE, 7, 8, 9]
    assert merged[90].tolist() == expected
    assert (merged[:6] == IGNORE).all()
    assert (merged[-6:] == IGNORE).all()
    assert merged[150, 3] == IGNORE
    assert merged[150, 4] == 0


def test_resampling_takes_the_nearest_centre() -> None:
    labels = np.arange(8, dtype=np.uint8)[None].repeat(4, axis=0)
    assert resample_nearest(labels, 3, 6)[0].tolist() == [0, 2, 3, 4, 6, 7]


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    photo, igbp = planet()
    for name in ("first", "second"):
        write_datasets(photo, igbp, tmp_path / name, plan=SMALL, seed=3)
    first = tree(tmp_path / "first")
    assert first == tree(tmp_path / "second")
    assert {path.split("/")[0] for path in first} == {
        "classification", "segmentation", "classes.json", "report.json", "samples.png",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    write_datasets(photo, igbp, tmp_path / "third", plan=SMALL, seed=4)
    assert tree(tmp_path / "third") != first


def test_written_files_match_the_report(tmp_path: Path) -> None:
    photo, igbp = planet()
    out = tmp_path / "set"
    report = write_datasets(photo, igbp, out, plan=SMALL, seed=0)
    for split in SPLITS:
        for entry in CLASSES:
            files = list((out / "classification" / split / entry.name).iterdir())
            assert len(files) == report.images[split][entry.name]
        maps = SemanticMasks(out / "segmentation" / split / "labels", out / "segmentation" / split / "images")
        assert len(maps) == report.tiles[split]
        assert maps.classes == [entry.name for entry in CLASSES]
    labels = merge_classes(resample_nearest(igbp, 96, 192), photo)
    mask = sorted((out / "segmentation" / "train" / "labels").iterdir())[0]
    top, left = (int(part[1:]) for part in mask.stem.split("_"))
    assert np.array_equal(np.asarray(Image.open(mask)), labels[top : top + 24, left : left + 24])
    assert json.loads((out / "report.json").read_text())["images"] == report.images


def test_demo_subset_is_a_labelled_part_of_the_test_split(tmp_path: Path) -> None:
    photo, igbp = planet()
    write_datasets(photo, igbp, tmp_path / "set", plan=SMALL, seed=0)
    number = export_demo_subset(tmp_path / "set", tmp_path / "demo", per_class=2)
    rows = json.loads((tmp_path / "demo" / "labels.json").read_text())
    assert number == len(rows) == len(list((tmp_path / "demo").glob("*.jpg")))
    assert all(CLASSES[row["index"]].name == row["class"] for row in rows)
    with pytest.raises(ValueError, match="piip data landcover"):
        export_demo_subset(tmp_path, tmp_path / "other", per_class=2)


def test_existing_content_is_not_lost(tmp_path: Path) -> None:
    check_target(tmp_path, overwrite=False)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="--overwrite"):
        check_target(tmp_path, overwrite=False)
    with pytest.raises(ValueError, match="no land-cover data sets"):
        check_target(tmp_path, overwrite=True)


def make_wheel(folder: Path, content: bytes) -> PinnedFile:
    """Write a wheel with one file and return how it is pinned."""
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing/map.bin", content)
    wheel_hash = sha256(path.read_bytes()).hexdigest()
    member_hash = sha256(content).hexdigest()
    return PinnedFile("thing", "1.0", path.name, wheel_hash, "thing/map.bin", member_hash)


def test_a_pinned_file_is_read_from_the_archive_folder(tmp_path: Path) -> None:
    pinned = make_wheel(tmp_path, b"land")
    assert read_pinned(pinned, archive_dir=tmp_path) == b"land"
    assert read_pinned(pinned, cache=tmp_path) == b"land"


def test_a_changed_wheel_is_refused_by_name_and_hash(tmp_path: Path) -> None:
    pinned = make_wheel(tmp_path, b"land")
    changed = make_wheel(tmp_path, b"sea")
    with pytest.raises(ValueError, match="delete it and run again") as error:
        read_pinned(pinned, archive_dir=tmp_path)
    for part in (pinned.wheel, pinned.wheel_sha256, changed.wheel_sha256):
        assert part in str(error.value)


def test_a_missing_wheel_names_the_command(tmp_path: Path) -> None:
    pinned = PinnedFile("thing", "1.0", "thing-1.0-py3-none-any.whl", "0", "a", "0")
    with pytest.raises(ValueError, match=r"pip download --no-deps --dest .* thing==1\.0"):
        read_pinned(pinned, archive_dir=tmp_path)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (((10, 20),), ((60, 90),), "widen"),
        (((20, 50),), ((60, 90),), "move them apart"),
    ],
)
def test_bad_bands_are_refused(val: tuple, test: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitPlan(size=16, val_bands=val, test_bands=test, guard=16, train_stride=4, eval_stride=8)


def test_bands_at_the_date_line_are_refused() -> None:
    plan = SplitPlan(
        size=16, val_bands=((4, 30),), test_bands=((60, 90),), guard=16, train_stride=4,
        eval_stride=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="date line"):
        plan.ranges(192)
