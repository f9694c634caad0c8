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

from piip.data.dense_transforms import DenseTransformConfig, resized_shape
from piip.data.official_resize import resize_like_opencv
from piip.heads.detection.frames import ImageFrame, Target

IGNORED = 255
LEAST_SIDE = 1.0  # pixels; smaller boxes are no objects after cropping


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
        size = self._size(original)
        image = _resized(picture, size, config.resize)
        target = resize_target(target, original, size)
        if self.train:
            if config.crop is not None:
                image, target = _cropped(image, target, config.crop)
            for chance, dimension in ((config.hflip, -1), (config.vflip, -2)):
                if random.random() < chance:
                    target = _flipped(target, image.shape[dimension], dimension)
                    image = image.flip(dimension)
            if self.jitter is not None:
                image = self.jitter(image)
        if config.reduce_zero_label and "labels" in target and target["labels"].dim() == 2:
            target = {"labels": reduce_zero_label(target["labels"])}
        assert config.mean is not None and config.std is not None  # noqa: PT018 - resolved before
        image = F.normalize(image.float() / 255, list(config.mean), list(config.std))
        frame = ImageFrame.make((image.shape[1], image.shape[2]), original=original)
        return Sample(image, frame, target, index)

    def _size(self, original: tuple[int, int]) -> tuple[int, int]:
        config = self.config
        short, jitter = config.short_side, 1.0
        if self.train:
            short = random.choice(config.train_short_sides) if config.train_short_sides else short
            jitter = random.uniform(*config.scale_jitter)
        height, width = resized_shape(original, short, config.long_side)
        return max(1, round(height * jitter)), max(1, round(width * jitter))


def _resized(picture: Image.Image, size: tuple[int, int], rule: str) -> Tensor:
    pixels = np.asarray(picture)
    if rule == "official":
        return torch.from_numpy(np.ascontiguousarray(resize_like_opencv(pixels, size))).permute(2, 0, 1)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return F.resize(image, list(size), antialias=True) if tuple(image.shape[-2:]) != size else image


def resize_target(target: Target, shape: tuple[int, int], size: tuple[int, int]) -> Target:
    """Resize a truth from an image of one (H, W) to another; masks and index maps by the nearest pixel."""
    if shape == size:
        return target
    resized = dict(target)
    if "boxes" in target:
        factor = torch.tensor([size[1] / shape[1], size[0] / shape[0]] * 2)
        resized["boxes"] = target["boxes"] * factor
    for name in ("masks", "labels"):
        if name in target and target[name].dim() > 1:
            maps = target[name] if target[name].dim() == 3 else target[name][None]
            nearest = F.resize(maps.byte(), list(size), interpolation=v2.InterpolationMode.NEAREST)
            resized[name] = nearest.to(target[name].dtype).view(*target[name].shape[:-2], *size)
    return resized


def _cropped(image: Tensor, target: Target, side: int) -> tuple[Tensor, Target]:
    height, width = min(side, image.shape[1]), min(side, image.shape[2])
    top, left = random.randint(0, image.shape[1] - height), random.randint(0, image.shape[2] - width)
    cut = dict(target)
    for name in ("masks", "labels"):
        if name in target and target[name].dim() > 1:
            cut[name] = target[name][..., top : top + height, left : left + width]
    if "boxes" in target:
        boxes = target["boxes"] - torch.tensor([left, top, left, top])
        limit = torch.tensor([width, height, width, height])
        cut["boxes"] = torch.minimum(boxes.clamp(min=0), limit)
        sides = cut["boxes"][:, 2:] - cut["boxes"][:, :2]
        kept = (sides >= LEAST_SIDE).all(1) & cut["masks"].flatten(1).any(1)
        cut = {name: values[kept] for name, values in cut.items()}
    return image[:, top : top + height, left : left + width], cut


def _flipped(target: Target, side: int, dimension: int) -> Target:
    flipped = {name: values.flip(dimension) if values.dim() > 1 else values for name, values in target.items()}
    if "boxes" in target:
        low, high = (0, 2) if dimension == -1 else (1, 3)
        boxes = target["boxes"].clone()
        boxes[:, low], boxes[:, high] = side - target["boxes"][:, high], side - target["boxes"][:, low]
        flipped["boxes"] = boxes
    return flipped


def reduce_zero_label(labels: Tensor) -> Tensor:
    """Turn 0 into 255 (ignored), every other class k into k - 1; 255 stays."""
    return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)


class PadTogether:
    """Make a batch of samples.

    Args:
        divisor: Height and width become multiples of this.
    """

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch; images are padded with zeros, index maps with 255."""
        height, width = (
            -(-max(sample.image.shape[axis] for sample in samples) // self.divisor) * self.divisor for axis in (1, 2)
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
