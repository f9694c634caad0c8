"""Named pyramids of today's networks: they exist in timm, are inverted, run, and say what they cannot do."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import timm
import torch
from pyramids import image, small_model

import piip
from piip.bench.subjects import find_subject
from piip.bench.table import label
from piip.branches.published_weights import image_statistics, weights_license
from piip.cli import main
from piip.zoo import branch_licenses, model_config, official_record
from piip.zoo.families import NETWORK_FAMILIES, NetworkFamily, pyramid_config
from piip.zoo.published import published_models
from piip.zoo.registry import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")
RELEASED = {model.name for model in published_models()}
NAMES = sorted(MODELS.keys() - RELEASED)
FIRST = {name: f"piip_{family.pyramids[0]}.{name}" for name, family in NETWORK_FAMILIES.items() if family.pyramids}
LICENSES = {
    "deit3": {"apache-2.0"},
    "augreg": {"apache-2.0"},
    "dinov2_reg": {"apache-2.0"},
    "dinov3": {"dinov3-license"},
    "siglip2": {"apache-2.0"},
    "eva02": {"mit"},
    "convnextv2": {"cc-by-nc-4.0"},
    "convnextv2_deit3": {"cc-by-nc-4.0", "apache-2.0"},
    "convnext_dinov3": {"dinov3-license"},
}
DINOV3 = "piip_sbl_672_448_224.dinov3"


def test_names_follow_from_the_table() -> None:
    assert len(NAMES) == sum(len(family.pyramids) for family in NETWORK_FAMILIES.values())
    assert len(NAMES) <= 40, "a choice, not a catalogue"
    assert FIRST.keys() == LICENSES.keys()
    assert DINOV3 in piip.list_models("*dinov3*")
    assert "piip_tsb_1120_896_448.eva02" in piip.list_models("*tsb*")


@pytest.mark.parametrize("family", NETWORK_FAMILIES)
def test_networks_and_their_weights_exist_in_timm(family: str) -> None:
    names = [*NETWORK_FAMILIES[family].networks.values()]
    assert {*names} <= {*timm.list_models(pretrained=True)}
    if family in LICENSES:
        assert {weights_license(name) for name in names} == LICENSES[family]


@pytest.mark.parametrize("name", NAMES)
def test_pyramids_are_inverted(name: str) -> None:
    """The largest network has the lowest resolution; sides are whole patches of 14, 16 and 32 pixels."""
    config = model_config(name)
    order = [*NETWORK_FAMILIES[name.split(".")[1]].networks.values()]
    places = [order.index(branch.network) for branch in config.branches]
    sides = [branch.image_size for branch in config.branches]
    assert places == sorted(places)
    assert all(low < high for low, high in itertools.pairwise(sides))
    assert not any(side % 224 for side in sides)
    assert (config.resize, config.merge.kind, config.interaction.direction) == ("exact", "slim", "both")


@pytest.mark.parametrize(
    "name",
    [name if "dinov3" in name else pytest.param(name, marks=pytest.mark.slow) for name in FIRST.values()],
)
def test_costs_are_counted(name: str) -> None:
    report = piip.estimate_cost(name)
    branches = [part for key, part in report.parts.items() if key.startswith("branch ")]
    params = [part.params for part in branches]
    assert params == sorted(params, reverse=True)
    assert all(0 < part.macs < report.macs < 1e13 for part in branches)


@pytest.mark.parametrize("name", FIRST.values())
def test_they_run_and_learn(name: str) -> None:
    torch.manual_seed(0)
    config = small_model(name)
    model = piip.build_model(dataclasses.replace(config, head=dataclasses.replace(config.head, num_classes=3)))
    side = config.branches[-1].image_size
    model(image(side, side)).square().sum().backward()
    for branch in model.get_backbone().branches:
        gradients = [value.grad for value in branch.parameters() if value.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_a_name_without_a_task_is_a_classifier() -> None:
    name = "piip_bl_896_448.siglip2"
    with torch.device("meta"):
        model = piip.create_model(name, num_classes=10)
        backbone = piip.create_model(name, features_only=True)
        levels = piip.create_model(name, features_only=True, neck={"kind": "simple"})
        detector = piip.create_model(name, neck={"kind": "simple"}, head={"kind": "dino", "num_classes": 5})
    assert (type(model).__name__, model.num_classes) == ("PIIPClassifier", 10)
    assert [(info["num_chs"], info["reduction"]) for info in backbone.feature_info] == [(256, 16)]
    assert [info["reduction"] for info in levels.feature_info] == [4, 8, 16, 32]
    assert detector.head.task == "detection"


def test_what_they_lack_is_said() -> None:
    with pytest.raises(ValueError, match=r"was not trained as a whole.*pretrained_branches=True loads") as caught:
        piip.create_model(DINOV3, pretrained=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not one of the authors' models and has no record"):
        official_record(DINOV3)
    with pytest.raises(ValueError, match=r"Did you mean: .*piip_sbl_1120_672_448\.dinov3"):
        model_config("piip_sbl_1120_672_448.dinov4")


def test_networks_that_were_trained_with_other_images_get_their_own() -> None:
    names = {"l": "vit_large_patch16_dinov3.lvd1689m", "b": "vit_base_patch16_siglip_256.v2_webli"}
    assert image_statistics(names["l"]) != image_statistics(names["b"])
    mixed = NetworkFamily(names)
    assert pyramid_config(mixed, "bl_448_224").normalize == "per_branch"
    assert model_config(DINOV3).normalize == "shared"


def test_licenses_are_those_that_timm_states() -> None:
    assert branch_licenses(model_config("piip_cn_vb_1120_448.convnextv2_deit3")) == {
        "deit3_base_patch16_224.fb_in22k_ft_in1k": "apache-2.0",
        "convnextv2_nano.fcmae_ft_in22k_in1k": "cc-by-nc-4.0",
    }
    assert branch_licenses(model_config("single_6b_512.internvl_ade20k_upernet")) == {"intern_vit_6b_patch14_224": None}


def test_commands_take_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    subject = find_subject(DINOV3)
    assert (subject.accuracy, subject.image_size) == (None, None)
    assert label(DINOV3) == "PIIP-SBL 672/448/224 (dinov3)"
    hybrid = "PIIP ConvNeXt-N, ViT-B 1120/448 (convnextv2_deit3)"
    assert label("piip_cn_vb_1120_448.convnextv2_deit3") == hybrid
    main(["cost", "piip_cn_vb_1120_448.convnextv2_deit3", "--json"])
    assert json.loads(capsys.readouterr().out)["macs"] > 0
    main(["list", "*dinov3*"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines[DINOV3] == "branches: dinov3-license"
    main(["list", "*_deit3*", "--json"])
    facts = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert facts["piip_cn_vb_1120_448.convnextv2_deit3"]["branch_licenses"] == {
        "deit3_base_patch16_224.fb_in22k_ft_in1k": "apache-2.0",
        "convnextv2_nano.fcmae_ft_in22k_in1k": "cc-by-nc-4.0",
    }
    released = facts["piip_ct_cs_vb_1024_672_448.convnext_deit3_coco_mask_rcnn"]
    assert released["results"]
    assert {*released["branch_licenses"].values()} == {"apache-2.0"}
