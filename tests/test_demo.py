"""The demo: every task on its shipped images and on the user's own; assets against what the repository says of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import piip
from piip.cli import main
from piip.compare.config import load_comparison
from piip.config import ModelConfig
from piip.demo import ASSETS, TASKS, run_demo
from piip.demo.terminal import print_demo
from piip.inference.predictions import SemanticPrediction
from piip.recipe import Recipe, load_recipe
from piip.serialization.description import read_description

ROOT = Path(__file__).resolve().parents[1]


def recorded(task: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((TASKS[task].assets / "results.json").read_text())
    return rows


def known(task: str) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = json.loads((TASKS[task].assets / "truth.json").read_text())
    return values


def test_nuclei_are_counted_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--out", str(tmp_path / "nuclei.png"), "--json", "--device", "cpu"])
    report = json.loads(capsys.readouterr().out)
    answers = [image["answers"]["piip"] for image in report["images"]]
    counted = [answer for answer in answers if answer["target"] is not None]
    assert len(counted) >= 4
    for answer in counted:  # a count, not a measure: that is in the model card
        assert 0.4 * answer["target"] < answer["found"] < 1.8 * answer["target"], answer
        assert "score >= 0.5" in answer["text"]
    assert any("ihc" in image["path"] for image in report["images"])
    piip_row, single = report["models"]
    assert piip_row["macs"] < single["macs"]
    assert min(piip_row["seconds"], single["seconds"]) > 0
    with Image.open(tmp_path / "nuclei.png") as sheet:
        assert sheet.width > 1000


def test_the_pyramid_is_shown_beside_single_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_demo("segmentation", tmp_path / "maps.png", device="cpu")
    print_demo(report, Console(width=150))
    printed = capsys.readouterr().out
    names = [row["name"] for row in recorded("segmentation")]
    assert [*report.accuracy] == names
    assert f"Mean mIoU of the included images: piip {report.accuracy['piip']:.1%}" in printed
    for image in report.to_dict()["images"]:
        assert [*image["answers"]] == names
        for answer in image["answers"].values():
            assert answer["accuracy"] > 1 / 3
            assert sum(answer["found"].values()) == pytest.approx(1)
            assert answer["text"] in printed
    assert TASKS["segmentation"].note in " ".join(printed.split())
    assert (tmp_path / "maps.png").is_file()


def test_images_are_classified_as_often_right_as_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shipped images are evenly many per class, so the mean over classes is the number to compare with."""
    main(["demo", "--task", "classification", "--out", str(tmp_path / "demo.png"), "--device", "cpu", "--json"])
    report = json.loads(capsys.readouterr().out)
    expected = recorded("classification")[0]["scores"]["mean_class"]
    count = len(report["images"])
    accuracy = report["accuracy"]["piip"]
    spread = (accuracy * (1 - accuracy) / count) ** 0.5
    assert abs(accuracy - expected) < max(4 * spread, 0.05)
    assert [model["name"] for model in report["models"]] == ["piip", "single", "equal"]


@pytest.mark.parametrize("task", TASKS)
def test_images_of_the_user(task: str, tmp_path: Path) -> None:
    own, turned = tmp_path / "holiday.jpg", Image.Exif()
    turned[274] = 6  # stored on its side
    Image.new("L", (90, 70), 128).save(own, exif=turned)
    report = run_demo(task, tmp_path / "made" / "own.png", images=[str(own)], device="cpu")
    (image,) = report.images
    assert image.size == (90, 70)
    assert all((answer.result.target, answer.result.accuracy) == (None, None) for answer in image.answers.values())
    assert report.accuracy == {}
    assert (tmp_path / "made" / "own.png").is_file()
    with pytest.raises(ValueError, match="not an image file"):
        run_demo(task, tmp_path / "own.png", images=["nowhere.jpg"])
    with pytest.raises(ValueError, match="no demo model"):
        run_demo(task, tmp_path / "own.png", assets=tmp_path)


def test_maps_have_the_colours_of_the_legend() -> None:
    about = read_description(TASKS["segmentation"].assets / "model")
    labels = torch.arange(3).repeat_interleave(3).view(3, 3)
    legend = SemanticPrediction(None, about["classes"], labels, about["palette"]).legend()
    shown = {colour for _, colour in legend.getcolors(10**6) or ()}
    assert {tuple(colour) for colour in about["palette"]} <= shown


