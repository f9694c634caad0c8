"""The command `piip export`."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator
from typing import Literal

from piip.output import to_json


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so incomplete files are removed."""
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
    int8: bool = False,
    calibrate: str | None = None,
    calibration_images: int = 100,
    json: bool = False,
) -> None:
    """Export a model to a file for ONNX Runtime, OpenVINO or torch.export, and compare its outputs with PyTorch.

    OUT.json describes the file: mean, std, size, classes, inputs and outputs. docs/export.md shows how to use both
    without this library. Requires pip install "piip[export]", except for the format torch.

    Args:
        model: Model directory, RUN/model or RUN/best, owner/name on the Hugging Face hub, or a name from `piip list`,
            which gets random weights.
        out: Output file: .onnx, .xml (openvino, with .bin beside it) or .pt2 (torch).
        format: Format of the file.
        features_only: Export only backbone and neck, with one output per feature map.
        image_size: Height and width of the images. Default: the model's nominal square size.
        dynamic_batch: Accept any batch size instead of one image (not for detectors).
        dynamic_size: Accept any image size instead of a fixed one (not for detectors); slow to export.
        check: Compare the outputs of the file with the model on two images; fail if they differ. Default: yes.
        int8: Compute products and convolutions in 8-bit integers (openvino only, pip install "piip[int8]"); needs
            --calibrate. Changes results; docs/export.md says by how much.
        calibrate: Folder of images like those to predict on, prepared as for prediction, without labels.
        calibration_images: Maximum number of images for calibration, drawn from the folder with a fixed seed.
        json: Print JSON, with "files", "input_shape", "has_random_weights", "differences" and "int8".

    Raises:
        ValueError: --int8 without --calibrate, or the other way round.
    """
    from piip.export.exporter import export_model, format_export

    if int8 != (calibrate is not None):
        raise ValueError("--int8 and --calibrate FOLDER belong together: give both, or neither.")
    with ended_as_by_ctrl_c(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporters, about their own code
        report = export_model(
            model,
            out,
            format=format,
            features_only=features_only,
            image_size=image_size,
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            check=check is not False,
            calibrate=calibrate,
            calibration_images=calibration_images,
        )
    print(to_json(report.to_dict()) if json else format_export(report))
