"""Opening published checkpoint files without running what is in them, and without reading all of it.

Formats are told by content, not by suffix: PyTorch's zip and older pickles, safetensors, NumPy's `.npz`, and
directories or indices of the Hugging Face layout.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from piip.serialization.weights import INDEX_NAME, WEIGHTS_NAME, StoredTensor, TensorFacts, open_safetensors, read_index

TORCH_INDEX_NAME = "pytorch_model.bin.index.json"
ENTRIES = (INDEX_NAME, TORCH_INDEX_NAME, WEIGHTS_NAME, "pytorch_model.bin")  # of a directory, the first that is there

# Plain data that published files hold beside their tensors: arguments of a run, numbers and arrays of NumPy.
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (pathlib.PosixPath, "pathlib.PosixPath"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilBHILefd"),
    np.dtypes.StrDType,
    *(
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
]


def open_checkpoint(path: str | Path) -> Mapping[Any, Any]:
    """Open a published file or directory.

    Args:
        path: A file, a directory, or the index of a checkpoint in several files.

    Returns:
        What is in it: nested mappings whose leaves are `StoredTensor`, `torch.Tensor` (memory-mapped where the format
        allows) or other values.

    Raises:
        ValueError: The file is missing, damaged, of an unknown format, or wants to run code.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in ENTRIES if (path / name).is_file()), None)
        if found is None:
            raise ValueError(f"{path} holds no checkpoint: expected one of {', '.join(ENTRIES)} in it; name the file.")
        path = found
    if not path.is_file():
        raise ValueError(f"There is no file {path}: give a checkpoint file or a directory that holds one.")
    return _opener(path)(path)


def _opener(path: Path) -> Callable[[Path], Mapping[Any, Any]]:
    """Tell the format by the first bytes."""
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise ValueError(f"{path} is empty: download it again.")
    if head.startswith(b"PK"):
        return _zip_opener(path)
    if head.startswith(b"version https://git"):
        raise ValueError(f"{path} is only the pointer of a Git LFS file: fetch the file itself with `git lfs pull`.")
    if head.lstrip().startswith((b"{", b"[")):
        return _open_sharded
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not a checkpoint: download the file behind it.")
    if len(head) > 8 and head[8:9] == b"{":
        return open_safetensors
    return _open_pickle


def _zip_opener(path: Path) -> Callable[[Path], Mapping[Any, Any]]:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): download it again.") from error
    if names and all(name.endswith(".npy") for name in names):
        return _open_npz
    if any(name.endswith("constants.pkl") for name in names):
        raise ValueError(
            f"{path} is a TorchScript archive, a program with weights in it, and is not run; convert a file that holds "
            "the state dict alone."
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{path} is a zip archive without a checkpoint: unpack it and name the file inside.")
    return _open_pickle


def _open_pickle(path: Path) -> Mapping[Any, Any]:
    """Read a PyTorch file; tensors in zip files stay there until they are used."""
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files are read as well as new ones
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle fails wherever the damage leads
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}): download it again.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict: names with tensors.")
    return content


def _refusal(path: Path, message: str) -> str:
    """Say why PyTorch's restricted unpickler stopped."""
    found = re.search(r"GLOBAL ([\w.]+)|(?:type|function|class) ([\w.]+\.[\w.]+)", message)
    name = next((part for part in found.groups() if part), None) if found else None
    if name is None:
        lines = [line for line in message.splitlines() if line.strip() and not line.startswith("Check the doc")]
        return (
            f"{path} is damaged or no PyTorch checkpoint ({lines[-1] if lines else 'unknown'}), nothing of it was run."
        )
    name = name.removeprefix("builtins.")  # PyTorch 2.6 names them in full
    return (
        f"{path} asks for {name.removesuffix('.')} while it is read, which is never executed: only tensors and plain "
        "values are read; get the file from a source you trust, best as safetensors."
    )


def _open_npz(path: Path) -> Mapping[str, StoredTensor]:
    """Open NumPy's archive of arrays; their headers are read now, their numbers later."""
    tensors = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    shape, dtype = _array_facts(file)
                name = member.removesuffix(".npy")
                if dtype.hasobject:
                    raise ValueError(
                        f"{path} holds Python objects in {name}, which are never executed: only arrays of numbers are "
                        "read; get the file from a source you trust."
                    )
                if dtype.kind in "biuf":
                    facts = TensorFacts(shape, torch.from_numpy(np.empty(0, dtype)).dtype)
                    tensors[name] = StoredTensor(facts, functools.partial(_read_array, path, name))
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): download it again.") from error
    return tensors


def _array_facts(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_array(path: Path, name: str) -> Tensor:
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(np.asarray(arrays[name]))


def _open_sharded(path: Path) -> Mapping[str, StoredTensor]:
    """Open all files that an index names."""
    tensors: dict[str, StoredTensor] = {}
    last_shard = functools.lru_cache(maxsize=1)(_open_pickle)  # tensors are asked for file by file, mostly
    for name in sorted({*read_index(path).values()}):
        shard = path.parent / name
        if not shard.is_file():
            raise ValueError(f"{path} names {name}, which is missing: download all files of the checkpoint.")
        opener = _opener(shard)
        if opener is _open_sharded:
            raise ValueError(f"{path} names {name}, which is no checkpoint but text: download all files of it again.")
        content = opener(shard)
        if isinstance(next(iter(content.values()), None), StoredTensor):
            tensors.update(content)
            continue
        for key, value in content.items():
            if isinstance(value, Tensor):
                facts = TensorFacts(tuple(value.shape), value.dtype)
                tensors[key] = StoredTensor(facts, functools.partial(_read_from, last_shard, shard, key))
    return tensors


def _read_from(open_shard: Callable[[Path], Mapping[Any, Any]], path: Path, name: str) -> Tensor:
    tensor = open_shard(path)[name]
    assert isinstance(tensor, Tensor)  # it was one when the file was opened
    return tensor
