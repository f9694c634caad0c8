"""Models in another runtime: exported once for every image size, and cached by their content."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from piip import __version__
from piip.export.exporter import export_model, wrap_model
from piip.export.formats import Format, Run, find_format
from piip.fields import one_of
from piip.ops.compat import require_torch
from piip.ops.native import cache_folder
from piip.serialization.base import PyramidModel
from piip.structures import Size

logger = logging.getLogger(__name__)

TORCH = "torch"  # no other runtime
RUNTIMES = (TORCH, "onnx", "openvino")


def in_runtime(model: PyramidModel, runtime: str, *, cache_dir: str | Path | None = None) -> nn.Module:
    """Return a model that computes in another runtime, with the same inputs and outputs, on the CPU in float32.

    Classifiers, towers and backbones run there as a whole. Of detectors and segmentors backbone, merge and neck do; the
    head, whose number of results depends on the image, stays in PyTorch.

    Args:
        model: The model; it stays as it is.
        runtime: "torch" returns the model; "onnx" and "openvino" need the extra `export`.
        cache_dir: Folder of exported files; None is piip/exported in the user's cache folder.

    Raises:
        ValueError: The runtime is unknown or not installed, or the model cannot be exported.
    """
    one_of("runtime", runtime, RUNTIMES)
    if runtime == TORCH:
        return model
    wrap_model(model, features_only=True)  # raises an error for what is no model of this library
    folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "exported"
    if model.config is not None and model.config.head.is_dense:
        part = ExportedModule(model.get_backbone(), runtime, folder)
        fast = copy.copy(model)
        fast._modules = {**model._modules, "backbone": part}
        return fast
    return ExportedModule(model, runtime, folder)


class ExportedModule(nn.Module):
    """A backbone, classifier or vision tower in another runtime.

    Args:
        model: The PyTorch model, in evaluation mode.
        runtime: "onnx" or "openvino".
        folder: Folder of exported files.

    Raises:
        ValueError: The runtime is not installed, or the model cannot be exported.
    """

    def __init__(self, model: PyramidModel, runtime: str, folder: Path) -> None:
        super().__init__()
        self._format: Format = find_format(runtime)
        require_torch(self._format.min_torch, f"The runtime {runtime}")
        wrap_model(model)  # raises an error for what cannot be exported
        self._model = [model]  # in a list, because it is no part of this module
        self._runtime, self._folder = runtime, folder
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
        path = self._folder / content_key(self._model[0], self._format, size) / f"model{self._format.suffix}"
        if not path.with_name(f"{path.name}.json").exists():  # which is written last
            logger.warning("Exporting the model for %d x %d pixels to %s, once.", *size, path.parent)
            export_model(self._model[0], path, format=self._runtime, image_size=size, dynamic_batch=True)
        return path


def content_key(model: PyramidModel, exported: Format, size: Size) -> str:
    """Return a name for an exported model that changes with anything that it depends on.

    Args:
        model: The model: its weights, buffers and description.
        exported: The format; versions of its packages count.
        size: (H, W) in pixels.
    """
    packages = {name: importlib.metadata.version(name) for name in ("torch", *exported.packages, *exported.runtime)}
    config = model.config.to_dict() if model.config is not None else repr(model)
    facts = [__version__, packages, config, exported.suffix, size]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
