"""Images from folders: what is found, what is refused, and that augmentation repeats exactly."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from piip.data.image_folder import ImageFolder
from piip.data.image_reading import read_rgb
from piip.data.labelled_images import seeded
from piip.data.sampler import EpochSampler
from piip.data.transforms.classification import TransformConfig, build_transform

HEAVY = TransformConfig(input_size=32, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, reprob=0.9, vflip=0.5)


def write(path: Path, *, mode: str = "RGB", size: int = 40, seed: int = 0) -> Path:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + 8, *channels), dtype=np.uint8)
    Image.frombytes(mode, (size + 8, size), pixels.tobytes()).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three images each, one of them in a folder below."""
    for seed, name in enumerate(["cat/b.png", "cat/a.JPG", "cat/more/c.jpeg", "dog/x.bmp", "dog/y.webp", "dog/z.tif"]):
        write(tmp_path / "data" / name, seed=seed)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "data" / "cat" / "._a.jpg").write_text("resource fork")
    (tmp_path / "data" / ".cache").mkdir()
    return tmp_path / "data"


def truncate(path: Path) -> Path:
    """Cut a file in half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def items(dataset: ImageFolder) -> torch.Tensor:
    """All images of a data set, stacked."""
    return torch.stack([dataset[index][0] for index in range(len(dataset))])


def test_samples_are_sorted_by_class_and_path(root: Path) -> None:
    dataset = ImageFolder(root)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.class_to_idx == {"cat": 0, "dog": 1}
    found = [(str(path.relative_to(root)), target) for path, target in dataset.samples]
    assert found == [
        ("cat/a.JPG", 0), ("cat/b.png", 0), ("cat/more/c.jpeg", 0),
        ("dog/x.bmp", 1), ("dog/y.webp", 1), ("dog/z.tif", 1),
    ]  # fmt: skip
    assert len(dataset) == 6
    assert dataset[3][1] == 1


def test_expected_classes_fix_the_order(root: Path) -> None:
    dataset = ImageFolder(root, expected_classes=["dog", "cat"])
    assert dataset.classes == ["dog", "cat"]
    assert dataset.samples[0] == (root / "dog" / "x.bmp", 0)


def test_other_classes_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="missing bird, unexpected dog"):
        ImageFolder(root, expected_classes=["bird", "cat"])


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "no class folders"),
        (lambda folder: write(folder / "a.png"), "no class folders"),
        (lambda folder: (folder / "cat").mkdir(parents=True), "without images: cat"),
    ],
)
def test_useless_folders_are_refused(tmp_path: Path, prepare: Callable[[Path], Any], message: str) -> None:
    prepare(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path / "set")


def test_an_unknown_error_behaviour_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="expected one of stop, skip"):
        ImageFolder(root, on_error="ignore")


def broken_text(path: Path) -> Path:
    """Turn a file into text."""
    path.write_text("this is no image")
    return path


@pytest.mark.parametrize(
    ("name", "damage"), [("cat/a.JPG", truncate), ("cat/b.png", broken_text), ("cat/b.png", truncate)]
)
def test_stop_names_the_unreadable_file(root: Path, name: str, damage: Callable[[Path], Path]) -> None:
    path = damage(root / name)
    dataset = ImageFolder(root)
    index = [sample[0] for sample in dataset.samples].index(path)
    with pytest.raises(ValueError, match=path.name) as error:
        dataset[index]
    assert "skip" in str(error.value)


def test_skip_takes_the_next_readable_sample_and_warns_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    truncate(root / "cat" / "more" / "c.jpeg")
    broken_text(root / "dog" / "x.bmp")
    dataset = ImageFolder(root, on_error="skip")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            image, target = dataset[2]
            assert target == 1
            assert np.array_equal(np.asarray(image), np.asarray(read_rgb(root / "dog" / "y.webp")))
    assert caplog.text.count("It is skipped from now on") == 2
    assert "c.jpeg" in caplog.text
    assert "x.bmp" in caplog.text


def test_skip_goes_round_to_the_first_sample(root: Path) -> None:
    broken_text(root / "dog" / "z.tif")
    assert ImageFolder(root, on_error="skip")[5][1] == 0


def test_a_folder_without_one_readable_image_ends_the_run(root: Path) -> None:
    dataset = ImageFolder(root, on_error="skip")
    for path, _ in dataset.samples:
        broken_text(path)
    with pytest.raises(ValueError, match="None of the 6 images"):
        dataset[0]


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("L", "jpg"), ("RGB", "png")]
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    image = read_rgb(write(tmp_path / f"image.{suffix}", mode=mode))
    assert image.mode == "RGB"
    assert image.size == (48, 40)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x4080, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_rgb(tmp_path / "deep.png").getpixel((0, 0)) == (0x40, 0x40, 0x40)


def test_palette_with_transparency_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "palette.png", transparency=0)
    assert read_rgb(tmp_path / "palette.png").getpixel((0, 0)) == (10, 20, 30)


def test_augmentation_is_a_function_of_seed_epoch_and_index(root: Path) -> None:
    transform = build_transform(HEAVY, train=True)
    dataset = ImageFolder(root, transform=transform, seed=5)
    first = items(dataset)
    random.seed(9)
    torch.manual_seed(9)
    backwards = [dataset[index][0] for index in reversed(range(6))]
    assert torch.equal(first, torch.stack(backwards[::-1]))
    dataset.set_epoch(1)
    second = items(dataset)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    dataset.set_epoch(0)
    assert torch.equal(first, items(dataset))
    assert not torch.equal(first, items(ImageFolder(root, transform=transform, seed=6)))


def test_two_copies_of_an_image_are_augmented_differently(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png"):
        write(tmp_path / name)
    dataset = ImageFolder(tmp_path, transform=build_transform(HEAVY, train=True))
    assert not torch.equal(dataset[0][0], dataset[1][0])


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_give_the_same_images_in_every_epoch(root: Path, persistent: bool) -> None:
    dataset = ImageFolder(root, transform=build_transform(HEAVY, train=True))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=persistent)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat([images for images, _ in loader]), items(dataset))


def test_global_random_states_are_put_back(root: Path) -> None:
    dataset = ImageFolder(root, transform=build_transform(HEAVY, train=True))

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    with seeded(1):
        expected = draw()
    with seeded(1):
        dataset[0]
        assert draw() == expected


def test_states_are_put_back_after_an_error() -> None:
    state = random.getstate()
    with pytest.raises(KeyError), seeded(3):
        raise KeyError
    assert random.getstate() == state


def test_evaluation_equals_timm_by_hand(root: Path) -> None:
    config = TransformConfig(input_size=24, crop_pct=0.75, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
    dataset = ImageFolder(root, transform=build_transform(config, train=False))
    image = read_rgb(dataset.samples[0][0])  # 48 x 40, shorter edge to 24 / 0.75 = 32
    resized = image.resize((38, 32), Image.Resampling.BILINEAR).crop((7, 4, 31, 28))
    expected = (torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    assert torch.allclose(dataset[0][0], expected, atol=1e-6)


def test_no_augmentation_options_leave_a_plain_crop() -> None:
    config = TransformConfig(input_size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    trained = build_transform(config, train=True)(image)
    evaluated = build_transform(TransformConfig(input_size=16, crop_pct=1.0), train=False)(image)
    assert torch.allclose(trained, evaluated, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", 0), ("interpolation", "cubic"), ("crop_mode", "centre"), ("crop_pct", 0.0),
        ("scale", (0.5, 0.1)),
        ("ratio", (0.0, 1.0)), ("hflip", 1.5), ("reprob", -0.1), ("remode", "black"), ("auto_augment", "random"),
        ("color_jitter", -1.0), ("std", (1.0, 0.0, 1.0)),
    ],
)  # fmt: skip
def test_bad_transform_options_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        TransformConfig(**{field: value})


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "rand-m9-mstd0.5-inc1", "augmix-m9", "original", "v0", "3a"])
def test_every_policy_survives_many_pictures(policy: str) -> None:
    transform = build_transform(TransformConfig(input_size=8, auto_augment=policy), train=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for index in range(400):
        with seeded(index):
            assert transform(image).isfinite().all()


def test_posterize_to_zero_bits_is_black() -> None:
    transform = build_transform(TransformConfig(input_size=8, auto_augment="rand-m10-inc1"), train=True)
    operations = [op for step in transform.transforms for op in getattr(step, "ops", [])]
    posterize = next(op for op in operations if op.name == "PosterizeIncreasing")
    posterize.prob = 1.0
    assert posterize(Image.new("RGB", (2, 2), "white")).getextrema() == ((0, 0),) * 3


def test_a_transform_needs_a_size() -> None:
    with pytest.raises(ValueError, match="input_size is None"):
        build_transform(TransformConfig(), train=False)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = list(EpochSampler(50, seed=1, epoch=3))
    assert sorted(first) == list(range(50))
    assert first == list(EpochSampler(50, seed=1, epoch=3))
    assert first != list(EpochSampler(50, seed=1, epoch=4))
    assert first != list(EpochSampler(50, seed=2, epoch=3))


def test_an_epoch_can_be_entered_in_the_middle() -> None:
    whole = list(EpochSampler(50, seed=1, epoch=3))
    rest = EpochSampler(50, seed=1, epoch=3, start_index=24)
    assert list(rest) == whole[24:]
    assert len(rest) == 26
    assert rest.epoch_length == 50
    rest.set_epoch(3)
    assert rest.start_index == 24
    rest.set_epoch(4)
    assert list(rest) == list(EpochSampler(50, seed=1, epoch=4))
    assert list(EpochSampler(50, seed=1, start_index=50)) == []


def test_replicas_share_an_epoch_evenly() -> None:
    parts = [list(EpochSampler(10, seed=0, num_replicas=3, rank=r)) for r in range(3)]
    assert [len(part) for part in parts] == [4] * 3
    assert {index for part in parts for index in part} == set(range(10))


def test_a_process_takes_its_part() -> None:
    order = EpochSampler(10, seed=0, num_replicas=2)
    order.share(1, 2)
    assert list(order) == list(EpochSampler(10, seed=0, num_replicas=2, rank=1))
    with pytest.raises(ValueError, match="process 1 of 4, expected one of 2"):
        order.share(1, 4)


def test_more_replicas_than_samples_still_share_evenly() -> None:
    assert [len(list(EpochSampler(2, seed=0, num_replicas=5, rank=r))) for r in range(5)] == [1] * 5


@pytest.mark.parametrize(
    "options",
    [{"length": 0}, {"rank": 2, "num_replicas": 2}, {"start_index": 11}, {"start_index": -1}, {"epoch": -1}],
)  # fmt: skip
def test_bad_sampler_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EpochSampler(**{"length": 10, "seed": 0, **options})
