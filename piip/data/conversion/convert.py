"""Convert a data set: choose the reader, write the result in one piece."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.data.conversion.coco_files import write_coco
from piip.data.conversion.color_masks import write_masks
from piip.data.conversion.file_per_image import read_labelme, read_voc
from piip.data.conversion.guess import guess_format
from piip.data.conversion.other_formats import read_by_name, read_cvat
from piip.data.conversion.source import NO_SPLIT, LeftOut, Source
from piip.data.conversion.yolo import read_yolo

MASKS = "masks"
READERS: dict[str, Callable[[Path], Source]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
}


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Args:
        format: Name of the source's format.
        is_guessed: Whether it was guessed.
        report: "splits" with counts by name, and "classes" with objects (or pixels) by name.
        left_out: What is not in the output.
        notes: Lines for users on what was assumed.
    """

    format: str
    is_guessed: bool
    report: dict[str, Any]
    left_out: LeftOut
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        left_out = {
            reason: {"count": count, "first": self.left_out.names[reason]}
            for reason, count in self.left_out.counts.items()
        }
        return {
            "format": self.format,
            "is_guessed": self.is_guessed,
            **self.report,
            "left_out": left_out,
            "notes": self.notes,
        }


def convert_dataset(
    root: Path,
    out: Path,
    *,
    name: str | None = None,
    images: Path | None = None,
    colors: Path | None = None,
    link: bool = False,
) -> Conversion:
    """Convert a data set of another tool to COCO files, or to masks of class indices.

    Args:
        root: Folder of the data set.
        out: New or empty folder; it is complete, or not there.
        name: Its format; None guesses it.
        images: For masks: folder of images.
        colors: For masks: table of colours.
        link: Link to the images instead of copying them.

    Raises:
        ValueError: Folders are missing or not empty, options do not fit the format, or the data set is damaged.
    """
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}, expected the folder of a data set.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another one.")
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} is inside {root}, whose files are read: choose a folder outside it.")
    chosen = name or (MASKS if colors is not None else guess_format(root))
    if chosen != MASKS and (colors is not None or images is not None):
        raise ValueError(f"--colors and --images are for masks, not for the format {chosen}: leave them out.")
    partial = out.absolute().with_name(f".{out.absolute().name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        if chosen == MASKS:
            report, left_out, notes = write_masks(root, partial, images=images, colors=colors, link=link)
        else:
            source = READERS[chosen](root) if chosen in READERS else read_by_name(root, chosen)
            report = write_coco(source, partial, link=link)
            left_out, notes = source.left_out, list(source.notes)
        if out.exists():
            out.rmdir()  # it is empty
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if NO_SPLIT in report["splits"]:
        notes = [*notes, f"images without a split (train, val, test) are in the split {NO_SPLIT!r}"]
    return Conversion(chosen, name is None, report, left_out, notes)
