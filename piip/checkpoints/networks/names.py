"""Translating names by rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from piip.serialization.weights import StoredTensor

Tensors = Mapping[str, StoredTensor]
Rules = Sequence[tuple[str, str]]  # regular expression for a part of the name -> what takes its place


def rename(tensors: Tensors, rules: Rules) -> dict[str, StoredTensor]:
    """Apply every rule to every name, in order."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def below(tensors: Tensors, prefix: str) -> dict[str, StoredTensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def count_blocks(names: Sequence[str] | Tensors, word: str = "blocks") -> int:
    """Return one more than the largest number that follows a word in dotted names; 0 where there is none."""
    found = (re.match(rf"(?:.*\.)?{word}\.(\d+)\.", name) for name in names)
    return max((int(match.group(1)) + 1 for match in found if match), default=0)
