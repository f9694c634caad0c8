"""The README's code runs and prints what it says; commands that cannot run here at least exist."""

from __future__ import annotations

import shlex
import sys

import pytest
from pages import ROOT, Block, read_blocks
from processes import succeed

from piip.cli import COMMANDS

README = ROOT / "README.md"
BLOCKS = read_blocks(README.read_text(encoding="utf-8"))
PYTHON = [block for block in BLOCKS if block.language == "python" and block.runs]
COMMAND_LINES = [
    (line.split(" #")[0].strip(), block.runs)
    for block in BLOCKS
    if block.language == "sh"
    for line in block.code.splitlines()
]


def run(arguments: list[str]) -> str:
    return succeed(sys.executable, *arguments, cwd=ROOT)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.code.splitlines()[-1][:40])
def test_python_runs(block: Block) -> None:
    printed = run(["-W", "error", "-c", block.code])
    if block.output:
        assert printed == block.output


@pytest.mark.parametrize("line", [line for line, runs in COMMAND_LINES if runs])
def test_commands_run(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "piip"
    assert run(["-m", "piip", *arguments])


@pytest.mark.parametrize("line", [line for line, _ in COMMAND_LINES])
def test_commands_exist(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif program == "pip":
        assert arguments[0] == "install"
    elif arguments != ["--help"]:
        assert program == "piip"
        assert arguments[0] in COMMANDS
    for argument in arguments:
        assert not argument.endswith(".yaml") or (ROOT / argument).is_file()


def test_example_is_ten_lines() -> None:
    example = next(block for block in BLOCKS if block.language == "python")
    assert len([line for line in example.code.splitlines() if line.strip()]) <= 10


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 2
    assert any(runs for _, runs in COMMAND_LINES)
