"""The table of data formats: how each one opens its splits, prepares samples and collates batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.data.coco import CocoInstances
from piip.data.collate import DenseTransform, PadTogether
from piip.data.config import DataConfig
from piip.data.dense_images import DenseImages
from piip.data.image_folder import ImageFolder
from piip.data.semantic_masks import SemanticMasks
from piip.data.transforms.classification import build_transform
from piip.kinds import DATA_KINDS, DataFacts
from piip.tables import Table

Images = ImageFolder | DenseImages
Collate = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class DataFormat:
    """Functions of a data format that training uses.

    Args:
        open: The section `data`, the run's seed and the number of classes (None if the data set defines it) -> training
            and validation images, without transforms. Raises ValueError if a split is missing or empty, or the
            validation split has other classes.
        prepare: Section and whether it is the training split -> the transform of its images.
        collate: Section and whether it is the training split -> the collate function, None for PyTorch's default.
        input_facts: Section -> image preparation that prediction needs; saved in `config.json`.
    """

    open: Callable[[DataConfig, int, int | None], tuple[Images, Images]]
    prepare: Callable[[DataConfig, bool], Any]
    collate: Callable[[DataConfig, bool], Collate | None]
    input_facts: Callable[[DataConfig], dict[str, Any]]


def _open_folder(data: DataConfig, seed: int, num_classes: int | None) -> tuple[Images, Images]:
    root, on_error = Path(data.root), data.on_error
    train = ImageFolder(root / data.train, seed=seed, on_error=on_error)
    return train, ImageFolder(root / data.val, on_error=on_error, expected_classes=train.classes)


def _open_coco(data: DataConfig, seed: int, num_classes: int | None) -> tuple[Images, Images]:
    root, on_error = Path(data.root), data.on_error
    train = CocoInstances(root / data.train, root / data.train_images, train=True, seed=seed, on_error=on_error)
    val_images = root / data.val_images
    return train, CocoInstances(root / data.val, val_images, on_error=on_error, expected_classes=train.classes)


def _open_masks(data: DataConfig, seed: int, num_classes: int | None) -> tuple[Images, Images]:
    root = Path(data.root)
    options: dict[str, Any] = {"num_classes": num_classes, "on_error": data.on_error}
    train = SemanticMasks(root / data.train, root / data.train_images, seed=seed, **options)
    val_images = root / data.val_images
    return train, SemanticMasks(root / data.val, val_images, expected_classes=train.classes, **options)


def _prepare_dense(data: DataConfig, train: bool) -> DenseTransform:
    return DenseTransform(data.dense, train=train)


def _pad_together(data: DataConfig, train: bool) -> PadTogether:
    dense = data.dense
    return PadTogether(dense.pad_divisor, min_side=dense.crop if train and dense.pad_to_crop and dense.crop else 1)


def _dense_facts(data: DataConfig) -> dict[str, Any]:
    return {"dense": dataclasses.asdict(data.dense), "detections": list(data.max_detections)}


# By `data.kind`; `register` adds a format (docs/extending.md).
DATA_FORMATS: Table[DataFormat, DataFacts] = Table(
    "data format",
    DATA_KINDS,
    {
        "folder": DataFormat(
            _open_folder,
            prepare=lambda data, train: build_transform(data.transform, train=train),
            collate=lambda data, train: None,
            input_facts=lambda data: {"transform": dataclasses.asdict(data.transform)},
        ),
        "coco": DataFormat(_open_coco, _prepare_dense, _pad_together, _dense_facts),
        "semantic_masks": DataFormat(_open_masks, _prepare_dense, _pad_together, _dense_facts),
    },
)
