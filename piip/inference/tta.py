"""Views of a picture for test-time augmentation: several sizes, each also flipped left to right.

Classes of pixels: the mean of the views' probabilities at the picture's own size. Instances: see
`piip.heads.mask_rcnn.tta`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from PIL.Image import Image
from torch import Tensor

from piip.data.collate import Batch, DenseTransform, PadTogether
from piip.data.transforms.dense import DenseTransformConfig
from piip.heads.image_info import ImageFrame, Target
from piip.inference.sliding_window import flip_image

Probabilities = Callable[[Tensor, ImageFrame], Tensor]


class ViewTransform:
    """Prepare a picture at every size.

    Args:
        config: How it is prepared; `test_scales` are the factors on its size.
    """

    def __init__(self, config: DenseTransformConfig) -> None:
        self.config = config
        self.collate = PadTogether(config.pad_divisor)

    def __call__(self, picture: Image, _target: Target, index: int) -> list[Batch]:
        """Return a batch of one for every size; the truth stays out: it is compared at the picture's own size."""
        shape = (picture.height, picture.width)
        configs = [scaled_config(self.config, scale, shape) for scale in self.config.test_scales]
        return [self.collate([DenseTransform(config, train=False)(picture, {}, index)]) for config in configs]


def with_views(config: DenseTransformConfig, scales: Sequence[float] | None, flip: bool | None) -> DenseTransformConfig:
    """Return how pictures are prepared, with other views; None leaves what is there.

    Args:
        config: How they are prepared.
        scales: Factors on their size.
        flip: Also look at them flipped left to right.

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
    """Return how a picture of a size (H, W) is prepared for one view.

    Source: `MultiScaleFlipAug` of MMDetection 2 and MMSegmentation 0: limits on the sides are multiplied and truncated.
    By the official resize no side is shorter than a window.

    Args:
        config: How it is prepared at a scale of 1.
        scale: Factor on its size.
        shape: The picture's size.
    """
    if scale == 1:
        return config
    short = max(1, int((config.short_side or min(shape)) * scale))
    if config.resize == "official" and config.slide_crop is not None:
        short = max(short, config.slide_crop)
    long = None if config.long_side is None else max(1, int(config.long_side * scale))
    return dataclasses.replace(config, short_side=short, long_side=long)


def with_flips(batches: Sequence[Batch], *, flip: bool) -> list[tuple[Tensor, ImageFrame, bool]]:
    """Return image, frame and whether it is flipped, of every view.

    Args:
        batches: The sizes, each a batch of one.
        flip: Also the flipped images.
    """
    views = [(batch.image, batch.frames[0], False) for batch in batches]
    if flip:
        views += [(flip_image(image, frame), frame, True) for image, frame, _ in views]
    return views


def mean_probabilities(probabilities: Probabilities, views: Sequence[tuple[Tensor, ImageFrame, bool]]) -> Tensor:
    """Return the mean of the views' class probabilities (1, K, H, W) of one picture.

    Source: `aug_test` of MMSegmentation 0: the softmax comes before the mean.

    Args:
        probabilities: Image and frame -> (1, K, H, W) at the size of the picture.
        views: See `with_flips`.

    Raises:
        ValueError: There are no views.
    """
    total: Tensor | None = None
    for image, frame, flipped in views:
        answer = probabilities(image, frame)
        answer = answer.flip(-1) if flipped else answer
        total = answer if total is None else total + answer
    if total is None:
        raise ValueError("views is empty, expected at least one view of the picture.")
    return total / len(views)
