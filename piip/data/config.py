"""The section `data` of a recipe: where the images are and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from piip.data.transforms.classification import TransformConfig
from piip.data.transforms.dense import DenseTransformConfig
from piip.fields import at_least, one_of
from piip.kinds import DATA_KINDS

ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are read.

    Args:
        kind: "folder" (ImageNet layout: one folder per split, with one folder per class), "coco" (objects in a JSON
            file) or "semantic_masks" (ADE20K layout: PNGs of class indices beside images).
        root: Folder that the other paths are relative to.
        train: Training split: its folder, its JSON file, or its folder of semantic masks.
        val: Validation split, in the same form; None trains without, unless `val_fraction` is given.
        val_fraction: Fraction of the training images to validate on instead of `val`, in [0, 1); drawn with the run's
            seed, for kind "folder" of every class.
        val_group: Regular expression on image paths; images whose matches (or first groups) are equal stay on one side
            of that split, such as "(plate[0-9]+)".
        train_images: Folder of the training split's images (coco, semantic_masks).
        val_images: Folder of the validation split's images.
        batch_size: Images per process and forward pass, at least 1 (even with mixup or cutmix).
        group_by_aspect: Make batches of wide or of tall images only, which need less padding (coco, semantic_masks).
        workers: Data loading processes; 0 loads in the training process.
        on_error: "stop" at a missing or unreadable image, or "skip" it with a warning.
        keep_empty: Also train on images without objects (coco).
        image_suffix: End of image names that masks do not share, such as "_leftImg8bit.png" (semantic_masks).
        mask_suffix: End of mask names instead, such as "_gtFine_labelIds.png" (semantic_masks).
        white_level: Value of white in images with 16 bits per channel, such as 4095; None for 65535.
        page: Page or frame of image files with several, from 0.
        transform: Resizing and augmentation for kind "folder"; `input_size` None uses the side of the finest branch.
        dense: Resizing and augmentation for the other kinds.
        max_detections: Three limits on detections per image in validation; average precision is at the last one.
    """

    kind: str = "folder"
    root: str = "data"
    train: str = "train"
    val: str | None = "val"
    val_fraction: float = 0.0
    val_group: str | None = None
    train_images: str = "images"
    val_images: str = "images"
    batch_size: int = 128
    group_by_aspect: bool = False
    workers: int = 2
    on_error: str = "stop"
    keep_empty: bool = False
    image_suffix: str = ""
    mask_suffix: str = ".png"
    white_level: int | None = None
    page: int = 0
    transform: TransformConfig = field(default_factory=TransformConfig)
    dense: DenseTransformConfig = field(default_factory=DenseTransformConfig)
    max_detections: tuple[int, int, int] = (1, 10, 100)

    def __post_init__(self) -> None:
        one_of("data.kind", self.kind, DATA_KINDS)
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.workers", self.workers, 0)
        one_of("data.on_error", self.on_error, ON_ERROR)
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"data.val_fraction is {self.val_fraction}, expected a fraction in [0, 1).")
        if self.val_group is not None and not self.val_fraction:
            raise ValueError("data.val_group has no effect without data.val_fraction: set that, or remove it.")
