"""The demos of detectors and segmentors, as shipped."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import piip
from piip.cli.main import main
from piip.config import ModelConfig
from piip.demo.dense import FOLDER, SIDE, TASKS, run_dense_demo
from piip.recipe import Recipe, load_recipe
from piip.serialization.load import read_description
from piip.training.setup import recipe_model_config

ROOT = Path(__file__).resolve().parents[1]


def recorded(task: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((FOLDER / TASKS[task].assets / "results.json").read_text())
    return rows


def pictures(task: str) -> dict[str, dict[str, Any]]:
    truth: dict[str, dict[str, Any]] = json.loads((FOLDER / TASKS[task].assets / "truth.json").read_text())
    return truth


def test_nuclei_are_found_counted_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--out", str(tmp_path / "nuclei.png"), "--json", "--device", "cpu"])
    report = json.loads(capsys.readouterr().out)
    known = [finding for finding in report["findings"] if finding["truth"] is not None]
    assert len(known) >= 4
    for finding in known:  # a count, not a measure: that is in the model card
        assert 0.4 * finding["truth"] < finding["found"] < 1.8 * finding["truth"], finding
    assert any("ihc" in finding["path"] for finding in report["findings"])
    piip_row, single = report["models"]
    assert piip_row["macs"] < single["macs"]
    assert min(piip_row["seconds"], single["seconds"]) > 0
    with Image.open(tmp_path / "nuclei.png") as sheet:
        assert sheet.width > 1000


def test_every_pixel_has_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--task", "segmentation", "--out", str(tmp_path / "cover.png"), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "pixels" in printed
    assert "single" in printed
    report = run_dense_demo("segmentation", tmp_path / "again.png", device="cpu")
    for finding in report.findings:
        assert isinstance(finding.found, dict)
        assert finding.truth is not None
        assert finding.truth > 0.3


@pytest.mark.parametrize("task", list(TASKS))
def test_pictures_of_the_user(task: str, tmp_path: Path) -> None:
    own, turned = tmp_path / "holiday.jpg", Image.Exif()
    turned[274] = 6  # stored on its side
    Image.new("L", (90, 70), 128).save(own, exif=turned)
    report = run_dense_demo(task, tmp_path / "own.png", images=[str(own)], device="cpu")
    assert [(finding.truth, finding.size) for finding in report.findings] == [(None, (90, 70))]
    assert (tmp_path / "own.png").is_file()
    with pytest.raises(ValueError, match="no image file"):
        run_dense_demo(task, tmp_path / "own.png", images=["nowhere.jpg"])
    with pytest.raises(ValueError, match="no demo model"):
        run_dense_demo(task, tmp_path / "own.png", assets=tmp_path)


@pytest.mark.parametrize("task", list(TASKS))
def test_shipped_models_are_those_of_their_recipes(task: str) -> None:
    """Weights are small, and card and README repeat what was recorded."""
    folder, (first, single) = FOLDER / TASKS[task].assets, recorded(task)
    assert (folder / "model" / "model.safetensors").stat().st_size <= 15_000_000
    about = read_description(folder / "model")
    recipe = load_recipe(ROOT / first["recipe"])
    assert ModelConfig.from_dict(about["model"]) == recipe_model_config(recipe, num_classes=len(about["classes"]))
    ran = Recipe.from_dict(about["recipe"])
    assert (ran.optim, ran.schedule) == (recipe.optim, recipe.schedule)
    assert dataclasses.replace(ran.data.dense, mean=None, std=None) == recipe.data.dense
    card = (folder / "MODEL_CARD.md").read_text()
    for score in first["scores"].values():
        assert f"{score:.1%}" in card
    for config in (about["model"], single["model"]):
        macs = piip.estimate_cost(ModelConfig.from_dict(config), image_size=SIDE).macs
        assert f"{macs / 1e9:.2f} G" in card
    assert {*pictures(task)} <= {path.name for path in (folder / "pictures").iterdir()}


def test_the_readme_repeats_the_scores() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not re.search(r"@\w+@", readme)
    for task, names in (("instances", ("mask_ap", "mask_ap50", "box_ap")), ("segmentation", ("miou", "aacc"))):
        scores = recorded(task)[0]["scores"]
        for name in names:
            assert re.search(rf"{100 * scores[name]:.1f}\b", readme), (task, name)
