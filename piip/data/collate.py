"""Samples from images and their targets, and batches from samples.

A target is a dict of tensors: "boxes" (N, 4), "labels" (N,) and "masks" bool (N, H, W) of instances, or "labels" (H, W)
of a semantic mask. Shapes: H W image.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from piip.data.transforms.dense import DenseTransformConfig, resized_shape
from piip.data.transforms.geometry import cropped, flipped, resize_image, resize_target, with_pixels
from piip.data.transforms.photometric import distorted
from piip.structures import IGNORE_INDEX, ImageInfo, Target


class Sample(NamedTuple):
    """One prepared image.

    Attributes:
        image: Normalised float (3, H, W).
        image_info: Original and resized sizes.
        target: Its target in network pixels.
        position: Its index in the data set.
    """

    image: Tensor
    image_info: ImageInfo
    target: Target
    position: int


class Batch(NamedTuple):
    """Samples padded to one size at the right and bottom.

    Attributes:
        image: (B, 3, H, W).
        image_infos: One per image.
        targets: One per image.
        indices: Indices in the data set.
    """

    image: Tensor
    image_infos: list[ImageInfo]
    targets: list[Target]
    indices: list[int]


class DenseTransform:
    """Prepare images with their targets.

    Args:
        config: Settings; mean and std must be given.
        train: Use augmentation, drawn from the global states of `random` and torch.
    """

    def __init__(self, config: DenseTransformConfig, *, train: bool) -> None:
        self.config = config
        self.train = train
        strength = config.color_jitter if train else 0.0
        self.jitter = v2.ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, image: Image.Image, target: Mapping[str, Any], index: int) -> Sample:
        """Return the sample of an RGB image; "masks" of its target may be `ObjectMasks`."""
        config = self.config
        original = (image.height, image.width)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if config.masks is False:
            target = {name: values for name, values in target.items() if name != "masks"}
        if config.reduce_zero_label and "labels" in target and target["labels"].dim() == 2:
            target = {"labels": reduce_zero_label(target["labels"])}
        pixels, target = self._augmented(pixels, target) if self.train else self._resized(pixels, target)
        target = {**with_pixels(target), **{k: v.long() for k, v in target.items() if k == "labels"}}
        assert config.mean is not None and config.std is not None  # noqa: PT018 - resolved before
        pixels = F.normalize(pixels.float().div_(255), list(config.mean), list(config.std), inplace=True)
        image_info = ImageInfo.make((pixels.shape[1], pixels.shape[2]), original=original)
        return Sample(pixels, image_info, dict(target), index)

    def _augmented(self, image: Tensor, target: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        config = self.config
        if config.cut_short_sides and random.random() < 0.5:
            image, target = self._resized(image, target, random.choice(config.cut_short_sides))
            low, high = config.cut_range
            height, width = (random.randint(min(side, low), min(side, high)) for side in image.shape[1:])
            image, target = cropped(image, target, (height, width))
        short = random.choice(config.train_short_sides) if config.train_short_sides else None
        image, target = self._resized(image, target, short, jitter=random.uniform(*config.scale_jitter))
        if config.crop is not None:
            image, target = cropped(image, target, (config.crop, config.crop), max_class_fraction=config.crop_max_share)
        target = with_pixels(target)
        for chance, dimension in ((config.hflip, -1), (config.vflip, -2)):
            if random.random() < chance:
                target = flipped(target, image.shape[dimension], dimension)
                image = image.flip(dimension)
        if self.jitter is not None:
            image = self.jitter(image)
        return distorted(image) if config.photometric else image, target

    def _resized(
        self, image: Tensor, target: Mapping[str, Any], short: int | None = None, *, jitter: float = 1.0
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Resize to a shorter side (default: that of the configuration) times a factor."""
        config, shape = self.config, (image.shape[1], image.shape[2])
        short = short or config.short_side
        if short is None:
            size = max(1, round(shape[0] * jitter)), max(1, round(shape[1] * jitter))
        else:
            longest = None if config.long_side is None else max(1, int(config.long_side * jitter))
            size = resized_shape(shape, max(1, int(short * jitter)), longest)
        return resize_image(image, size, config.resize), resize_target(target, shape, size)


def reduce_zero_label(labels: Tensor) -> Tensor:
    """Map 0 to 255 (ignored) and every other class k to k - 1; 255 stays."""
    return torch.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)


class PadTogether:
    """Collate samples to a padded batch.

    Args:
        divisor: Height and width are padded to multiples of this.
        min_side: Minimum height and width in pixels.
    """

    def __init__(self, divisor: int, *, min_side: int = 1) -> None:
        self.divisor = divisor
        self.min_side = min_side

    def __call__(self, samples: Sequence[Sample | None]) -> Batch:
        """Return the batch; images are padded with zeros, semantic masks with 255, samples left out are None."""
        return self._batch([sample for sample in samples if sample is not None])

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        if not samples:
            return Batch(torch.empty(0, 3, self.min_side, self.min_side), [], [], [])
        height, width = (
            -(-max(self.min_side, *(sample.image.shape[axis] for sample in samples)) // self.divisor) * self.divisor
            for axis in (1, 2)
        )
        image_infos = [sample.image_info._replace(padded=(height, width), batch=(height, width)) for sample in samples]
        images = torch.stack([_padded(sample.image, (height, width), 0.0) for sample in samples])
        targets = []
        for sample in samples:
            target = dict(sample.target)
            for name in ("masks", "labels"):
                if name in target and target[name].dim() > 1:
                    fill = IGNORE_INDEX if name == "labels" else 0
                    target[name] = _padded(target[name], (height, width), fill)
            targets.append(target)
        return Batch(images, image_infos, targets, [sample.position for sample in samples])


def collate_images(samples: Sequence[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, H, W) and class indices (B,) of a batch; samples left out are None."""
    kept = [sample for sample in samples if sample is not None]
    labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
    return (torch.stack([image for image, _ in kept]) if kept else torch.empty(0, 3, 1, 1)), labels


def _padded(values: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    below, right = size[0] - values.shape[-2], size[1] - values.shape[-1]
    return torch.nn.functional.pad(values, (0, right, 0, below), value=fill)
