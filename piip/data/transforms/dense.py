"""Resizing, cropping, flipping and normalising images together with boxes, masks or index maps.

`DenseTransformConfig` imports nothing heavy, so that recipes can be read without torchvision.
"""

from __future__ import annotations

from dataclasses import dataclass

RESIZE_RULES = ("plain", "official")


@dataclass(frozen=True)
class DenseTransformConfig:
    """How a picture with its objects or its index map becomes a sample.

    Args:
        short_side: Shorter side after resizing in pixels, unless the longer one would pass `long_side`; None leaves
            sizes as they are.
        long_side: Largest longer side in pixels; None for any.
        train_short_sides: Training: sides to draw from; empty takes `short_side`.
        scale_jitter: Training: range of a further random factor on the sides (large-scale jitter is 0.1 to 2).
        cut_short_sides: Training: every other picture is first resized to one of these sides, and a random rectangle
            is cut out of it before the resizing above (as DETR does); empty cuts none.
        cut_range: Training: range of the rectangle's sides in pixels, each end at most the picture's.
        crop: Training: side of a random square cut out after resizing; None takes the whole picture.
        pad_to_crop: Training: pad smaller pictures to that square.
        crop_max_share: Training on index maps: draw up to ten squares until no class covers a larger share of one.
        hflip: Training: probability of a left-right flip.
        vflip: Training: probability of an upside-down flip.
        color_jitter: Training: range of brightness, contrast and saturation.
        photometric: Training: the stronger distortion of colours of the released segmentors, hue included.
        pad_divisor: Batches are padded at the right and bottom to a multiple of this.
        resize: "plain" (bilinear with antialiasing) or "official" (8-bit fixed point without, as the released models).
        slide_crop: Evaluation of index maps: side of overlapping windows in pixels; None takes the whole picture.
        slide_stride: Pixels from one window to the next.
        flip_test: Evaluation and prediction: also look at the flipped picture, see `piip.inference.tta`.
        test_scales: Evaluation and prediction: factors on the size that pictures are looked at with.
        reduce_zero_label: Index maps: class 0 is ignored and the others count from 0 (ADE20K).
        mean: Mean of each channel for images in [0, 1].
        std: Standard deviation of each channel for images in [0, 1].

    Raises:
        ValueError: A value outside its range.
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
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "crop", "pad_divisor", "slide_crop", "slide_stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.dense.{name} is {value}, expected pixels of at least 1.")
        for name in ("train_short_sides", "cut_short_sides", "cut_range"):
            if any(side < 1 for side in getattr(self, name)):
                raise ValueError(f"data.dense.{name} is {getattr(self, name)}, expected pixels of at least 1.")
        if self.cut_range[0] > self.cut_range[1]:
            raise ValueError(f"data.dense.cut_range is {self.cut_range}, expected a rising range.")
        if not 0 < self.crop_max_share <= 1:
            raise ValueError(f"data.dense.crop_max_share is {self.crop_max_share}, expected a share in (0, 1].")
        if self.slide_crop is not None and not 0 < (self.slide_stride or 0) <= self.slide_crop:
            raise ValueError(
                f"data.dense.slide_stride is {self.slide_stride}, expected pixels from 1 to slide_crop "
                f"({self.slide_crop}): windows must not leave gaps."
            )
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"data.dense.scale_jitter is {self.scale_jitter}, expected a rising range above 0.")
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
    """Return the size (H, W) after resizing to a shorter side without passing a longer one, rounded half up."""
    if short_side is None:
        return shape
    factor = short_side / min(shape)
    if long_side is not None:
        factor = min(factor, long_side / max(shape))
    return max(1, int(shape[0] * factor + 0.5)), max(1, int(shape[1] * factor + 0.5))
