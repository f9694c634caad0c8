"""The authors' models: same names, same shapes, same numbers."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import golden
import numpy as np
import pytest
import torch

from piip.checkpoints import build_official, build_released, load_official, official_shapes
from piip.device import without_values

RELEASED = json.loads((Path(__file__).parent / "data" / "released_models.json").read_text())


def built(name: str):
    case, outputs = golden.load_case(name)
    return golden.build_case(case), case, outputs


@pytest.mark.parametrize("name", golden.case_names())
def test_outputs_equal_the_official_model(name: str) -> None:
    model, case, outputs = built(name)
    assert official_shapes(model) == {key: tuple(shape) for key, shape in dict(case["state_dict"]).items()}
    load_official(model, golden.case_state(case))
    with torch.inference_mode():
        maps = model(golden.case_image(case))
    assert len(maps) == len(case["outputs"])
    for index, (got, spec) in enumerate(zip(maps, case["outputs"], strict=True)):
        assert list(got.shape) == spec["shape"]
        assert got.dtype == torch.float32
        values, want = got.reshape(-1)[:: spec["stride"]].numpy(), outputs[f"out{index}"]
        assert np.linalg.norm(values - want) <= 5e-6 * np.linalg.norm(want)
        assert np.abs(values - want).max() <= 1e-4 * np.abs(want).max()


def test_golden_cases_are_there() -> None:
    assert len(golden.case_names()) == 34


def test_a_small_change_of_one_gate_would_be_seen() -> None:
    model, case, outputs = built("det3_deit_global_square")
    state = golden.case_state(case)
    gate = next(key for key in state if key.endswith("ca_gamma"))
    state[gate] = state[gate] * 1.1
    load_official(model, state)
    with torch.inference_mode():
        got = model(golden.case_image(case))[0].reshape(-1)[:: case["outputs"][0]["stride"]].numpy()
    assert np.linalg.norm(got - outputs["out0"]) > 1e-4 * np.linalg.norm(outputs["out0"])


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_exactly_the_official_names_and_shapes(name: str) -> None:
    with without_values():
        shapes = official_shapes(build_released(name))
    record = RELEASED[name]
    assert len(shapes) == record["count"]
    for key, shape in record["example"].items():
        assert list(shapes[key]) == shape
    text = json.dumps(sorted((key, list(shape)) for key, shape in shapes.items()), separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == record["sha256"]


def test_record_names_build_the_same_model() -> None:
    name = "piip_tsb_368_192_128.deit1_in1k"
    with torch.device("meta"):
        assert official_shapes(build_released(name)) == official_shapes(build_released(RELEASED[name]["official"]))


def test_mismatched_checkpoint_is_explained_by_branch_and_nothing_is_loaded() -> None:
    model, case, _ = built("det2_deit_normal_attn")
    state = golden.case_state(case)
    before = copy.deepcopy(model.state_dict())
    del state["branch2.blocks.0.attn.qkv.weight"]
    state["branch1.pos_embed"] = torch.zeros(1, 4, 96)
    state["cls_head.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_official(model, state)
    lines = str(caught.value).splitlines()
    assert "  branch1: 1 wrong shape: branch1.pos_embed is (1, 4, 96), expected (1, 16, 96)" in lines
    assert "  branch2: 1 missing: branch2.blocks.0.attn.qkv.weight" in lines
    assert any("1 unexpected: cls_head.weight" in line for line in lines)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_index_buffers_may_come_along() -> None:
    model, case, _ = built("det1_vit_baseline_fpn")
    load_official(model, {**golden.case_state(case), "blocks.0.attn.relative_position_index": torch.zeros(2, 2)})


def test_unsupported_models_are_refused_with_their_name() -> None:
    case, _ = golden.load_case("det2_deit_normal_attn")
    for change, message in (
        ({"code_base": "video"}, "code base 'video' is not supported"),
        ({"official_class": "PIIPNineBranch"}, "PIIPNineBranch"),
        ({"official_class": "PIIPThreeBranch"}, "lacks branch3"),
    ):
        arguments = {"code_base": "detection", "official_class": "PIIPTwoBranch", **change}
        with pytest.raises(ValueError, match=message):
            build_official(case["config"], **arguments)
    three, _ = golden.load_case("det3_deit_global_square")
    for changes, message in (
        ({"pretrained": "beit_x.pth"}, "windows in every block"),
        ({"pretrained": "convnext_x.pth"}, "sizes of 'convnext_x.pth' are not known"),
        ({"pretrained": "vit_x.pth", "norm_layer_type": "BatchNorm"}, "expected LayerNorm .ln. or RMSNorm"),
    ):
        config = {**three["config"], "branch1": {**three["config"]["branch1"], **changes}}
        with pytest.raises(ValueError, match=message):
            build_official(config, code_base="detection", official_class="PIIPThreeBranch")
    tower, _ = golden.load_case("llava2_clip_clip")
    for changes, message in (
        ({"branch2": {**tower["config"]["branch2"], "model_type": "swin"}}, "model_type of a llava branch"),
        ({}, "sizes of .clip-a. are not known"),
    ):
        with pytest.raises(ValueError, match=message):
            build_official({**tower["config"], **changes}, code_base="llava", official_class="PIIPTwoBranchModel")
    with pytest.raises(ValueError, match="use_branch_merging"):
        golden.build_case({**tower, "config": {**tower["config"], "use_branch_merging": True}})
    two = case["config"]
    for config, message in (
        ({**two, "deform_num_heads": 5}, "does not divide the attention width"),
        ({**two, "with_simple_fpn": False}, "known for PIIPThreeBranch only"),
        ({**two, "branch1": {k: v for k, v in two["branch1"].items() if k != "depth"}}, "lacks the field 'depth'"),
        ({**two, "branch1": {**two["branch1"], "window_attn": [True]}}, "window_attn has 1 and window_size"),
    ):
        with pytest.raises(ValueError, match=message):
            build_official(config, code_base="detection", official_class="PIIPTwoBranch")
    with pytest.raises(ValueError, match="Expected a model from build_official"):
        official_shapes(torch.nn.Linear(2, 2))


def test_released_classifier_refuses_other_sizes() -> None:
    model, _, _ = built("cls3_deit_separate")
    with pytest.raises(ValueError, match="128x128 pixels only"):
        model(torch.zeros(1, 3, 144, 144))


def test_four_branches_follow_the_code_base() -> None:
    case, _ = golden.load_case("det4_deit")
    detector = build_official(case["config"], code_base="detection", official_class="PIIPFourBranch")
    assert official_shapes(detector)["branch4.pos_embed"][-1] == case["config"]["branch3"]["embed_dim"]
    branches = {
        f"branch{i}": {**case["config"][f"branch{i}"], "img_size": case["config"][f"branch{i}"]["real_size"]}
        | {"window_attn": None}
        for i in range(1, 5)
    }
    classifier = build_official(
        {**case["config"], **branches}, code_base="classification", official_class="PIIPFourBranch"
    )
    assert official_shapes(classifier)["branch4.pos_embed"][-1] == case["config"]["branch4"]["embed_dim"]


def test_images_that_shrink_below_a_patch_are_refused() -> None:
    model, _, _ = built("det3_deit_global_square")
    with pytest.raises(ValueError, match="smaller than one patch"):
        model(torch.zeros(1, 3, 17, 24))


def test_checkpointing_and_decay_reach_the_model_inside() -> None:
    model, _, _ = built("det1_vit_baseline_fpn")
    model.set_grad_checkpointing()
    assert all(branch.grad_checkpointing for branch in model.model.branches)
    assert model.no_weight_decay() == {"model.branches.0.vit.pos_embed"} | model.no_weight_decay()
