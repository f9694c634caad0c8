"""From a picture with its truth to a sample, and from samples to a batch.

A truth is a dict of tensors: "boxes" (N, 4), "labels" (N,) and "masks" bool (N, H, W) of instances, or "labels" (H, W)
of an index map. Shapes: H W image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from piip.data.transforms.dense import DenseTransformConfig, resized_shape
from piip.data.transforms.geometry import IGNORED, cropped, flipped, resize_image, resize_target
from piip.data.transforms.photometric import distorted
from piip.heads.image_info import ImageFrame, Target


class Sample(NamedTuple):
    """One prepared image.

    Attributes:
        image: Normalised float (3, H, W).
        frame: What it was made of.
        target: Its truth in network pixels.
        place: Its place in the data set.
    """

    image: Tensor
    frame: ImageFrame
    target: Target
    place: int


class Batch(NamedTuple):
    """Samples padded to one size at the right and bottom.

    Attributes:
        image: (B, 3, H, W).
        frames: One an image.
        targets: One an image.
        indices: Places in the data set.
    """

    image: Tensor
    frames: list[ImageFrame]
    targets: list[Target]
    indices: list[int]


class DenseTransform:
    """Prepare pictures with their truth.

    Args:
        config: The numbers; mean and std must be given.
        train: With augmentation, drawn from the global states of `random` and torch.
    """

    def __init__(self, config: DenseTransformConfig, *, train: bool) -> None:
        self.config = config
        self.train = train
        strength = config.color_jitter if train else 0.0
        self.jitter = v2.ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, picture: Image.Image, target: Target, index: int) -> Sample:
        """Return the sample of an RGB picture."""
        config = self.config
        original = (picture.height, picture.width)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        if config.reduce_zero_label and "labels" in target and target["labels"].dim() == 2:
            target = {"labels": reduce_zero_label(target["labels"])}
        image, target = self._augmented(image, target) if self.train else self._resized(image, target)
        assert config.mean is not None and config.std is not None  # noqa: PT018 - resolved before
        image = F.normalize(image.float() / 255, list(config.mean), list(config.std))
        frame = ImageFrame.make((image.shape[1], image.shape[2]), original=original)
        return Sample(image, frame, target, index)

    def _augmented(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        config = self.config
        if config.cut_short_sides and random.random() < 0.5:
            image, target = self._resized(image, target, random.choice(config.cut_short_sides))
            low, high = config.cut_range
            height, width = (random.randint(min(side, low), min(side, high)) for side in image.shape[1:])
            image, target = cropped(image, target, (height, width))
        short = random.choice(config.train_short_sides) if config.train_short_sides else None
        image, target = self._resized(image, target, short, jitter=random.uniform(*config.scale_jitter))
        if config.crop is not None:
            image, target = cropped(image, target, (config.crop, config.crop), most=config.crop_max_share)
        for chance, dimension in ((config.hflip, -1), (config.vflip, -2)):
            if random.random() < chance:
                target = flipped(target, image.shape[dimension], dimension)
                image = image.flip(dimension)
        if self.jitter is not None:
            image = self.jitter(image)
        return distorted(image) if config.photometric else image, target

    def _resized(
        self, image: Tensor, target: Target, short: int | None = None, *, jitter: float = 1.0
    ) -> tuple[Tensor, Target]:
        """Resize to a shorter side, that of the configuration by default, all sides times a factor."""
        config, shape = self.config, (image.shape[1], image.shape[2])
        short = short or config.short_side
        if short is None:
            size = max(1, round(shape[0] * jitter)), max(1, round(shape[1] * jitter))
        else:
            longest = None if config.long_side is None else max(1, int(config.long_side * jitter))
            size = resized_shape(shape, max(1, int(short * jitter)), longest)
        return resize_image(image, size, config.resize), resize_target(target, shape, size)


def reduce_zero_label(labels: Tensor) -> Tensor:
    """Turn 0 into 255 (ignored), every other class k into k - 1; 255 stays."""
    return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)


class PadTogether:
    """Make a batch of samples.

    Args:
        divisor: Height and width become multiples of this.
        least: Least height and width.
    """

    def __init__(self, divisor: int, *, least: int = 1) -> None:
        self.divisor = divisor
        self.least = least

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch; images are padded with zeros, index maps with 255."""
        height, width = (
            -(-max(self.least, *(sample.image.shape[axis] for sample in samples)) // self.divisor) * self.divisor
            for axis in (1, 2)
        )
        frames = [sample.frame._replace(padded=(height, width), batch=(height, width)) for sample in samples]
        images = torch.stack([_padded(sample.image, (height, width), 0.0) for sample in samples])
        targets = []
        for sample in samples:
            target = dict(sample.target)
            for name in ("masks", "labels"):
                if name in target and target[name].dim() > 1:
                    fill = IGNORED if name == "labels" else 0
                    target[name] = _padded(target[name], (height, width), fill)
            targets.append(target)
        return Batch(images, frames, targets, [sample.place for sample in samples])


def _padded(values: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    below, right = size[0] - values.shape[-2], size[1] - values.shape[-1]
    return torch.nn.functional.pad(values, (0, right, 0, below), value=fill)
