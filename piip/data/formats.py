"""The table of data formats: how each one opens its splits, prepares samples and collates batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from piip.data.coco import CocoInstances
from piip.data.collate import DenseTransform, PadTogether, collate_images
from piip.data.config import DataConfig
from piip.data.dense_images import DenseImages
from piip.data.image_folder import ImageFolder
from piip.data.image_reading import ReadOptions
from piip.data.semantic_masks import SemanticMasks
from piip.data.splitting import held_out
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
            and validation images, without transforms; None if there is nothing to validate on. Raises ValueError if a
            split is missing or empty, or the validation split has other classes.
        prepare: Section and whether it is the training split -> the transform of its images.
        collate: Section and whether it is the training split -> the collate function.
        input_facts: Section -> image preparation that prediction needs; saved in `config.json`.
    """

    open: Callable[[DataConfig, int, int | None], tuple[Images, Images | None]]
    prepare: Callable[[DataConfig, bool], Any]
    collate: Callable[[DataConfig, bool], Collate | None]
    input_facts: Callable[[DataConfig], dict[str, Any]]


class _Split(NamedTuple):
    """A split to open.

    Attributes:
        labels: Its folder, JSON file, or folder of semantic masks.
        images: Folder of its images.
        seed: The run's seed.
        train: Whether it is trained on.
        classes: Class names in the order of their indices; None uses those of the split.
        num_classes: Number of classes if nothing else defines it.
    """

    labels: Path
    images: Path
    seed: int
    train: bool
    classes: Sequence[str] | None
    num_classes: int | None


def _open_splits(
    data: DataConfig,
    seed: int,
    num_classes: int | None,
    *,
    open_split: Callable[[DataConfig, _Split], Images],
    by_class: bool = False,
) -> tuple[Images, Images | None]:
    """Open both splits, or divide the training images.

    Args:
        data: The section `data`.
        seed: The run's seed.
        num_classes: Number of classes, None if the data set defines it.
        open_split: Opens one split.
        by_class: Whether `data.val_fraction` is taken of every class.
    """
    root = Path(data.root)
    first = _Split(root / data.train, root / data.train_images, seed, True, None, num_classes)
    train = open_split(data, first)
    if data.val_fraction:
        held = held_out(train.samples, data.val_fraction, seed=seed, group=data.val_group, by_class=by_class)
        val = open_split(data, first._replace(train=False, classes=train.classes))
        val.select(lambda path: path in held)
        train.select(lambda path: path not in held)
        return train, val
    if data.val is None:
        return train, None
    second = _Split(root / data.val, root / data.val_images, 0, False, train.classes, num_classes)
    return train, open_split(data, second)


def read_options(data: DataConfig) -> ReadOptions:
    """Return how image files are read."""
    return ReadOptions(data.white_level, data.page)


def _common(data: DataConfig, split: _Split) -> dict[str, Any]:
    """Return the arguments that all data sets take."""
    return {
        "seed": split.seed,
        "on_error": data.on_error,
        "expected_classes": split.classes,
        "train": split.train,
        "options": read_options(data),
    }


def _folder_split(data: DataConfig, split: _Split) -> Images:
    return ImageFolder(split.labels, **_common(data, split))


def _coco_split(data: DataConfig, split: _Split) -> Images:
    return CocoInstances(split.labels, split.images, keep_empty=data.keep_empty, **_common(data, split))


def _masks_split(data: DataConfig, split: _Split) -> Images:
    return SemanticMasks(
        split.labels,
        split.images,
        num_classes=split.num_classes,
        image_suffix=data.image_suffix,
        mask_suffix=data.mask_suffix,
        reduce_zero_label=data.dense.reduce_zero_label,
        **_common(data, split),
    )


def _prepare_dense(data: DataConfig, train: bool) -> DenseTransform:
    return DenseTransform(data.dense, train=train)


def _pad_together(data: DataConfig, train: bool) -> PadTogether:
    dense = data.dense
    return PadTogether(dense.pad_divisor, min_side=dense.crop if train and dense.pad_to_crop and dense.crop else 1)


def _reading_facts(data: DataConfig) -> dict[str, Any]:
    facts = {"white_level": data.white_level, "page": data.page, "image_suffix": data.image_suffix}
    facts |= {"mask_suffix": data.mask_suffix if data.mask_suffix != ".png" else ""}
    return {name: value for name, value in facts.items() if value}


def _dense_facts(data: DataConfig) -> dict[str, Any]:
    facts = {"dense": dataclasses.asdict(data.dense), "detections": list(data.max_detections)}
    return facts | _reading_facts(data)


# By `data.kind`; `register` adds a format (docs/extending.md).
DATA_FORMATS: Table[DataFormat, DataFacts] = Table(
    "data format",
    DATA_KINDS,
    {
        "folder": DataFormat(
            functools.partial(_open_splits, open_split=_folder_split, by_class=True),
            prepare=lambda data, train: build_transform(data.transform, train=train),
            collate=lambda data, train: collate_images,
            input_facts=lambda data: {"transform": dataclasses.asdict(data.transform), **_reading_facts(data)},
        ),
        "coco": DataFormat(
            functools.partial(_open_splits, open_split=_coco_split), _prepare_dense, _pad_together, _dense_facts
        ),
        "semantic_masks": DataFormat(
            functools.partial(_open_splits, open_split=_masks_split), _prepare_dense, _pad_together, _dense_facts
        ),
    },
)
