"""Compiling the C++ kernels on first use, and calling them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = (
    "-O3 -march=native -std=c++17 -shared -fPIC -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=off".split()
)
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ["-mprefer-vector-width=512"]
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None with a warning if they are unavailable."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        warnings.warn(
            "There is no C++ compiler (g++ or clang++), so piip samples features with PyTorch's own operations, which "
            "are several times slower on CPU; install one, for example with `apt install g++`.",
            stacklevel=2,
        )
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        words = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        warnings.warn(
            f"{compiler} could not compile piip's kernels, so piip samples features with PyTorch's own operations, "
            f"which are several times slower on CPU: {words.strip().splitlines()[0] if words.strip() else error}",
            stacklevel=2,
        )
        return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available() -> bool:
    """Return whether the kernels can be used; compile them on the first call."""
    return library() is not None


def _compiled(compiler: str) -> Path:
    """Return the compiled file for this source, compiler and processor, compiling it if necessary."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    texts = (path.read_text() for path in (*HEADERS, *SOURCES))
    facts = (*texts, compiler, version, *FLAGS, platform.machine(), _processor())
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]
    folder = cache_folder()
    target = folder / f"kernels-{name}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # several processes may do this at once
            made = Path(scratch) / target.name
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(target)
    return target


def cache_folder() -> Path:
    """Return this library's folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piip"


def _processor() -> str:
    """Return an identifier of the processor's instruction sets, because a home directory may be shared."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else [platform.processor()]
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), lines[0])


def call(name: str, like: Tensor, sizes: tuple[int, ...], *arguments: Tensor | float | None) -> None:
    """Call the kernel `name` for the dtype of `like`; integers are 64 bits wide there, other numbers doubles."""
    kernels = library()
    assert kernels is not None, "callers ask is_available() first"
    numbers = (ctypes.c_int64 * len(sizes))(*sizes)
    plain = [_plain(item) for item in arguments]
    kernels[f"piip_{name}_{SUFFIXES[like.dtype]}"](numbers, *plain, ctypes.c_int(torch.get_num_threads()))


def _plain(item: Tensor | float | None) -> Any:
    if isinstance(item, Tensor):
        return ctypes.c_void_p(item.data_ptr())
    if item is None:
        return None
    return ctypes.c_int64(item) if isinstance(item, int) else ctypes.c_double(item)
