"""Models in another runtime: exported once for every image size, and cached by their content."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from piip import __version__
from piip.export.exporter import export_model, wrap_model
from piip.export.formats import Format, Run, find_format, find_int8
from piip.export.int8 import CALIBRATION_IMAGES, Calibration
from piip.fields import one_of
from piip.ops.compat import require_torch
from piip.ops.native import cache_folder
from piip.serialization.base import PyramidModel
from piip.structures import Size

logger = logging.getLogger(__name__)

TORCH = "torch"  # no other runtime
INT8 = "openvino-int8"
RUNTIMES = (TORCH, "onnx", "openvino", INT8)
FORMAT_OF = {INT8: "openvino"}  # of the others, the format has their name


def runtime_device(device: str, runtime: str) -> str:
    """Return the device of a model: other runtimes run on the CPU where it is chosen automatically.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        runtime: One of `RUNTIMES`.
    """
    return "cpu" if device == "auto" and runtime != TORCH else device


def in_runtime(
    model: PyramidModel,
    runtime: str,
    *,
    cache_dir: str | Path | None = None,
    calibration: Calibration | None = None,
) -> nn.Module:
    """Return a model that computes in another runtime, with the same inputs and outputs, on the CPU in float32.

    Classifiers, towers and backbones run there as a whole. Of detectors and segmentors backbone, merge and neck do; the
    head, whose number of results depends on the image, stays in PyTorch.

    Args:
        model: The model; it stays as it is.
        runtime: "torch" returns the model; "onnx" and "openvino" need the extra `export`; "openvino-int8" needs the
            extra `int8` and changes outputs.
        cache_dir: Folder of exported files; None is piip/exported in the user's cache folder.
        calibration: Images for "openvino-int8".

    Raises:
        ValueError: The runtime is unknown or not installed, the model cannot be exported, or images for calibration are
            missing or of no use.
    """
    one_of("runtime", runtime, RUNTIMES)
    if (runtime == INT8) != (calibration is not None):
        raise ValueError(
            f"runtime is {runtime!r}: {INT8!r} and images for calibration belong together; piip.Predictor(..., "
            f'runtime="{INT8}", calibrate="FOLDER") or piip predict --runtime {INT8} --calibrate FOLDER.'
        )
    if runtime == TORCH:
        return model
    wrap_model(model, features_only=True)  # raises an error for what is no model of this library
    if calibration is not None:
        calibration = dataclasses.replace(calibration, metadata=model.metadata)  # which its backbone does not have
    folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "exported"
    if model.config is not None and model.config.head.is_dense:
        part = ExportedModule(model.get_backbone(), runtime, folder, calibration)
        fast = copy.copy(model)
        fast._modules = {**model._modules, "backbone": part}
        return fast
    return ExportedModule(model, runtime, folder, calibration)


class ExportedModule(nn.Module):
    """A backbone, classifier or vision tower in another runtime.

    Args:
        model: The PyTorch model, in evaluation mode.
        runtime: "onnx", "openvino" or "openvino-int8".
        folder: Folder of exported files.
        calibration: Images for int8; None computes in float32.

    Raises:
        ValueError: The runtime is not installed, or the model cannot be exported.
    """

    def __init__(self, model: PyramidModel, runtime: str, folder: Path, calibration: Calibration | None = None) -> None:
        super().__init__()
        self._format_name = FORMAT_OF.get(runtime, runtime)
        self._format: Format = find_format(self._format_name)
        if calibration is not None:
            find_int8(self._format, self._format_name)
        self._calibration = calibration
        self._calibration_digest = calibration.digest() if calibration is not None else ""
        require_torch(self._format.min_torch, f"The runtime {runtime}")
        wrap_model(model)  # raises an error for what cannot be exported
        self._model = [model]  # in a list, because it is no part of this module
        self._folder = folder
        self._is_backbone = model.get_backbone() is model
        self._runs: dict[Size, Run] = {}

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return the model's outputs for normalised RGB images (B, 3, H, W); the first call of a size exports it."""
        if image.device.type != "cpu" or image.dtype != torch.float32:
            raise ValueError(f"The images are {image.dtype} on {image.device}, expected torch.float32 on the CPU.")
        size = (image.shape[2], image.shape[3])
        if size not in self._runs:
            self._runs[size] = self._format.load(self._file(size), torch.get_num_threads())
        outputs = [torch.from_numpy(values) for values in self._runs[size](image.contiguous().numpy())]
        return outputs if self._is_backbone else outputs[0]

    def _file(self, size: Size) -> Path:
        """Return the file for a size, exported if it is not in the cache."""
        path = (
            self._folder
            / content_key(self._model[0], self._format, size, self._calibration_digest)
            / f"model{self._format.suffix}"
        )
        if not path.with_name(f"{path.name}.json").exists():  # which is written last
            logger.warning("Exporting the model for %d x %d pixels to %s, once.", *size, path.parent)
            images = self._calibration
            export_model(
                self._model[0],
                path,
                format=self._format_name,
                image_size=size,
                dynamic_batch=True,
                calibrate=images.folder if images is not None else None,
                calibration_images=images.count if images is not None else CALIBRATION_IMAGES,
                calibration_metadata=images.metadata if images is not None else None,
            )
        return path


def content_key(model: PyramidModel, exported: Format, size: Size, calibration: str = "") -> str:
    """Return a name for an exported model that changes with anything that it depends on.

    Args:
        model: The model: its weights, buffers and description.
        exported: The format; versions of its packages count.
        size: (H, W) in pixels.
        calibration: Digest of the images for int8; empty for float32.
    """
    packages = {name: importlib.metadata.version(name) for name in ("torch", *exported.packages, *exported.runtime)}
    config = model.config.to_dict() if model.config is not None else repr(model)
    facts = [__version__, packages, config, exported.suffix, size, *([calibration] if calibration else [])]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
