"""Check of every file of a data set before a long run: faults are found in minutes, not in the second epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from piip.data.findings import Findings, Inspection, shorten
from piip.data.labelled_images import ADVICE

SECONDS_BETWEEN_LINES = 10.0


class Inspectable(Protocol):
    """A data set whose samples can be inspected without preparing them."""

    root: Any
    on_error: str

    def __len__(self) -> int:
        """Return the number of samples."""

    def inspect(self, index: int) -> Inspection:
        """Return what can be seen of a sample."""

    def judge(self, inspections: Sequence[Inspection]) -> Findings:
        """Return what all inspections of a split mean together."""

    def mark_unreadable(self, index: int) -> None:
        """Skip a sample without reading it again."""


def check_splits(splits: Sequence[Inspectable], *, workers: int = 1, show: bool = True) -> None:
    """Inspect every sample of the splits; log what is skipped and what looks odd.

    Args:
        splits: Training and validation images.
        workers: Files read at the same time, at least 1.
        show: Print progress to stderr if the check takes long.

    Raises:
        ValueError: Files cannot be used and are not to be skipped, or a split has nothing to learn; the message lists
            the first ten of all splits.
    """
    found: list[str] = []
    broken_files = 0
    total = sum(len(split) for split in splits)
    clock = _Clock(total, show=show)
    for split in splits:
        broken, findings = inspect_split(split, workers=workers, clock=clock)
        if split.on_error == "stop":
            found += broken.values()
            broken_files += len(broken)
        else:
            for index, problem in broken.items():
                split.mark_unreadable(index)
                findings.note("samples that cannot be used are skipped", problem)
        found += [f"{findings.source}: {problem}" for problem in findings.problems]
        findings.log()
    advice = f" {ADVICE}" if broken_files else ""
    if len(found) == 1:
        raise ValueError(f"{found[0]}.{advice}")
    if found:
        raise ValueError(f"{len(found)} problems in {total} images: {shorten(found, separator='; ')}.{advice}")


def inspect_split(
    split: Inspectable, *, workers: int = 1, clock: _Clock | None = None
) -> tuple[dict[int, str], Findings]:
    """Return the problem of every sample that has one, and what all samples mean together.

    Args:
        split: The images.
        workers: Files read at the same time, at least 1.
        clock: Prints progress; None prints none.
    """
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        seen = pool.map(split.inspect, range(len(split)))
        inspections = list(seen if clock is None else clock.counted(seen))
    broken = {index: each.problem for index, each in enumerate(inspections) if each.problem}
    return broken, split.judge(inspections)


class _Clock:
    """Prints the number of checked images at intervals."""

    def __init__(self, total: int, *, show: bool) -> None:
        self.total, self.show = total, show
        self._count, self._printed = 0, time.monotonic()

    def counted(self, inspections: Iterator[Inspection]) -> Iterator[Inspection]:
        for inspection in inspections:
            yield inspection
            self._count += 1
            if self.show and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
                self._printed = time.monotonic()
                print(f"checked {self._count}/{self.total} images", file=sys.stderr, flush=True)
