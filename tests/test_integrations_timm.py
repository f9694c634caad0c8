"""Pyramids follow timm's conventions for feature extraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pyramids import image, tiny_pyramid
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet

import piip
from piip.config import BranchConfig, HeadConfig, ModelConfig, NeckConfig

CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """These models are tiny."""


def pyramid(*args: Any, **fields: Any) -> piip.PIIPBackbone:
    return piip.build_backbone(tiny_pyramid(*args, **fields)).eval()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("neck", ["none", "simple"])
def test_feature_info_is_timms_and_a_sequence_of_dicts(count: int, neck: str) -> None:
    model = pyramid(count, neck=neck)
    info, maps = model.feature_info, model(image(64, 96))
    assert isinstance(info, FeatureInfo)
    assert isinstance(info, Sequence)
    assert info.channels() == [each["num_chs"] for each in info] == [each.shape[1] for each in maps]
    strides = [64 // each.shape[2] for each in maps]
    assert info.reduction() == [each["reduction"] for each in info] == strides
    assert all(isinstance(stride, int) for stride in info.reduction())
    assert info.out_indices == tuple(range(len(maps)))
    assert len(info) == len(info.get_dicts()) == len({*info.module_name()}) == len(maps)


def test_feature_info_without_a_merge_has_falling_strides() -> None:
    info = pyramid(3, neck="none", merge="none").feature_info
    assert info.reduction() == [64, 32, 16]
    assert info.from_other(2).channels() == info.from_other((1, 2)).channels() == info.from_other([-2, -1]).channels()


@pytest.mark.parametrize("fields", [{}, {"neck": "none"}, {"neck": "none", "merge": "none"}])
def test_timms_own_feature_extractor_takes_pyramids(fields: dict[str, str]) -> None:
    model = pyramid(**fields)
    last = FeatureGetterNet(model, out_indices=1)
    (found,) = last(image())
    assert torch.equal(found, model(image())[-1])
    assert last.feature_info.channels() == [found.shape[1]]


def test_intermediates_are_the_maps_that_feature_info_describes() -> None:
    model = pyramid()
    maps = model(image())
    features, found = model.forward_intermediates(image())
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))
    expected = model.forward_features(image())
    assert all(torch.equal(a.patches, b.patches) for a, b in zip(features, expected, strict=True))
    chosen = model.forward_intermediates(image(), [0, -1], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(chosen[0], maps[0].flatten(2).transpose(1, 2))
    assert torch.equal(chosen[1], maps[3].flatten(2).transpose(1, 2))
    (last,) = model.forward_intermediates(image(), 1, intermediates_only=True)
    assert torch.equal(last, maps[3])


def test_intermediates_of_a_branch_are_its_stages() -> None:
    model = pyramid(3)
    info = model.branch_feature_info(0)
    features, found = model.forward_intermediates(image(), return_prefix_tokens=True, norm=True, branch=0)
    assert [feature_map.shape[1] for feature_map, _ in found] == info.channels() == [32, 32]
    assert info.reduction() == [64, 64]
    assert torch.equal(found[-1][0], features[0].as_map())  # the last stage, normalised
    assert torch.equal(found[-1][1], features[0].prefix)
    raw = model.forward_intermediates(image(), intermediates_only=True, branch=0)
    assert not torch.equal(raw[-1], found[-1][0])
    with torch.no_grad():
        model.branches[0].vit.blocks[1].mlp.fc2.bias.fill_(torch.nan)
        early = model.forward_intermediates(image(), [0], stop_early=True, intermediates_only=True, branch=0)
    assert torch.equal(early[0], raw[0])


def test_only_maps_of_the_final_width_are_normalised() -> None:
    fields = {"timm_args": CONVNEXT}
    branches = (BranchConfig("convnext_tiny", 64, **fields), BranchConfig("convnext_atto", 128, **fields))
    config = ModelConfig(branches, allow_direct=True)
    model = piip.build_backbone(config)
    found = model.forward_intermediates(image(), norm=True, intermediates_only=True, branch=-1)
    assert [each.shape[1] for each in found] == model.branch_feature_info().channels()
    assert [128 // each.shape[2] for each in found] == model.branch_feature_info().reduction()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"indices": [4]}, r"indices is \[4\], expected some of \[-4, 4\)"),
        ({"indices": 5}, "a number up to 4"),
        ({"indices": []}, "indices is"),
        ({"branch": 2}, r"branch is 2, expected an index in \[-2, 2\)"),
        ({"output_fmt": "NHWC"}, "expected one of NCHW, NLC"),
        ({"return_prefix_tokens": True}, "needs branch=INDEX"),
    ],
)
def test_wrong_arguments_are_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyramid().forward_intermediates(image(), **wrong)


def test_models_with_a_head_return_intermediates_too() -> None:
    config = tiny_pyramid(neck="none")
    model = piip.build_model(ModelConfig(config.branches, config.interaction, head=HeadConfig("pooled", 3))).eval()
    features, (feature_map,) = model.forward_intermediates(image())
    assert torch.equal(model.forward_head(features), model(image()))
    assert model.feature_info.channels() == [feature_map.shape[1]]
    stages = model.forward_intermediates(image(), intermediates_only=True, branch=1)
    assert [each.shape[1] for each in stages] == [24, 24]


def test_create_model_makes_levels_of_a_classifiers_backbone() -> None:
    with torch.device("meta"):
        model = piip.create_model(
            "piip_tsb_368_192_128.deit1_in1k",
            features_only=True,
            merge={"kind": "slim"},
            neck=NeckConfig("simple").__dict__,
        )
    assert model.feature_info.channels() == [256] * 4
    assert model.feature_info.reduction() == [4, 8, 16, 32]
