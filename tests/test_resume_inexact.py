"""Resuming with other data or another recipe: by step, and only where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shapes
import torch
from tiny_run import tiny_recipe, write_images
from training_run import newest_step, run

from piip.recipe import Recipe
from piip.training.optim import learning_rate
from piip.training.run_folder import read_checkpoint, read_history
from piip.training.setup import digest_annotations
from piip.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


def resume_inexactly(recipe: Recipe) -> Any:
    return train(recipe, resume="auto", resume_inexact=True, device="cpu", progress="none")


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_run_continues_by_step(images: Path, tmp_path: Path, ema_decay: float | None, capsys: Any) -> None:
    run(tiny_recipe(images, tmp_path / "run", run={"ema_decay": ema_decay}))
    assert newest_step(tmp_path / "run") == 12
    more = write_images(tmp_path / "more", train=10, val=4)  # 10 batches of 3 instead of 6 of 4
    changes: dict[str, Any] = {"data": {"batch_size": 3}, "schedule": {"epochs": 3}, "optim": {"lr": 2e-3}}
    recipe = tiny_recipe(more, tmp_path / "run", run={"ema_decay": ema_decay}, **changes)
    with pytest.raises(ValueError, match="continue by step with --resume-inexact"):
        run(recipe, resume="auto")
    capsys.readouterr()
    result = resume_inexactly(recipe)
    told = capsys.readouterr().err
    assert "data.batch_size 4 -> 3; optim.lr 0.001 -> 0.002" in told
    assert "images 24 -> 30" in told
    assert result.steps == 30
    rows = [row for row in read_history(tmp_path / "run") if "train/lr" in row]
    assert [row["step"] for row in rows] == list(range(30))
    for row in rows[12:]:
        rate = learning_rate(int(row["step"]), 2e-3, recipe.schedule, total_steps=30, warmup_steps=0)
        assert row["train/lr"] == pytest.approx(rate)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "step00000030.ckpt")["optimizer_states"][0]["state"]
    assert {int(values["step"]) for values in state.values()} == {30}
    assert run(recipe, resume="auto").steps == 30  # exact again


def test_the_flag_needs_a_checkpoint(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resume-inexact says how to resume"):
        train(tiny_recipe(images, tmp_path), resume_inexact=True)


def test_edited_annotations_are_noticed(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        shapes.write_coco(tmp_path, split, count, seed=count)
    values = shapes.dense_recipe(tmp_path, tmp_path / "run", "coco")
    values["schedule"] = {"epochs": 1}
    values["model"]["head"] |= {"width": 16}
    recipe = Recipe.from_dict(values)
    run(recipe)
    path = Path(recipe.data.root) / recipe.data.train
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations \w{16} -> \w{16}.*--resume-inexact"):
        run(recipe, resume="auto")
    checkpoint = sorted((tmp_path / "run" / "checkpoints").glob("step*.ckpt"))[-1]
    old = torch.load(checkpoint, weights_only=True)
    del old["callbacks"]["SameData"]["annotations"]  # as an earlier version wrote it
    torch.save(old, checkpoint)
    assert run(recipe, resume="auto").steps == newest_step(tmp_path / "run")


def test_edited_masks_are_noticed(tmp_path: Path) -> None:
    shapes.write_semantic_masks(tmp_path, "train", 2, seed=0)
    shapes.write_semantic_masks(tmp_path, "val", 1, seed=1)
    recipe = Recipe.from_dict(shapes.dense_recipe(tmp_path, tmp_path / "run", "semantic_masks"))
    before = digest_annotations(recipe)
    mask = next(path for path in (Path(recipe.data.root) / recipe.data.train).rglob("*.png"))
    mask.write_bytes(mask.read_bytes()[:-5] + b"12345")
    assert before
    assert digest_annotations(recipe) != before
