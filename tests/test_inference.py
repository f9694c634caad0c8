"""Models made fast for inference return what they returned before, and leave the given model alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_models import MODELS, build, of_vits
from pyramids import image, randomise
from shapes import dense_recipe
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

import piip
from piip.config import MergeConfig, ModelConfig
from piip.layers.attention import DeformableCrossAttention
from piip.layers.merge import BranchMerge
from piip.ops import native
from piip.ops.native import gemm
from piip.optimize.fused_block import FusedBlock, FusedMLP, PackedMLP
from piip.optimize.fused_maps import FusedConvNeXtBlock, FusedMerge
from piip.optimize.optimized_model import OptimizedModel, compiled
from piip.optimize.packing import InPlaceGELU, PackedConv2d, PackedDoubling, PackedLayerNorm, PackedLinear, can_pack
from piip.optimize.rewrite import FusedInjector, optimize_for_inference

TOLERANCE = 2e-5  # of float32, relative


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny models, one thread."""


def tensors(outputs: Any) -> list[Tensor]:
    """Return all floats of what a model returns."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for part in parts for tensor in tensors(part)]


def error(got: Any, want: Any) -> float:
    """Return the largest relative L2 distance of any tensor."""
    errors = []
    for ours, theirs in zip(tensors(got), tensors(want), strict=True):
        assert ours.shape == theirs.shape
        errors.append((ours.double() - theirs.double()).norm() / theirs.double().norm())
    return max(errors).item()


@torch.no_grad()
def eager(model: Callable[[Tensor], Any], images: Tensor) -> Any:
    return model(images)


IMAGES = (image(batch=1), image(96, 160), image(160, 112, batch=1, seed=1))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_model(name: str) -> None:
    """At the example's size and at others, of other shapes and batches."""
    model = build(MODELS[name])
    exact = copy.deepcopy(model).double()
    fast = optimize_for_inference(model, IMAGES[0])
    for images in IMAGES:
        want = eager(model, images)
        # some norms have hardly any variance to divide by: both are then as far from each other as from the truth
        assert error(fast(images), want) <= max(TOLERANCE, 2 * error(want, eager(exact, images.double())))


def differences(got: Any, want: Any) -> Tensor:
    """Return how far all numbers are off, as shares of the typical size of those of their tensor."""
    pairs = zip(tensors(got), tensors(want), strict=True)
    return torch.cat([((a.double() - b) / b.double().square().mean().sqrt()).flatten() for a, b in pairs])


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_exact_as_that_of_the_model(name: str) -> None:
    """Both errors are sums of many roundings, and of a few numbers either may be the larger one by chance.

    Over a thousand numbers, those of maps or of a dozen images, the chances even out: the fast model, which rounds less
    often, has 0.84 to 1.06 times the error of the other.
    """
    rounded = build(MODELS[name]).bfloat16()
    exact = copy.deepcopy(rounded).float()
    fast = optimize_for_inference(rounded, IMAGES[0].bfloat16())
    errors: list[list[Tensor]] = [[], []]
    for size in ((128, 128), (96, 160), (160, 112)):
        images = image(*size, batch=1 if MODELS[name].head.kind == "none" else 4).bfloat16()
        want = eager(exact, images.float())
        for found, got in zip(errors, (fast(images), eager(rounded, images)), strict=True):
            assert {tensor.dtype for tensor in tensors(got)} == {torch.bfloat16}
            found.append(differences(got, want))
    ours, theirs = (torch.cat(found) for found in errors)
    assert len(ours) >= 1000
    assert ours.norm() <= 1.2 * theirs.norm()
    assert theirs.square().mean().sqrt() <= 2.5e-2, "a comparison with noise"


def dense(kind: str) -> Any:
    torch.manual_seed(0)
    return randomise(piip.build_model(ModelConfig.from_dict(dense_recipe(Path(), Path(), kind)["model"])))


