"""What a check of data finds: problems that stop it, and notes on what is left out or read differently."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

NAMES_SHOWN = 10

logger = logging.getLogger("piip")


def shorten(names: Iterable[object], *, separator: str = ", ") -> str:
    """Return the first ten names and the number of the others.

    Args:
        names: The names.
        separator: Text between two names.
    """
    shown = [str(name) for name in names]
    more = f" and {len(shown) - NAMES_SHOWN} more" if len(shown) > NAMES_SHOWN else ""
    return separator.join(shown[:NAMES_SHOWN]) + more


class Inspection(NamedTuple):
    """What is seen of one sample before training.

    Attributes:
        problem: Why it cannot be used, or "".
        counts: Number of pixels of every value of its semantic mask, (256,); None without a mask.
    """

    problem: str = ""
    counts: NDArray[Any] | None = None


class Findings:
    """Problems and notes about one file or folder, all reported at once.

    Args:
        source: The file or folder, for messages.
    """

    def __init__(self, source: object) -> None:
        self.source = source
        self.problems: list[str] = []
        self._notes: dict[tuple[str, str], list[str]] = {}  # kind and hint: names

    def problem(self, text: str) -> None:
        """Add something that must be fixed first.

        Args:
            text: Place, actual and expected, without a full stop.
        """
        self.problems.append(text)

    def note(self, what: str, name: object = "", *, hint: str = "") -> None:
        """Add something that is left out or read differently; notes of the same kind are counted.

        Args:
            what: The kind, in the plural; the number follows it.
            name: Name of one of them.
            hint: Sentence after the names.
        """
        self._notes.setdefault((what, hint), []).append(str(name))

    def say(self, sentence: str) -> None:
        """Add a note that is not counted.

        Args:
            sentence: The sentence.
        """
        self._notes.setdefault(("", sentence), [])

    def extend(self, other: Findings) -> None:
        """Add what another check found."""
        self.problems += other.problems
        for kind, names in other._notes.items():
            self._notes.setdefault(kind, []).extend(names)

    def notes(self) -> list[str]:
        """Return a sentence per kind of note, with the number and the first names."""
        return [self._sentence(what, hint, names) for (what, hint), names in self._notes.items()]

    def _sentence(self, what: str, hint: str, names: Sequence[str]) -> str:
        if not what:
            return f"{self.source}: {hint}"
        named = [name for name in names if name]
        listed = f": {shorten(named)}" if named else ""
        return f"{self.source}: {what} ({len(names)}){listed}.{f' {hint}' if hint else ''}"

    def raise_problems(self) -> None:
        """Raise all problems as one error.

        Raises:
            ValueError: There are problems.
        """
        if len(self.problems) == 1:
            raise ValueError(f"{self.source}: {self.problems[0]}.")
        if self.problems:
            raise ValueError(f"{self.source}: {len(self.problems)} problems: {shorten(self.problems, separator='; ')}.")

    def log(self) -> None:
        """Log the notes, one line each."""
        for sentence in self.notes():
            logger.warning("%s", sentence)
