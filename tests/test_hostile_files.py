"""Recipes, configurations and checkpoints that are damaged, foreign or malicious: one line, and no code is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import branch, recipe_values, tiny_recipe, write_images, write_model, write_recipe
from training_run import run

from piip.recipe import load_recipe
from piip.serialization.load import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


class Touch:
    """Unpickled by a careless reader, this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "code.pth": lambda path: torch.save({"state_dict": {}, "x": Touch(path.parent / "was_run")}, path),
    "raw.pth": lambda path: path.write_bytes(pickle.dumps(Touch(path.parent / "was_run"))),
    "weights.pth": lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path),
    "list.pth": lambda path: torch.save([1, 2], path),
    "notes.txt": lambda path: path.write_text("no checkpoint"),
    "other.zip": write_zip,
    "empty.ckpt": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_not_resumed(name: str, tmp_path: Path) -> None:
    FOREIGN[name](tmp_path / name)
    recipe = tiny_recipe(write_images(tmp_path / "data", train=2, val=1), tmp_path / "run")
    with pytest.raises(ValueError, match=rf"{name}.*(no checkpoint of|expected 'auto')"):
        run(recipe, resume=str(tmp_path / name))
    assert not (tmp_path / "was_run").exists()


def test_checkpoints_of_another_model_are_not_resumed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", train=4, val=1)
    run(tiny_recipe(images, tmp_path / "run"))
    checkpoint = sorted((tmp_path / "run" / "checkpoints").glob("step*.ckpt"))[-1]
    moved = tmp_path / "alone.ckpt"
    checkpoint.rename(moved)  # without the recipe beside it
    other = tiny_recipe(images, tmp_path / "other", model={"branches": [branch(24, 48), branch(32, 16)]})
    with pytest.raises(ValueError, match=r"alone\.ckpt does not fit the model"):
        run(other, resume=str(moved))
    content = torch.load(moved, weights_only=True)
    content["loops"] = {"fit_loop": 3}
    torch.save(content, moved)
    with pytest.raises(ValueError, match=r"alone\.ckpt cannot be resumed"):
        run(tiny_recipe(images, tmp_path / "again"), resume=str(moved))


YAML_FAULTS = {
    "optim: {lr: 1}\noptim: {lr: 2}": r"line 2: 'optim' is given twice",
    "model: {name: a,\n  name: b}": r"line 2: 'name' is given twice",
    "data:\n  batch_size: 010": r"line 2: YAML reads 010 as octal, which is 8; write 8, or 10 without the zero",
    "run: {out: 1:30}": r"line 1: YAML reads 1:30 as minutes and seconds, which is 90",
    "a: &a [*a]": "refers to itself",
    "a: " + "[" * 100_000: "nested too deeply",
    "a: " + "[" * 60 + "]" * 60: "nested too deeply",
    "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)): "refers to",
    "- 1": "holds list",
    "a:\n\t- 1": "is not YAML",
    "a: 2020-13-45": "cannot be read",
    "a: !!int x": "cannot be read",
    "a: !!python/object/apply:os.getcwd []": "is not YAML",
    "model: {name: piip_tsb_368_192_128.deit1_in1k, head: 3}\nx: 1": "no field 'x'",
    "optim: {lr: .nan}\nmodel: {name: a}": r"optim\.lr is nan, expected float",
    "data: {batch_size: 0o10}\nmodel: {name: a}": r"batch_size is '0o10', expected int",
}


@pytest.mark.parametrize("text", YAML_FAULTS, ids=range(len(YAML_FAULTS)))
def test_faults_of_recipes_are_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=YAML_FAULTS[text]) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_encodings_of_recipes(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, tmp_path)
    path = write_recipe(tmp_path / "recipe.yaml", values)
    expected, text = load_recipe(path), path.read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert load_recipe(path) == expected
    for content in (b"\x00\x01\x02\xff", b"a: \xff", text.encode("utf-16-le")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"recipe\.yaml is not YAML"):
            load_recipe(path)


def change_timm(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["model"]["branches"][0]["timm_args"].update({key: value})


CONFIG_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "more layers": (change_timm("depth", 3), "does not fit the model.*missing"),
    "fewer layers": (change_timm("depth", 1), "interactions were asked for|does not fit the model.*unexpected|at most"),
    "other width": (change_timm("embed_dim", 64), "does not fit the model.*expected"),
    "no heads": (change_timm("num_heads", 0), "timm cannot build"),
    "NaN": (change_timm("mlp_ratio", float("nan")), "expected a plain value"),
    "other classes": (lambda c: c["model"]["head"].update(num_classes=5), "lists 3 classes.*num_classes 5"),
    "no branches": (lambda c: c["model"].pop("branches"), r"config\.json: .*'branches'"),
    "unknown field": (lambda c: c["model"].update(extra_branches=[]), "no field 'extra_branches'"),
    "wrong type": (lambda c: c["model"].update(branches=3), r"config\.json: .*branches is 3"),
    "classes": (lambda c: c.update(classes="abc"), "'classes' 'abc', expected a list"),
    "transform": (lambda c: c.update(transform=[]), "'transform'.*expected a section"),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_configurations_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    config = write_model(tmp_path / "model") / "config.json"
    content = json.loads(config.read_text())
    change, message = CONFIG_FAULTS[name]
    change(content)
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_model(config.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model": {}, "model": {}}', "gives 'model' twice"),
        ('{"model": ' + "9" * 5000 + "}", "cannot be read"),
        ("\udcff", "is not JSON"),
        ("[]", "has no 'model' field"),
    ],
    ids=range(6),
)
def test_damaged_configurations_are_named(text: str, message: str, tmp_path: Path) -> None:
    config = write_model(tmp_path / "model") / "config.json"
    config.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        load_model(config.parent)
