"""Every published wrapping and prefix leads to the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from piip.checkpoints.unwrapping import find_weights, sort_names

STATE = {
    "w1": torch.tensor(1.0),
    "branch1.pos_embed": torch.randn(1, 4, 3),
    "branch2.blocks.0.gamma_1": torch.randn(3),
    "interactions.0.interaction_units_12.branch2to1_proj.weight": torch.randn(2, 3),
}
OTHERS = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": []}, "epoch": 3, "args": None}
WRAPPINGS = [
    (),
    ("state_dict",),
    ("model",),
    ("module",),
    ("model", "module"),
    ("state_dict", "model", "module"),
    ("model_state_dict",),
    ("model_ema",),
]
PREFIXES = [
    "",
    "module.",
    "backbone.",
    "model.",
    "_orig_mod.",
    "module.backbone.",
    "module.model.backbone.",
    "_orig_mod.module.",
    "model._orig_mod.backbone.",
    "model.vision_tower.vision_tower.",
    "module.model.vision_tower.vision_tower.",
]
PARTS = {
    "neck.lateral_convs.0.conv.weight": "neck",
    "rpn_head.rpn_conv.weight": "rpn_head",
    "roi_head.bbox_head.0.fc_cls.weight": "roi_head",
    "bbox_head.cls_branches.0.weight": "bbox_head",
    "query_head.label_embedding.weight": "query_head",
    "decode_head.conv_seg.weight": "decode_head",
    "auxiliary_head.conv_seg.bias": "auxiliary_head",
    "ema_backbone_w1": "ema",
    "model.layers.0.self_attn.q_proj.weight": "layers",
    "model.embed_tokens.weight": "embed_tokens",
    "lm_head.weight": "lm_head",
}


def wrapped(state: dict[str, Any], wrappings: tuple[str, ...]) -> dict[str, Any]:
    for key in reversed(wrappings):
        state = {**OTHERS, key: state}
    return state


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrappings", WRAPPINGS, ids=str)
def test_wrappings_and_prefixes(wrappings: tuple[str, ...], prefix: str) -> None:
    content = wrapped({prefix + name: value for name, value in STATE.items()}, wrappings)
    found = find_weights(content, source="file")
    names = sort_names(found.tensors, [*STATE])
    assert found.wrappings == wrappings
    assert {*found.ignored} == ({*OTHERS} if wrappings else set())
    assert names.prefix == prefix.replace("_orig_mod.", "")
    assert not names.others
    assert {*names.own} == {*STATE}
    assert all(torch.equal(names.own[name].read(), value) for name, value in STATE.items())


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone.", "model.vision_tower.vision_tower.", ""])
def test_other_parts_are_counted(prefix: str) -> None:
    state = {prefix + name: value for name, value in STATE.items()}
    others = dict.fromkeys(PARTS, torch.zeros(1))
    names = sort_names(find_weights({**state, **others}, source="file").tensors, [*STATE])
    assert {*names.own} == {*STATE}
    assert names.others == dict.fromkeys(PARTS.values(), 1)


def test_weights_come_before_their_average() -> None:
    average = {name: value + 1 for name, value in STATE.items()}
    found = find_weights({"model_ema": average, "model": STATE}, source="file")
    assert found.wrappings == ("model",)
    assert torch.equal(found.tensors["w1"].read(), STATE["w1"])


def test_unknown_names_among_the_models_own_stay() -> None:
    content = {"backbone." + name: value for name, value in STATE.items()} | {"backbone.extra.weight": torch.zeros(1)}
    names = sort_names(find_weights(content, source="file").tensors, [*STATE])
    assert "extra.weight" in names.own
    plain = sort_names(find_weights({**STATE, "branch3.cls": torch.zeros(1)}, source="file").tensors, [*STATE])
    assert "branch3.cls" in plain.own


def test_a_projector_beside_the_tower_belongs_to_the_model() -> None:
    state = {f"model.vision_tower.vision_tower.{name}": value for name, value in STATE.items()}
    projector = {"model.mm_projector.branch1.1.weight": torch.zeros(2)}
    wanted = [*STATE, "mm_projector.branch1.1.weight"]
    names = sort_names(find_weights({**state, **projector}, source="file").tensors, wanted)
    assert {*names.own} == {*wanted}
    assert names.prefix == "model.vision_tower.vision_tower."


def test_files_without_weights_are_named() -> None:
    with pytest.raises(ValueError, match="holds no weights, expected names with tensors; it holds: epoch, args"):
        find_weights({"epoch": 3, "args": None}, source="file")
    assert not sort_names(find_weights({"fc.weight": torch.zeros(1)}, source="file").tensors, [*STATE]).own
