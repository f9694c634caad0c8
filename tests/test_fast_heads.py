"""Heads made fast for inference: the sampling of several levels, and layers that are fused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pyramids import image, randomise, tiny_vit
from test_inference import TOLERANCE, error, kinds
from torch import Tensor, nn

import piip
from piip.config import HeadConfig, MergeConfig, ModelConfig, NeckConfig
from piip.heads.dino.attention import LevelsDeformableAttention
from piip.heads.dino.tokens import LevelTokens, flatten_levels
from piip.ops import deformable_attention, native
from piip.optimize.fused_levels import FusedEncoderLayer, FusedLevelsAttention
from piip.optimize.packing import PackedConv2d, PackedLayerNorm
from piip.structures import ImageInfo

pytestmark = pytest.mark.usefixtures("one_thread")
GRIDS = ((6, 8), (3, 4), (2, 2))
SIDES = [side for grid in GRIDS for side in grid]
CELLS = sum(height * width for height, width in GRIDS)
HEADS, LEVELS, POINTS, DIM, QUERIES = 2, len(GRIDS), 5, 20, 7
SIZE = (2, QUERIES, HEADS, LEVELS, POINTS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact_sampling(value: Tensor, offsets: Tensor, logits: Tensor, references: Tensor) -> Tensor:
    """Return what `native.sample_levels` returns, level by level in float64 by `grid_sample`."""
    value, offsets, references = value.double(), offsets.double().view(*SIZE, 2), references.double()
    weights = logits.double().view(2, QUERIES, HEADS, -1).softmax(-1).view(SIZE)
    total: Any = 0
    for level, (part, grid) in enumerate(zip(value.split([h * w for h, w in GRIDS], 1), GRIDS, strict=True)):
        own = references[:, :, level, None, None]
        unit = torch.tensor((1 / grid[1], 1 / grid[0])).double()
        unit = own[..., 2:] / 2 / POINTS if references.shape[3] == 4 else unit
        places = own[..., :2] + offsets[:, :, :, level] * unit
        total = total + deformable_attention(part, grid, places, weights[:, :, :, level], provider="portable")
    return total


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("dtype", native.SUFFIXES)
def test_sampling_of_levels_is_exact(dtype: torch.dtype, reference_size: int) -> None:
    value = random(2, CELLS, HEADS, DIM).to(dtype)
    rows = random(2, QUERIES, 3 * HEADS * LEVELS * POINTS, seed=1).to(dtype) * 2
    offsets, logits = rows.split([2 * HEADS * LEVELS * POINTS, HEADS * LEVELS * POINTS], 2)  # parts of longer rows
    references = random(2, QUERIES, LEVELS, reference_size, seed=2).sigmoid()
    want = exact_sampling(value, offsets, logits, references)
    for given in ((offsets, logits), (offsets.contiguous(), logits.contiguous())):
        got = native.sample_levels(value, SIDES, *given, references)
        assert got.dtype == dtype
        assert (got - want).norm() <= (2e-6 if dtype == torch.float32 else 3e-3) * want.norm()


def test_rows_of_other_layouts_are_read_too() -> None:
    value, references = random(2, CELLS, HEADS, DIM), random(2, QUERIES, LEVELS, 2, seed=2).sigmoid()
    offsets = random(2, 2 * HEADS * LEVELS * POINTS, QUERIES, seed=1).transpose(1, 2)
    logits = random(QUERIES, 2, HEADS * LEVELS * POINTS, seed=3).transpose(0, 1)
    got = native.sample_levels(value, SIDES, offsets, logits, references)
    want = exact_sampling(value, offsets.contiguous(), logits.contiguous(), references)
    assert (got - want).norm() <= 2e-6 * want.norm()


def dino() -> Any:
    torch.manual_seed(0)
    config = ModelConfig(
        (tiny_vit(32, 2, 128),),
        merge=MergeConfig("none"),
        neck=NeckConfig("simple", scales=(2, 1, 0.5)),
        head=HeadConfig("dino", 3, width=32),
    )
    model = randomise(piip.build_model(config))
    for module in model.modules():
        if isinstance(module, LevelsDeformableAttention):
            for layer in (module.offsets, module.weights):  # as after training: they depend on the query
                nn.init.normal_(layer.weight, std=0.1)
    for box in model.head.boxes:
        nn.init.normal_(box[-1].weight, std=0.1)
    return model


def levels_of(model: Any, images: Tensor, infos: list[ImageInfo]) -> LevelTokens:
    maps = model.head.neck(model.forward_maps(images))
    return flatten_levels(maps, model.head.encoder.level_embeds, infos)


FULL = ImageInfo.make((128, 128))
PADDED = ImageInfo.make((96, 80), padded=(128, 128))


@pytest.mark.parametrize("infos", [[FULL, FULL], [FULL, PADDED]], ids=["full", "padded"])
def test_attention_without_gradients_is_that_with_gradients(infos: list[ImageInfo]) -> None:
    model = dino()
    with torch.no_grad():
        levels = levels_of(model, image(), infos)
        fast = model.head.encoder(levels)
    assert levels.is_padded == bool(levels.padding.any()) == (PADDED in infos)
    with torch.enable_grad():
        slow = model.head.encoder(levels)
    assert slow.requires_grad
    assert error([fast], [slow.detach()]) <= TOLERANCE


@pytest.mark.parametrize("infos", [[FULL, FULL], [FULL, PADDED]], ids=["full", "padded"])
def test_optimized_dino_is_the_same(infos: list[ImageInfo]) -> None:
    model, images = dino(), image()
    fast = piip.optimize_for_inference(model, image(batch=1))
    found = kinds(fast)
    assert {FusedEncoderLayer, FusedLevelsAttention, PackedLayerNorm, PackedConv2d} <= found
    assert not {LevelsDeformableAttention, nn.Linear, nn.ReLU} & found
    assert isinstance(fast, piip.optimize.optimized_model.OptimizedModel)
    other: Any = fast.model
    with torch.no_grad():
        levels = levels_of(model, images, infos)
        memory = model.head.encoder(levels)
        assert error([other.head.encoder(levels)], [memory]) <= TOLERANCE
        # from given queries, since those of nearly equal scores are selected in another order
        content, boxes = random(2, 50, 32), random(2, 50, 4, seed=1).sigmoid()
        got, want = (
            each.head.decoder(content, boxes, memory, levels, refine=each.head.boxes[:-1]) for each in (other, model)
        )
        assert error(got, want) <= TOLERANCE
        ours, theirs = other.predict(images, infos), model.predict(images, infos)
    for found, wanted in zip(ours, theirs, strict=True):
        assert len(found["scores"]) == len(wanted["scores"]) == 300
        assert (found["scores"][0] - wanted["scores"][0]).abs() <= 0.05


def test_norms_and_activations_of_a_segmentor_are_folded() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        (tiny_vit(32, 2, 128),),
        merge=MergeConfig("none"),
        neck=NeckConfig("simple"),
        head=HeadConfig("upernet", 3, width=16),
    )
    model = randomise(piip.build_model(config))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    before = copy.deepcopy(model.state_dict())
    fast = piip.optimize_for_inference(model, image(batch=1))
    found = kinds(fast)
    assert PackedConv2d in found
    assert not {nn.Conv2d, nn.ReLU} & {
        type(each) for name, each in fast.model.named_modules() if "auxiliary" not in name
    }
    assert nn.BatchNorm2d not in found
    with torch.no_grad():
        for images in (image(batch=1), image(96, 160)):
            assert error(fast.model.segment(images), model.segment(images)) <= TOLERANCE
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
