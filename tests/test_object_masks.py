"""Masks that are decoded where they are needed, and lists that worker processes share."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from piip.data.object_masks import ObjectMasks, PixelMasks, partial_mask
from piip.data.packed import PackedList
from piip.data.transforms.geometry import cropped, resize_target, with_pixels


def decode_mask(segmentation, box, shape):
    """Decode with the COCO tools, as a yardstick."""
    mask = np.zeros(shape, bool)
    if segmentation is None:
        left, top, right, bottom = box
        mask[top:bottom, left:right] = True
        return mask
    coded = coder.frPyObjects(segmentation, *shape)
    return coder.decode(coder.merge(coded) if isinstance(segmentation, list) else coded).astype(bool)


def outlines(seed: int, shape: tuple[int, int], count: int = 12) -> list[tuple[object, list[float]]]:
    """Polygons inside and across the border, with one or two parts, run lengths, and boxes alone."""
    generator, made = np.random.default_rng(seed), []
    for number in range(count):
        middle, radius = generator.uniform(0, shape[::-1], 2), generator.uniform(0.5, 20)
        points = middle + radius * generator.uniform(-1, 1, (generator.integers(3, 9), 2))
        polygon = points.round(int(generator.integers(0, 4))).ravel().tolist()
        left, top, right, bottom = 3, 4, 3 + int(generator.integers(1, 20)), 5 + int(generator.integers(1, 20))
        counts = {"size": list(shape), "counts": [7, 30, shape[0] * shape[1] - 37]}
        choices = [[polygon], [polygon, (points[:3] + 3).ravel().tolist()], counts, None]
        made.append((choices[number % 4], [left, top, right, bottom]))
    return made


@pytest.mark.parametrize("seed", range(20))
def test_masks_around_an_object_have_the_pixels_of_the_whole_mask(seed: int) -> None:
    shape = (53, 71)
    for segmentation, box in outlines(seed, shape, 40):
        whole = decode_mask(segmentation, box, shape)
        part = partial_mask(segmentation, box, shape)
        placed = np.zeros(shape, bool)
        height, width = part.pixels.shape
        placed[part.top : part.top + height, part.left : part.left + width] = part.pixels
        assert np.array_equal(placed, whole)


@pytest.mark.parametrize("size", [(53, 71), (107, 141), (20, 31)])
def test_resizing_and_cropping_outlines_is_resizing_and_cropping_masks(size: tuple[int, int]) -> None:
    shape = (53, 71)
    given = outlines(3, shape)
    lazy = ObjectMasks(given, shape, [""] * len(given))
    whole = lazy.decode()
    assert torch.equal(whole, torch.from_numpy(np.stack([decode_mask(*each, shape) for each in given])))
    if size != shape:
        assert torch.equal(
            PixelMasks(whole).resized(size).pixels,
            F.resize(whole.byte(), list(size), interpolation=v2.InterpolationMode.NEAREST).bool(),
        )
        assert PixelMasks(whole[:0]).resized(size).pixels.shape == (0, *size)
        whole = F.resize(whole.byte(), list(size), interpolation=v2.InterpolationMode.NEAREST).bool()
    boxes = torch.tensor([box for _, box in given], dtype=torch.float32)
    target = {"boxes": boxes, "labels": torch.arange(len(given)), "masks": lazy}
    resized = resize_target(target, shape, size)
    assert torch.equal(with_pixels(resized)["masks"], whole)
    shown = 0
    for seed in range(20):
        crops = []
        for masks in (resized["masks"], whole):
            random.seed(seed)
            crops.append(cropped(torch.zeros(3, *size), {**resized, "masks": masks}, (16, 24))[1])
        assert all(torch.equal(crops[0][name], crops[1][name]) for name in ("boxes", "labels", "masks"))
        shown += len(crops[0]["labels"])
    assert 0 < shown < 20 * len(given)


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_are_those_of_the_coco_tools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (97, 413)
    mask = generator.random(shape) < generator.choice([0.001, 0.02, 0.5, 1])
    coded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    part = partial_mask({"size": list(shape), "counts": coded["counts"].decode()}, (), shape)
    placed = np.zeros(shape, bool)
    height, width = part.pixels.shape
    placed[part.top : part.top + height, part.left : part.left + width] = part.pixels
    assert np.array_equal(placed, mask)


@pytest.mark.parametrize("counts", ["zzzz", "", "0", "\x00", "oooooooooooooooooooo0", "é", "1`n"])
def test_damaged_run_lengths_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="its RLE has"):
        partial_mask({"size": [4, 5], "counts": counts}, (), (4, 5))


def test_a_packed_list_gives_back_its_items() -> None:
    items = [{"a": [1, 2.5, None, "text"]}, [], [[{"size": [3, 4], "counts": "abc"}]], True]
    packed = PackedList(iter(items))
    assert [packed[index] for index in range(len(packed))] == items
    with pytest.raises(IndexError, match="index is 4, expected 0 to 3"):
        packed[4]
