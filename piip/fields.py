"""Reading dataclasses from the nested mappings of YAML and JSON files."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from piip.config import nearest_names

T = TypeVar("T")


def at_least(name: str, value: float, least: float) -> None:
    """Complain about a value below its minimum."""
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}.")


def at_most(name: str, value: float, most: float) -> None:
    """Complain about a value above its maximum."""
    if value > most:
        raise ValueError(f"{name} is {value}, expected at most {most}.")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Complain about a value that is not in a list."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}.")


def plain(value: Any) -> Any:
    """Return nested mappings, lists and tuples as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def read_fields(cls: type[T], values: Mapping[str, Any], path: str, *, ready: Mapping[str, Any] | None = None) -> T:
    """Build a dataclass from a mapping, checking names and converting values.

    Args:
        cls: The dataclass.
        values: Fields by name.
        path: Where the mapping stands, for messages, e.g. "recipe.optim".
        ready: Fields that are already read; they may not appear in `values`.

    Raises:
        ValueError: An unknown name (with the nearest known ones), a missing field, or a value of the wrong kind.
    """
    hints = typing.get_type_hints(cls)
    arguments = dict(ready or {})
    known = [name for name in hints if name not in arguments]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path} has no field {name!r}. {nearest_names(str(name), known)}")
        arguments[name] = _convert(hints[name], value, f"{path}.{name}")
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]  # type: ignore[arg-type]
    missing = [name for name in needed if name not in arguments]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}, expected a value of type {_name(hints[missing[0]])}.")
    return cls(**arguments)


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Return `value` as the annotated type, or complain."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(inner, value, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} is {value!r}, expected a section with fields.")
        return read_fields(kind, value, path)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(
                _convert(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-3 (no dot) as a string
            return float(value)
        except ValueError:
            pass
    elif kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # "precision: 32"
    elif isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise ValueError(f"{path} is {value!r}, expected {_name(kind)}.")


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _convert(kind, value, path)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind)) if typing.get_origin(kind) is None else str(kind)
