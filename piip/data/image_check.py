"""Check of every image file before a long run, so broken files are found in minutes instead of in the second epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from piip.data.image_folder import ADVICE, BROKEN_IMAGE, NAMES_SHOWN

SECONDS_BETWEEN_LINES = 10.0


def check_images(paths: Sequence[Path], *, workers: int = 1, show: bool = True) -> None:
    """Open every file and verify it without decoding pixels.

    A truncated JPEG passes, because its header is intact.

    Args:
        paths: The files.
        workers: Files read at the same time, at least 1.
        show: Print progress to stderr if the check takes long.

    Raises:
        ValueError: Some files cannot be opened; the message lists them.
    """
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        problems = pool.map(_problem, paths)
        found = [problem for problem in _counted(problems, len(paths), show=show) if problem]
    if found:
        more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
        names = ", ".join(found[:NAMES_SHOWN]) + more
        raise ValueError(f"{len(found)} of {len(paths)} images cannot be opened: {names}. {ADVICE}")


def _problem(path: Path) -> str:
    try:
        with Image.open(path) as image:
            image.verify()
    except BROKEN_IMAGE as error:
        return f"{path} ({type(error).__name__})"
    return ""


def _counted(problems: Iterator[str], total: int, *, show: bool) -> Iterator[str]:
    """Yield the problems and print progress at intervals."""
    printed = time.monotonic()
    for count, problem in enumerate(problems, start=1):
        yield problem
        if show and time.monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            print(f"checked {count}/{total} images", file=sys.stderr, flush=True)
