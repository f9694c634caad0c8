"""The order of training images: a function of seed and epoch that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Indices of one epoch, shuffled by seed and epoch alone.

    To go on in the middle of an epoch, set `start_index` to the number of samples this replica has taken from it
    (batches times batch size).

    Args:
        length: Number of samples of the data set.
        seed: Seed of the run.
        epoch: The epoch, from 0.
        start_index: Samples of this replica to leave out at the start of the epoch.
        num_replicas: Number of processes that share the data set; the first samples are repeated until every one has
            as many.
        rank: This process, from 0.

    Raises:
        ValueError: A number is outside its range.
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
        #: Samples of this replica in a whole epoch, wherever it is entered.
        self.epoch_length = -(-length // num_replicas)
        self.start_index = start_index
        self._check_start()

    def share(self, rank: int, num_replicas: int) -> None:
        """Take the part of one process, whose number may not be known when the sampler is made.

        Raises:
            ValueError: There are not as many processes as the epoch was cut for.
        """
        if num_replicas != self.num_replicas or not 0 <= rank < num_replicas:
            raise ValueError(
                f"This is process {rank} of {num_replicas}, expected one of {self.num_replicas}: do --devices and the "
                "launcher's number of processes agree, and --nodes?"
            )
        self.rank = rank

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; another than the present one starts at its first sample."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected 0 or more.")
        if epoch != self.epoch:
            self.epoch = epoch
            self.start_index = 0

    def indices(self) -> NDArray[np.int64]:
        """Return this replica's indices of the whole epoch, (epoch_length,)."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        total = self.epoch_length * self.num_replicas
        # np.resize repeats from the start where the replicas need more samples than there are.
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
                f"epoch: did the data set or the number of replicas change since the checkpoint?"
            )


class GroupedSampler(EpochSampler):
    """Indices of one epoch whose batches hold samples of one group each.

    Groups are filled up to whole batches, and processes to as many batches, by repeating samples.

    Args:
        groups: The group of every sample.
        batch_size: Samples a batch.
        seed: Seed of the run.
        num_replicas: Number of processes that share the data set.

    Source:
        mmdetection's `GroupSampler`, with groups of images wider than high and others.
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
