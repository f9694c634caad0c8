"""Finding the image files that an annotation file names, although its paths were written on another machine."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from piip.data.findings import Findings


def locate_images(folder: Path, names: Sequence[str], findings: Findings) -> list[Path | None]:
    """Return the file of every name, None where there is none.

    A name that is not a file below the folder is matched without regard to backslashes, URLs, directories in front of
    it and the two forms of Unicode; it must then fit exactly one file.

    Args:
        folder: Folder of the images.
        names: Paths as written in the annotation file.
        findings: Gets a note about names that differ.
    """
    found: list[Path | None] = []
    index: dict[str, Path | None] | None = None
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):  # False, not an error, for names that no file can have
            found.append(Path(path))
            continue
        index = _endings(folder) if index is None else index
        match = next((index[ending] for ending in _ends(_plain(name)) if ending in index), None)
        if match is not None:
            findings.note("images are found under another path than the file has", f"{name} -> {match}")
        found.append(match)
    return found


def _plain(name: str) -> str:
    """Return a path with forward slashes, without the query of a URL, in composed Unicode."""
    if "://" in name:
        name = unquote(urlsplit(name).path)
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _ends(path: str) -> Iterator[str]:
    """Yield a relative path without its first 0, 1, 2, ... directories."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


def _endings(folder: Path) -> dict[str, Path | None]:
    """Return the files below a folder by each end of their path; None for ends that several files share."""
    index: dict[str, Path | None] = {}
    for parent, _, files in os.walk(folder, followlinks=False):
        for file in files:
            path = Path(parent, file)
            for ending in _ends(_plain(path.relative_to(folder).as_posix())):
                index[ending] = None if ending in index else path
    return index
