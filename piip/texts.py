"""Reading YAML and JSON that people wrote: what a parser would read otherwise than it looks is refused by its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

MAX_DEPTH = 40  # of sections and lists in one another; recipes have about five
MAX_VALUES = 1_000_000  # of a file; aliases of aliases can mean more than fit into memory
OCTAL = re.compile(r"[-+]?0[0-7_]+")
SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
# What constructors of YAML raise for values that look like a number or date but are none, and for tags such as !!int.
ODD_VALUES = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class _StrictLoader(yaml.SafeLoader):
    """Plain values only; keys that are given twice and numbers that mean another number are errors."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        seen: set[Any] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ValueError(f"line {_line(key)}: {key.value!r} is given twice, remove one of them")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> Any:
        """Return an integer, unless YAML 1.1 reads another number than is written."""
        value = super().construct_yaml_int(node)
        if OCTAL.fullmatch(node.value):
            raise ValueError(
                f"line {_line(node)}: YAML reads {node.value} as octal, which is {value}; write {value}, or "
                f"{_without_zeros(node.value)} without the zero, or '{node.value}' in quotes for a text"
            )
        return self._checked_sixties(node, value)

    def construct_yaml_float(self, node: Any) -> Any:
        """Return a float, unless YAML 1.1 reads another number than is written."""
        return self._checked_sixties(node, super().construct_yaml_float(node))

    def _checked_sixties(self, node: Any, value: float) -> float:
        if SIXTIES.fullmatch(node.value):
            raise ValueError(
                f"line {_line(node)}: YAML reads {node.value} as minutes and seconds, which is {value}; write {value}, "
                f"or '{node.value}' in quotes for a text"
            )
        return value


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)


def _without_zeros(number: str) -> str:
    return re.sub(r"^([-+]?)0+", r"\1", number) or "0"


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def parse_yaml(content: str | bytes, source: str) -> Any:
    """Read YAML of plain values.

    Args:
        content: Text, or the bytes of a file in UTF-8 or UTF-16.
        source: Name of the file or field in messages.

    Raises:
        ValueError: The content is not YAML, has doubled keys, octal numbers or endless nesting.
    """
    try:
        value = yaml.load(content, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply, expected at most {MAX_DEPTH} levels.") from None
    except ODD_VALUES as error:
        raise ValueError(f"{source}, {error}." if str(error).startswith("line ") else _odd(source, error)) from error
    check_extent(value, source)
    return value


def parse_json(content: bytes, source: str) -> Any:
    """Read JSON.

    Args:
        content: The bytes of a file.
        source: Name of the file in messages.

    Raises:
        ValueError: The content is not JSON, has doubled keys or endless nesting.
    """

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise KeyError(key)
            values[key] = value
        return values

    try:
        value = json.loads(content, object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not JSON: {error}.") from error
    except KeyError as error:
        raise ValueError(f"{source} gives {error} twice in one object, remove one of them.") from error
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply, expected at most {MAX_DEPTH} levels.") from None
    except ValueError as error:  # integers of thousands of digits
        raise ValueError(_odd(source, error)) from error
    check_extent(value, source)
    return value


def check_extent(value: Any, source: str) -> None:
    """Raise an error for values inside themselves, too deep, or too many; aliases of YAML make all three.

    Args:
        value: Nested mappings and lists.
        source: Their name in messages.

    Raises:
        ValueError: The limits are exceeded.
    """
    pending, count = [(value, 0)], 0
    while pending:
        current, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            raise ValueError(f"{source} is nested too deeply or refers to itself, expected at most {limit}.")
        if isinstance(current, dict):
            pending += [(item, depth + 1) for item in current.values()]
        elif isinstance(current, (list, tuple, set)):
            pending += [(item, depth + 1) for item in current]


def _odd(source: str, error: Exception) -> str:
    return f"{source} holds a value that cannot be read ({type(error).__name__}: {' '.join(str(error).split())})."
