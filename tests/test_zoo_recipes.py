"""Recipes for named pyramids of today's networks: another name in the same recipe is another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyramids import small_model
from training_run import moved, run

from piip.device import without_values
from piip.fields import CommandText
from piip.recipe import Recipe, load_recipe
from piip.serialization.load import load_model
from piip.training.setup import build_recipe_model
from piip.zoo.families import NETWORK_FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = sorted(path for path in ROOT.rglob("*.dinov3_*.yaml"))
PROBE = ROOT / "classification" / "piip_sbl_672_448_224.dinov3_in1k_linear_probe.yaml"
FROZEN = ROOT / "detection" / "piip_sbl_1120_672_448.dinov3_coco_dino_frozen.yaml"
OF_THREE = [
    f"piip_{family.pyramids[0]}.{name}"
    for name, family in NETWORK_FAMILIES.items()
    if family.pyramids and name != "dinov3"  # in tests/test_recipe.py
]
NECKS = {  # of hybrids, by their finest stride
    4: "{kind: interaction, interactions: [0, 1, 2]}",
    8: "{kind: interaction, interactions: [1, 2], scales: [2, 1, 0.5]}",
}
STRIDES = {"coco_dino": [8, 16, 32], "coco_mask_rcnn": [4, 8, 16, 32], "ade20k_upernet": [4, 8, 16, 32]}


def test_every_task_has_a_recipe() -> None:
    tasks = [load_recipe(path).model_config().head.task for path in RECIPES]
    assert sorted(tasks) == ["classification", "classification", "detection", "detection", "instance", "semantic"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THREE)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_another_name_builds(path: Path, name: str) -> None:
    recipe = load_recipe(path, {"model.name": name, "model.pretrained_branches": False})
    with without_values():
        model = build_recipe_model(recipe)
    frozen = [not any(value.requires_grad for value in branch.parameters()) for branch in model.get_backbone().branches]
    assert frozen == [branch.frozen for branch in load_recipe(path).model_config().branches]
    task = path.stem.split("dinov3_")[1].removesuffix("_frozen")
    if task in STRIDES and not name.startswith("piip_c"):
        stride = 14 if "patch14" in recipe.model_config().branches[-1].network else 16
        assert [info["reduction"] for info in model.feature_info] == [side * stride / 16 for side in STRIDES[task]]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if "in1k" not in path.stem], ids=lambda path: path.stem)
def test_hybrids_have_fine_levels_with_the_neck_that_recipes_name(path: Path) -> None:
    strides = STRIDES[path.stem.split("dinov3_")[1].removesuffix("_frozen")]
    neck = NECKS[strides[0]]
    assert f"neck {neck}" in path.read_text()
    changes = {
        "model.name": "piip_ct_vb_vl_1120_672_448.convnext_dinov3",
        "model.pretrained_branches": False,
        "model.neck": CommandText(neck),
    }
    with without_values():
        model = build_recipe_model(load_recipe(path, changes))
    assert [info["reduction"] for info in model.feature_info] == strides


def tiny(path: Path, images: Path, out: Path) -> Recipe:
    """Return a recipe with small networks that start at random and a small data set, all else as it is."""
    small = list(small_model(path.stem.split("_in1k")[0]).to_dict()["branches"])
    values = load_recipe(path, {"model.pretrained_branches": False}).to_dict()
    for index, fields in values["model"]["branches"].items():
        small[int(index)] |= fields
    values["model"] |= {"branches": small, "allow_direct": True}
    values["data"] |= {"root": str(images), "batch_size": 4, "workers": 0}
    values["schedule"] |= {"epochs": 2}
    values["run"] |= {"out": str(out), "precision": "32"}
    return Recipe.from_dict(values)


def test_a_linear_probe_trains_linear_layers_only(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(PROBE, images, tmp_path / "run")
    torch.manual_seed(recipe.run.seed)
    before = build_recipe_model(recipe, num_classes=3)
    trained = {name for name, value in before.named_parameters() if value.requires_grad}
    assert trained == {f"head.fcs.{index}.{kind}" for index in range(3) for kind in ("weight", "bias")}
    result = run(recipe)
    assert moved(before, load_model(result.model_dir)) == {"head"}
    assert "branches 0, 1, 2 are frozen" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"model.branches.0.frozen": CommandText("false")}])
def test_options_freeze_branches_of_named_models(changes: dict[str, Any]) -> None:
    config = load_recipe(FROZEN, changes).model_config(num_classes=5)
    assert [branch.frozen for branch in config.branches] == [not changes, False, False]
    assert all(branch.pretrained for branch in config.branches)
    assert config.head.num_classes == 5