def test_detectors_find_the_same() -> None:
    model = dense("coco")
    nn.init.normal_(model.head.boxes.scores.weight, std=0.5)
    fast = optimize_for_inference(model, IMAGES[0])
    for images in IMAGES[:2]:
        got, want = fast(images), eager(model, images)
        assert len(got) == len(images)
        assert all(len(found["boxes"]) for found in want)
        assert error(got, want) <= 1e-4


def test_segmentors_find_the_same() -> None:
    model = dense("semantic_masks")
    fast = optimize_for_inference(model, IMAGES[0])
    assert isinstance(fast, OptimizedModel)
    for images in IMAGES[:2]:
        assert error(eager(fast.model.segment, images), eager(model.segment, images)) <= TOLERANCE
        for got, want in zip(fast(images), eager(model, images), strict=True):
            assert (got["labels"] == want["labels"]).float().mean() >= 0.999


def test_detectors_that_find_nothing_say_so() -> None:
    model = dense("coco")
    nn.init.zeros_(model.head.boxes.scores.weight)
    nn.init.constant_(model.head.boxes.scores.bias, -50.0)
    model.head.boxes.scores.bias.data[-1] = 50.0
    assert len(eager(model, IMAGES[0])[0]["boxes"]) == 0
    assert len(optimize_for_inference(model, IMAGES[0])(IMAGES[0])[0]["boxes"]) == 0


def kinds(fast: Any) -> set[type]:
    assert isinstance(fast, OptimizedModel)
    return {type(module) for module in fast.model.modules()}


def packs(dtype: torch.dtype) -> bool:
    """Return whether layers can be packed here: not those of bfloat16 on processors without AVX-512."""
    return can_pack(torch.empty(1, dtype=dtype))


def test_layers_are_replaced() -> None:
    """Else the tests above would compare a model with itself."""
    config = MODELS["windows that tile"]
    model = build(config)
    found = kinds(optimize_for_inference(model, IMAGES[0]))
    assert {FusedBlock, PackedMLP, FusedInjector, PackedConv2d, PackedLinear, PackedLayerNorm, InPlaceGELU} <= found
    assert not {nn.Linear, nn.LayerNorm, nn.ConvTranspose2d, DeformableCrossAttention} & found
    rounded = kinds(optimize_for_inference(model.bfloat16(), IMAGES[0].bfloat16()))
    if gemm.level():
        assert {FusedBlock, PackedDoubling, FusedMLP} <= rounded
    assert (FusedBlock in rounded) == packs(torch.bfloat16)


def test_blocks_and_merges_of_maps_are_replaced() -> None:
    config = dataclasses.replace(MODELS["mixed"], merge=MergeConfig("conv"))
    model = build(config)
    fast = optimize_for_inference(model, IMAGES[0])
    assert {FusedConvNeXtBlock, FusedMerge} <= kinds(fast)
    assert not {ConvNeXtBlock, BranchMerge} & kinds(fast)
    assert error(fast(IMAGES[1]), eager(model, IMAGES[1])) <= TOLERANCE


@pytest.mark.parametrize("name", ["layer scales", "windows that tile", "convnext"])
def test_the_model_stays_as_it_is(name: str) -> None:
    model = build(MODELS[name])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(key, type(module), module.training) for key, module in model.named_modules()]
    before = eager(model, IMAGES[1])
    fast = optimize_for_inference(model, IMAGES[0])
    first = tensors(fast(IMAGES[1]))
    assert [(key, type(module), module.training) for key, module in model.named_modules()] == modules
    assert all(torch.equal(a, b) for a, b in zip(tensors(eager(model, IMAGES[1])), tensors(before), strict=True))
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    sum(tensor.sum() for tensor in tensors(model.train()(IMAGES[0]))).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(tensors(fast(IMAGES[1])), first, strict=True))


def test_models_in_training_are_optimized_for_evaluation() -> None:
    model = build(of_vits(2, {"drop_path_rate": 0.9}, drop_path_rate=0.9))
    want = eager(model, IMAGES[0])
    fast = optimize_for_inference(model.train(), IMAGES[0])
    assert error(fast(IMAGES[0]), want) <= TOLERANCE
    assert all(module.training for module in model.modules())