@pytest.mark.parametrize("task", TASKS)
def test_shipped_weights_are_small_and_described(task: str) -> None:
    folder = TASKS[task].assets
    for row in recorded(task):
        if row["folder"] is not None:
            assert (folder / row["folder"] / "model.safetensors").stat().st_size <= 12_000_000
    assert (folder / "MODEL_CARD.md").is_file()
    assert {*known(task)} <= {path.name for path in (folder / "images").iterdir()}


def test_the_shipped_detector_is_that_of_its_recipe() -> None:
    """Card and README repeat what was recorded."""
    folder, (first, single) = TASKS["instances"].assets, recorded("instances")
    about = read_description(folder / "model")
    recipe = load_recipe(ROOT / first["recipe"])
    assert ModelConfig.from_dict(about["model"]) == recipe.model_config(num_classes=len(about["classes"]))
    ran = Recipe.from_dict(about["recipe"])
    assert (ran.optim, ran.schedule) == (recipe.optim, recipe.schedule)
    assert dataclasses.replace(ran.data.dense, mean=None, std=None) == recipe.data.dense
    card = (folder / "MODEL_CARD.md").read_text()
    for score in first["scores"].values():
        assert f"{score:.1%}" in card
    for config in (about["model"], single["model"]):
        macs = piip.estimate_cost(ModelConfig.from_dict(config), image_size=512).without_head.macs
        assert f"{macs / 1e9:.2f} G" in card


def test_the_shipped_segmentors_are_those_of_the_comparison() -> None:
    """Model, training and card are those of the file that `piip compare` takes."""
    folder = TASKS["segmentation"].assets
    comparison = load_comparison(ROOT / "recipes" / "compare" / "nuclei_resolution.yaml")
    card = (folder / "MODEL_CARD.md").read_text()
    for row in recorded("segmentation"):
        recipe = Recipe.from_dict(comparison.recipe_values(row["label"]))
        about = read_description(folder / row["folder"])
        ran, config = Recipe.from_dict(about["recipe"]), recipe.model_config(num_classes=3)
        assert ModelConfig.from_dict(about["model"]) == config, row["label"]
        assert ran.optim.lr in comparison.rates
        assert dataclasses.replace(ran.optim, lr=recipe.optim.lr) == recipe.optim
        assert f"{piip.estimate_cost(config, image_size=768).macs / 1e9:.2f} G" in card
        for score in row["scores"].values():
            assert f"{score:.1%}" in card


def test_recorded_costs_are_those_of_the_recipes() -> None:
    models = recorded("classification")
    assert [model["name"] for model in models] == ["piip", "single", "equal"]
    for model in models:
        config = load_recipe(ROOT / model["recipe"]).model_config(num_classes=10)
        cost = piip.estimate_cost(config)
        assert (cost.macs, cost.params) == (model["macs"], model["params"]), model["name"]
        if model["name"] != "piip":
            assert ModelConfig.from_dict(model["model"]) == config
    assert TASKS["classification"].assets == ASSETS


def test_the_readme_repeats_the_scores() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not re.search(r"@\w+@", readme)
    shown = {
        "instances": ("mask_ap", "mask_ap50", "box_ap"),
        "segmentation": ["miou"],
        "classification": ["top1"],
    }
    for task, names in shown.items():
        rows = recorded(task) if task == "segmentation" else recorded(task)[:1]
        for row, name in itertools.product(rows, names):
            assert re.search(rf"{100 * row['scores'][name]:.1f}\b", readme), (task, row["name"], name)


def test_seeds_are_those_of_the_comparison() -> None:
    """README and card repeat means and deviations that follow from the recorded runs."""
    runs = json.loads((ROOT / "docs" / "evidence" / "nuclei_resolution.json").read_text())["runs"]
    readme, card = (ROOT / "README.md").read_text(), (TASKS["segmentation"].assets / "MODEL_CARD.md").read_text()
    for row in recorded("segmentation"):
        measured = [run["scores"]["miou"] for run in runs if run["label"] == row["label"] and run["fraction"] == 1]
        assert row["seeds"]["miou"] == [round(value, 4) for value in measured]
        shown = f"{100 * statistics.fmean(measured):.1f} ± {100 * statistics.stdev(measured):.1f}"
        assert shown in readme
        assert f"{shown}% (3)" in card
