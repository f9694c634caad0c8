"""A run that fails while it validates keeps what it trained; nothing but `convert` opens other people's pickles."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapes
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe, write_model
from training_run import names, run

import piip
from piip.cli import main
from piip.recipe import Recipe
from piip.training.callbacks import AveragedWeights, BestModel
from piip.training.tasks import dense as dense_tasks
from piip.training.tasks.classification import ClassificationTask
from piip.training.train import train

PACKAGE = Path(piip.__file__).parent


def fail_from(count: int, whole: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does its work until its `count`-th call, which fails, and all after it."""
    calls = iter(range(1000))

    def fails(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= count:
            raise RuntimeError("counting failed")
        return whole(*arguments, **options)

    return fails


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_detector_outlives_its_scoring(
    tmp_path: Path, epoch: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Call 0 is that of the sanity check."""
    shapes.write_coco(tmp_path, "train", 4)
    shapes.write_coco(tmp_path, "val", 1)
    recipe = shapes.dense_recipe(tmp_path, tmp_path / "run", "coco")
    recipe["run"]["checkpoint_every"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(dense_tasks, "score_results", fail_from(epoch, dense_tasks.score_results))
        with pytest.raises(RuntimeError, match="counting failed"):
            train(Recipe.from_dict(recipe), device="cpu", progress="none")
    model = tmp_path / "run" / "model"
    assert f"Validation failed after step {2 * epoch}. The trained weights are in {model}" in caplog.text
    assert json.loads((model / "config.json").read_text())["steps"] == 2 * epoch
    assert piip.from_pretrained(model).task == "instance"
    main(["evaluate", str(model), "--data", str(tmp_path), "--split", "val.json", "--images", "val", "--workers", "0"])
    assert f"step{2 * epoch - 1:08d}.ckpt" in names(tmp_path / "run")
    resumed = train(Recipe.from_dict(recipe), device="cpu", progress="none", resume="auto")
    assert resumed.steps == 4
    whole = Recipe.from_dict({**recipe, "run": {**recipe["run"], "out": str(tmp_path / "whole")}})
    train(whole, device="cpu", progress="none")
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_weights_kept_are_those_that_were_validated(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(images, tmp_path / "run", run={"ema_decay": 0.9}, schedule={"epochs": 1})
    validated: dict[str, torch.Tensor] = {}
    whole = ClassificationTask.validation_step

    def fails(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        if not self.trainer.sanity_checking and batch_idx == 2:
            validated.update({name: value.clone() for name, value in self.model.state_dict().items()})
            raise RuntimeError("no more memory")
        return whole(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "validation_step", fails)
        with pytest.raises(RuntimeError, match="no more memory"):
            run(recipe)
    kept = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in validated.items() if name in kept)
    run(tiny_recipe(images, tmp_path / "whole", run={"ema_decay": 0.9}, schedule={"epochs": 1}))
    want = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in want.items())


def test_callbacks_that_fail_after_validation_lose_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (BestModel, AveragedWeights):
        recipe = tiny_recipe(images, tmp_path / kind.__name__, run={"ema_decay": 0.9}, schedule={"epochs": 1})
        with monkeypatch.context() as patch:
            patch.setattr(kind, "on_validation_epoch_end", fail_from(1, kind.on_validation_epoch_end))
            with pytest.raises(RuntimeError, match="counting failed"):
                run(recipe)
        assert (tmp_path / kind.__name__ / "model" / "model.safetensors").is_file()


def test_a_failure_in_training_exports_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassificationTask, "batch_loss", fail_from(3, ClassificationTask.batch_loss))
    with pytest.raises(RuntimeError, match="counting failed"):
        run(tiny_recipe(images, tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return every call in a file with the name it is called by."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_pickles_are_read_by_convert_alone() -> None:
    """Checkpoints of a run are read by PyTorch's restricted reader; weights only."""
    readers, importers = set(), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for function, call in calls(path):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if function.startswith(("pickle.", "joblib.", "dill.", "shelve.")) or function.endswith("torch.load"):
                assert words.get("weights_only") == "True", f"{name}:{call.lineno}"
                readers.add(name)
            if function.endswith("trainer.fit"):
                assert words["weights_only"] == "True", f"{name}:{call.lineno}"
            assert words.get("allow_pickle", "False") == "False", f"{name}:{call.lineno}"
        text = path.read_text(encoding="utf-8")
        if "checkpoints.reading import" in text:
            importers.add(name)
    assert readers == {"checkpoints/reading.py", "training/run_folder.py"}
    assert all(name.startswith("checkpoints/") or name in ("conversion.py", "cli_convert.py") for name in importers)


class Attack:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


def test_no_command_but_convert_opens_a_pickle(images: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    for name in ("pytorch_model.bin", "model.pt", "model.pkl"):
        (model / name).write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    piip.from_pretrained(model)
    piip.Predictor(model, device="cpu")
    (model / "model.safetensors").unlink()
    for load in (piip.from_pretrained, piip.Predictor):
        with pytest.raises(ValueError, match="safetensors"):
            load(model)
    assert not (tmp_path / "ran").exists()
    recipe = tiny_recipe(images, tmp_path / "run", schedule={"epochs": 1})
    run(recipe)
    checkpoint = tmp_path / "run" / "checkpoints" / "step00000006.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": Attack(tmp_path / "ran")}, checkpoint)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        run(recipe, resume="auto")
    assert not (tmp_path / "ran").exists()
