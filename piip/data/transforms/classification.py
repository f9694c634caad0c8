"""Resizing, augmentation and normalisation of images with timm.

`TransformConfig` imports nothing heavy, so a recipe can be read without timm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from torchvision.transforms import Compose

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")
CROP_MODES = ("center", "squash", "border")
ERASE_MODES = ("const", "rand", "pixel")
POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")


@dataclass(frozen=True)
class TransformConfig:
    """How an image becomes a tensor, in training and in evaluation.

    Args:
        input_size: Side of the square output in pixels; None if another part of a recipe sets it.
        mean: Mean of each channel for images in [0, 1].
        std: Standard deviation of each channel for images in [0, 1].
        interpolation: "bilinear", "bicubic", "lanczos" or "nearest".
        crop_pct: Evaluation: output side divided by the side that the image is resized to, in (0, 1].
        crop_mode: Evaluation: "center" keeps the aspect ratio and crops, "squash" changes the ratio, "border" pads.
        scale: Training: range of the crop area as a fraction of the image area, in (0, 1].
        ratio: Training: range of the crop's aspect ratio (width over height).
        hflip: Training: probability of a horizontal flip.
        vflip: Training: probability of a vertical flip.
        auto_augment: Training: a policy in timm's notation, e.g. "rand-m9-mstd0.5-inc1"; None disables it.
        color_jitter: Training: range of brightness, contrast and saturation; ignored if `auto_augment` is given.
        reprob: Training: probability of erasing a rectangle.
        remode: Training: content of the rectangle, "const" (zero), "rand" (one colour) or "pixel" (noise).

    Raises:
        ValueError: A value is out of range.
    """

    input_size: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    auto_augment: str | None = None
    color_jitter: float = 0.0
    reprob: float = 0.0
    remode: str = "pixel"

    def __post_init__(self) -> None:
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(f"transform.input_size is {self.input_size}, expected at least 1 pixel.")
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("crop_mode", self.crop_mode, CROP_MODES)
        _one_of("remode", self.remode, ERASE_MODES)
        if self.auto_augment is not None:
            _one_of("auto_augment's first word", self.auto_augment.split("-")[0], POLICIES)
        for name, value in (("hflip", self.hflip), ("vflip", self.vflip), ("reprob", self.reprob)):
            if not 0 <= value <= 1:
                raise ValueError(f"transform.{name} is {value}, expected a probability in [0, 1].")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"transform.crop_pct is {self.crop_pct}, expected a fraction in (0, 1].")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"transform.scale is {self.scale}, expected an increasing range in (0, 1].")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"transform.ratio is {self.ratio}, expected an increasing range above 0.")
        if self.color_jitter < 0:
            raise ValueError(f"transform.color_jitter is {self.color_jitter}, expected 0 or more.")
        if min(self.std) <= 0:
            raise ValueError(f"transform.std is {self.std}, expected values above 0.")


def build_transform(config: TransformConfig, *, train: bool) -> Callable[[Image], Tensor]:
    """Return timm's transform for training or evaluation.

    The training transform draws from the global states of `random`, NumPy and torch; `ImageFolder` makes it a pure
    function of seed, epoch and index.

    Args:
        config: Settings; `input_size` must be given.
        train: Use augmentation; otherwise only resize, crop and normalise.

    Returns:
        A function from an RGB image to a float tensor (3, input_size, input_size).

    Raises:
        ValueError: `input_size` is None.
    """
    from timm.data.transforms_factory import create_transform

    if config.input_size is None:
        raise ValueError(
            "transform.input_size is None, expected pixels: set it, or use the side of the model's finest branch with "
            "dataclasses.replace(config, input_size=...)."
        )
    # timm adds a jitter of zero as a step that still draws random numbers; None leaves it out.
    jitter: Any = config.color_jitter or None
    transform: Any = create_transform(
        (3, config.input_size, config.input_size),
        is_training=train,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=jitter,
        auto_augment=config.auto_augment,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        re_prob=config.reprob,
        re_mode=config.remode,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    _allow_posterize_to_zero(transform)
    image_to_tensor: Callable[[Image], Tensor] = transform
    return image_to_tensor


def _allow_posterize_to_zero(transform: Compose) -> None:
    """Restore the old behaviour of "posterize" in timm's policies for zero bits.

    At full magnitude timm 1.0 keeps zero bits. Pillow before 13 returned a black image, Pillow 13 raises an error, for
    about one in a thousand images with "rand-m9-mstd0.5-inc1". Only the operations of this transform are changed.
    """
    from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment

    operations: list[Any] = []
    for step in transform.transforms:
        if isinstance(step, (RandAugment, AugMixAugment)):
            operations += step.ops
        elif isinstance(step, AutoAugment):
            operations += [operation for policy in step.policy for operation in policy]
    for operation in operations:
        if isinstance(operation, AugmentOp) and operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _posterize(image: Image, bits_to_keep: int, **_: object) -> Image:
    """Keep the highest bits of every channel; `_` collects the options that timm passes to all operations."""
    from PIL import Image, ImageOps

    if bits_to_keep >= 8:
        return image
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits_to_keep)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"transform.{name} is {value!r}, expected one of {', '.join(known)}.")
