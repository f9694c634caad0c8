"""Weights on disk: one safetensors file, or several with an index, written and read tensor by tensor.

The writer of safetensors copies all tensors of a file; this one holds only one tensor at a time.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from piip.texts import parse_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
OWN_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

# the names of number formats in safetensors files
FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FORMAT_NAMES = {dtype: name for name, dtype in FORMATS.items()}

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class TensorFacts:
    """Shape and dtype of a tensor that is not read yet.

    Args:
        shape: Its sizes.
        dtype: Its number format.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read on demand.

    Args:
        facts: Shape and number format.
        read: Reads it.
    """

    facts: TensorFacts
    read: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> StoredTensor:
        """Wrap a tensor in memory."""
        return StoredTensor(TensorFacts(tuple(tensor.shape), tensor.dtype), lambda: tensor)

    def reshaped(self, shape: Sequence[int], change: Callable[[Tensor], Tensor]) -> StoredTensor:
        """Return a tensor of this shape that is transformed after reading."""
        return StoredTensor(TensorFacts(tuple(shape), self.facts.dtype), lambda: change(self.read()))


def write_weights(
    directory: Path,
    facts: Mapping[str, TensorFacts],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> list[str]:
    """Write `model.safetensors`, or above the limit shards and an index; earlier files are replaced at the end.

    Args:
        directory: An existing directory.
        facts: Facts of all tensors, by name, in order.
        tensors: Names and tensors in the same order; each is written before the next is requested.
        max_shard_bytes: Maximum size of one file; a larger tensor gets its own file.
        progress: Called with bytes written and total bytes.

    Returns:
        The names of the written files.
    """
    groups = _split(facts, max_shard_bytes)
    names = [WEIGHTS_NAME]
    if len(groups) > 1:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    stream, done = iter(tensors), 0
    total = sum(fact.nbytes for fact in facts.values())
    written = [*names, *([INDEX_NAME] if len(names) > 1 else [])]
    try:
        for name, group in zip(names, groups, strict=True):
            members = {key: facts[key] for key in group}
            for size in _write_file(directory / f"{name}.part", members, islice(stream, len(group))):
                done += size
                if progress is not None:
                    progress(done, total)
        if len(names) > 1:
            files_by_name = {key: name for name, group in zip(names, groups, strict=True) for key in group}
            index = {"metadata": {"total_size": total}, "weight_map": files_by_name}
            (directory / f"{INDEX_NAME}.part").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for name in written:
            os.replace(directory / f"{name}.part", directory / name)
    finally:  # after success none of these are left
        for name in written:
            (directory / f"{name}.part").unlink(missing_ok=True)
    for path in directory.iterdir():
        if OWN_FILES.fullmatch(path.name) and path.name not in written:
            path.unlink()
    return written


def weight_files(directory: Path) -> list[str]:
    """Return the names of the weight files of a directory, if any."""
    if (directory / INDEX_NAME).is_file():
        return sorted({*read_index(directory / INDEX_NAME).values()})
    return [WEIGHTS_NAME] if (directory / WEIGHTS_NAME).is_file() else []


def open_weights(directory: Path) -> dict[str, StoredTensor]:
    """Open the files of `write_weights`; tensors are read on demand.

    Args:
        directory: Directory with `model.safetensors`, or shards and their index.

    Returns:
        Tensors by name.

    Raises:
        ValueError: A file is missing or damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for name in weight_files(directory):
        tensors.update(open_safetensors(directory / name))
    return tensors


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Open one safetensors file.

    Args:
        path: The file.

    Returns:
        Its tensors by name, memory-mapped.

    Raises:
        ValueError: The file is missing or damaged, or has an unsupported dtype.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: copy or export the model again.")
    try:
        file: Any = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}): copy or export it again.") from error
    tensors = {}
    for name, part in slices.items():
        if part.get_dtype() not in FORMATS:
            raise ValueError(f"{path} holds {name} as {part.get_dtype()}, expected one of {', '.join(FORMATS)}.")
        facts = TensorFacts(tuple(part.get_shape()), FORMATS[part.get_dtype()])
        tensors[name] = StoredTensor(facts, partial(_read_tensor, path, name))
    return tensors


def _read_tensor(path: Path, name: str) -> Tensor:
    """Map one tensor of a file; its pages are freed with the tensor, not with the last tensor of the file."""
    try:
        file: Any = safe_open(path, framework="pt")
        return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} changed while it was read ({error}): load it again.") from error


def read_index(path: Path) -> dict[str, str]:
    """Read the index of a sharded checkpoint.

    Args:
        path: JSON with a "weight_map".

    Returns:
        File name of every tensor, in the directory of the index.

    Raises:
        ValueError: The file is not an index, or lists files in other directories.
    """
    try:
        files_by_name = parse_json(path.read_bytes(), str(path))["weight_map"]
        names = {str(key): str(name) for key, name in files_by_name.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of a checkpoint: expected JSON with a 'weight_map'.") from error
    outside = [name for name in names.values() if Path(name).name != name]
    if outside:
        raise ValueError(f"{path} lists a file outside its directory: {outside[0]}.")
    return names


def _split(facts: Mapping[str, TensorFacts], limit: int) -> list[list[str]]:
    """Fill one file after the other."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, fact in facts.items():
        if groups[-1] and size + fact.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += fact.nbytes
    return groups


def _write_file(path: Path, facts: Mapping[str, TensorFacts], tensors: Iterable[tuple[str, Tensor]]) -> Iterator[int]:
    """Write one safetensors file, yielding the size of every tensor written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # wide dtypes first, so that every tensor is aligned to its element size
    for name in sorted(facts, key=lambda key: -facts[key].dtype.itemsize):
        fact = facts[name]
        offsets = [end, end := end + fact.nbytes]
        header[name] = {"dtype": FORMAT_NAMES[fact.dtype], "shape": list(fact.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
        for name, tensor in tensors:
            assert TensorFacts(tuple(tensor.shape), tensor.dtype) == facts[name], name
            file.seek(start + header[name]["data_offsets"][0])
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
            yield facts[name].nbytes
