"""Explaining checkpoints that do not match a model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]
SHOWN = 3  # names listed per group and kind


def explain_mismatch(wanted: Shapes, given: Shapes, *, source: str = "The checkpoint") -> str | None:
    """Compare a checkpoint's names and shapes with a model's.

    Args:
        wanted: Names and shapes of the model.
        given: Names and shapes of the checkpoint.
        source: Name of the checkpoint in the message.

    Returns:
        A message grouped by branch and part, or None if everything matches.
    """
    groups: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in wanted:
        if name not in given:
            groups[_group(name)]["missing"].append(name)
        elif tuple(given[name]) != tuple(wanted[name]):
            text = f"{name} is {tuple(given[name])}, expected {tuple(wanted[name])}"
            groups[_group(name)]["wrong shape"].append(text)
    for name in given:
        if name not in wanted:
            groups[_group(name)]["unexpected"].append(name)
    if not groups:
        return None
    lines = [f"{source} does not fit the model:"]
    for group in sorted(groups):
        for kind, names in groups[group].items():
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"  {group}: {len(names)} {kind}: {', '.join(names[:SHOWN])}{more}")
    lines.append("Check that the file belongs to this model and its number of branches and classes.")
    return "\n".join(lines)


def _group(name: str) -> str:
    found = re.match(r"(?:backbone\.)?(?:branches\.(\d+)|(branch\d+))\.", name)
    if found:
        return found.group(2) or f"branch {found.group(1)}"  # official files count from 1, as in their names
    part = name.removeprefix("backbone.").split(".")[0]
    return re.sub(r"_?branch\d+$|\d+$", "", part) or part
