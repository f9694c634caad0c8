"""Activation checkpointing of merges and necks: the same outputs and gradients, fewer bytes kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from pyramids import image, randomise, tiny_vit
from torch import Tensor, nn

import piip
from piip import InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.layers import checkpointing as recompute


@contextmanager
def kept_bytes(ignored: nn.Module) -> Iterator[list[int]]:
    """List the sizes of storages that the graph keeps for the backward pass, without parameters, each once."""
    seen = {parameter.untyped_storage().data_ptr() for parameter in ignored.parameters()}
    alive: list[Tensor] = []  # so that no address is used twice
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor)
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def pyramid(neck: str, merge: str, norm: str) -> piip.PIIPBackbone:
    parts = (tiny_vit(48, 3, 64), tiny_vit(32, 2, 128))
    levels = NeckConfig(neck, norm=norm, interactions=(0, 1, 2) if neck == "interaction" else ())
    interactions = InteractionConfig(count=4, num_heads=4)
    config = ModelConfig(parts, interactions, MergeConfig(merge, 32 if merge == "slim" else None), levels)
    return randomise(piip.build_backbone(config)).train()


CASES = [("simple", "conv", "group"), ("simple", "slim", "layer"), ("interaction", "conv", "group")]


@pytest.mark.parametrize(("neck", "merge", "norm"), CASES)
def test_merge_and_neck_keep_less_and_learn_the_same(neck: str, merge: str, norm: str) -> None:
    model = pyramid(neck, merge, norm)
    outputs, gradients, kept = [], [], []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        features, stage_maps = model.run(image())
        features = [each._replace(patches=each.patches.detach().requires_grad_()) for each in features]
        with kept_bytes(model) as sizes:
            maps = model.forward_maps(features, stage_maps)
            loss = sum(each.square().mean() for each in maps)
            # what the losses themselves keep is the same in both
            losses_keep = sum(each.untyped_storage().nbytes() for each in maps)
        loss.backward()
        outputs.append(maps)
        leaves = [*model.parameters(), *(each.patches for each in features)]
        gradients.append([leaf.grad.clone() for leaf in leaves if leaf.grad is not None])
        kept.append(sum(sizes) - losses_keep)
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-6)
    assert kept[1] < 0.5 * kept[0]


def test_every_merge_and_level_is_recomputed_only_where_gradients_are_wanted() -> None:
    model = pyramid("interaction", "conv", "group")
    parts = [model.merge, *model.stage_merges.values(), *model.neck.levels]
    calls = dict.fromkeys(parts, 0)

    def count(part: nn.Module, *_: object) -> None:
        calls[part] += 1

    for part in parts:
        part.register_forward_pre_hook(count)
    model.set_grad_checkpointing()
    with torch.no_grad():
        model(image())
    assert set(calls.values()) == {1}
    sum(each.square().mean() for each in model(image())).backward()
    assert all(calls[merge] == 3 for merge in (model.merge, *model.stage_merges.values()))
    assert calls[model.neck.levels[0]] == 3


def test_random_numbers_are_drawn_again_as_they_were() -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.GELU())
    given, gradients = torch.randn(4, 8), []
    for enable in (False, True):
        layers.zero_grad()
        torch.manual_seed(1)
        recompute.call(layers, given, recompute=enable).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layers.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradients_are_brought_into_the_layout_of_the_maps() -> None:
    seen: list[Tensor] = []
    conv = nn.ConvTranspose2d(8, 8, 2, stride=2).to(memory_format=torch.channels_last)
    given = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    maps = recompute.call(conv, given, recompute=True)
    recompute.lay_out_gradient(maps)
    maps.register_hook(seen.append)
    maps.backward(torch.randn(1, 8, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
