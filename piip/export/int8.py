"""Int8 on CPUs: images for calibration, prepared as for prediction, and quantization by NNCF."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from piip.data.collate import DenseTransform, PadTogether
from piip.data.image_reading import ReadOptions, read_rgb, trained_options
from piip.data.listing import find_images
from piip.data.transforms.classification import TransformConfig, build_transform
from piip.data.transforms.dense import DenseTransformConfig
from piip.fields import at_least, read_fields
from piip.serialization.base import PyramidModel
from piip.structures import Size

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES, SEED = 100, 0
Prepare = Callable[[Image.Image], Tensor]  # RGB image -> normalised float (3, H, W)


@dataclass(frozen=True)
class Calibration:
    """Images from which the ranges of int8 activations are measured.

    Args:
        folder: Folder, file or shell pattern of images like those to predict on; no labels are needed.
        count: Maximum number of images, drawn from the folder with a fixed seed; at least 1.
        metadata: Metadata of the model for which they are prepared; None uses that of the exported model.

    Raises:
        ValueError: `count` is below 1.
    """

    folder: str | Path
    count: int = CALIBRATION_IMAGES
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        at_least("calibration_images", self.count, 1)

    def files(self) -> list[Path]:
        """Return the chosen files, sorted.

        Raises:
            ValueError: There are no images.
        """
        found = find_images(self.folder)
        if len(found) < self.count:
            logger.warning("%s has %d images, fewer than the %d for calibration.", self.folder, len(found), self.count)
        return sorted(random.Random(SEED).sample(found, min(self.count, len(found))))

    def digest(self) -> str:
        """Return a text that changes with the chosen images."""
        digest = hashlib.sha256()
        for path in self.files():
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def images(self, model: PyramidModel, size: Size) -> CalibrationImages:
        """Return the images as inputs of a model.

        Args:
            model: The exported model, for mean and std.
            size: (H, W) of its images in pixels.
        """
        metadata = model.metadata if self.metadata is None else self.metadata
        return CalibrationImages(self.files(), preparation(model, metadata), size, trained_options(metadata))


class CalibrationImages(Sequence[NDArray[np.float32]]):
    """Image files as normalised arrays (1, 3, H, W) of one size, read when they are asked for.

    Args:
        files: The files.
        prepare: Prepares an image as the predictor does.
        size: (H, W) in pixels; images that the preparation leaves at another size are resized to it.
        options: How 16-bit and multi-page files are read.
    """

    def __init__(self, files: Sequence[Path], prepare: Prepare, size: Size, options: ReadOptions) -> None:
        self.files, self.prepare, self.size, self.options = files, prepare, size, options

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        """Return one image."""
        image = self.prepare(read_rgb(self.files[index], upright=True, options=self.options))[None].float()
        if tuple(image.shape[2:]) != self.size:
            image = F.interpolate(image, self.size, mode="bilinear", antialias=True, align_corners=False)
        return image.numpy()


def preparation(model: PyramidModel, metadata: Mapping[str, Any]) -> Prepare:
    """Return what prepares an image as in prediction; for models that were not trained, it only normalises.

    Args:
        model: The model, for mean and std.
        metadata: Its metadata, or that of the model whose part it is.
    """
    for section, make in PREPARATIONS.items():
        if section in metadata:
            return make(metadata[section])
    mean, std = (list(model.pretrained_cfg[name]) for name in ("mean", "std"))
    return lambda image: normalize(pil_to_tensor(image).float() / 255, mean, std)


def _for_classifiers(section: Mapping[str, Any]) -> Prepare:
    return build_transform(read_fields(TransformConfig, dict(section), "config.json transform"), train=False)


def _for_dense(section: Mapping[str, Any]) -> Prepare:
    config = read_fields(DenseTransformConfig, dict(section), "config.json dense")
    transform, collate = DenseTransform(config, train=False), PadTogether(config.pad_divisor)
    return lambda image: collate([transform(image, {}, 0)]).image[0]


# By the section of the metadata that describes the preparation.
PREPARATIONS: dict[str, Callable[[Mapping[str, Any]], Prepare]] = {
    "transform": _for_classifiers,
    "dense": _for_dense,
}


def quantize_openvino(path: Path, images: Sequence[NDArray[np.float32]]) -> None:
    """Replace an OpenVINO file by its int8 form: products and convolutions, with ranges measured on images.

    Everything else stays in float32, in particular the arithmetic of sampling locations, softmax and norms.

    Args:
        path: The .xml file.
        images: Inputs (1, 3, H, W).
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(path)
    with _progress_on_stderr():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            subset_size=len(images),
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(types=_other_operations(model), validate=False),
        )
    del model  # it has the weights' file open
    new = path.with_name(f"int8-{path.name}")
    openvino.save_model(quantized, new, compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        new.with_suffix(suffix).replace(path.with_suffix(suffix))


INT8_OPERATIONS = frozenset({"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData"})


def _other_operations(model: Any) -> list[str]:
    """Return the types of operations that stay in float32."""
    return sorted({operation.get_type_name() for operation in model.get_ops()} - INT8_OPERATIONS)


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """Keep NNCF's progress bars out of the results of commands."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
