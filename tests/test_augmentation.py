"""Cutting, limiting and distorting training pictures, and batches of pictures alike in shape."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piip.data.collate import DenseTransform, PadTogether
from piip.data.sampler import GroupedSampler
from piip.data.transforms.dense import DenseTransformConfig
from piip.data.transforms.geometry import cropped
from piip.data.transforms.photometric import distorted
from piip.recipe import DataConfig, NamedModel, Recipe

NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def instance(height: int, width: int) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 10:30, 20:60] = True
    return {"boxes": torch.tensor([[20.0, 10.0, 60.0, 30.0]]), "labels": torch.tensor([0]), "masks": mask}


def test_every_other_picture_is_cut_before_it_is_resized() -> None:
    """The released `_ms` detectors: sides from a list, or a cut of 38 to 60 pixels (here) resized to the same sides."""
    config = DenseTransformConfig(
        long_side=133,
        train_short_sides=(48, 64, 80),
        cut_short_sides=(40, 50, 60),
        cut_range=(38, 60),
        crop=102,
        resize="official",
        **NORMAL,
    )
    transform = DenseTransform(config, train=True)
    sizes = [transform(picture(160, 120), instance(120, 160), 0).image_info.size for _ in range(200)]
    assert all(max(size) <= 102 for size in sizes)
    assert {min(size) for size in sizes} >= {48, 64, 80}
    ratios = [size[1] / size[0] for size in sizes if max(size) < 102]
    uncut = sum(abs(ratio - 4 / 3) < 0.03 for ratio in ratios)
    assert 0.3 < uncut / len(ratios) < 0.75


def test_boxes_follow_the_cut_and_what_is_gone_is_no_object() -> None:
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    seen = set()
    for _ in range(50):
        cut, target = cropped(image, instance(120, 160), (60, 60))
        assert tuple(cut.shape) == (3, 60, 60)
        seen.add(len(target["boxes"]))
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            left, top, right, bottom = (int(side) for side in box)
            assert mask.sum() == (right - left) * (bottom - top)
    assert seen == {0, 1}


def test_crops_of_mostly_one_class_are_drawn_again() -> None:
    labels = torch.zeros(64, 256, dtype=torch.int64)
    labels[:, 224:] = 1
    image = torch.zeros(3, 64, 256, dtype=torch.uint8)

    def mixed(most: float) -> int:
        crops = [cropped(image, {"labels": labels}, (64, 64), max_class_fraction=most)[1]["labels"] for _ in range(60)]
        return sum(float((crop == 1).float().mean()) > 0.25 for crop in crops)

    assert mixed(0.75) > 2 * mixed(1.0)
    unknown = torch.full_like(labels, 255)
    assert tuple(cropped(image, {"labels": unknown}, (64, 64), max_class_fraction=0.75)[0].shape) == (3, 64, 64)


def test_jitter_scales_both_limits_and_cuts_to_whole_pixels() -> None:
    """The released segmentors: 2048x512 times a factor, whole numbers, then the usual rule."""
    config = DenseTransformConfig(short_side=51, long_side=204, scale_jitter=(1.3, 1.3), **NORMAL)
    size = DenseTransform(config, train=True)(picture(400, 90), {}, 0).image_info.size
    assert size == (int(90 * 265 / 400 + 0.5), 265)
    assert DenseTransform(config, train=False)(picture(400, 90), {}, 0).image_info.size == (46, 204)


def test_colours_are_distorted_within_their_limits() -> None:
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = torch.stack([distorted(grey) for _ in range(300)])
    assert values.dtype == torch.uint8
    assert (values == 100).all((1, 2, 3)).any()
    assert int(values.min()) >= int((100 - 32) * 0.5) - 1
    assert int(values.max()) <= (100 + 32) * 1.5
    assert torch.equal(values[:, 0], values[:, 1])  # grey has no hue and no saturation
    red = torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0] = 200
    turned = torch.stack([distorted(red) for _ in range(300)]).float().mean((2, 3))
    assert (turned[:, 1] > 20).any()
    assert (turned[:, 2] > 20).any()
    assert (turned[:, 0] >= turned[:, 1:].max(1).values).all()  # 36 degrees do not make red green


def test_small_pictures_are_padded_to_the_crop() -> None:
    config = DenseTransformConfig(crop=64, pad_to_crop=True, **NORMAL)
    sample = DenseTransform(config, train=True)(picture(40, 30), {"labels": torch.zeros(30, 40, dtype=torch.int64)}, 0)
    batch = PadTogether(1, min_side=64)([sample])
    assert tuple(batch.image.shape) == (1, 3, 64, 64)
    assert int((batch.targets[0]["labels"] == 255).sum()) == 64 * 64 - 30 * 40


@pytest.mark.parametrize("replicas", [1, 2])
def test_batches_hold_one_group(replicas: int) -> None:
    groups = [0] * 11 + [1] * 6
    seen: Counter[int] = Counter()
    for rank in range(replicas):
        order = GroupedSampler(groups, batch_size=4, seed=0, num_replicas=replicas)
        order.share(rank, replicas)
        indices = list(order)
        assert len(indices) == len(order) == {1: 20, 2: 12}[replicas]
        for start in range(0, len(indices), 4):
            assert len({groups[index] for index in indices[start : start + 4]}) == 1
        seen.update(indices)
        order.start_index = 8
        assert list(order) == indices[8:]
        order.set_epoch(1)
        assert list(order) != indices
    assert set(seen) == set(range(17))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cut_range": (60, 38)}, "increasing range"),
        ({"cut_short_sides": (0,)}, "at least 1 pixel"),
        ({"crop_max_share": 0.0}, "fraction in"),
    ],
)
def test_wrong_numbers_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseTransformConfig(**fields)


def test_instances_have_no_share() -> None:
    data = DataConfig(kind="coco", dense=DenseTransformConfig(crop_max_share=0.75))
    with pytest.raises(ValueError, match=r"data.dense.crop_max_share has no effect on data of kind 'coco'"):
        Recipe(NamedModel("piip_tsb_1120_896_448.deit3_coco_mask_rcnn"), data)


def test_cuts_are_drawn_up_to_the_side_of_the_picture() -> None:
    """A side between the ends of the range is cut evenly from the lower end to itself, not mostly kept whole."""
    config = DenseTransformConfig(cut_short_sides=(40,), cut_range=(30, 60), hflip=0.0, **NORMAL)
    transform = DenseTransform(config, train=True)
    heights = [transform(picture(200, 40), {}, 0).image_info.size[0] for _ in range(400)]
    cut = [height for height in heights if height < 40]
    assert len(cut) > 120
    assert set(cut) == set(range(30, 40))
