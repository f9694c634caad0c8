"""A command line from a dict of functions: arguments from signatures, help from docstrings."""

from __future__ import annotations

import inspect
import re
import typing
from argparse import BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from piip.fields import CommandText, nearest_names

Command = Callable[..., Any]
CommandGroup = Mapping[str, Command]
Commands = Mapping[str, "Command | CommandGroup"]

OVERRIDES = "overrides"  # the parameter that takes dotted options


class ParagraphFormatter(DefaultHelpFormatter):
    """Separate paragraphs, and do not wrap those with indented lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        filled = [
            part if "\n  " in part else super(ParagraphFormatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        ]
        return "\n\n".join(filled)


def run_command(
    commands: Commands,
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    epilogs: Mapping[str, Callable[[], str]] | None = None,
) -> None:
    """Call the function that the command line asks for.

    Args:
        commands: Functions by name; a nested mapping is a group with commands of its own.
        argv: The command line without the program's name.
        program: The program's name.
        description: Text above the list of commands.
        epilogs: Functions that return the text below the help of a command, by its name.

    Raises:
        ValueError: The command line is invalid.
    """
    arguments, overrides = split_overrides(argv)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        raise ValueError(f"Unknown command {arguments[0]!r}. {nearest_names(arguments[0], list(commands))}")
    parser = _parser(program, description)
    called = {name: make() for name, make in (epilogs or {}).items() if arguments[:1] == [name]}
    _add_commands(parser, commands, program, called)
    try:
        values = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise ValueError(_one_line(error, [program, *arguments])) from error
    function: Any = commands
    while not callable(function):
        name = values["command"]
        function, values = function[name], values[name]
    if overrides and OVERRIDES not in inspect.signature(function).parameters:
        raise ValueError(f"This command has no option --{next(iter(overrides))}; see --help.")
    if overrides:
        values[OVERRIDES] = overrides
    function(**values)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Extract dotted options such as `--optim.lr 1e-3` or `--optim.lr=1e-3` from a command line.

    Args:
        argv: The command line.

    Returns:
        The other arguments, and the values by dotted name, still as text.

    Raises:
        ValueError: A dotted option without a value.
    """
    others: list[str] = []
    overrides: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        match = re.fullmatch(r"--([\w]+(?:\.[\w]+)+)(?:=(.*))?", word, flags=re.DOTALL)
        if match is None:
            others.append(word)
            continue
        text = match.group(2) if match.group(2) is not None else next(words, None)
        if text is None:
            raise ValueError(f"{word} has no value, expected {word} VALUE.")
        overrides[match.group(1)] = CommandText(text)
    return others, overrides


def _parser(program: str, description: str, epilog: str = "") -> ArgumentParser:
    return ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        exit_on_error=False,
        formatter_class=ParagraphFormatter,
    )


def _add_commands(parser: ArgumentParser, commands: Commands, program: str, epilogs: Mapping[str, str]) -> None:
    subcommands = parser.add_subcommands(required=True, dest="command", title="commands", metavar="COMMAND")
    for name, command in commands.items():
        if callable(command):
            subparser, text = _function(command, f"{program} {name}", epilogs.get(name, ""))
            subcommands.add_subcommand(name, subparser, help=text)
        else:
            text = "Commands: " + ", ".join(command) + "."
            group = _parser(f"{program} {name}", text)
            subcommands.add_subcommand(name, group, help=text)
            _add_commands(group, command, f"{program} {name}", {})  # a parser needs its parent first


def _function(function: Command, program: str, epilog: str) -> tuple[ArgumentParser, str]:
    """Return the parser of one function, and the first line of its help."""
    documented = parse(function.__doc__ or "")
    description = "\n\n".join(part for part in (documented.short_description, documented.long_description) if part)
    parser = _parser(program, description, epilog)
    hints, texts = typing.get_type_hints(function), documented_arguments(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name != OVERRIDES:
            _argument(parser, parameter, hints[name], texts.get(name, "").replace("%", "%%"))
    return parser, documented.short_description or ""


def _argument(parser: ArgumentParser, parameter: inspect.Parameter, kind: Any, text: str) -> None:
    """Add one parameter: keyword-only ones are options, the others positional.

    A bool becomes a flag; a bool that may be None also gets its negation.
    """
    is_option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    required = parameter.default is inspect.Parameter.empty
    name = "--" + parameter.name.replace("_", "-") if is_option else parameter.name
    options: dict[str, Any] = {"help": text, "metavar": parameter.name.upper().split("_")[-1]}
    if not required:
        options["default"] = parameter.default
    if is_option and required:
        options["required"] = True
    if type(None) in typing.get_args(kind):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    inner, origin = typing.get_args(kind), typing.get_origin(kind)
    if kind is bool and parameter.default is None:
        parser.add_argument(name, action=BooleanOptionalAction, default=None, help=text)
    elif kind is bool:
        parser.add_argument(name, action="store_true", help=text)
    elif origin is tuple:
        options["metavar"] = tuple("HW"[: len(inner)])
        parser.add_argument(name, type=inner[0], nargs=len(inner), **options)
    elif origin is list and typing.get_origin(inner[0]) is typing.Literal:
        del options["metavar"]
        parser.add_argument(name, choices=typing.get_args(inner[0]), nargs="+", **options)
    elif origin is list:
        parser.add_argument(name, type=inner[0], nargs="+" if is_option or required else "*", **options)
    elif origin is typing.Literal:
        del options["metavar"]
        parser.add_argument(name, choices=inner, **options)
    elif not is_option and not required:
        parser.add_argument(name, type=kind, nargs="?", **options)
    else:
        parser.add_argument(name, type=kind, **options)


def _one_line(error: ArgumentError, words: Sequence[str]) -> str:
    """Return jsonargparse's message in one line, without its names of nested commands."""
    called = [word for word in words[1:] if not word.startswith("-")][:2]
    text = " ".join(str(error).split())
    text = re.sub(r'^Parser key "(\w+)"[^:]*: Expected a <class \'(\w+)\'>\. Got value: ', _expected, text)
    for name in called:
        text = re.sub(rf"([ \"']){re.escape(name)}\.", r"\1", text)
    return f"{text.rstrip('.')}. See `{' '.join([words[0], *called[:1]])} --help`."


def _expected(match: re.Match[str]) -> str:
    name, kind = match.groups()
    return f"argument --{name.replace('_', '-')}: expected {kind}, got "


def documented_arguments(thing: Any) -> dict[str, str]:
    """Return the texts of a function's or class's documented arguments, each in one line."""
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse(thing.__doc__ or "").params}
