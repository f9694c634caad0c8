"""What version 0.1.0 wrote before its modules moved: model directories load, an interrupted run resumes.

`tests/data/earlier_version.zip` holds files of that version: a classifier, a detector and a segmentor with outputs of
theirs, the first checkpoint of a run of two epochs with the history of the whole run, and the recipe of a detector.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import write_images

import piip
from piip.recipe import load_recipe
from piip.training.run_folder import read_history
from piip.training.train import train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning"),  # a newer one, maybe
]
ARCHIVE = Path(__file__).parent / "data" / "earlier_version.zip"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    shutil.unpack_archive(ARCHIVE, folder)
    return folder / "earlier_version"


@pytest.mark.parametrize("name", ["classifier", "detector", "segmentor"])
def test_a_model_directory_gives_the_outputs_it_gave(name: str, earlier: Path) -> None:
    expected = json.loads((earlier / "outputs.json").read_text())[name]
    model = piip.from_pretrained(earlier / name)
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(torch.randn(1, 3, 64, 64))
    found = {"logits": result} if isinstance(result, torch.Tensor) else result[0]
    for key, values in expected.items():
        actual = (found[key] if key == "logits" else found[key][:8]).flatten()[: len(values)]
        torch.testing.assert_close(actual, torch.tensor(values, dtype=actual.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["classifier", "detector", "segmentor"])
def test_a_model_directory_is_used_for_prediction_and_saved_again(name: str, earlier: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=1, val=1)
    predictions = list(piip.Predictor(earlier / name, device="cpu").predict_paths([str(images / "val" / "red")]))
    assert len(predictions) == 1
    model = piip.from_pretrained(earlier / name)
    model.save_pretrained(tmp_path / "again")
    again = piip.from_pretrained(tmp_path / "again")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)
    assert again.metadata.keys() == model.metadata.keys()


def test_an_interrupted_run_resumes_to_the_same_history(earlier: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(earlier / "classifier_run", run)
    images = write_images(tmp_path / "images", train=4, val=2)
    recipe = load_recipe(run / "checkpoints" / "recipe.yaml", {"run.out": str(run), "data.root": str(images)})
    result = train(recipe, resume="auto", device="cpu", progress="none")
    expected = json.loads((earlier / "classifier_run" / "expected_history.json").read_text())
    assert result.steps == 6

    def by_step(rows: list[dict[str, float]], name: str) -> dict[float, float]:
        return {row["step"]: row[name] for row in rows if name in row}

    history = read_history(run)
    for name in ("train/loss", "val/loss", "val/top1"):
        assert by_step(history, name) == pytest.approx(by_step(expected, name), rel=1e-4), name


@pytest.mark.parametrize("path", ["classifier_run/checkpoints/recipe.yaml", "detector_run/recipe.yaml"])
def test_a_recipe_is_read(path: str, earlier: Path) -> None:
    recipe = load_recipe(earlier / path)
    assert recipe.model.to_dict()["branches"]
    if "detector" in path:
        assert recipe.to_dict()["data"]["kind"] == "coco"
