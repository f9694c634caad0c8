"""What the command lines of the benchmarks have in common, and the file they write."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from common.measuring import DTYPES
from common.progress import Results
from piip.bench.machine import describe_machine, machine

KEPT = "Every row is saved once it is measured, so what was stopped leaves those it had; the next run starts anew."


def command_line(text: str | None, *, repeats: int, out: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        text: The help text.
        repeats: How often to measure by default.
        out: Where to write by default.
    """
    parser = argparse.ArgumentParser(
        description=f"{text}\n{KEPT}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
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


def results(path: Path) -> Results:
    """Return rows to be measured on this machine, now, and saved there."""
    return Results(path, {"machine": machine()})


def title(results: Results) -> str:
    """Say where and when rows were measured."""
    return describe_machine(results.facts["machine"])
