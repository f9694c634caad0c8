"""Lists of plain values in one array, which worker processes share instead of copying."""

from __future__ import annotations

import gc
import marshal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from searching millions of plain values that are all in use."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class PackedList:
    """A read-only list whose items are stored as bytes in one array.

    Python objects are copied to every worker process as soon as it counts references to them; the pages of an array
    stay shared. Source of the idea: Yuxin Wu, "Demystify RAM usage in multi-process data loaders", 2022. `marshal` is
    twice as fast as `pickle`, and fits because the bytes never leave the program.

    Args:
        items: Values of Python's own types; they can be released afterwards.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        ends, chunks = [0], []
        for item in items:
            chunks.append(marshal.dumps(item))
            ends.append(ends[-1] + len(chunks[-1]))
        self._ends = np.array(ends, np.int64)
        self._bytes = np.frombuffer(b"".join(chunks), np.uint8)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._ends) - 1

    @property
    def nbytes(self) -> int:
        """Memory of the items."""
        return int(self._bytes.nbytes + self._ends.nbytes)

    def __getitem__(self, index: int) -> Any:
        """Return a copy of an item.

        Raises:
            IndexError: The index is outside the list.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, expected 0 to {len(self) - 1}")
        return marshal.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


class PackedSamples(Sequence[tuple[Path, int]]):
    """Paths of images with a number each, packed.

    Args:
        samples: Path and number of every image.
    """

    def __init__(self, samples: Iterable[tuple[Path, int]]) -> None:
        self._packed = PackedList((str(path), number) for path, number in samples)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> tuple[Path, int]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[Path, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Path, int] | Sequence[tuple[Path, int]]:
        """Return path and number of an image, or a list of several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        path, number = self._packed[index + len(self) if index < 0 else index]
        return Path(path), number
