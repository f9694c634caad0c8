"""Docstrings as Sphinx reads them: annotations state the types here, so a colon in a result is only a colon."""

from __future__ import annotations

from sphinx.application import Sphinx

RESULTS = ("Returns:", "Yields:")
VALUES = ("attribute", "data", "property")
BEFORE_NAPOLEON = 400


def keep_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Put a colon in front of texts of which Napoleon takes everything before the first colon for a type."""
    if what in VALUES and lines and ":" in lines[0]:
        lines[0] = f": {lines[0]}"
    for index, line in enumerate(lines[1:], start=1):
        if lines[index - 1].strip() in RESULTS:
            text = line.lstrip()
            lines[index] = f"{line[: len(line) - len(text)]}: {text}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Read docstrings before Napoleon does."""
    app.connect("autodoc-process-docstring", keep_colons, priority=BEFORE_NAPOLEON)
    return {"parallel_read_safe": True}
