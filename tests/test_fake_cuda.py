"""Models on a GPU that is not there: tensors without values show where code would mix devices or dtypes.

Autocast cannot be tried so, because PyTorch disables it where it sees no GPU, nor what reads values: suppression of
boxes and matching.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_models import MODELS
from packaging.version import Version
from shapes import dense_recipe
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

import piip
from piip.config import HeadConfig, ModelConfig
from piip.structures import ImageInfo

# PyTorch 2.6 asks for the driver all the same; 2.14 does not
pytestmark = pytest.mark.skipif(
    Version(torch.__version__).release < (2, 14) and not torch.cuda.is_available(), reason="needs PyTorch 2.14 or a GPU"
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CUDA = torch.device("cuda", 0)


class Call(nn.Module):
    """A model whose forward pass is a function of it, for `functional_call`."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, *arguments: Any) -> Any:
        return self.run(self.model, *arguments)


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    with FakeTensorMode(shape_env=ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)):
        yield


def on_gpu(model: nn.Module, run: Callable[..., Any], *arguments: Any, dtype: torch.dtype = torch.float32) -> set[Any]:
    """Run a model whose weights are on the GPU, and return devices and dtypes of the tensors it makes."""
    call = Call(model, run)
    state = {
        name: torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device=CUDA)
        for name, value in (*call.named_parameters(), *call.named_buffers())
    }
    with torch.no_grad():
        made = torch.func.functional_call(call, state, arguments)
    return {(value.device, value.dtype) for value in tree_leaves(made) if isinstance(value, Tensor)}


def build(config: ModelConfig) -> Any:
    """Build a model with real weights; they are replaced when it is called."""
    with torch.utils._python_dispatch._disable_current_modes():
        return piip.build_model(config).eval()


def dense(kind: str, head: str | None = None) -> ModelConfig:
    config = ModelConfig.from_dict(dense_recipe(Path(), Path(), kind)["model"])
    return config if head is None else dataclasses.replace(config, head=HeadConfig(head, num_classes=3))


def image_on_gpu(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, height, width, device=CUDA, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    made = on_gpu(build(MODELS[name]), lambda model, image: model(image), image_on_gpu(128, 160, dtype), dtype=dtype)
    assert made == {(CUDA, dtype)}


@pytest.mark.parametrize("config", [dense("semantic_masks"), dense("coco", "dino")], ids=["upernet", "dino"])
def test_predictions_are_on_the_gpu(config: ModelConfig) -> None:
    made = on_gpu(build(config), lambda model, image: model.predict(image), image_on_gpu(64, 96))
    assert {device for device, _ in made} == {CUDA}


@pytest.mark.parametrize("name", ["mask_rcnn", "dino", "upernet"])
def test_heads_run_on_the_gpu(name: str) -> None:
    config = dense("semantic_masks") if name == "upernet" else dense("coco", name)

    def run(model: Any, image: Tensor) -> list[Tensor]:
        maps = [level[:1] for level in model.forward_maps(image)]
        assert "counted up to" not in model.head.dry_run(maps, ImageInfo.make((64, 96)), max_detections=7)
        return maps

    assert on_gpu(build(config), run, image_on_gpu(64, 96)) == {(CUDA, torch.float32)}


def test_losses_of_segmentors_are_on_the_gpu() -> None:
    target = [{"labels": torch.zeros(64, 96, dtype=torch.int64, device=CUDA)}] * 2
    model = build(dense("semantic_masks")).train()
    made = on_gpu(model, lambda model, image: model.compute_losses(image, None, target).losses, image_on_gpu(64, 96))
    assert made == {(CUDA, torch.float32)}
