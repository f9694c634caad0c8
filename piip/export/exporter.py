"""Models for other runtimes: one file that needs neither this library nor, but for one format, PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from piip.export.comparison import Difference, compare
from piip.export.files import keep, scratch_folder, writable_path
from piip.export.formats import find_format
from piip.export.sidecar import describe
from piip.export.tracing import example_batches, free_sides, trace
from piip.export.wrappers import export_target
from piip.serialization.base import DescribedModel
from piip.serialization.hub import HUB_ID, from_pretrained
from piip.zoo.create import create_model


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
        model: A model, which is put in evaluation mode; a model directory, "owner/name" on the Hugging Face hub; or a
            name of `piip.list_models()`, which is built with random weights.
        out: The file, ending in .pt2, .onnx or .xml; its description has .json after that.
        format: "torch", "onnx" or "openvino".
        features_only: Backbone and neck alone.
        image_size: (H, W) of the images in pixels; None is the model's nominal square.
        dynamic_batch: Any number of images at a time instead of one.
        dynamic_size: Any size of images, see docs/export.md.
        check: Run the file on two images, and refuse one whose outputs are not those of the model.

    Raises:
        ValueError: Something that cannot be exported so, a missing package, a place that cannot be written to, or
            outputs that differ. No file is left.

    Example:
        >>> export_model("runs/landcover/best", "out/landcover.onnx", dynamic_batch=True)
    """
    written = find_format(format, runs=check)
    out = writable_path(out, written.suffix, format)
    loaded, is_random = (
        load_for_export(model, features_only=features_only) if isinstance(model, (str, Path)) else (model, False)
    )
    target = export_target(loaded, features_only=features_only).eval()
    _check_place(target)
    size = image_size or loaded.pretrained_cfg["input_size"][1:]
    if min(size) < 1:
        raise ValueError(f"image_size is {tuple(size)}, expected positive pixels (H, W).")
    free = free_sides(target, format, size, batch=dynamic_batch, any_size=dynamic_size, is_checked=check)
    batches = example_batches(loaded, target, size, free)
    with torch.inference_mode():
        outputs = target(batches[0])  # what is wrong with a size is said here
    shape: tuple[int | str, ...] = tuple(free.get(place, side) for place, side in enumerate(batches[0].shape))
    with scratch_folder(out) as folder:
        path = folder / out.name
        written.write(trace(target, batches[-1], free), path, [output.name for output in target.outputs])
        differences = compare(target, written.load(path, None), batches) if check else []
        _refuse(differences)
        text = describe(
            loaded, target, outputs, input_shape=shape, has_random_weights=is_random, differences=differences
        )
        files = keep(folder, out, {"format": format, **text})
    return ExportReport(files, shape, is_random, tuple(differences))


def _check_place(target: nn.Module) -> None:
    for weights in target.parameters():
        if weights.device.type != "cpu" or weights.dtype != torch.float32:
            raise ValueError(
                f"The model's weights are {weights.dtype} on {weights.device}, expected torch.float32 on the CPU: pass "
                "model.float().cpu()."
            )


def load_for_export(name: str | Path, *, features_only: bool = False) -> tuple[DescribedModel, bool]:
    """Return a saved or a named model, and whether its weights are random.

    Args:
        name: A model directory, "owner/name" on the Hugging Face hub, or a name of `piip.list_models()`.
        features_only: A named model without its head.

    Raises:
        ValueError: Nothing there.
    """
    is_saved = Path(name).exists() or HUB_ID.fullmatch(str(name)) is not None
    if not is_saved:
        torch.manual_seed(0)
    model = from_pretrained(name) if is_saved else create_model(str(name), features_only=features_only)
    assert isinstance(model, DescribedModel)  # whatever was built from a description is
    return model, not is_saved


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
    if not report.differences:
        lines.append("Not compared with PyTorch.")
    if any(0 in each.shape for each in report.differences):
        lines.append("PyTorch found nothing in the last picture either, so there was little to compare.")
    return "\n".join(lines)
