"""Models for other runtimes: one file that needs neither this library nor, but for one format, PyTorch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from piip.described import DescribedModel
from piip.exporting.comparison import Difference, check_pictures, compare
from piip.exporting.formats import Format, find_format
from piip.exporting.sidecar import describe
from piip.exporting.targets import ExportTarget, export_target
from piip.hub import HUB_ID, from_pretrained
from piip.ops.positions import channel_values
from piip.zoo import create_model

CHECKED = 2  # images


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Args:
        files: The files: the one to open, what belongs to it, and the JSON description.
        input_shape: Of the images: numbers where fixed, names where free.
        has_random_weights: Whether the model came from the list of names, which has no weights.
        differences: How far the file's outputs are from the model's; empty without a check.
    """

    files: tuple[str, ...]
    input_shape: tuple[int | str, ...]
    has_random_weights: bool
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def export_model(
    model: DescribedModel | str | Path,
    out: str | Path,
    *,
    format: str = "onnx",
    features_only: bool = False,
    image_size: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    check: bool = True,
) -> ExportReport:
    """Write a model as one file for another runtime, with a JSON description, and run it beside PyTorch.

    Args:
        model: A model; or a model directory, "owner/name" on the Hugging Face hub, or a name of `piip.list_models()`,
            which is built with random weights.
        out: The file, ending in .pt2, .onnx or .xml; its description ends in .json.
        format: "torch", "onnx" or "openvino".
        features_only: Backbone and neck alone.
        image_size: (H, W) of the images in pixels; None is the model's nominal square.
        dynamic_batch: Any number of images at a time instead of one.
        dynamic_size: Any size of images, see docs/export.md.
        check: Run the file on two images, and refuse one whose outputs are not those of the model.

    Raises:
        ValueError: Something that cannot be exported so, a missing package, or outputs that differ. No file is left.

    Example:
        >>> export_model("runs/landcover/best", "out/landcover.onnx", dynamic_batch=True)
    """
    written = find_format(format, runs=check)
    out = _checked_path(out, format, written)
    loaded, is_random = _load(model, features_only) if isinstance(model, (str, Path)) else (model, False)
    target = export_target(loaded, features_only=features_only).eval().requires_grad_(False)
    free = _free_sides(target, batch=dynamic_batch, size=dynamic_size)
    images = _normalised(loaded, check_pictures(CHECKED, image_size or loaded.pretrained_cfg["input_size"][1:]))
    batches = [images] if dynamic_batch else list(images.split(1))
    with torch.inference_mode():
        outputs = target(batches[0])  # what is wrong with a size is said here
    shape: tuple[int | str, ...] = tuple(free.get(place, side) for place, side in enumerate(batches[0].shape))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        written.write(_program(target, batches[0], free), Path(folder, out.name), [o.name for o in target.outputs])
        differences = compare(target, written.load(Path(folder, out.name)), batches) if check else []
        _refuse(differences)
        files = [out.name, *sorted({*os.listdir(folder)} - {out.name})]
        text = describe(
            loaded,
            target,
            outputs,
            file_format=format,
            files=files,
            input_shape=shape,
            has_random_weights=is_random,
            differences=differences,
        )
        side_file = out.with_suffix(".json").name
        Path(folder, side_file).write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        for name in (*files, side_file):
            os.replace(Path(folder, name), out.parent / name)
    paths = tuple(str(out.parent / name) for name in (*files, side_file))
    return ExportReport(paths, shape, is_random, tuple(differences))


def _checked_path(out: str | Path, format: str, written: Format) -> Path:
    path = Path(out)
    if path.suffix != written.suffix:
        raise ValueError(f"out is {out}, expected a file ending in {written.suffix} for the format {format}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _load(name: str | Path, features_only: bool) -> tuple[DescribedModel, bool]:
    """Return a saved model, or a named one, and whether its weights are random."""
    if Path(name).exists() or HUB_ID.fullmatch(str(name)):
        return _described(from_pretrained(name)), False
    torch.manual_seed(0)
    return _described(create_model(str(name), features_only=features_only)), True


def _described(model: nn.Module) -> DescribedModel:
    assert isinstance(model, DescribedModel)  # whatever was built from a description is
    return model


def _free_sides(target: ExportTarget, *, batch: bool, size: bool) -> dict[int, str]:
    """Return the names of the sides of (B, 3, H, W) that are not fixed."""
    if target.takes_one_image and (batch or size):
        raise ValueError(
            "Mask R-CNN is exported for one image of a fixed size: leave dynamic_batch and dynamic_size out "
            "(features_only exports its backbone and neck with both)."
        )
    return {**({0: "batch"} if batch else {}), **({2: "height", 3: "width"} if size else {})}


def _normalised(model: DescribedModel, pictures: Tensor) -> Tensor:
    mean, std = (channel_values(tuple(model.pretrained_cfg[name]), pictures.device) for name in ("mean", "std"))
    return (pictures - mean) / std


@torch.no_grad()
def _program(target: ExportTarget, images: Tensor, free: Mapping[int, str]) -> ExportedProgram:
    shapes = ({place: Dim(name) for place, name in free.items()},)
    # sizes are rounded to whole patches: what cannot be proven for every size is checked when the program runs
    return torch.export.export(
        target, (images,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=2 in free
    )


def _refuse(differences: Sequence[Difference]) -> None:
    """Raise ValueError where the file does not compute what the model computes."""
    far = [f"{each.name} differs by {each.relative:.1e}, accepted {each.limit:.1e}" for each in differences]
    far = [text for text, each in zip(far, differences, strict=True) if not each.is_small]
    if far:
        raise ValueError(
            f"The exported file does not compute what the model computes: {'; '.join(far)}. Nothing was written; "
            "check=False (--no-check) writes it nevertheless."
        )


def format_export(report: ExportReport) -> str:
    """Return a report as text."""
    shape = ", ".join(str(side) for side in report.input_shape)
    lines = [f"{', '.join(report.files)}: images ({shape}), RGB in [0, 1] minus mean over std"]
    if report.has_random_weights:
        lines.append("The weights are random: models by name come without any, see `piip convert`.")
    lines += [
        f"{each.name} {each.shape}: largest difference {each.max_abs:.1e}, relative {each.relative:.1e}"
        for each in report.differences
    ]
    return "\n".join(lines if report.differences else [*lines, "Not compared with PyTorch."])
