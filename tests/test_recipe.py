"""Recipes: every file builds, wrong fields are named, and what is written reads back equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_run import recipe_values, tiny_recipe, write_recipe

from piip.config import ModelConfig
from piip.device import without_values
from piip.fields import CommandText
from piip.recipe import NamedModel, Recipe, load_recipe, save_recipe
from piip.training.setup import build_recipe_model, resolve
from piip.zoo import model_config
from piip.zoo.published import published_results

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "compare")
NAME = "piip_tsb_368_192_128.deit1_in1k"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", recipe_values(tmp_path, tmp_path / "run"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build_and_know_their_command(path: Path) -> None:
    recipe = load_recipe(path)
    config = recipe.model_config()
    # On the meta device nothing can be loaded, so pretrained branches are built without their weights.
    values = config.to_dict()
    values["branches"] = [{**branch, "pretrained": False} for branch in values["branches"]]
    with without_values():
        model = build_recipe_model(Recipe(ModelConfig.from_dict(values), data=recipe.data))
    assert model.pretrained_cfg["input_size"][-1] == config.branches[-1].image_size
    transform = recipe.data.transform
    assert not (transform.auto_augment and transform.color_jitter), "the jitter would not be used"
    text = path.read_text()
    assert str(path.relative_to(ROOT)) in text
    assert recipe.run.out == f"runs/{path.stem}"
    assert len(text.splitlines()) <= 45


def test_land_cover_recipes_share_their_schedule() -> None:
    piip, single, equal = (load_recipe(ROOT / f"recipes/classification/landcover_{n}.yaml") for n in COMPARED)
    assert piip.schedule == single.schedule == equal.schedule
    assert piip.optim == single.optim == equal.optim
    assert piip.regularize == single.regularize == equal.regularize
    assert piip.data == single.data == equal.data


COMPARED = ("piip", "single", "equal")


def test_official_recipes_hold_the_official_settings() -> None:
    recipe = load_recipe(ROOT / f"recipes/classification/{NAME}.yaml")
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.decay_all) == (3e-5, 0.1, True)
    assert recipe.optim.rate_outside_branches == 10
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (20, 5)
    assert (recipe.regularize.mixup, recipe.regularize.cutmix, recipe.regularize.label_smoothing) == (0.8, 1.0, 0.1)
    assert recipe.run.ema_decay == 0.99996


RELEASED = json.loads((ROOT / "tests" / "data" / "released_training.json").read_text())


@pytest.mark.parametrize("record", RELEASED)
def test_recipes_of_the_released_detectors_and_segmentors(record: str) -> None:
    """Rates, lengths, sizes and augmentation equal those read from the authors' configurations."""
    facts, published = RELEASED[record], published_results(record)
    path = ROOT / "recipes" / published.task / f"{published.name}.yaml"
    recipe = load_recipe(path)
    assert all(
        f"{column.replace('mAP', 'AP')} {value}" in path.read_text() for column, value in published.results.items()
    )
    config = recipe.model_config(num_classes=80)
    optim, schedule, dense = recipe.optim, recipe.schedule, recipe.data.dense
    assert (optim.lr, optim.weight_decay, optim.layer_decay) == (
        facts["lr"],
        facts["weight_decay"],
        facts["layer_decay"],
    )
    assert (optim.layer_decay_rule == "official") != optim.decay_all
    assert optim.clip == (facts["grad_clip"] or {"max_norm": None})["max_norm"]
    assert (schedule.max_steps or schedule.epochs) == facts["length"]
    assert (schedule.warmup_steps, schedule.warmup_lr / optim.lr) == pytest.approx(facts["warmup"])
    if facts["drops"]:
        assert [round(drop * schedule.epochs, 3) for drop in schedule.drops] == facts["drops"]
    assert recipe.data.batch_size == facts["images_per_gpu"]
    assert config.mean == pytest.approx(facts["mean"], abs=1e-3)
    assert dense.resize == "official"
    if published.task == "detection":
        assert [dense.long_side, dense.short_side] == facts["scale"]
        assert dense.pad_divisor == facts["pad_divisor"]
        augmentation = [list(dense.train_short_sides), list(dense.cut_short_sides), list(dense.cut_range), dense.crop]
        assert (augmentation if dense.train_short_sides else None) == facts["multi_scale"]
    drops = [branch.drop_path_rate for branch in config.branches]
    expected = facts["drop_path"]
    if expected["interactions"] is not None:
        assert drops == list(expected["branches"].values())
        assert config.interaction.drop_path_rate == expected["interactions"]
    else:
        assert drops == [expected["single"] or 0.0]


