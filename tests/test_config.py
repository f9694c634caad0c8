"""Descriptions and names of models."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from pyramids import tiny_vit

import piip
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.device import without_values
from piip.zoo import model_config, official_record


@pytest.mark.parametrize("name", piip.list_models())
def test_descriptions_survive_json(name: str) -> None:
    config = model_config(name)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", [*piip.list_models(), *piip.list_models(official=True)])
def test_every_name_builds_on_the_meta_device(name: str) -> None:
    with without_values(), warnings.catch_warnings():
        warnings.simplefilter("error")
        is_dense = "coco" in name or "ade20k" in name or "regular-fpn" in name
        model = piip.create_model(name, features_only=is_dense)
    official = name in piip.list_models(official=True)
    backbone = model if is_dense else model.backbone
    assert backbone.official_resize == official
    if "in1k" in name or "cls_token" in name:
        assert model.head.pool == ("first_patch" if official else "mean")


def test_lists_and_sections_are_the_same_as_tuples_and_dataclasses() -> None:
    part = {"network": "vit_tiny_patch16_224", "image_size": 64, "block_groups": [[0, 1], [2, 3]]}
    given = ModelConfig([part], merge={"kind": "none"}, neck={"kind": "simple", "scales": [2, 1]})
    assert given.branches[0].block_groups == ((0, 1), (2, 3))
    assert given.merge == MergeConfig("none")
    assert ModelConfig.from_dict(json.loads(json.dumps(given.to_dict()))) == given


def test_intermediate_merges_come_in_order() -> None:
    with pytest.raises(ValueError, match="expected increasing numbers"):
        NeckConfig("interaction", scales=(4, 2, 1), interactions=(3, 1))


def test_names_are_listed_by_pattern() -> None:
    assert piip.list_models("piip_tsb_368*") == ["piip_tsb_368_192_128.deit1_in1k"]
    assert "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16" in piip.list_models(official=True)
    assert official_record("single_b_1024.deit3_coco_mask_rcnn") == "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16"


def test_released_classifiers_expect_imagenet_normalisation() -> None:
    with torch.device("meta"):
        model = piip.create_model("piip_sbl_320_160_96.augreg_in1k", num_classes=7)
    assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert model.pretrained_cfg["input_size"] == (3, 320, 320)
    assert model.num_classes == 7


def test_create_model_explains_what_it_cannot_do() -> None:
    for arguments, message in (
        ({"name": "piip_tsb_1120_896_448.deit4"}, r"Did you mean: piip_tsb_1120_896_448\.deit3"),
        ({"name": "piip_tsb_368_192_128.deit1_in1k", "pretrained": True}, "piip convert"),
        ({"name": "piip_tsb_1120_896_448.deit3_coco_mask_rcnn", "head": {"kind": "none"}}, "features_only=True"),
        ({"name": "piip_tsb_368_192_128.deit1_in1k", "resise": "exact"}, "no field 'resise'. Did you mean: resize"),
    ):
        with pytest.raises(ValueError, match=message):
            piip.create_model(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BranchConfig("", 64), "network is empty"),
        (lambda: BranchConfig("vit", 0), "image_size is 0, expected at least 1"),
        (lambda: BranchConfig("vit", 64, drop_path_rate=1.0), r"expected a value in \[0, 1\)"),
        (lambda: BranchConfig("vit", 64, window_padding="left"), "expected one of before_qkv, after_qkv"),
        (lambda: BranchConfig("vit", 64, block_groups=(3, 0)), "block_groups is 0, expected at least 1"),
        (lambda: BranchConfig("vit", 64, block_groups=()), "block_groups is empty"),
        (lambda: BranchConfig("vit", 64, block_groups=((0, 1), (1, 2))), "increasing"),
        (lambda: BranchConfig("vit", 64, block_groups=((0, 1), 2)), "block_groups"),
        (lambda: BranchConfig("vit", "64"), "BranchConfig.image_size is '64', expected int"),
        (lambda: BranchConfig("vit", 64.0), "BranchConfig.image_size is 64.0, expected int"),
        (lambda: BranchConfig(3.5, 64), "BranchConfig.network is 3.5, expected str"),
        (lambda: BranchConfig("vit", 64, window_size=-1), "sides in tokens, 0 for global"),
        (lambda: BranchConfig("vit", 64, prefix_tokens="no"), "prefix_tokens is 'no', expected bool"),
        (lambda: BranchConfig("vit", 64, timm_args=None), "timm_args is None"),
        (lambda: BranchConfig("vit", 64, timm_args={"norm_layer": print}), "expected a plain value"),
        (lambda: InteractionConfig(norm="none"), "norm is 'none', expected bool"),
        (lambda: InteractionConfig(num_heads=None), "num_heads is None, expected int"),
        (lambda: ModelConfig((tiny_vit(8, 1, 32),), merge="conv"), "merge is 'conv', expected a section"),
        (lambda: ModelConfig("x"), "branches"),
        (lambda: ModelConfig((tiny_vit(8, 1, 32),), std=(0.5, 0.5, 0.0)), "expected positive standard deviations"),
        (
            lambda: ModelConfig((tiny_vit(8, 1, 32),), neck=NeckConfig("simple"), head=HeadConfig("pooled")),
            "this head reads the maps before it",
        ),
        (lambda: ModelConfig((tiny_vit(8, 1, 32),), head=HeadConfig("per_branch")), "set merge kind 'none'"),
        (lambda: ModelConfig.from_dict(None), "expected a section with fields"),
        (lambda: ModelConfig.from_dict({"branches": "x"}), "branches"),
        (lambda: BranchConfig("vit", 64, block_groups=((2, 1),)), "block_groups holds"),
        (lambda: InteractionConfig(attention="sparse"), "expected one of deformable, dense"),
        (lambda: InteractionConfig(num_points=0), "num_points is 0"),
        (lambda: InteractionConfig(value_ratio=0), "expected value_ratio > 0"),
        (lambda: MergeConfig("sum"), "expected one of linear, conv, slim, none"),
        (lambda: NeckConfig("simple", scales=(3,)), "expected values from 4, 2, 1, 0.5"),
        (lambda: NeckConfig("interaction"), "one fewer than levels"),
        (lambda: HeadConfig("pooled", pool="token"), "a merged map has no class token"),
        (lambda: ModelConfig(()), "at least one BranchConfig"),
        (lambda: ModelConfig((tiny_vit(8, 1, 32),) * 2, merge=MergeConfig("none"), neck=NeckConfig("simple")), "neck"),
        (lambda: ModelConfig((tiny_vit(8, 1, 32),), mean=(0.5,)), "ModelConfig.mean"),
        (lambda: ModelConfig.from_dict({"branches": [{"network": "a", "imagesize": 3}]}), "Did you mean: image_size"),
        (lambda: ModelConfig.from_dict({"branches": [{"network": "a"}]}), "image_size"),
        (lambda: ModelConfig.from_dict({}), "branches"),
    ],
)
def test_wrong_descriptions_are_explained(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig((tiny_vit(16, 2, 72),)), "image_size 72 .* use 64 or 80"),
        (ModelConfig((tiny_vit(16, 2, 32), tiny_vit(8, 2, 64, depth=2)), InteractionConfig(count=3)), "at most 2"),
        (
            ModelConfig(
                (BranchConfig("test_resnet", 64),), merge=MergeConfig("none"), head=HeadConfig("per_branch", 3, "token")
            ),
            "needs class tokens, test_resnet has none",
        ),
        (
            ModelConfig(
                (tiny_vit(16, 2, 32), tiny_vit(8, 2, 64)),
                InteractionConfig(count=2),
                neck=NeckConfig("interaction", scales=(4, 2), interactions=(7,)),
            ),
            "interactions 0 to 1 only",
        ),
    ],
)
def test_parts_that_do_not_fit_are_explained(config: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        piip.build_model(config)


def test_public_names_load_on_first_use() -> None:
    assert piip.build_backbone is piip.build.build_backbone
    assert "create_model" in dir(piip)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = piip.nothing


def test_overrides_are_fields_of_the_description() -> None:
    name = "piip_tsb_1120_896_448.deit3_coco_mask_rcnn"
    with torch.device("meta"):
        slim = piip.create_model(name, features_only=True, merge={"kind": "slim", "width": 128})
    assert slim.merge.out_channels == 128
    with pytest.raises(ValueError, match="expected a section"):
        piip.create_model(name, features_only=True, merge="slim")
