"""The command `piip`: one file per command, functions whose docstrings are the help texts.

`commands` contains the table of commands and the entry point `main`; `parser` derives arguments from signatures; `help`
adds examples. Heavy imports are inside the functions, so help is printed immediately.

A new command is a file here and one line in `commands.COMMANDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.cli.commands import COMMANDS as COMMANDS
    from piip.cli.commands import main as main

_HOMES = {"COMMANDS": "piip.cli.commands", "main": "piip.cli.commands"}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
