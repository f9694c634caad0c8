"""The command `piip export`."""

from __future__ import annotations

import contextlib
import json as json_module
import signal
import warnings
from collections.abc import Iterator
from typing import Literal


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that what is half-written goes away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def export(
    model: str,
    *,
    out: str,
    format: Literal["torch", "onnx", "openvino"] = "onnx",
    features_only: bool = False,
    image_size: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    check: bool | None = None,
    json: bool = False,
) -> None:
    """Write a model as one file for ONNX Runtime, OpenVINO or torch.export, and run it beside PyTorch.

    Beside the file, OUT.json tells mean, std, size, classes, and what goes in and comes out. docs/export.md shows how
    to use both where this library is not installed. Needs pip install "piip[export]", but for torch.

    Args:
        model: Model directory, RUN/model or RUN/best, owner/name on the Hugging Face hub, or a name from `piip list`,
            which gets random weights.
        out: File to write: .onnx, .xml (openvino, with .bin beside it) or .pt2 (torch).
        format: What to write.
        features_only: Backbone and neck alone: one output a feature map.
        image_size: Height and width of the images; by default the model's nominal square.
        dynamic_batch: Any number of images at a time instead of one (not for detectors).
        dynamic_size: Any size instead of one (not for detectors); slow to export.
        check: Run the file on two images and refuse one that does not compute what the model does. Default: yes.
        json: Print JSON, with "files", "input_shape", "has_random_weights" and "differences".
    """
    from piip.export.exporter import export_model, format_export

    with ended_as_by_ctrl_c(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters, about themselves
        report = export_model(
            model,
            out,
            format=format,
            features_only=features_only,
            image_size=image_size,
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            check=check is not False,
        )
    print(json_module.dumps(report.to_dict()) if json else format_export(report))
