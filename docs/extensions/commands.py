"""The directive `commands`: the help of every command of `piip`, as the program prints it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from piip.cli import COMMANDS, main

WIDTH = 88  # fits beside the menu


def command_names(commands: Mapping[str, object], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, those of groups too."""
    for name, command in commands.items():
        if isinstance(command, Mapping):
            yield from command_names(command, (*before, name))
        else:
            yield (*before, name)


def help_of(*words: str) -> str:
    """Return what `piip WORDS --help` prints."""
    os.environ["COLUMNS"] = str(WIDTH)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue().rstrip()


class Commands(Directive):
    """A section for every command."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return [self._section(words) for words in command_names(COMMANDS)]

    def _section(self, words: tuple[str, ...]) -> nodes.section:
        title = " ".join(("piip", *words))
        section = nodes.section(ids=[nodes.make_id(title)], names=[title])
        self.state.document.note_explicit_target(section)
        text = help_of(*words)
        section += nodes.title(title, title)
        section += nodes.literal_block(text, text, language="text")
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
