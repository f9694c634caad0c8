"""Order of training images as a function of seed and epoch, which can start at any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled by seed and epoch only.

    To resume in the middle of an epoch, set `start_index` to the number of samples that this replica has used
    (batches times batch size).

    Args:
        length: Number of samples of the data set.
        seed: Seed of the run.
        epoch: The epoch, from 0.
        start_index: Samples of this replica to skip at the start of the epoch.
        num_replicas: Number of processes that share the data set; the first samples are repeated until all have the
            same number.
        rank: Index of this process, from 0.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        epoch: int = 0,
        start_index: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, expected at least one sample.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank is {rank}, expected 0 to {num_replicas - 1} (num_replicas - 1).")
        if seed < 0 or epoch < 0:
            raise ValueError(f"seed is {seed} and epoch {epoch}, expected 0 or more.")
        self.length = length
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = epoch
        #: Samples of this replica in a whole epoch, regardless of the start.
        self.epoch_length = -(-length // num_replicas)
        self.start_index = start_index
        self._check_start()

    def share(self, rank: int, num_replicas: int) -> None:
        """Select the samples of one process, whose rank may be unknown at construction.

        Raises:
            ValueError: The number of processes differs from `num_replicas`.
        """
        if num_replicas != self.num_replicas or not 0 <= rank < num_replicas:
            raise ValueError(
                f"This is process {rank} of {num_replicas}, expected one of {self.num_replicas}: do --devices and the "
                "launcher's number of processes agree, and --nodes?"
            )
        self.rank = rank

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; a new epoch starts at its first sample."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected 0 or more.")
        if epoch != self.epoch:
            self.epoch = epoch
            self.start_index = 0

    def indices(self) -> NDArray[np.int64]:
        """Return this replica's indices of the whole epoch, (epoch_length,)."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        total = self.epoch_length * self.num_replicas
        # np.resize repeats from the start if the replicas need more samples than there are.
        return np.resize(order, total)[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        """Return the indices from `start_index` on."""
        self._check_start()
        remaining: list[int] = self.indices()[self.start_index :].tolist()
        return iter(remaining)

    def __len__(self) -> int:
        """Return the number of indices from `start_index` on."""
        return self.epoch_length - self.start_index

    def _check_start(self) -> None:
        if not 0 <= self.start_index <= self.epoch_length:
            raise ValueError(
                f"start_index is {self.start_index}, expected 0 to {self.epoch_length}, the samples of this replica's "
                f"epoch: did the data set or number of replicas change since the checkpoint?"
            )


class GroupedSampler(EpochSampler):
    """Indices of one epoch; each batch contains samples of one group.

    Samples are repeated so that groups consist of whole batches and all processes have the same number of batches.

    Args:
        groups: The group of every sample.
        batch_size: Samples per batch.
        seed: Seed of the run.
        num_replicas: Number of processes that share the data set.

    Source:
        mmdetection's `GroupSampler`, with a group of wide images and a group of all others.
    """

    def __init__(self, groups: Sequence[int], *, batch_size: int, seed: int, num_replicas: int = 1) -> None:
        super().__init__(len(groups), seed=seed, num_replicas=num_replicas)
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        batches = sum(-(-count // batch_size) for count in np.unique(self.groups, return_counts=True)[1].tolist())
        self.epoch_length = -(-batches // num_replicas) * batch_size

    def indices(self) -> NDArray[np.int64]:
        """Return this replica's indices of the whole epoch, (epoch_length,), batch after batch."""
        generator = np.random.default_rng([self.seed, self.epoch])
        batches: list[NDArray[np.int64]] = []
        for group in np.unique(self.groups):
            members = generator.permutation(np.flatnonzero(self.groups == group))
            whole = np.resize(members, -(-len(members) // self.batch_size) * self.batch_size)
            batches += list(whole.reshape(-1, self.batch_size))
        order = generator.permutation(len(batches))
        total = self.epoch_length // self.batch_size * self.num_replicas
        mine = np.resize(order, total)[self.rank :: self.num_replicas]
        return np.concatenate([batches[place] for place in mine])
