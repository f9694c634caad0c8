"""Training data loader that can resume in the middle of an epoch."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from piip.data.sampler import EpochSampler

SHARED_MEMORY = "/dev/shm"
BATCHES_AHEAD = 2  # of a loading process, PyTorch's default
SMALL = 1_000_000  # bytes for queues and locks


class TrainingImages(Protocol):
    """Training data set with an epoch."""

    root: Any

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the augmentation."""

    def fingerprint(self) -> str:
        """Return a short hash of the image names."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Any:
        """Return an image."""


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which reaches all processes of a terminal, to the process that trains.

    Args:
        worker: Number of the data loading process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def check_shared_memory(batch: Any, *, workers: int, folder: str = SHARED_MEMORY) -> None:
    """Raise an error if batches of loading processes do not fit into shared memory, where they would wait for ever.

    Args:
        batch: A batch as it is passed on.
        workers: Data loading processes, each of which prepares two batches ahead.
        folder: Where the system keeps shared memory.

    Raises:
        ValueError: There is too little.
    """
    if not workers or not os.path.isdir(folder):
        return
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    needed = SMALL + workers * BATCHES_AHEAD * sum(tensor.nbytes for tensor in tensors)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 1e6:.1f} MB free, {workers} loading processes need about {needed / 1e6:.1f} MB: set "
            "data.workers to 0, lower it or data.batch_size, or enlarge the shared memory (docker run --shm-size 8g)."
        )


class ResumableLoader(DataLoader[Any]):
    """Training batches whose position is part of a checkpoint.

    Lightning stores `state_dict()` with its loops and calls the sampler's `set_epoch` before every epoch. The first
    batch of an iterator, not its creation, fixes epoch and position, because Lightning makes the first iterator
    before it sets the epoch.

    Args:
        images: Data set; `set_epoch` is called before its images are read.
        order: Order of the images, a function of seed and epoch.
        batch_size: Images per batch and process; an incomplete last batch is dropped.
        workers: Data loading processes; 0 loads in this process.
        pin_memory: Pin the memory of batches, for asynchronous transfers to a GPU.
        collate: Collate function; None uses PyTorch's default.

    Raises:
        ValueError: There are fewer images than one batch.
    """

    def __init__(
        self,
        images: TrainingImages,
        order: EpochSampler,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
        collate: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(
            images,  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=True,
            pin_memory=pin_memory,
            collate_fn=collate,
            worker_init_fn=ignore_interrupts,
        )
        self.images = images
        self.order = order
        self.images_a_batch = batch_size
        self._batches = 0
        self._skip = 0
        if len(self) == 0:
            raise ValueError(
                f"{images.root} has {len(images)} images for {order.num_replicas} process(es), expected at least one "
                f"batch of {batch_size} for each. Lower data.batch_size."
            )

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, regardless of the position."""
        return self.order.epoch_length // self.images_a_batch

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
        """Start the next epoch after `batches` batches."""
        self._skip = state["batches"]

    def facts(self) -> dict[str, Any]:
        """Return the facts that determine the order of batches, apart from the recipe.

        Returns:
            "images", number of images; "replicas", number of processes; "fingerprint" of the file names.
        """
        return {
            "images": len(self.images),
            "replicas": self.order.num_replicas,
            "fingerprint": self.images.fingerprint(),
        }

    def check_facts(self, before: dict[str, Any], now: dict[str, Any] | None = None) -> None:
        """Compare with the facts of a checkpoint.

        Args:
            before: Facts of the checkpoint; facts that it lacks are not compared.
            now: Facts of this run; None uses `facts()`.

        Raises:
            ValueError: The images or the number of processes differ.
        """
        facts = self.facts() if now is None else now
        changed = [
            f"{name} {before[name]} -> {value}" for name, value in facts.items() if before.get(name, value) != value
        ]
        if changed:
            raise ValueError(
                f"The training data differ from those of the checkpoint: {', '.join(changed)} ({self.images.root}). An "
                "exact resume needs the same files and number of processes; otherwise continue by step with "
                "--resume-inexact, or choose another --out."
            )
