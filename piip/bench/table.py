"""Rows of measurements as a table for the terminal or for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

SINGLES = {"b": "ViT-B", "l": "ViT-L", "cb": "ConvNeXt-B", "6b": "InternViT-6B"}
FAMILIES = {"v": "ViT", "c": "ConvNeXt"}
USUAL_PRETRAINING = ("deit3", "convnext", "convnext_deit3", "convnext_deit", "mae_internvl", "internvl")
NAME = re.compile(
    r"(?:piip|single)_(?P<networks>\w+?)_(?P<sizes>\d{3,4}(?:_\d{3,4})*)\.(?P<start>\w+?)"
    r"(?:_(?:coco|ade20k|in1k)(?:_mask_rcnn|_dino|_upernet)?(?:_(?P<variant>\w+))?)?$"
)
COLUMNS = ("size", "GMACs", "s", "median", "first", "peak GB", "launches", "syncs", "accuracy", "time per MAC")


def label(name: str) -> str:
    """Return a short label of a model: "PIIP-TSB 1120/896/448", "ViT-B 1024", or the end of its path.

    Args:
        name: A model's name, recipe or directory.
    """
    found = NAME.match(name)
    if found is None:
        return "/".join(Path(name).parts[-2:])
    networks, sizes, start = found["networks"], found["sizes"].replace("_", "/"), found["start"]
    notes = [word for word in (start, found["variant"]) if word and word not in USUAL_PRETRAINING]
    note = f" ({', '.join(notes)})" if notes else ""
    if name.startswith("single"):
        return f"{SINGLES[networks]} {sizes}{note}"
    hybrid = [f"{FAMILIES[part[0]]}-{part[1].upper()}" for part in networks.split("_") if part[0] in FAMILIES]
    return f"PIIP {', '.join(hybrid)} {sizes}{note}" if hybrid else f"PIIP-{networks.upper()} {sizes}{note}"


def cells(row: dict[str, Any]) -> list[str]:
    """Return the numbers of a row as text, in the order of `COLUMNS`; empty where there is none.

    Args:
        row: One model of a `BenchReport`.
    """
    shown = [
        (row["macs"] / 1e9, ".0f" if row["macs"] > 1e10 else ".2f"),
        *((row.get(key), ".3g") for key in ("seconds", "median_seconds", "first_seconds")),
        (row["peak_bytes"] and row["peak_bytes"] / 1e9, ".2f"),
        *((row[key], "d") for key in ("launches", "syncs")),
        (row["accuracy"], ".1f"),
        (row["time_per_mac_ratio"], ".2f"),
    ]
    size = "x".join(map(str, row["image_size"]))
    return [size, *("" if value is None else format(value, kind) for value, kind in shown)]


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Lay out rows for the terminal.

    Args:
        rows: Models of a `BenchReport`.
        title: Text above the table.
    """
    shown = Table("model", "dtype", title=title)
    for column in COLUMNS:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(label(row["name"]), row["dtype"], *cells(row))
    return shown


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out rows as a Markdown table.

    Args:
        rows: Models of a `BenchReport`.
    """
    lines = [f"| model | dtype | {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {label(row['name'])} | {row['dtype']} | {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"