def test_examples_of_another_dtype_are_explained() -> None:
    model = build(MODELS["one branch"])
    with pytest.raises(ValueError, match=r"example image is torch\.bfloat16 on cpu, the model torch\.float32 on cpu"):
        optimize_for_inference(model, IMAGES[0].bfloat16())
    with pytest.raises(ValueError, match="on meta, the model"):
        optimize_for_inference(model, IMAGES[0].to("meta"))


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    with pytest.warns(UserWarning, match="no-such-compiler could not compile"):
        assert not native.is_available()
    yield
    monkeypatch.undo()
    native.library.cache_clear()


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize(
    "name", ["windows that do not", "layer scales", "one direction", "bare interaction", "convnext"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_compiler_the_outputs_are_the_same(name: str, dtype: torch.dtype) -> None:
    model = build(MODELS[name]).to(dtype)
    fast = optimize_for_inference(model, IMAGES[0].to(dtype))
    assert ({PackedLinear, FusedInjector} <= kinds(fast)) == packs(dtype)
    assert PackedLayerNorm not in kinds(fast)
    bound = TOLERANCE if dtype == torch.float32 else 2.5e-2
    assert error(fast(IMAGES[1].to(dtype)), eager(model, IMAGES[1].to(dtype))) <= bound


@pytest.mark.parametrize("name", ["layer scales", "windows that tile", "convnext"])
def test_other_dtypes_run_on_stock_layers(name: str) -> None:
    model = build(MODELS[name]).double()
    fast = optimize_for_inference(model, IMAGES[0].double())
    assert not {FusedInjector, PackedLinear, PackedConv2d, PackedLayerNorm} & kinds(fast)
    assert error(fast(IMAGES[1].double()), eager(model, IMAGES[1].double())) <= 1e-12


def test_no_graph_is_recorded() -> None:
    fast = optimize_for_inference(build(MODELS["two branches"]), IMAGES[0])
    with torch.enable_grad():
        outputs = tensors(fast(IMAGES[0].clone().requires_grad_()))
    assert not any(output.requires_grad for output in outputs)
    with torch.inference_mode():
        inside = tensors(fast(IMAGES[0]))
    assert all(torch.equal(a, b) for a, b in zip(outputs, inside, strict=True))


def test_images_are_not_overwritten_and_calls_repeat() -> None:
    fast = optimize_for_inference(build(MODELS["windows that do not"]), IMAGES[0])
    images = IMAGES[1].clone()
    first = tensors(fast(images))
    assert torch.equal(images, IMAGES[1])
    assert all(torch.equal(a, b) for a, b in zip(tensors(fast(images)), first, strict=True))


def test_autocast_does_not_reach_packed_weights() -> None:
    model = randomise(piip.build_backbone(MODELS["two branches"]).eval())
    pixels = image(128, 128)
    fast = optimize_for_inference(model, pixels)
    want = fast(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        got = fast(pixels)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_a_model_that_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Accelerators without a compiler: no machine with one was at hand, so the compiler is a stand-in."""

    def fail(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Cannot find a working triton installation.\nmore")

    monkeypatch.setattr(torch, "compile", lambda model, mode: fail)
    layer, image = torch.nn.Conv2d(3, 2, 1).eval(), torch.randn(1, 3, 4, 4)
    model = compiled(layer, image)
    assert torch.equal(model(image), layer(image))
    assert "torch.compile failed (RuntimeError: Cannot find a working triton installation.)" in caplog.text
    with pytest.raises(RuntimeError, match="expected input"):
        compiled(layer, torch.randn(1, 4, 4, 4))


def test_a_compiled_model_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, mode: lambda image: model(image) + 1)
    image = torch.zeros(1, 3, 2, 2)
    assert compiled(torch.nn.Identity(), image)(image).unique().tolist() == [1.0]
