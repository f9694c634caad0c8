"""Resizing, cropping, flipping and normalising images together with boxes, masks or semantic masks.

`DenseTransformConfig` imports nothing heavy, so recipes can be read without torchvision.
"""

from __future__ import annotations

from dataclasses import dataclass

RESIZE_RULES = ("plain", "official")


@dataclass(frozen=True)
class DenseTransformConfig:
    """How an image and its objects or semantic mask are transformed.

    Args:
        short_side: Shorter side in pixels after resizing, reduced if the longer side would exceed `long_side`; None
            does not resize.
        long_side: Maximum longer side in pixels; None for no limit.
        train_short_sides: Training: shorter sides to draw from; empty uses `short_side`.
        scale_jitter: Training: range of an additional random factor on the sides (large-scale jitter is 0.1 to 2).
        cut_short_sides: Training: every second image is first resized to one of these shorter sides, and a random
            rectangle is cropped from it before the resizing above (as in DETR); empty disables it.
        cut_range: Training: range of the rectangle's sides in pixels, limited to the image.
        crop: Training: side of a random square crop after resizing; None uses the whole image.
        pad_to_crop: Training: pad smaller images to that square.
        crop_max_share: Training on semantic masks: draw up to ten crops until no class covers a larger fraction.
        hflip: Training: probability of a horizontal flip.
        vflip: Training: probability of a vertical flip.
        color_jitter: Training: range of brightness, contrast and saturation.
        photometric: Training: stronger colour distortion as in the released segmentors, including hue.
        pad_divisor: Batches are padded at the right and bottom to a multiple of this.
        resize: "plain" (bilinear with antialiasing) or "official" (8-bit fixed point without antialiasing, as in the
            released models).
        slide_crop: Evaluation of segmentors: side of the sliding windows in pixels; None uses the whole image.
        slide_stride: Stride of the sliding windows in pixels.
        flip_test: Test-time augmentation: also predict on the flipped image, see `piip.inference.tta`.
        test_scales: Test-time augmentation: factors on the image size.
        reduce_zero_label: Semantic masks: ignore class 0 and count the others from 0 (ADE20K).
        masks: Whether masks of objects are read; None if the head uses them.
        mean: Mean of each channel for images in [0, 1].
        std: Standard deviation of each channel for images in [0, 1].

    Raises:
        ValueError: A value is out of range.
    """

    short_side: int | None = None
    long_side: int | None = None
    train_short_sides: tuple[int, ...] = ()
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    cut_short_sides: tuple[int, ...] = ()
    cut_range: tuple[int, int] = (384, 600)
    crop: int | None = None
    pad_to_crop: bool = False
    crop_max_share: float = 1.0
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    photometric: bool = False
    pad_divisor: int = 32
    resize: str = "plain"
    slide_crop: int | None = None
    slide_stride: int | None = None
    flip_test: bool = False
    test_scales: tuple[float, ...] = (1.0,)
    reduce_zero_label: bool = False
    masks: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "crop", "pad_divisor", "slide_crop", "slide_stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.dense.{name} is {value}, expected at least 1 pixel.")
        for name in ("train_short_sides", "cut_short_sides", "cut_range"):
            if any(side < 1 for side in getattr(self, name)):
                raise ValueError(f"data.dense.{name} is {getattr(self, name)}, expected at least 1 pixel.")
        if self.cut_range[0] > self.cut_range[1]:
            raise ValueError(f"data.dense.cut_range is {self.cut_range}, expected an increasing range.")
        if not 0 < self.crop_max_share <= 1:
            raise ValueError(f"data.dense.crop_max_share is {self.crop_max_share}, expected a fraction in (0, 1].")
        if self.slide_crop is not None and not 0 < (self.slide_stride or 0) <= self.slide_crop:
            raise ValueError(
                f"data.dense.slide_stride is {self.slide_stride}, expected pixels from 1 to slide_crop "
                f"({self.slide_crop}): windows must not leave gaps."
            )
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"data.dense.scale_jitter is {self.scale_jitter}, expected an increasing range above 0.")
        for name in ("hflip", "vflip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.dense.{name} is {getattr(self, name)}, expected a probability in [0, 1].")
        if not self.test_scales or min(self.test_scales) <= 0:
            raise ValueError(
                f"data.dense.test_scales is {self.test_scales}, expected factors above 0 such as 0.75 1 1.25."
            )
        if self.color_jitter < 0:
            raise ValueError(f"data.dense.color_jitter is {self.color_jitter}, expected 0 or more.")
        if self.resize not in RESIZE_RULES:
            raise ValueError(f"data.dense.resize is {self.resize!r}, expected one of {', '.join(RESIZE_RULES)}.")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"data.dense.std is {self.std}, expected values above 0.")


def resized_shape(shape: tuple[int, int], short_side: int | None, long_side: int | None) -> tuple[int, int]:
    """Return the size (H, W) after resizing to a shorter side without exceeding a longer one, rounded half up."""
    if short_side is None:
        return shape
    factor = short_side / min(shape)
    if long_side is not None:
        factor = min(factor, long_side / max(shape))
    return max(1, int(shape[0] * factor + 0.5)), max(1, int(shape[1] * factor + 0.5))
