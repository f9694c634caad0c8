"""The files of a report folder: report.json, report.md, per_class.csv and images."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piip.output import writable_folder, write_json

Value = float | int | str | None
PAGE_NAME, NUMBERS_NAME, CLASSES_NAME = "report.md", "report.json", "per_class.csv"


@dataclass(frozen=True)
class Page:
    """Contents of a report.

    Args:
        title: Title of the page.
        facts: Settings of the evaluation, at the top of the page.
        scores: Rows of the table of scores, all with the same columns; None for undefined values.
        classes: One row per class, all with the same columns, the first of which is "class".
        numbers: Contents of report.json.
        images: Functions that draw an image to a file, by file name, in the order of the page.
    """

    title: str
    facts: Mapping[str, Value]
    scores: Sequence[Mapping[str, Value]]
    classes: Sequence[Mapping[str, Value]]
    numbers: Mapping[str, Any]
    images: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def write_page(page: Page, out: str | Path) -> Path:
    """Write a report folder; files of the same names are replaced.

    Args:
        page: Contents of the report.
        out: The folder.

    Returns:
        The path of report.md.
    """
    folder = writable_folder(out)
    write_json(page.numbers, folder / NUMBERS_NAME, indent=1)
    columns = list(page.classes[0])
    with (folder / CLASSES_NAME).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if value is None else value for value in row.values()] for row in page.classes])
    for name, draw in page.images.items():
        draw(folder / name)
    (folder / PAGE_NAME).write_text(page_text(page), encoding="utf-8")
    return folder / PAGE_NAME


def page_text(page: Page) -> str:
    """Return a page as Markdown."""
    parts = [
        f"# {page.title}",
        _table([{"what": name, "value": value} for name, value in page.facts.items()]),
        "## Scores",
        _table(page.scores),
        *(f"![{name}]({name})" for name in page.images),
        "## Classes",
        _table(page.classes),
        f"The same numbers as data: [{NUMBERS_NAME}]({NUMBERS_NAME}), [{CLASSES_NAME}]({CLASSES_NAME}).",
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Value]]) -> str:
    columns = list(rows[0])
    lines = [_line(columns), _line(["---"] + ["---:"] * (len(columns) - 1))]
    return "\n".join([*lines, *(_line([shown(value) for value in row.values()]) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(value: Value) -> str:
    """Return a table cell: fractions with four digits, "-" for undefined values."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