def test_written_recipes_read_back_equal(tmp_path: Path) -> None:
    named = Recipe(NamedModel(NAME, num_classes=7, overrides={"interaction": {"num_points": 8}}))
    for recipe in (tiny_recipe(tmp_path, tmp_path / "run"), named):
        save_recipe(recipe, tmp_path / "saved" / "recipe.yaml")
        assert load_recipe(tmp_path / "saved" / "recipe.yaml") == recipe


def test_dotted_overrides(file: Path) -> None:
    changes = {"optim.lr": "1e-2", "schedule.epochs": 7, "model.branches.0.image_size": 16, "data.transform.hflip": 0}
    recipe = load_recipe(file, changes)
    assert isinstance(recipe.model, ModelConfig)
    assert (recipe.optim.lr, recipe.schedule.epochs, recipe.model.branches[0].image_size) == (0.01, 7, 16)
    assert recipe.data.transform.hflip == 0.0


def test_options_change_named_models(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", {"model": {"name": NAME, "interaction": {"num_points": 8}}})
    named = load_recipe(path).model_config(num_classes=5)
    recipe = load_recipe(path, {"model.branches.0.image_size": 64, "model.pretrained_branches": True})
    config = recipe.model_config(num_classes=5)
    assert [branch.image_size for branch in config.branches] == [64, 192, 368]
    assert all(branch.pretrained for branch in config.branches)
    assert (config.interaction, config.head) == (named.interaction, named.head)
    assert load_recipe(path, {"model.interaction.num_points": 2}).model != recipe.model
    for changes in ({"model.num_classes": 7}, {"model.head.num_classes": 7}):
        recipe = load_recipe(path, {"model.resize": "official", **changes})
        assert recipe.model_config(num_classes=5).head.num_classes == 7


def test_options_keep_text_as_it_stands(file: Path) -> None:
    def read(name: str, text: str) -> Recipe:
        return load_recipe(file, {name: CommandText(text)})

    assert read("data.root", "010").data.root == "010"
    assert read("data.root", "@x: [").data.root == "@x: ["
    assert read("run.out", "2024-01-01").run.out == "2024-01-01"
    assert read("data.transform.auto_augment", "null").data.transform.auto_augment is None
    assert read("run.ema_decay", "null").run.ema_decay is None
    assert read("optim.betas", "[0.9, 0.95]").optim.betas == (0.9, 0.95)
    assert read("data.transform", "{hflip: 0}").data.transform.hflip == 0
    model = read("model.branches.0.timm_args.depth", "4").model
    assert isinstance(model, ModelConfig)
    assert model.branches[0].timm_args["depth"] == 4
    assert yaml.safe_load(yaml.safe_dump(read("run.out", "1").to_dict()))["run"]["out"] == "1"
    with pytest.raises(ValueError, match=r"recipe\.optim\.lr: '@x' is not YAML"):
        read("optim.lr", "@x")


def test_the_data_decide_what_a_description_leaves_open(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, tmp_path / "run")
    del values["model"]["head"]["num_classes"]
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", values))
    assert recipe.model_config(num_classes=5).head.num_classes == 5
    assert recipe.model_config().head.num_classes == 1000
    values["model"]["head"]["num_classes"] = 3
    path = write_recipe(tmp_path / "recipe.yaml", values)
    assert load_recipe(path, {"model.head.num_classes": CommandText("null")}) == recipe
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_a_resolved_recipe_leaves_nothing_open(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", {"model": NAME})
    recipe = load_recipe(path, {"model.mean": (0.1, 0.2, 0.3)})
    with torch.device("meta"):
        model = build_recipe_model(recipe, num_classes=5)
    resolved = resolve(recipe, model)
    assert resolved.model == recipe.model_config(num_classes=5)
    transform = resolved.data.transform
    assert (transform.input_size, transform.mean) == (368, (0.1, 0.2, 0.3))
    assert resolve(resolved, model) == resolved
    save_recipe(resolved, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == resolved


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule.min_lr", 0.01, r"schedule\.min_lr is 0\.01, expected at most the lowest peak rate 0\.001"),
        ("optim.rate_outside_branches", 0.001, r"min_lr is 1e-05, expected at most the lowest peak rate 1e-06"),
        ("regularize.label_smoothing", 1, r"label_smoothing is 1, expected less"),
        ("optim.learning_rate", 1, r"recipe\.optim has no field 'learning_rate'\. Did you mean"),
        ("optimizer.lr", 1, r"recipe has no field 'optimizer'\. Did you mean: optim"),
        ("optim.lr", "fast", r"recipe\.optim\.lr is 'fast', expected float"),
        ("optim.lr", -1, r"optim\.lr is -1\.0, expected a value above 0"),
        ("optim.betas", [0.9], r"recipe\.optim\.betas is \[0\.9\], expected"),
        ("schedule.epochs", 2.5, r"recipe\.schedule\.epochs is 2\.5, expected int"),
        ("schedule.warmup_epochs", 2, r"warmup_epochs is 2\.0, expected less than schedule\.epochs \(2\)"),
        ("run.precision", "fp16", r"run\.precision is 'fp16', expected one of 32, bf16, 16"),
        ("run.ema_decay", 1.5, r"run\.ema_decay is 1\.5, expected a value between 0 and 1"),
        ("data", 3, r"recipe\.data is 3, expected a section"),
        ("data.transform.crop_mode", "middle", r"transform\.crop_mode is 'middle', expected one of"),
        ("model.branches.7.image_size", 3, r"'7' is not an index, expected 0 to 1"),
        ("model.head.num_classes.deep", 3, r"'num_classes' is a single value"),
        ("model.branches.0.netwrk", "x", r"branches\[0\] has no field 'netwrk'\. Did you mean: network"),
        ("model", 3, r"recipe\.model is 3, expected 'name: NAME'"),
        ("regularize.mixup", True, r"recipe\.regularize\.mixup is True, expected float"),
    ],
)
def test_wrong_values_are_named(file: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(file, {name: value})


def test_a_warmup_rises(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"warmup_lr": 0.01}
    tiny_recipe(tmp_path, tmp_path, schedule=fields)  # without a warm-up it does not matter
    with pytest.raises(ValueError, match=r"schedule\.warmup_lr is 0\.01, expected at most"):
        tiny_recipe(tmp_path, tmp_path, schedule={**fields, "warmup_epochs": 1})


def test_mixing_needs_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size is 3, expected an even number"):
        tiny_recipe(tmp_path, tmp_path, data={"batch_size": 3}, regularize={"mixup": 0.1})


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, message in (("a: [", "is not YAML"), ("- 1", "holds list"), ("optim: {lr: 1}", "has no 'model'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(path)
    with pytest.raises(ValueError, match="There is no recipe"):
        load_recipe(tmp_path / "nothing.yaml")


def test_fields_beside_a_name_change_the_named_model(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    model = {"name": NAME, "pretrained_branches": True, "interaction": {"num_points": 8}, "resize": "official"}
    path.write_text(yaml.safe_dump({"model": model}))
    recipe, named = load_recipe(path), model_config(NAME)
    config = recipe.model_config(num_classes=5)
    assert config.interaction.num_points == 8
    assert config.interaction.num_heads == named.interaction.num_heads
    assert (config.resize, config.head.num_classes) == ("official", 5)
    assert all(branch.pretrained for branch in config.branches)
    with pytest.raises(ValueError, match=r"recipe\.model has no field 'rezise'\. Did you mean: resize"):
        load_recipe(path, {"model.rezise": "official"})
    with pytest.raises(ValueError, match="interaction has no field 'points'"):
        load_recipe(path, {"model.interaction.points": 3}).model_config()
