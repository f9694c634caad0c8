"""The formats: writing an exported program, and running the file.

OpenVINO files are converted from ONNX: its own reader of exported programs lacks the antialiased resize of position
tables, and the operations of detectors whose number of results depends on the image.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from piip.export.int8 import quantize_openvino
from piip.tables import Table

INPUT = "image"
Run = Callable[[NDArray[np.float32]], list[NDArray[Any]]]


@dataclass(frozen=True)
class Format:
    """One file format.

    Args:
        suffix: Suffix of its files.
        packages: Packages for writing.
        runtime: Packages for running.
        write: Writes a program with named outputs to a path.
        load: Loads a written file to run on the CPU, in float32, on a number of threads (None: the runtime's own;
            PyTorch has one number for the process).
        fixed_size: Why only one image size is supported, or None.
        min_torch: Minimum version of PyTorch for writing.
        quantize: Replaces a written file by its int8 form, given images (1, 3, H, W); None where there is no int8.
    """

    suffix: str
    packages: tuple[str, ...]
    runtime: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, Sequence[str]], None]
    load: Callable[[Path, int | None], Run]
    fixed_size: str | None = None
    min_torch: tuple[int, int] = (2, 6)
    quantize: Callable[[Path, Sequence[NDArray[np.float32]]], None] | None = None


def find_format(name: str, *, runs: bool = True) -> Format:
    """Return a format and check that its packages are installed.

    Args:
        name: "torch", "onnx" or "openvino".
        runs: Whether files are also run.

    Raises:
        ValueError: The format is unknown, or a package is missing.
    """
    if name not in EXPORT_FORMATS:
        raise ValueError(f"format is {name!r}, expected one of {', '.join(EXPORT_FORMATS)}.")
    found = EXPORT_FORMATS[name]
    needed = dict.fromkeys(found.packages + (found.runtime if runs else ()))
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f'The format {name} needs {" and ".join(missing)}: pip install "piip[export]".')
    return found


def find_int8(written: Format, name: str) -> Callable[[Path, Sequence[NDArray[np.float32]]], None]:
    """Return what makes int8 files of a format, and check that its package is installed.

    Args:
        written: The format.
        name: Its name, for messages.

    Raises:
        ValueError: The format has no int8, or the package is missing.
    """
    if written.quantize is None:
        known = [format for format, each in EXPORT_FORMATS.items() if each.quantize is not None]
        raise ValueError(f"format is {name!r}, which has no int8, expected {' or '.join(known)}.")
    if importlib.util.find_spec("nncf") is None:
        raise ValueError('Int8 needs nncf: pip install "piip[int8]".')
    return written.quantize


def _write_torch(program: ExportedProgram, path: Path, names: Sequence[str]) -> None:
    with warnings.catch_warnings():
        # anchors are kept as parts of one tensor, which is a concern only where weights are not on the CPU
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, path)


def _load_torch(path: Path, threads: int | None) -> Run:
    module = torch.export.load(path).module()

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            return [values.numpy() for values in module(torch.from_numpy(image))]

    return run


def _write_onnx(program: ExportedProgram, path: Path, names: Sequence[str]) -> None:
    written = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=list(names),
        custom_translation_table={round: _rounded},
    )
    assert written is not None  # by this exporter it never is
    written.save(path)


def _rounded(value: Any, digits: Any = None) -> Any:
    """Translate Python's `round`, by which sizes become whole patches; ONNX rounds halves to even as well."""
    from onnxscript import INT64, opset18

    return opset18.Cast(opset18.Round(value), to=INT64.dtype)


def _load_onnx(path: Path, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        return list(session.run(None, {INPUT: image}))

    return run


def _write_openvino(program: ExportedProgram, path: Path, names: Sequence[str]) -> None:
    import openvino

    with tempfile.TemporaryDirectory(prefix="piip-") as directory:
        onnx_file = Path(directory) / "model.onnx"
        _write_onnx(program, onnx_file, names)
        # reads like convert_model, but without telemetry
        openvino.save_model(openvino.Core().read_model(onnx_file), path, compress_to_fp16=False)


def _load_openvino(path: Path, threads: int | None) -> Run:
    import openvino

    # on CPUs with bfloat16 units that format would be the default
    options = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    compiled = openvino.compile_model(path, "CPU", options)

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        values = compiled(image)
        return [values[index] for index in range(len(compiled.outputs))]

    return run


ONNX_TORCH = (2, 9)
ONNX_WRITERS = ("onnx", "onnxscript")
FIXED_SIZE = "The format torch has fixed sizes, PyTorch cannot save the rounding of dynamic sizes to whole patches"
# By name; `register` adds a format (docs/extending.md).
EXPORT_FORMATS: Table[Format, None] = Table.of(
    "format",
    {
        "torch": Format(".pt2", (), (), _write_torch, _load_torch, FIXED_SIZE),
        "onnx": Format(".onnx", ONNX_WRITERS, ("onnxruntime",), _write_onnx, _load_onnx, min_torch=ONNX_TORCH),
        "openvino": Format(
            ".xml",
            (*ONNX_WRITERS, "openvino"),
            ("openvino",),
            _write_openvino,
            _load_openvino,
            min_torch=ONNX_TORCH,
            quantize=quantize_openvino,
        ),
    },
)
