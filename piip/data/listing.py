"""Image files below folders: links are followed, hidden files are passed over, other files are counted."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from piip.data.findings import Findings
from piip.data.image_tables import is_row, is_table, table_rows

# Formats that Pillow only identifies, or that need another program.
WITHOUT_PIXELS = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow reads, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN and name not in WITHOUT_PIXELS)


def is_image_file(path: str | Path) -> bool:
    """Return whether a file is an image by its suffix, or by its first bytes if it has no suffix."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix:
        return suffix in image_suffixes()
    try:
        with Image.open(path) as image:
            return image.format not in WITHOUT_PIXELS
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return False


def walk_files(folder: Path, findings: Findings) -> Iterator[Path]:
    """Yield the files below a folder, also behind symbolic links, each folder once.

    Names that start with a dot (such as .ipynb_checkpoints) and __MACOSX are passed over.

    Args:
        folder: The folder.
        findings: Gets a note about links that lead in a circle or nowhere.
    """
    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        entered = []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            real = os.path.realpath(path)
            if name.startswith(".") or name == "__MACOSX":
                continue
            if os.path.islink(path) and real in seen:
                findings.note("links to a folder that is already in the list are not followed", path)
                continue
            seen.add(real)
            entered.append(name)
        folders[:] = entered
        for name in files:
            path = os.path.join(parent, name)
            if name.startswith("."):
                continue
            if not os.path.exists(path):
                findings.note("links that lead nowhere are left out", path)
                continue
            yield Path(path)


def list_images(folder: Path, findings: Findings) -> list[Path]:
    """Return the images below a folder, sorted.

    Args:
        folder: The folder.
        findings: Gets notes about files that are left out.
    """
    images = []
    for path in walk_files(folder, findings):
        if is_image_file(path):
            images.append(path)
        else:
            findings.note("files without the suffix of an image are left out", path.name)
    return sorted(images)


def find_images(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the image files that match files, folders and shell patterns; what is left out is logged.

    Args:
        patterns: Files (of any name), folders (searched recursively) or patterns such as "in/**/*.png", or one of them.
            A Parquet file stands for its rows, `FILE.parquet#ROW`.

    Raises:
        ValueError: A pattern matches no image.
    """
    if isinstance(patterns, (str, Path)):
        patterns = [patterns]
    found: dict[Path, None] = {}
    for pattern in patterns:
        path, findings = Path(pattern), Findings(pattern)
        if is_row(path) or path.is_file():
            matches = _expand([path])
        elif path.is_dir():
            matches = list_images(path, findings)
        else:
            names = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
            matches = _expand(sorted(name for name in names if name.is_file() and _is_wanted(name)))
        findings.log()
        if not matches:
            raise ValueError(f"{str(pattern)!r} is not an image file, or a folder or pattern with images.")
        found |= dict.fromkeys(matches)
    return list(found)


def _is_wanted(path: Path) -> bool:
    return is_table(path) or is_image_file(path)


def _expand(files: Iterable[Path]) -> list[Path]:
    """Return the files, with the rows of Parquet files in their place."""
    return [image for path in files for image in (table_rows(path) if is_table(path) else [path])]
