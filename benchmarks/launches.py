"""How many kernels does a model launch, and how often does the host wait? Pyramid and single network, and training.

    python benchmarks/launches.py [--cases forward mask_rcnn dino] [--size 448] [--out out/launches.json]

Launches and synchronisations decide the time of small operations on accelerators; they are counted by dispatched
operation, here and without one. Forward passes are those of PIIP-TSB and ViT-B, each as it is and after
`piip.optimize_for_inference` without native kernels for CPU. Training steps are forward and backward of small
pyramids with the heads Mask R-CNN and DINO, two images of 5 and of 50 objects.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common.command import KEPT, results
from common.progress import say
from rich.console import Console
from rich.table import Table
from torch import Tensor

import piip
from piip.cost import Launches, count_launches
from piip.models import PIIPDenseModel
from piip.ops.native import compiled

MODELS = {"TSB": "piip_tsb_1120_896_448.deit3_coco_mask_rcnn", "ViT-B": "single_b_1024.deit3_coco_mask_rcnn"}
HEADS = {"mask_rcnn": "Mask R-CNN", "dino": "DINO"}
OBJECTS = (5, 50)
SIDE = 224  # pixels of the images of training steps
Counted = tuple[str, str, Launches]


def forward_passes(size: int) -> Iterable[Counted]:
    """Count forward passes of an image (1, 3, size, size) in every form."""
    image = torch.randn(1, 3, size, size)
    for title, name in MODELS.items():
        model = piip.create_model(name, features_only=True).eval().requires_grad_(False)
        with torch.no_grad():
            model(image)  # tables of positions are made in the first call of a size
            yield f"{title}, forward", "eager", count_launches(lambda m=model: m(image))
            with mock.patch.object(compiled, "library", return_value=None):
                optimized = piip.optimize_for_inference(model, image)
                optimized(image)
                yield f"{title}, forward", "optimized", count_launches(lambda run=optimized: run(image))


def detector(kind: str) -> PIIPDenseModel:
    """Return a small pyramid with a head of a kind, in training mode."""
    depth = {"depth": 4}
    branches = (
        piip.BranchConfig("vit_tiny_patch16_224", image_size=SIDE // 2, timm_args=depth),
        piip.BranchConfig("vit_tiny_patch16_224", image_size=SIDE, timm_args={**depth, "embed_dim": 96}),
    )
    parts = {"merge": piip.MergeConfig(kind="slim"), "neck": piip.NeckConfig(kind="simple")}
    head = piip.HeadConfig(kind=kind, num_classes=80)
    return piip.build_model(piip.ModelConfig(branches, head=head, **parts)).train()


def target(objects: int, *, masks: bool) -> dict[str, Tensor]:
    """Return random objects of one image."""
    corners = torch.rand(objects, 2) * 0.65 * SIDE
    boxes = torch.cat([corners, corners + torch.rand(objects, 2) * 0.25 * SIDE + 8], 1)
    made = {"boxes": boxes, "labels": torch.randint(0, 80, (objects,))}
    return {**made, "masks": torch.rand(objects, SIDE, SIDE) > 0.5} if masks else made


def training_steps(kind: str) -> Iterable[Counted]:
    """Count training steps with two images of few and of many objects."""
    model = detector(kind)
    images = torch.randn(2, 3, SIDE, SIDE)
    for objects in OBJECTS:
        targets = [target(objects, masks=kind == "mask_rcnn") for _ in images]

        model.zero_grad()  # adding to gradients would launch a kernel for every parameter

        def step(targets: list[Any] = targets) -> None:
            losses = model(images, targets=targets)
            torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()

        yield f"{HEADS[kind]}, training step", f"{objects} objects", count_launches(step)


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{KEPT}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=("forward", *HEADS), default=["forward", *HEADS])
    parser.add_argument("--size", type=int, default=448, help="side of the image of forward passes in pixels")
    parser.add_argument("--out", type=Path, default=Path("out/launches.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", piip.PyramidWarning)
    torch.manual_seed(0)
    found = results(arguments.out)
    for case in arguments.cases:
        for what, form, counted in forward_passes(arguments.size) if case == "forward" else training_steps(case):
            found.put((what, form), {"case": what, "form": form, **counted._asdict()})
            say(f"{what}, {form}: {counted.launches} launches, {counted.syncs} synchronisations")
    found.write()
    shown = Table("case", "form", title=f"PyTorch {torch.__version__}")
    for column in ("launches", "syncs"):
        shown.add_column(column, justify="right")
    for row in found.rows:
        shown.add_row(row["case"], row["form"], str(row["launches"]), str(row["syncs"]))
    Console(width=100).print(shown)


if __name__ == "__main__":
    main()
