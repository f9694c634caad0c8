"""The command `piip plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from piip.output import to_json


def plan(
    *,
    task: Literal["classification", "detection", "instance", "semantic"],
    image_size: list[int],
    budget_macs: float | None = None,
    budget_seconds: float | None = None,
    fps: float | None = None,
    budget_bytes: float | None = None,
    budget_params: float | None = None,
    family: str = "augreg",
    networks: list[str] | None = None,
    interactions: int | None = None,
    num_classes: int | None = None,
    measure: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Find pyramids within a budget, beside the single networks of equal cost.

    Pyramids of two and three networks of a family are counted, those kept than which no other is cheaper, larger and
    better supported at once, and ordered by what was published about pyramids of the same shape. No accuracy is
    predicted. docs/plan.md explains the columns.

    With --out DIR, write DIR/plan.json, DIR/plan.png and DIR/recipe.yaml, which `piip train` takes once the paths to
    your data are filled in.

    Args:
        task: classification, detection (DINO), instance (Mask R-CNN) or semantic (UperNet of width 128).
        image_size: Side of the images in pixels, or height and width.
        budget_macs: Maximum multiply-adds of the whole model for one image, in G (1e9).
        budget_seconds: Maximum time for one image on this machine; the best three are measured unless --measure says
            how many, the others are expected to take as long per multiply-add as a ViT-S.
        fps: Minimum images per second instead: --budget-seconds 1 / FPS.
        budget_bytes: Maximum memory of the process in bytes, expected from parameters and pixels unless measured.
        budget_params: Maximum parameters in M (1e6).
        family: deit3, augreg, dinov2_reg, dinov3, siglip2, eva02, convnextv2, convnextv2_deit3,
            convnext_dinov3 or tiny.
        networks: Names of timm instead of a family, the largest first.
        interactions: Number of interactions. Default: as many as the networks allow.
        num_classes: Number of classes of the recipe. Default: `piip train` counts them.
        measure: Number of pyramids to measure, the best supported first, and all single networks. Default: 0.
        device: Device of measurements: "auto", "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of measurements on the CPU. Default: PyTorch's.
        out: Folder for plan.json, plan.png and recipe.yaml.
        json: Print JSON, with "pyramids", "singles" and "limits".

    Raises:
        ValueError: Image sizes or limits are not positive, or contradict each other.
    """
    import sys

    from piip.plan.command import MEASURED, Request, command_text
    from piip.plan.command import plan as make
    from piip.plan.search import Budget

    if len(image_size) not in (1, 2) or min(image_size) < 32:
        raise ValueError(f"image_size is {image_size}, expected a side or a height and a width of at least 32 pixels.")
    given = {"budget_macs": budget_macs, "budget_seconds": budget_seconds, "fps": fps}
    given |= {"budget_bytes": budget_bytes, "budget_params": budget_params}
    for name, value in given.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} is {value}, expected a value above 0.")
    if fps is not None and budget_seconds is not None:
        raise ValueError("--fps and --budget-seconds both limit the time: give one of them.")
    seconds = 1 / fps if fps is not None else budget_seconds
    budget = Budget(_times(budget_macs, 1e9), _times(budget_params, 1e6), seconds, budget_bytes)
    if measure is None:
        measure = 0 if seconds is None else MEASURED
    size = (image_size[0], image_size[-1])
    request = Request(task, size, family, networks, budget, interactions, num_classes, measure, device, threads)
    found = make(request, None if out is None else Path(out), quiet=json, command=command_text(sys.argv[1:]))
    if json:
        print(to_json(found, indent=2))


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
