"""Test-time augmentation: views of an image at several sizes, each also flipped left to right.

Semantic segmentation averages the probabilities of the views at the original image size. For detection see
`piip.heads.mask_rcnn.tta`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from PIL.Image import Image
from torch import Tensor

from piip.data.collate import Batch, DenseTransform, PadTogether
from piip.data.transforms.dense import DenseTransformConfig
from piip.inference.sliding_window import flip_image
from piip.structures import ImageInfo, Target

Probabilities = Callable[[Tensor, ImageInfo], Tensor]


class TTATransform:
    """Prepare an image at every size.

    Args:
        config: Image preparation; `test_scales` are the factors on the image size.
    """

    def __init__(self, config: DenseTransformConfig) -> None:
        self.config = config
        self.collate = PadTogether(config.pad_divisor)

    def __call__(self, image: Image, _target: Target, index: int) -> list[Batch]:
        """Return a batch of one image for every size, without targets, which are compared at the original size."""
        shape = (image.height, image.width)
        configs = [scaled_config(self.config, scale, shape) for scale in self.config.test_scales]
        return [self.collate([DenseTransform(config, train=False)(image, {}, index)]) for config in configs]


def with_tta(config: DenseTransformConfig, scales: Sequence[float] | None, flip: bool | None) -> DenseTransformConfig:
    """Return an image preparation with other test-time augmentation; None keeps the current setting.

    Args:
        config: Image preparation.
        scales: Factors on the image size.
        flip: Also predict on flipped images.

    Raises:
        ValueError: Scales are not above 0.
    """
    if scales is not None and (not scales or min(scales) <= 0):
        raise ValueError(f"scales is {tuple(scales)}, expected factors above 0 such as 0.75 1 1.25.")
    return dataclasses.replace(
        config,
        test_scales=config.test_scales if scales is None else tuple(scales),
        flip_test=config.flip_test if flip is None else flip,
    )


def scaled_config(config: DenseTransformConfig, scale: float, shape: tuple[int, int]) -> DenseTransformConfig:
    """Return the preparation of an image of size (H, W) for one view.

    Source: `MultiScaleFlipAug` of MMDetection 2 and MMSegmentation 0: limits on the sides are multiplied and truncated.
    With the official resize no side is shorter than a window.

    Args:
        config: Image preparation at a scale of 1.
        scale: Factor on the image size.
        shape: Image size.
    """
    if scale == 1:
        return config
    short = max(1, int((config.short_side or min(shape)) * scale))
    if config.resize == "official" and config.slide_crop is not None:
        short = max(short, config.slide_crop)
    long = None if config.long_side is None else max(1, int(config.long_side * scale))
    return dataclasses.replace(config, short_side=short, long_side=long)


def with_flips(batches: Sequence[Batch], *, flip: bool) -> list[tuple[Tensor, ImageInfo, bool]]:
    """Return image, image_info and whether it is flipped for every view.

    Args:
        batches: One batch of one image per size.
        flip: Add flipped images.
    """
    views = [(batch.image, batch.image_infos[0], False) for batch in batches]
    if flip:
        views += [(flip_image(image, image_info), image_info, True) for image, image_info, _ in views]
    return views


def mean_probabilities(probabilities: Probabilities, views: Sequence[tuple[Tensor, ImageInfo, bool]]) -> Tensor:
    """Return the class probabilities (1, K, H, W) of one image, averaged over its views.

    Source: `aug_test` of MMSegmentation 0, which applies the softmax before averaging.

    Args:
        probabilities: Image and image_info -> (1, K, H, W) at the size of the image.
        views: See `with_flips`.

    Raises:
        ValueError: There are no views.
    """
    total: Tensor | None = None
    for image, image_info, flipped in views:
        answer = probabilities(image, image_info)
        answer = answer.flip(-1) if flipped else answer
        total = answer if total is None else total + answer
    if total is None:
        raise ValueError("views is empty, expected at least one view of the image.")
    return total / len(views)
