"""Tables of the extension points, one each, without defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

Entry = TypeVar("Entry")
Facts = TypeVar("Facts")


class Table(dict[str, Entry], Generic[Entry, Facts]):
    """Entries by kind, with the facts that descriptions need without loading the code of a kind.

    Args:
        what: Name of the extension point, for messages, e.g. "merge".
        facts: Facts about every kind for `piip.config`; `register` adds to them.
        entries: Builders of every kind.

    Raises:
        ValueError: Entries and facts have different kinds.

    Example:
        >>> MERGES.register("sum", build_sum, MergeFacts())
    """

    def __init__(self, what: str, facts: dict[str, Facts], entries: Mapping[str, Entry]) -> None:
        super().__init__(entries)
        self.what = what
        self.facts = facts
        if facts.keys() != entries.keys():
            raise ValueError(f"The table of kinds of {what} has {sorted(entries)}, piip/kinds.py {sorted(facts)}.")

    @classmethod
    def of(cls, what: str, entries: Mapping[str, Entry]) -> Table[Entry, None]:
        """Return a table without facts for descriptions.

        Args:
            what: Name of the extension point.
            entries: Builders of every kind.
        """
        made: Table[Entry, None] = Table(what, dict.fromkeys(entries), entries)
        return made

    def register(self, kind: str, entry: Entry, facts: Facts | None = None) -> None:
        """Add a kind.

        Args:
            kind: Name in descriptions and recipes.
            entry: Builder.
            facts: Facts for descriptions; None in a table whose kinds have no facts.

        Raises:
            ValueError: The kind already exists, or its facts are missing.
        """
        if kind in self:
            raise ValueError(f"There is a {self.what} {kind!r} already; choose another name.")
        example = next(iter(self.facts.values()))
        if facts is None and example is not None:
            raise ValueError(f"The {self.what} {kind!r} needs facts, for example {example}.")
        self.facts[kind] = facts  # type: ignore[assignment]  # None only where all facts are None
        self[kind] = entry

    def __missing__(self, kind: str) -> Entry:
        raise ValueError(f"There is no {self.what} {kind!r}, expected one of {', '.join(self)}.")
