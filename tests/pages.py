"""Markdown pages as tests read them: blocks of code, commands, headings, links."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.cli import COMMANDS
from piip.cli.parser import run_command

ROOT = Path(__file__).resolve().parents[1]
NOT_RUN = "<!-- not run in tests: "
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        language: What stands behind the fence.
        code: Its lines.
        output: The `text` block that follows, "" if none does.
        runs: Whether no comment behind it says why it is not run.
    """

    language: str
    code: str
    output: str
    runs: bool


def read_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, those in lists too."""
    fences = list(FENCE.finditer(text))
    blocks = []
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        after = text[fence.end() : following.start() if following else None]
        has_output = following is not None and not after.strip() and following.group(2) == "text"
        output = textwrap.dedent(following.group(3)) if following and has_output else ""
        code = textwrap.dedent(fence.group(3))
        blocks.append(Block(fence.group(2), code, output, not after.lstrip().startswith(NOT_RUN)))
    return blocks


def prose(text: str) -> str:
    """Return a page without its blocks; code has subscripts that look like links."""
    return FENCE.sub("", text)


def commands(block: Block) -> list[str]:
    """Return the command lines of a block, continued ones as one, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line for line in (line.split(" #")[0].strip() for line in lines) if line]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub and the site give to the headings of a page."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(text), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in words}


def links(text: str) -> list[str]:
    """Return the targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def without_effect(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of commands with the same arguments that do nothing."""

    def idle(command: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(command)
        def do_nothing(**values: Any) -> None:
            pass

        return do_nothing

    return {name: idle(entry) if callable(entry) else without_effect(entry) for name, entry in table.items()}


def check_command(words: list[str]) -> None:
    """Parse a command line of `piip`, and do nothing.

    Raises:
        ValueError: It is wrong.
    """
    run_command(without_effect(COMMANDS), words, program="piip", description="")


def inline_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of commands in the prose of a page."""
    for code in re.findall(r"`(piip [a-z][^`]*)`", prose(text).replace("\n", " ")):
        yield shlex.split(code)[1:]
