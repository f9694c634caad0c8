"""Kernel launches and host synchronisations: what is counted, and the figures that models hold to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from pyramids import tiny_vit
from torch import Tensor

import piip
from piip.config import HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.cost import Launches, count_launches
from piip.cost.launches import LaunchCounter
from piip.models import PIIPDenseModel
from piip.ops.native import compiled
from piip.serialization.base import PyramidModel
from piip.structures import ImageInfo

VALUES = torch.arange(6.0).view(2, 3)
COUNTED: dict[str, tuple[Callable[[], object], Launches]] = {
    "views": (lambda: VALUES.t()[0].unsqueeze(0).expand(4, -1), Launches(0, 0)),
    "memory": (lambda: torch.empty(3), Launches(0, 0)),
    "elementwise": (lambda: (VALUES + 1).exp_(), Launches(2, 0)),
    "a copy": (lambda: VALUES.t().reshape(6), Launches(1, 0)),
    "a product": (lambda: torch.nn.functional.linear(VALUES, VALUES, VALUES[:, 0]), Launches(1, 0)),
    "a matrix product": (lambda: VALUES @ VALUES.T, Launches(1, 0)),
    "a resized map": (
        lambda: torch.nn.functional.interpolate(VALUES[None, None], size=(5, 7), mode="bicubic"),
        Launches(1, 0),
    ),
    "item": (lambda: VALUES.sum().item(), Launches(1, 1)),
    "a condition": (lambda: bool(VALUES.isfinite().all()), Launches(5, 1)),
    "nonzero": (lambda: VALUES.nonzero(), Launches(1, 1)),
    "a mask": (lambda: VALUES[VALUES > 2], Launches(2, 1)),
    "an index": (lambda: VALUES[torch.zeros_like(VALUES, dtype=torch.long)[0]], Launches(2, 0)),
}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", COUNTED)
def test_launches_and_syncs_are_counted(name: str, mode: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    run, expected = COUNTED[name]
    with mode():
        assert count_launches(run) == expected


def test_backward_passes_are_counted() -> None:
    leaf = VALUES.clone().requires_grad_()
    counter = LaunchCounter()
    with counter:
        leaf[VALUES > 2].exp().sum().backward()
    assert counter.launched["exp"] == 1
    assert counter.launched["mul"] == 1  # backward of exp
    assert counter.synced == {"index": 1, "index_put": 1}


SIDE = 64


def detector(kind: str) -> PIIPDenseModel:
    parts = (tiny_vit(32, 2, SIDE // 2, depth=2), tiny_vit(16, 2, SIDE, depth=2))
    interaction = InteractionConfig(count=2, num_heads=4)
    config = ModelConfig(
        parts, interaction, MergeConfig("slim", 32), NeckConfig("simple"), HeadConfig(kind, num_classes=6)
    )
    torch.manual_seed(0)
    model = piip.build_model(config)
    assert isinstance(model, PIIPDenseModel)
    return model


def step(model: PIIPDenseModel, objects: int) -> Launches:
    """Count a training step with two images."""
    generator = torch.Generator().manual_seed(objects)

    def target() -> dict[str, Tensor]:
        corners = torch.rand(objects, 2, generator=generator) * SIDE / 2
        boxes = torch.cat((corners, corners + 8 + torch.rand(objects, 2, generator=generator) * SIDE / 4), 1)
        masks = torch.rand(objects, SIDE, SIDE, generator=generator) > 0.5
        return {"boxes": boxes, "labels": torch.arange(objects) % 6, "masks": masks}

    targets, images = [target(), target()], torch.randn(2, 3, SIDE, SIDE, generator=generator)

    model.zero_grad()  # adding to gradients would launch a kernel for every parameter

    def run() -> None:
        torch.stack(
            [value for name, value in model(images, targets=targets).items() if "loss" in name]
        ).sum().backward()

    return count_launches(run)


# the figures at the time of writing; more is a step back
@pytest.mark.parametrize(("kind", "launches", "syncs"), [("mask_rcnn", 1200, 7), ("dino", 2200, 2)])
def test_training_steps_wait_as_often_for_many_objects_as_for_few(kind: str, launches: int, syncs: int) -> None:
    model = detector(kind).train()
    step(model, 1)  # tables of positions are made in the first step of a size
    few, many = step(model, 5), step(model, 50)
    assert few.syncs == many.syncs <= syncs
    assert abs(few.launches - many.launches) <= 40
    assert many.launches <= launches


def three_branches() -> PyramidModel:
    """Return a pyramid with as many interactions as PIIP-TSB, whose branches are small."""
    fields = {"prefix_tokens": False, "final_norm": False, "window_size": 2, "timm_args": {"init_values": 0.1}}
    parts = [tiny_vit(*sizes, depth=12, **fields) for sizes in ((64, 4, 32), (32, 2, 64), (16, 1, 96))]
    config = ModelConfig(
        tuple(parts), InteractionConfig(count=12, num_heads=4), MergeConfig("conv"), NeckConfig("simple")
    )
    torch.manual_seed(0)
    return piip.build_backbone(config).eval()


@pytest.fixture(params=[True, False], ids=["native", "portable"])
def has_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif not compiled.is_available():
        pytest.skip("no compiler")
    return bool(request.param)


def test_forward_passes_of_three_branches(has_kernels: bool) -> None:
    model, image = three_branches(), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        model(image)
        assert count_launches(lambda: model(image)).launches <= (1300 if has_kernels else 2070)


def test_optimized_forward_passes_without_kernels_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: None)
    image = torch.randn(1, 3, 96, 96)
    fast = piip.optimize_for_inference(three_branches(), image)
    fast(image)
    assert count_launches(lambda: fast(image)).launches <= 1800


def test_forward_passes_on_accelerators_never_wait() -> None:
    """The meta device stands for one: what asks for a value there fails, what waits for a shape is counted."""
    model = detector("dino").eval().to("meta")
    image, image_infos = torch.empty(2, 3, SIDE, SIDE, device="meta"), [ImageInfo.make((SIDE, SIDE))] * 2
    with torch.no_grad():
        assert count_launches(lambda: model.head(model.backbone(image), image_infos)).syncs == 0
