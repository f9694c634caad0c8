"""Tables of the colours of classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from piip.structures import IGNORE_INDEX

IGNORE_NAME = "ignore"  # of the colour that stands for no class
LINE = re.compile(
    r"^(?P<name>.+?)[\s:,]+(?:#(?P<code>[0-9a-fA-F]{6})|(?P<rgb>\d{1,3}[\s,]+\d{1,3}[\s,]+\d{1,3}))[:\s]*\S*$"
)


@dataclass(frozen=True)
class ColorTable:
    """Colours of classes.

    Args:
        classes: Class names in order.
        codes: Colours as numbers 0xRRGGBB, increasing.
        indices: Class index of every colour, or 255.
    """

    classes: list[str]
    codes: np.ndarray
    indices: np.ndarray


def read_colors(path: Path) -> ColorTable:
    """Read a table of colours: lines "NAME R G B", "NAME #rrggbb" or "NAME:R,G,B::"; # at the start is a comment.

    Lines of one name are one class; the name "ignore" stands for no class (255).

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing, or a line is not a colour or repeats one.
    """
    if not path.is_file():
        raise ValueError(f"There is no table of colours {str(path)!r}, expected lines NAME R G B or NAME #rrggbb.")
    classes: list[str] = []
    found: dict[int, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.match(line.strip())
        parts = [int(part) for part in re.findall(r"\d+", match["rgb"] or "")] if match else []
        if match is None or any(part > 255 for part in parts):
            raise ValueError(f"{path} line {number} is {line!r}, expected NAME R G B (0 to 255) or NAME #rrggbb.")
        code = int(match["code"], 16) if match["code"] else (parts[0] << 16) + (parts[1] << 8) + parts[2]
        name = match["name"].strip()
        if code in found:
            raise ValueError(f"{path} line {number} repeats the colour #{code:06x}, expected one class per colour.")
        if name not in (*classes, IGNORE_NAME):
            classes.append(name)
        found[code] = IGNORE_INDEX if name == IGNORE_NAME else classes.index(name)
    if not classes or len(classes) > IGNORE_INDEX:
        raise ValueError(f"{path} has {len(classes)} classes, expected 1 to {IGNORE_INDEX} lines NAME R G B.")
    codes = sorted(found)
    return ColorTable(classes, np.array(codes), np.array([found[code] for code in codes], np.uint8))
