"""The files of a report folder: report.json, report.md, per_class.csv and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = float | int | str | None
PAGE_NAME, NUMBERS_NAME, CLASSES_NAME = "report.md", "report.json", "per_class.csv"


@dataclass(frozen=True)
class Page:
    """What a report says.

    Args:
        title: Its headline.
        facts: What was measured, and how: lines of the page's head.
        scores: Rows of the table of headline figures, all with the same columns; None where there is nothing to count.
        classes: One row a class, all with the same columns, the first of which is "class".
        numbers: Content of report.json.
        pictures: What draws a picture into a file, by the file's name, in the order of the page.
    """

    title: str
    facts: Mapping[str, Value]
    scores: Sequence[Mapping[str, Value]]
    classes: Sequence[Mapping[str, Value]]
    numbers: Mapping[str, Any]
    pictures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def write_page(page: Page, out: str | Path) -> Path:
    """Write a report folder; files of the same names are replaced.

    Args:
        page: What it says.
        out: The folder.

    Returns:
        The page for people, report.md.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NUMBERS_NAME).write_text(json.dumps(page.numbers, indent=1) + "\n", encoding="utf-8")
    columns = list(page.classes[0])
    with (folder / CLASSES_NAME).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if value is None else value for value in row.values()] for row in page.classes])
    for name, draw in page.pictures.items():
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
        *(f"![{name}]({name})" for name in page.pictures),
        "## Classes",
        _table(page.classes),
        f"The same numbers for programs: [{NUMBERS_NAME}]({NUMBERS_NAME}), [{CLASSES_NAME}]({CLASSES_NAME}).",
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Value]]) -> str:
    columns = list(rows[0])
    lines = [_line(columns), _line(["---"] + ["---:"] * (len(columns) - 1))]
    return "\n".join([*lines, *(_line([shown(value) for value in row.values()]) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(value: Value) -> str:
    """Return a value of a table: shares with four digits, "-" where there is nothing to count."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
