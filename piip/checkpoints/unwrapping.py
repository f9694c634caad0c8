"""Finding the weights in the contents of a file: nesting, prefixes, and parts of other models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from piip.serialization.weights import StoredTensor

# Keys of the weights in training checkpoints, in order of preference; averages only if there is nothing else.
WRAPPINGS = ("state_dict", "model", "module", "model_state_dict", "model_state", "network", "net", "teacher")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# Words that wrappers add before the names of the weights.
PREFIX_WORDS = ("module", "model", "backbone", "vision_tower", "encoder", "trunk")
INSERTED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DEPTH = 5  # maximum number of nested keys and prefix words


@dataclass(frozen=True)
class FoundWeights:
    """The tensors of a file and their location.

    Args:
        tensors: By name, as in the file but without the words added by compilation and sharding.
        wrappings: Keys under which they were nested.
        ignored: Other contents: epochs, optimisers, arguments.
    """

    tensors: Mapping[str, StoredTensor]
    wrappings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class SortedNames:
    """Names of a file that belong to a model.

    Args:
        prefix: Prefix of the model's names in the file.
        own: Tensors under the model's names: known ones, and unknown ones among them.
        others: Number of tensors of other parts, by part: detection heads, the language model, averages.
    """

    prefix: str
    own: Mapping[str, StoredTensor]
    others: Mapping[str, int] = field(default_factory=dict)


def find_weights(content: Mapping[Any, Any], *, source: str) -> FoundWeights:
    """Find the state dict in the contents of a file.

    Args:
        content: Nested mappings with tensors at the leaves.
        source: Name of the file in messages.

    Returns:
        Its tensors.

    Raises:
        ValueError: There are no tensors.
    """
    wrappings: list[str] = []
    ignored: list[str] = []
    for _ in range(DEPTH):
        key = _next_wrapping(content)
        if key is None:
            break
        wrappings.append(key)
        ignored += [str(other) for other in content if other != key]
        content = content[key]
    tensors: dict[str, StoredTensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            value = StoredTensor.of(value.detach())
        if isinstance(value, StoredTensor):
            tensors[INSERTED.sub("", str(name))] = value
        else:
            ignored.append(str(name))
    if not tensors:
        keys = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ValueError(f"{source} holds no weights, expected names with tensors; it holds: {keys}.")
    return FoundWeights(tensors, tuple(wrappings), tuple(ignored))


def _next_wrapping(content: Mapping[Any, Any]) -> str | None:
    for key in (*WRAPPINGS, *AVERAGES):
        inner = content.get(key)
        if isinstance(inner, Mapping) and _has_tensors(inner):
            return key
    return None


def _has_tensors(content: Mapping[Any, Any], depth: int = DEPTH) -> bool:
    values = content.values()
    if any(isinstance(value, Tensor | StoredTensor) for value in values):
        return True
    return depth > 0 and any(_has_tensors(value, depth - 1) for value in values if isinstance(value, Mapping))


def sort_names(tensors: Mapping[str, StoredTensor], wanted: Collection[str]) -> SortedNames:
    """Find the prefix of a model's names and separate the names of other parts.

    Args:
        tensors: Tensors by the names of the file.
        wanted: The model's names.

    Returns:
        The model's tensors; empty if no name is known under any prefix.
    """
    known = {*wanted}
    endings = {name: _known_ending(name, known) for name in tensors}
    found = Counter(name.removesuffix(ending) for name, ending in endings.items() if ending)
    prefix = max(found, key=lambda words: found[words]) if found else ""
    tops = {_top(name) for name in wanted}
    own: dict[str, StoredTensor] = {}
    others: Counter[str] = Counter()
    for name, tensor in tensors.items():
        rest = name.removeprefix(prefix)
        # without a prefix, other parts of a detector are at the same level as the model's own
        if name.startswith(prefix) and (prefix or _top(rest) in tops):
            own[rest] = tensor
    for name, tensor in tensors.items():
        ending = endings[name]
        if name.removeprefix(prefix) in own and name.startswith(prefix):
            continue
        if ending and ending not in own:  # e.g. the projector of a vision tower
            own[ending] = tensor
        else:
            others[_part(name)] += 1
    return SortedNames(prefix, own, dict(others))


def _known_ending(name: str, known: Collection[str]) -> str:
    """Return the name without wrapper words if it is known, otherwise nothing."""
    words = name.split(".")
    for count in range(min(len(words), DEPTH + 1)):
        if count and words[count - 1] not in PREFIX_WORDS:
            break
        if ".".join(words[count:]) in known:
            return ".".join(words[count:])
    return ""


def _top(name: str) -> str:
    """Return a name's first word without its number."""
    return name.split(".")[0].rstrip("0123456789")


def _part(name: str) -> str:
    """Return the part of a whole model that a name belongs to."""
    words = name.split(".")
    while len(words) > 2 and words[0] in PREFIX_WORDS:
        words = words[1:]
    return "ema" if words[0].startswith("ema_") else words[0]
