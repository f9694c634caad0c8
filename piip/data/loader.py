"""Loaders of a training run; the training loader can be left and entered in the middle of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from piip.data.image_folder import EpochSampler, ImageFolder
from piip.data.transforms import TransformConfig, build_transform


class ResumableLoader(DataLoader):
    """Training batches whose position is part of a checkpoint.

    Lightning stores `state_dict()` with its loops and calls the sampler's `set_epoch` before every epoch. The first
    batch of an iterator, not its creation, fixes epoch and position, because Lightning makes the first iterator
    before it sets the epoch.

    Args:
        images: Told the epoch before its images are read.
        order: Order of the images, a function of seed and epoch.
        batch_size: Images a batch; an incomplete last batch is dropped.
        workers: Reading processes; 0 reads in this process.
    """

    def __init__(self, images: ImageFolder, order: EpochSampler, *, batch_size: int, workers: int) -> None:
        super().__init__(images, batch_size=batch_size, sampler=order, num_workers=workers, drop_last=True)
        self.images = images
        self.order = order
        self.images_a_batch = batch_size
        self._batches = 0
        self._skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch from the stored position."""
        self._batches, self._skip = self._skip, 0
        self.images.set_epoch(self.order.epoch)
        self.order.start_index = self._batches * self.images_a_batch
        for batch in super().__iter__():
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches taken from this epoch."""
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Enter the next epoch after `batches` batches."""
        self._skip = state["batches"]


@dataclasses.dataclass(frozen=True)
class Loaders:
    """What a run reads.

    Args:
        train: Batches of images (B, 3, H, W) and labels (B,), in the order of (seed, epoch).
        val: All validation images once, in order.
        classes: Names of the classes, in the order of the labels.
        transform: Resolved image transform.
    """

    train: ResumableLoader
    val: DataLoader
    classes: list[str]
    transform: TransformConfig


def class_names(folder: Path) -> list[str]:
    """Return the sorted names of a split's class folders.

    Raises:
        ValueError: The split does not exist or has no class folder.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise ValueError(f"There are no class folders in {folder}, expected {folder}/CLASS/IMAGE.")
    return classes


def open_loaders(
    train: Path,
    val: Path,
    *,
    transform: TransformConfig,
    batch_size: int,
    workers: int,
    on_error: str,
    seed: int,
    replicas: int = 1,
) -> Loaders:
    """Open both splits.

    Args:
        train: Folder with one folder a class.
        val: The same, with the same classes.
        transform: Resolved image transform.
        batch_size: Images a batch and process.
        workers: Reading processes a loader.
        on_error: "stop" or "skip" at unreadable images.
        seed: Of data order and augmentation.
        replicas: Processes that share the training images.

    Raises:
        ValueError: A split is missing, its classes differ, or there are fewer images than one batch.
    """
    classes = class_names(train)
    images = ImageFolder(train, transform=build_transform(transform, train=True), seed=seed, on_error=on_error)
    val_images = ImageFolder(
        val, transform=build_transform(transform, train=False), on_error=on_error, expected_classes=classes
    )
    order = EpochSampler(len(images), seed=seed, epoch=0, num_replicas=replicas)
    loader = ResumableLoader(images, order, batch_size=batch_size, workers=workers)
    if len(loader) == 0:
        raise ValueError(
            f"{train} has {len(images)} images, expected at least one batch of {batch_size} "
            f"in each of {replicas} processes. Lower data.batch_size."
        )
    return Loaders(loader, DataLoader(val_images, batch_size=batch_size, num_workers=workers), classes, transform)
