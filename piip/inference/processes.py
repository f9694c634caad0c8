"""Work of many images shared by the processes of `torchrun`, with the results of one process.

Every process predicts its own images and sends the results to the first one, which sees all of them in order and alone
computes metrics, prints and writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed

from piip.inference.predictions import Prediction

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that share a job; by default there is only this one.

    Args:
        rank: Number of this process, from 0.
        count: Number of processes.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process gets the results."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device of this process: with several and a GPU, the one with its number."""
        is_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local_rank}" if self.count > 1 and is_gpu else name

    def own(self, total: int, *, block: int = 1) -> list[int]:
        """Return the indices of this process out of `total`: every `count`-th block of successive indices."""
        return [index for index in range(total) if self._owner(index, block) == self.rank]

    def in_order(self, found: Iterator[tuple[int, T]], total: int, *, block: int = 1) -> Iterator[tuple[int, T]]:
        """Yield the results of all processes in the first one; the others send theirs and yield nothing.

        Args:
            found: Index and result of this process's indices, in order; indices may be left out.
            total: Number of indices.
            block: As in `own`.

        Raises:
            Exception: The error of another process, in the first one.
        """
        if self.count == 1:
            yield from found
            return
        own = _by_index(found, self.own(total, block=block))
        if not self.is_first:
            for item in own:
                _send(item)
                if isinstance(item, Exception):
                    return
            return
        for index in range(total):
            owner = self._owner(index, block)
            item = next(own) if owner == 0 else _receive(owner)
            if isinstance(item, Exception):
                raise item
            if item is not None:
                yield item

    def share(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        if self.count > 1:
            box: list[Any] = [value]
            torch.distributed.broadcast_object_list(box, src=0)
            value = box[0]
        return value

    def _owner(self, index: int, block: int) -> int:
        return index // block % self.count


ALONE = Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, if it did."""
    if not torch.distributed.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    torch.distributed.init_process_group("gloo")
    try:
        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        yield Processes(rank, count, int(os.environ["LOCAL_RANK"]))
    finally:
        torch.distributed.destroy_process_group()


def shared(
    paths: Sequence[Path],
    predict: Callable[[Sequence[Path]], Iterator[Prediction]],
    processes: Processes,
    *,
    block: int = 1,
) -> Iterator[Prediction]:
    """Return the predictions for files by all processes, in order, in the first one; nothing in the others.

    Args:
        paths: The files, no two alike.
        predict: Returns the predictions for files in order; unreadable ones may be left out.
        processes: The processes.
        block: Successive files that one process predicts; its batch size, if results are to be those of one process.
    """
    if processes.count == 1:
        return predict(paths)
    indices = processes.own(len(paths), block=block)
    number = {str(paths[index]): index for index in indices}
    found = ((number[str(prediction.path)], prediction) for prediction in predict([paths[i] for i in indices]))
    return (prediction for _, prediction in processes.in_order(found, len(paths), block=block))


def _by_index(found: Iterator[tuple[int, T]], indices: Sequence[int]) -> Iterator[tuple[int, T] | Exception | None]:
    """Yield one item per index: the result with its index, None if it was left out, or the error that ended all."""
    try:
        waiting = next(found, None)
        for index in indices:
            if waiting is not None and waiting[0] == index:
                yield waiting
                waiting = next(found, None)
            else:
                yield None
    except Exception as error:  # it is raised in the first process
        yield error


def _send(item: object) -> None:
    torch.distributed.send_object_list([item], dst=0)


def _receive(rank: int) -> Any:
    box: list[Any] = [None]
    torch.distributed.recv_object_list(box, src=rank)
    return box[0]
