"""The demo on a stand-in model, and the shipped assets against what the repository says about them."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import piip
from piip.cli.main import main
from piip.config import BranchConfig, HeadConfig, InteractionConfig, ModelConfig
from piip.demo import ASSETS, run_demo
from piip.demo.figure import ticks, wrap
from piip.demo.results import read_recorded
from piip.serialization.load import save_model

CLASSES = ["water", "evergreen_broadleaf_forest", "snow_and_ice"]


def tiny_config() -> ModelConfig:
    sizes = [(32, 48), (64, 24)]
    branches = tuple(
        BranchConfig("vit_tiny_patch16_224", size, timm_args={"embed_dim": width, "depth": 2, "num_heads": 3})
        for size, width in sizes
    )
    head = HeadConfig("pooled", num_classes=len(CLASSES))
    return ModelConfig(branches, InteractionConfig(count=2, num_heads=2), head=head)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the shipped one, with an untrained model."""
    folder = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    save_model(
        piip.build_model(tiny_config()),
        folder / "model",
        {"classes": CLASSES, "transform": {"input_size": 64, "crop_pct": 1.0}},
        dtype="bf16",
    )
    rows = []
    (folder / "images").mkdir()
    for index in range(7):
        name = CLASSES[index % len(CLASSES)]
        pixels = np.random.default_rng(index).integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.jpg")
        rows.append({"file": f"{index}.jpg", "class": name, "index": index % len(CLASSES), "top": 0, "left": 0})
    (folder / "images" / "labels.json").write_text(json.dumps(rows))
    models = [
        {"name": name, "recipe": f"{name}.yaml", "seed": 0, "test_top1": top1, "mean_class_top1": top1 - 0.02,
         "macs": macs, "params": 10**6, "notes": "further fields are allowed"}
        for name, top1, macs in (("piip", 0.78, 300e6), ("single", 0.76, 700e6), ("equal", 0.785, 1300e6))
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(models))
    return folder


def test_demo_classifies_and_draws(assets: Path, tmp_path: Path) -> None:
    report = run_demo(tmp_path / "made" / "demo.png", assets=assets, device="cpu")
    assert report.labelled == 7
    assert 0 <= report.correct <= 7
    assert report.seconds_per_image > 0
    assert report.cost.macs == piip.estimate_cost(tiny_config()).macs
    assert [model.name for model in report.models] == ["piip", "single", "equal"]
    with Image.open(tmp_path / "made" / "demo.png") as sheet:
        assert sheet.width > 1000
    values = json.loads(json.dumps(report.to_dict()))
    assert values["top1"] == report.correct / 7
    assert values["pictures"][0]["truth"] == "water"


def test_demo_command_prints(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("piip.demo.run_demo", partial(run_demo, assets=assets))
    out = str(tmp_path / "demo.png")
    main(["demo", "--task", "classification", "--out", out])
    printed = capsys.readouterr().out
    assert "Held-out top-1" in printed
    assert "single" in printed
    main(["demo", "--task", "classification", "--out", out, "--json"])
    assert json.loads(capsys.readouterr().out)["labelled"] == 7
    own = [str(assets / "images" / name) for name in ("0.jpg", "1.jpg")]
    main(["demo", "--task", "classification", "--out", out, "--image", *own])
    assert "Your pictures" in capsys.readouterr().out


def test_demo_takes_pictures_of_the_user(assets: Path, tmp_path: Path) -> None:
    own = tmp_path / "holiday.png"
    Image.new("L", (300, 90), 128).save(own)
    report = run_demo(tmp_path / "demo.png", images=[str(own)], assets=assets, device="cpu")
    assert report.to_dict()["top1"] is None
    assert report.pictures[0].truth is None
    assert len(report.pictures[0].prediction.top) == 3
    assert (tmp_path / "demo.png").is_file()


def test_missing_files_are_named(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no demo model"):
        run_demo(tmp_path / "demo.png", assets=tmp_path)
    with pytest.raises(ValueError, match="no image file"):
        run_demo(tmp_path / "demo.png", images=["nowhere.jpg"], assets=assets)
    (tmp_path / "results.json").write_text('[{"name": "piip"}]')
    with pytest.raises(ValueError, match=r"'piip'.*recipe"):
        read_recorded(tmp_path / "results.json")


def test_ticks_are_round_and_cover() -> None:
    assert ticks(0, 1.56) == [0, 0.5, 1.0, 1.5, 2.0]
    assert ticks(74.2, 80.1) == [74, 75, 76, 77, 78, 79, 80, 81]


def test_long_names_take_two_lines() -> None:
    assert wrap("water", 120) == ["water"]
    assert wrap("evergreen_broadleaf_forest", 140) == ["evergreen broadleaf", "forest"]


def test_shipped_weights_are_small() -> None:
    assert (ASSETS / "model" / "model.safetensors").stat().st_size <= 10_000_000
    assert (ASSETS / "MODEL_CARD.md").is_file()


def test_recorded_costs_are_those_of_the_recipes() -> None:
    from piip.recipe import load_recipe
    from piip.training.setup import recipe_model_config

    models = read_recorded(ASSETS / "results.json")
    assert [model.name for model in models] == ["piip", "single", "equal"]
    for model in models:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cost = piip.estimate_cost(recipe_model_config(load_recipe(Path(__file__).parents[1] / model.recipe)))
        assert (cost.macs, cost.params) == (model.macs, model.params), model.name


def test_shipped_model_is_right_as_often_as_recorded(tmp_path: Path) -> None:
    """Shipped pictures are evenly many a class, so the mean over classes is the number to compare with."""
    report = run_demo(tmp_path / "demo.png", device="cpu")
    recorded = next(model for model in report.models if model.name == "piip")
    share = report.correct / report.labelled
    spread = (share * (1 - share) / report.labelled) ** 0.5
    assert abs(share - recorded.mean_class_top1) < max(4 * spread, 0.05)
