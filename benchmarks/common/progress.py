"""Saying what a long program is at, and keeping what it has measured: one that is stopped leaves its rows."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()


def say(text: str) -> None:
    """Print a line to stderr, with the time since the start."""
    minutes, seconds = divmod(int(time.monotonic() - STARTED), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)


def save(content: Any, path: Path) -> None:
    """Write JSON; a reader, or a program killed meanwhile, finds the whole file of before or of after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


class Results:
    """Rows of a program, saved after each; a new run starts anew.

    Args:
        path: JSON with `facts`, "complete" and "rows".
        facts: What holds for all rows.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.by_key: dict[Any, dict[str, Any]] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which they came."""
        return [*self.by_key.values()]

    def put(self, key: Any, row: dict[str, Any]) -> None:
        """Add the row of a key, or put it in the place of an earlier one, and save all."""
        self.by_key[key] = row
        self.write(complete=False)

    def write(self, *, complete: bool = True) -> None:
        """Save all rows, at the end as complete."""
        save({**self.facts, "complete": complete, "rows": self.rows}, self.path)
