"""Atomic writing of exported files: no incomplete file remains if the program ends early."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DESCRIPTION = ".json"  # added to the name of the file that it describes


def writable_path(out: str | Path, suffix: str, format: str) -> Path:
    """Return the path of a file to write, and create its folder.

    Args:
        out: The requested path.
        suffix: Required suffix.
        format: Name of the format, for messages.

    Raises:
        ValueError: The suffix is wrong, or the path is not writable.
    """
    path = Path(out)
    if path.suffix != suffix:
        raise ValueError(f"out is {str(out)!r}, expected a file ending in {suffix} for the format {format}.")
    if path.is_dir():
        raise ValueError(f"out is {str(out)!r}, which is a directory, expected a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path):
            return path
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): choose a writable directory.") from error


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Create a hidden folder next to a file for unfinished files, and remove it at the end.

    Folders of killed programs for the same file are removed too; running programs hold a lock.

    Args:
        out: The file, in an existing directory.

    Yields:
        The folder.
    """
    prefix = f".{out.name}.part-"
    for left in out.parent.glob(f"{glob.escape(prefix)}*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent) as name:
        lock = _lock(Path(name))
        try:
            yield Path(name)
        finally:
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder for the lifetime of this process; None if it is locked or locks are unsupported."""
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(place)
        return None
    return place


def keep(folder: Path, out: Path, description: Mapping[str, Any]) -> tuple[str, ...]:
    """Move finished files to the output path and write their description.

    Args:
        folder: Folder with the finished files.
        out: Path of the file to open.
        description: JSON values; the files' names are added.

    Returns:
        Their new paths: the file to open, files that belong to it, the description.
    """
    names = [out.name, *sorted({*os.listdir(folder)} - {out.name})]
    described = out.name + DESCRIPTION
    content = json.dumps({"files": names, **description}, indent=2)
    (folder / described).write_text(content + "\n", encoding="utf-8")
    for name in (*names, described):
        os.replace(folder / name, out.parent / name)
    return tuple(str(out.parent / name) for name in (*names, described))
