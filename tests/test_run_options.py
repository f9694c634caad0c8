"""Starting from a model, stopping early, logging elsewhere, and the warm-up in steps."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import branch, recipe_values, tiny_recipe, write_images
from training_run import losses, run

from piip.recipe import OptimConfig, Recipe
from piip.training.optim import parameter_groups
from piip.training.setup import build_recipe_model, run_length

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_starts_from_a_model_with_other_classes(tmp_path: Path) -> None:
    images = write_images(tmp_path / "three")
    run(tiny_recipe(images, tmp_path / "first"))
    start = tmp_path / "first" / "model"
    again = build_recipe_model(tiny_recipe(images, tmp_path / "again", run={"start": str(start)}))
    stored = load_file(start / "model.safetensors")
    for name, value in again.state_dict().items():
        assert torch.equal(value, stored[name]), name
    two = write_images(tmp_path / "two", classes=("blue", "green"))
    head = {"head": {"kind": "pooled", "num_classes": None}}
    recipe = tiny_recipe(two, tmp_path / "second", model=head, run={"start": str(start)})
    model = build_recipe_model(recipe, num_classes=2)
    kept = [name for name, value in model.state_dict().items() if torch.equal(value, stored[name])]
    assert {name for name in stored if name.startswith("backbone.")} <= set(kept)
    assert model.state_dict()["head.fc.weight"].shape[0] == 2
    assert len(run(recipe).metrics) > 0


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    run(tiny_recipe(images, tmp_path / "first"))
    values = recipe_values(images, tmp_path / "second", run={"start": str(tmp_path / "first" / "model")})
    values["model"] = {**values["model"], "branches": [branch(24, 48), branch(32, 16)]}
    with pytest.raises(ValueError, match="branch 0"):
        run(Recipe.from_dict(values))
    with pytest.raises(ValueError, match=r"has no config\.json and no model\.safetensors"):
        run(tiny_recipe(images, tmp_path / "third", run={"start": str(tmp_path)}))


def test_a_run_without_progress_stops_early(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    still = {"optim": {"lr": 1e-12}, "schedule": {"epochs": 9, "min_lr": 0.0}}
    result = run(tiny_recipe(images, tmp_path / "run", **still, run={"patience": 2}))
    assert result.steps == 3 * 6  # the first validation is the best one
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    again = run(tiny_recipe(images, tmp_path / "run", **still, run={"patience": 2}), resume="auto")
    assert again.steps == result.steps


def test_a_resumed_run_does_not_need_what_it_started_from(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    run(tiny_recipe(images, tmp_path / "first"))
    fields = {"start": str(tmp_path / "first" / "model"), "checkpoint_every": 2}
    run(tiny_recipe(images, tmp_path / "second", run=fields))
    (tmp_path / "second" / "checkpoints" / "step00000012.ckpt").unlink()
    shutil.rmtree(tmp_path / "first")
    assert run(tiny_recipe(images, tmp_path / "second", run=fields), resume="auto").steps == 12


def test_loggers_are_chosen(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    run(tiny_recipe(images, tmp_path / "run", run={"loggers": ["csv"]}))
    assert losses(tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    with pytest.raises(ValueError, match=r"run.loggers is 'paper', expected one of csv, tensorboard, wandb, mlflow"):
        tiny_recipe(images, tmp_path / "other", run={"loggers": ["paper"]})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    images = write_images(tmp_path / "images")
    with pytest.raises(ValueError, match=f"which is not installed. Use: pip install {name}"):
        run(tiny_recipe(images, tmp_path / "run", run={"loggers": [name]}))


def test_warm_up_in_steps(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path, schedule={"epochs": 2, "warmup_steps": 7})
    assert run_length(recipe, 6).warmup_steps == 7
    with pytest.raises(ValueError, match=r"schedule\.warmup_steps is 7, expected fewer than the 6 steps"):
        run_length(recipe, 3)
    with pytest.raises(ValueError, match="both set the warm-up"):
        tiny_recipe(tmp_path, tmp_path, schedule={"warmup_steps": 7, "warmup_epochs": 0.5})


def test_the_official_rule_spares_vectors_only(tmp_path: Path) -> None:
    model = build_recipe_model(tiny_recipe(tmp_path, tmp_path))
    config = OptimConfig(weight_decay=0.05, layer_decay=0.85, layer_decay_rule="official")
    decays = {n: group["weight_decay"] for group in parameter_groups(model, config) for n in group["names"]}
    for name, parameter in model.named_parameters():
        assert decays[name] == (0.0 if parameter.ndim == 1 else 0.05), name
    assert decays["backbone.branches.0.vit.pos_embed"] == 0.05
