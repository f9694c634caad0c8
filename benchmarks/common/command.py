"""What the command lines of the benchmarks have in common, and the file they write."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.measuring import DTYPES, machine


def command_line(text: str | None, *, repeats: int, out: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        text: The help text.
        repeats: How often to measure by default.
        out: Where to write by default.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, and take the threads it asks for."""
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    """Write what was measured as JSON, and return where and when that was."""
    facts = machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    return facts
