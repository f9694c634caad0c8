"""Dataclasses of plain values: checking fields, and reading them from YAML and JSON mappings."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class CommandText(str):
    """A value from the command line: literal text for text fields, YAML for all others."""

    __slots__ = ()

    def parsed(self, path: str) -> Any:
        """Return the text parsed as YAML.

        Args:
            path: The field, for messages.

        Raises:
            ValueError: The text is not YAML.
        """
        from piip.texts import parse_yaml

        return parse_yaml(str(self), f"{path}: {str(self)!r}")


def nearest_names(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return a sentence naming the known names closest to `name`."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:8]
    return "Did you mean: " + ", ".join(close) + "?" if close else "Nothing similar is known."


def check_fields(instance: Any) -> None:
    """Check the fields of a frozen dataclass by their annotations; lists become tuples, mappings become sections.

    Call it first in `__post_init__`.

    Args:
        instance: The dataclass.

    Raises:
        ValueError: A value of the wrong kind.
    """
    cls = type(instance)
    for name, kind in typing.get_type_hints(cls).items():
        object.__setattr__(instance, name, _convert(kind, getattr(instance, name), f"{cls.__name__}.{name}"))


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise ValueError if a value is below its minimum."""
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected at least {minimum}.")


def at_most(name: str, value: float, maximum: float) -> None:
    """Raise ValueError if a value is above its maximum."""
    if value > maximum:
        raise ValueError(f"{name} is {value}, expected at most {maximum}.")


def one_of(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise ValueError if a value is not in a list."""
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
        path: Path of the mapping, for messages, e.g. "recipe.optim".
        ready: Fields that are already read; they may not appear in `values`.

    Raises:
        ValueError: An unknown name (with the nearest known ones), a missing field, or a value of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} is {values!r}, expected a section with fields.")
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


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with some fields changed; sections are merged, everything else is replaced.

    Args:
        values: Fields by name.
        changes: Fields to change or add.
    """
    nested = {
        name: merged(values[name], change)
        for name, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
    }
    return {**values, **changes, **nested}


def get_dotted(values: Any, name: str) -> Any:
    """Return one field of nested mappings and sequences, None if it is not there.

    Args:
        values: Nested mappings, lists and tuples.
        name: See `set_dotted`.
    """
    for part in name.split("."):
        if isinstance(values, (list, tuple)):
            values = dict(enumerate(values)).get(int(part)) if part.isdigit() else None
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
    return values


def set_dotted(values: dict[str, Any], name: str, value: Any) -> None:
    """Set one field in nested dicts and lists.

    Args:
        values: Changed in place.
        name: Names of sections and field with dots between; numbers index lists.
        value: The field's value.

    Raises:
        ValueError: A part of the name is not an index, or its parent is a single value.
    """
    *parents, last = name.split(".")
    target: Any = values
    for part in parents:
        target = target[_index(target, part, name)] if isinstance(target, list) else target.setdefault(part, {})
        if not isinstance(target, (dict, list)):
            raise ValueError(f"--{name}: {part!r} is a single value in the recipe, it has no field below it.")
    target[_index(target, last, name) if isinstance(target, list) else last] = value


def _index(items: list[Any], part: str, name: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ValueError(f"--{name}: {part!r} is not an index, expected 0 to {len(items) - 1}.")
    return int(part)


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Return `value` as the annotated type, or raise ValueError."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(inner, value, path)
    if isinstance(value, CommandText):
        value = str(value) if kind is str else value.parsed(path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else read_fields(kind, value, path)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(key): _plain_value(item, f"{path}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(
                _convert(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None:
            return number
    elif kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # "precision: 32"
    elif not inner and isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value  # Python 3.10 takes tuple[int, ...] for a type
    raise ValueError(f"{path} is {value!r}, expected {_name(kind)}.")


def _plain_value(value: Any, path: str) -> Any:
    """Return a JSON value with tuples for lists, or raise ValueError."""
    if isinstance(value, CommandText):
        value = value.parsed(path)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain_value(item, f"{path}[{i}]") for i, item in enumerate(value))
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{path} is {value!r}, expected a plain value: finite number, text, list or mapping.")


def _number(value: float | str) -> float | None:
    """Return a finite number, also from text: YAML 1.1 reads 1e-3 (no dot) as text. None for anything else."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if type(None) in kinds and (value is None or (isinstance(value, CommandText) and value in ("null", "~"))):
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
