"""Branches that training leaves as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from tiny_run import branch, recipe_values, tiny_recipe, write_images
from torch import nn
from training_run import EVERYTHING, moved, run

import piip
from piip.config import BranchConfig, ModelConfig
from piip.recipe import Recipe
from piip.serialization.load import load_model
from piip.training.optim import build_optimizer
from piip.training.run_folder import read_checkpoint
from piip.training.setup import build_recipe_model

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN = {"branches": [branch(24, 32, frozen=True, drop_path_rate=0.5), branch(32, 16)]}


def saved_untrained(recipe: Recipe) -> nn.Module:
    torch.manual_seed(recipe.run.seed)
    return build_recipe_model(recipe)


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}, {"grad_checkpointing": True}], ids=["plain", "ema", "less"])
def test_a_frozen_branch_keeps_its_weights(
    images: Path, tmp_path: Path, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**EVERYTHING, "model": FROZEN, "schedule": {"epochs": 1}, "run": {"checkpoint_every": 3, **fields}}
    recipe = tiny_recipe(images, tmp_path / "run", **changes)
    before = saved_untrained(recipe)
    result = run(recipe)
    trained = load_model(result.model_dir)
    assert moved(before, trained) == {"branches.1", "interactions", "merge", "head"}
    assert json.loads((result.model_dir / "config.json").read_text())["model"]["branches"][0]["frozen"] is True
    told = [line for line in capsys.readouterr().err.splitlines() if "frozen" in line]
    assert len(told) == 1
    assert told[0].startswith("Training ")
    assert told[0].endswith(" parameters: branch 0 is frozen.")
    state = read_checkpoint(sorted((tmp_path / "run" / "checkpoints").glob("step*.ckpt"))[-1])["optimizer_states"][0]
    sizes = sum(values["exp_avg"].numel() for values in state["state"].values())
    assert sizes == sum(value.numel() for value in before.parameters() if value.requires_grad)
    resumed = run(tiny_recipe(images, tmp_path / "run", **changes), resume="auto")
    assert not moved(trained, load_model(resumed.model_dir))


def test_frozen_branches_stay_in_evaluation_mode_and_record_nothing(images: Path, tmp_path: Path) -> None:
    model = build_recipe_model(tiny_recipe(images, tmp_path, model=FROZEN)).train()
    first, second = model.get_backbone().branches
    assert not any(module.training for module in first.modules())
    assert second.training
    image = torch.randn(2, 3, 32, 32)
    entered = first.run_stage(0, first.embed(image[..., :24, :24]))
    assert not entered.patches.requires_grad
    model(image).sum().backward()
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(p.grad is not None for name, p in second.named_parameters() if "norm." not in name)
    assert not build_optimizer(model, tiny_recipe(images, tmp_path).optim).state


def test_statistics_of_a_frozen_branch_stay() -> None:
    config = ModelConfig((BranchConfig("resnet18", 64, frozen=True),))
    backbone = piip.build_backbone(config).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_named_models_freeze_single_branches() -> None:
    values = {"name": "piip_tsb_368_192_128.deit1_in1k", "branches": {0: {"frozen": True}}}
    config = Recipe.from_dict({"model": values}).model_config()
    assert [each.frozen for each in config.branches] == [True, False, False]
    with pytest.raises(ValueError, match=r"branches has 3: .*expected the number of a branch, 0 to 2"):
        Recipe.from_dict({"model": {**values, "branches": {3: {"frozen": True}}}}).model_config()


def test_images_have_three_channels() -> None:
    four = BranchConfig("vit_tiny_patch16_224", 64, timm_args={"in_chans": 4})
    with pytest.raises(ValueError, match=r"branches\[0\]\.timm_args has in_chans 4, expected 3"):
        ModelConfig((four,))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_train_beside_a_frozen_branch(strategy: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=8)
    values = recipe_values(images, tmp_path / "run", model=FROZEN, data={"batch_size": 2}, run={"strategy": strategy})
    before = saved_untrained(Recipe.from_dict(values))
    run_processes(values, tmp_path / "seen", processes=2)
    assert moved(before, load_model(tmp_path / "run" / "model")) == {"branches.1", "interactions", "merge", "head"}
