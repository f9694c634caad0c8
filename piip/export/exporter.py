"""Export of models to a file for another runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from piip.export.comparison import Difference, compare
from piip.export.files import keep, scratch_folder, writable_path
from piip.export.formats import EXPORT_FORMATS, Format, find_format, find_int8
from piip.export.int8 import CALIBRATION_IMAGES, Calibration, CalibrationImages
from piip.export.sidecar import describe
from piip.export.tracing import example_batches, free_sides, trace
from piip.layers.outputs import ExportWrapper
from piip.ops.compat import require_torch
from piip.serialization.base import PyramidModel
from piip.serialization.hub import HUB_ID
from piip.serialization.load import from_pretrained
from piip.zoo.create import create_model


@dataclass(frozen=True)
class Int8Report:
    """Quantization of a file.

    Args:
        images: Number of images for calibration.
        differences: Differences from the model on the first of these images; outputs whose number differs are left out.
    """

    images: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Args:
        files: The file to open, files that belong to it, and the JSON description.
        input_shape: Shape of the images: numbers for fixed sizes, names for dynamic ones.
        has_random_weights: Whether the model was built by name, with random weights.
        differences: Differences between the outputs of file and model, before an int8 file is quantized; empty without
            a check.
        int8: How the file was quantized; None for float32.
    """

    files: tuple[str, ...]
    input_shape: tuple[int | str, ...]
    has_random_weights: bool
    differences: tuple[Difference, ...]
    int8: Int8Report | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def export_model(
    model: PyramidModel | str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    features_only: bool = False,
    image_size: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    check: bool = True,
    calibrate: str | Path | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    calibration_metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Export a model to a file for another runtime, with a JSON description, and compare it with PyTorch.

    Args:
        model: A model, which is set to evaluation mode; a model directory, "owner/name" on the Hugging Face hub; or a
            name of `piip.list_models()`, which is built with random weights.
        out: Output file, ending in .pt2, .onnx or .xml; its description has .json appended.
        format: "torch", "onnx" or "openvino".
        features_only: Export only backbone and neck.
        image_size: (H, W) of the images in pixels; None uses the model's nominal square.
        dynamic_batch: Accept any batch size instead of one image.
        dynamic_size: Accept any image size, see docs/export.md.
        check: Compare the outputs of file and model on two images, and raise an error if they differ.
        calibrate: Folder of images like those to predict on: write int8 ("openvino" only) with ranges measured on them.
        calibration_images: Maximum number of these images, drawn with a fixed seed.
        calibration_metadata: Metadata of the model for which they are prepared; None uses that of `model`.

    Raises:
        ValueError: The model or options cannot be exported, a package is missing, the output cannot be written, or
            outputs differ. No file is left.

    Example:
        >>> export_model("runs/landcover/best", "out/landcover.onnx", dynamic_batch=True)
    """
    written = find_format(format, runs=check)
    calibration = None
    if calibrate is not None:
        find_int8(written, format)
        calibration = Calibration(calibrate, calibration_images, calibration_metadata)
        calibration.files()  # raises an error before the long work
    out = writable_path(out, written.suffix, format)
    loaded, is_random = (
        load_for_export(model, features_only=features_only) if isinstance(model, (str, Path)) else (model, False)
    )
    target = wrap_model(loaded, features_only=features_only).eval()
    _check_device(target)
    size = image_size or loaded.pretrained_cfg["input_size"][1:]
    if min(size) < 1:
        raise ValueError(f"image_size is {tuple(size)}, expected positive pixels (H, W).")
    free = free_sides(target, written, size, batch=dynamic_batch, any_size=dynamic_size, is_checked=check)
    require_torch(written.min_torch, f"The format {format}")
    require_torch(target.min_torch, "Exporting this model")
    batches = example_batches(loaded, target, size, free)
    with torch.inference_mode():
        outputs = target(batches[0])  # raises errors for invalid sizes
    shape: tuple[int | str, ...] = tuple(free.get(axis, side) for axis, side in enumerate(batches[0].shape))
    with scratch_folder(out) as folder:
        path = folder / out.name
        written.write(trace(target, batches[-1], free), path, [output.name for output in target.outputs])
        differences = compare(target, written.load(path, None), batches) if check else []
        _refuse(differences)
        int8 = None
        if calibration is not None:
            int8 = _quantize(path, format, target, calibration.images(loaded, (size[0], size[1])), is_checked=check)
        text = describe(
            loaded, target, outputs, input_shape=shape, has_random_weights=is_random, differences=differences
        )
        files = keep(folder, out, {"format": format, **text, "int8": asdict(int8) if int8 else None})
    return ExportReport(files, shape, is_random, tuple(differences), int8)


def _quantize(
    path: Path, format: str, target: ExportWrapper, images: CalibrationImages, *, is_checked: bool
) -> Int8Report:
    """Replace a written file by its int8 form, and compare it with the model on the first image."""
    written: Format = EXPORT_FORMATS[format]
    find_int8(written, format)(path, images)
    found: list[Difference] = []
    if is_checked:
        first = torch.from_numpy(images[0])
        found = [each for each in compare(target, written.load(path, None), [first]) if math.isfinite(each.relative)]
    return Int8Report(len(images), tuple(found))


def wrap_model(model: nn.Module, *, features_only: bool = False) -> ExportWrapper:
    """Return the part of a model to export.

    Args:
        model: A backbone, or a model with one.
        features_only: Backbone and neck alone.

    Raises:
        ValueError: The head cannot be exported, or the object is not a model of this library.
    """
    if not isinstance(model, PyramidModel):
        raise ValueError(
            f"The model is a {type(model).__name__}, expected one of piip.from_pretrained or create_model."
        )
    return (model.get_backbone() if features_only else model).export_wrapper()


def _check_device(target: nn.Module) -> None:
    for weights in target.parameters():
        if weights.device.type != "cpu" or weights.dtype != torch.float32:
            raise ValueError(
                f"The model's weights are {weights.dtype} on {weights.device}, expected torch.float32 on the CPU: pass "
                "model.float().cpu()."
            )


def load_for_export(name: str | Path, *, features_only: bool = False) -> tuple[PyramidModel, bool]:
    """Return a saved or a named model, and whether its weights are random.

    Args:
        name: A model directory, "owner/name" on the Hugging Face hub, or a name of `piip.list_models()`.
        features_only: Build a named model without its head.

    Raises:
        ValueError: The model does not exist.
    """
    is_saved = Path(name).exists() or HUB_ID.fullmatch(str(name)) is not None
    if not is_saved:
        torch.manual_seed(0)
    model = from_pretrained(name) if is_saved else create_model(str(name), features_only=features_only)
    return model, not is_saved


def _refuse(differences: Sequence[Difference]) -> None:
    """Raise ValueError if the outputs of file and model differ."""
    far = [f"{each.name} differs by {each.relative:.1e}, accepted {each.limit:.1e}" for each in differences]
    far = [text for text, each in zip(far, differences, strict=True) if not each.is_small]
    if far:
        raise ValueError(
            f"The outputs of the exported file differ from the model's: {'; '.join(far)}. Nothing was written; "
            "check=False (--no-check) skips the comparison."
        )


def format_export(report: ExportReport) -> str:
    """Return a report as text."""
    shape = ", ".join(str(side) for side in report.input_shape)
    lines = [f"{', '.join(report.files)}: images ({shape}), RGB in [0, 1] minus mean over std"]
    if report.has_random_weights:
        lines.append("The weights are random, because models by name have no weights; see `piip convert`.")
    lines += [_format_difference(each) for each in report.differences]
    if not report.differences:
        lines.append("Not compared with PyTorch.")
    if any(0 in each.shape for each in report.differences):
        lines.append("PyTorch found nothing in the last image either, so there was little to compare.")
    if report.int8 is not None:
        lines.append(f"Then made int8, calibrated on {report.int8.images} images. Differences on the first of them:")
        lines += [_format_difference(each) for each in report.int8.differences] or ["not measured"]
    return "\n".join(lines)


def _format_difference(each: Difference) -> str:
    return f"{each.name} {each.shape}: largest difference {each.max_abs:.1e}, relative {each.relative:.1e}"
