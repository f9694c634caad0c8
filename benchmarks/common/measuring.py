"""Fair timing on a machine that others use too: in turn, several times, the whole spread kept."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from common.progress import say

WORTH_A_LINE = 0.5  # seconds
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def in_turn(
    runs: Mapping[str, Callable[[], Any]], repeats: int, keep: Callable[[str, list[float]], None] | None = None
) -> dict[str, list[float]]:
    """Time callables one after the other, again and again; the first round warms up.

    Args:
        runs: What to time, by name.
        repeats: Rounds that count.
        keep: Called with a name and its seconds so far, after every run that counts.

    Returns:
        Seconds of every round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            took = time.perf_counter() - start
            if took > WORTH_A_LINE:
                say(f"round {round_} of {repeats}: {name} took {took:.2f} s")
            if round_:
                seconds[name].append(took)
                if keep:
                    keep(name, seconds[name])
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Return the least disturbed run and the middle one."""
    return {"min": min(seconds), "median": statistics.median(seconds)}


class PartClock:
    """Adds up seconds by part, those of a part inside another one to the inner one alone.

    Give it to `piip.cost.total.naming_parts`.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0  # seconds of parts inside the one that runs

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start, before, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] += took - self._inner
            self._inner = before + took


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
