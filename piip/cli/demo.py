"""The command `piip demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from piip.output import to_json


def demo(
    *,
    task: Literal["instances", "segmentation", "classification"] = "instances",
    out: Path = Path("out/demo.png"),
    image: list[str] | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Predict on real images with an included model, draw the result, and compare cost and time with other networks.

    Detect nuclei in microscope images (instances), find their pixels with a pyramid and with single networks
    (segmentation), or classify whole satellite images (classification).

    Args:
        task: Task to demonstrate.
        out: Output figure, PNG.
        image: Your own images instead of the included ones: files, folders or patterns.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        json: Print JSON: "task", "accuracy" (by model, mean of the images with a known target), "images" (with the
            "answers" of every model), "models" and "figure".
    """
    from rich.console import Console

    from piip.demo.run import run_demo
    from piip.demo.terminal import print_demo

    report = run_demo(task, out, images=image or (), device=device)
    if json:
        print(to_json(report.to_dict()))
    else:
        print_demo(report, Console())
