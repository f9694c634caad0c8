"""Training: logs and exports, averaging, accumulation, precision, and refusals before the first step."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from processes import succeed
from pytorch_lightning.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from tiny_run import recipe_values, tiny_recipe, write_images, write_recipe
from training_run import EVERYTHING, losses, names, run

from piip.cli import main
from piip.device import check_precision
from piip.recipe import Recipe, load_recipe
from piip.training.callbacks import AveragedWeights
from piip.training.run_folder import read_history
from piip.training.tasks import classification
from piip.training.tasks.base import NonFiniteLoss
from piip.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_a_model_logs_and_its_recipe(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, tmp_path / "run", schedule={"epochs": 6}, optim={"lr": 5e-3})
    result = run(recipe)
    assert result.steps == 36
    assert result.metrics["val/top1"] > 0.6  # colours are easy
    resolved = load_recipe(tmp_path / "run" / "checkpoints" / "recipe.yaml")
    assert (resolved.model, resolved.optim, resolved.run) == (recipe.model, recipe.optim, recipe.run)
    assert (resolved.data.transform.input_size, resolved.data.transform.mean) == (32, (0.5, 0.5, 0.5))
    for name in ("model", "best"):
        description = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert description["classes"] == ["blue", "green", "red"]
        assert description["steps"] in range(6, 37, 6)
        assert description["transform"]["input_size"] == 32
        assert set(description["metrics"]) == {"val/loss", "val/top1", "val/top5", "val/mean_class"}
        assert Recipe.from_dict(description["recipe"]) == resolved
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert names(tmp_path / "run") == ["recipe.yaml", "step00000030.ckpt", "step00000036.ckpt"]
    rows = read_history(tmp_path / "run")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(36))
    assert sum("val/top1" in row for row in rows) == 6


def test_short_epochs_show_progress_and_log(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps an epoch, the last of two batches instead of five; the recipe asks for a line every 50 steps."""
    fields = {"data": {"batch_size": 2}, "run": {"accumulate": 5, "log_every": 50}}
    train(tiny_recipe(images, tmp_path / "run", **fields), device="cpu", progress="lines")
    lines = [line for line in capsys.readouterr().err.splitlines() if " step " in line]
    assert [line.split()[:4] for line in lines] == [["epoch", f"{n}/2", "step", f"{3 * n}/6"] for n in (1, 2)]
    rows = read_history(tmp_path / "run")
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 5]
    assert [row["step"] for row in rows if "train/images_per_second" in row] == [2, 5]


def test_same_seed_same_losses(images: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        run(tiny_recipe(images, tmp_path / name, **EVERYTHING, run={"seed": seed}))
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert losses(tmp_path / "first") != losses(tmp_path / "third")


def test_accumulated_batches_equal_one_large_batch(images: Path, tmp_path: Path) -> None:
    sizes = {"large": (8, 1), "accumulated": (4, 2), "small": (4, 1)}
    results = {}
    for name, (batch_size, accumulate) in sizes.items():
        fields = {"data": {"batch_size": batch_size}, "run": {"accumulate": accumulate}, "optim": {"lr": 3e-3}}
        results[name] = run(tiny_recipe(images, tmp_path / name, **fields))
    assert [result.steps for result in results.values()] == [6, 6, 12]
    # a step's logged loss is that of all its images; the first one stands before any update
    assert losses(tmp_path / "accumulated")[0] == pytest.approx(losses(tmp_path / "large")[0], rel=1e-5)
    loss = {name: result.metrics["val/loss"] for name, result in results.items()}
    assert loss["accumulated"] == pytest.approx(loss["large"], rel=1e-3)
    assert loss["small"] != pytest.approx(loss["large"], rel=1e-3)


def test_averaged_weights_are_what_is_exported(images: Path, tmp_path: Path) -> None:
    run(tiny_recipe(images, tmp_path / "plain"))
    run(tiny_recipe(images, tmp_path / "averaged", run={"ema_decay": 0.9}))
    assert losses(tmp_path / "plain") == losses(tmp_path / "averaged")
    plain, averaged = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "averaged"))
    checkpoint = torch.load(max((tmp_path / "averaged" / "checkpoints").glob("*.ckpt")), weights_only=True)
    for name, value in plain.items():
        assert torch.equal(checkpoint["current_model_state"][f"model.{name}"], value)
        assert torch.equal(checkpoint["state_dict"][f"model.{name}"], averaged[name])
    assert any(not torch.equal(value, averaged[name]) for name, value in plain.items())


def test_the_best_model_is_the_validated_one(images: Path, tmp_path: Path) -> None:
    """After one epoch the best weights are the last ones: averaged, as validation saw them."""
    run(tiny_recipe(images, tmp_path / "run", run={"ema_decay": 0.9}, schedule={"epochs": 1}))
    best, last = (tmp_path / "run" / name / "model.safetensors" for name in ("best", "model"))
    assert best.read_bytes() == last.read_bytes()


def test_recomputing_blocks_changes_nothing(images: Path, tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("recomputed", True)):
        run(tiny_recipe(images, tmp_path / name, **EVERYTHING, run={"grad_checkpointing": recompute}))
    assert losses(tmp_path / "recomputed") == pytest.approx(losses(tmp_path / "kept"), rel=1e-5)


@pytest.mark.parametrize("warmup", [False, True])
def test_average_follows_the_formula(warmup: bool) -> None:
    average: Any = AveragedWeights(0.9, warmup=warmup)._kwargs["multi_avg_fn"]
    value = torch.zeros(3)
    for count in (1, 5, 1000):
        rate = min(0.9, (1 + count) / (10 + count)) if warmup else 0.9
        expected = value * rate + (1 - rate)
        average([value], [torch.ones(3)], torch.tensor(count))
        torch.testing.assert_close(value, expected)


def test_bfloat16(images: Path, tmp_path: Path) -> None:
    for precision in ("32", "bf16"):
        run(tiny_recipe(images, tmp_path / precision, run={"precision": precision}))
    single, half = losses(tmp_path / "32"), losses(tmp_path / "bf16")
    assert single != half
    assert half == pytest.approx(single, rel=0.05)
    assert {v.dtype for v in load_file(tmp_path / "bf16" / "model" / "model.safetensors").values()} == {torch.float32}


def test_float16_needs_a_gpu(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run.precision is '16' \(float16\), which needs a GPU; on a CPU use .* bf16"):
        run(tiny_recipe(images, tmp_path / "run", run={"precision": "16"}))


@pytest.fixture
def _float16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what Lightning runs on GPUs, autocast to float16 and loss scaling, on the CPU."""

    def trainer(precision: str, **options: Any) -> pl.Trainer:
        assert precision == "16-mixed"
        return trainer_type(plugins=[MixedPrecision("16-mixed", "cpu")], **options)

    trainer_type = pl.Trainer
    monkeypatch.setattr("piip.training.trainer.pl.Trainer", trainer)
    monkeypatch.setattr("piip.training.train.check_precision", lambda *_: None)


@pytest.mark.usefixtures("_float16_on_cpu")
def test_float16_skips_steps_of_infinite_gradients(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def faulty(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits, *arguments, **options)
        return loss + (logits.sum() * 0).sqrt() if next(calls) == 5 else loss  # a gradient of NaN, a finite loss

    monkeypatch.setattr(classification, "F", types.SimpleNamespace(cross_entropy=faulty))
    result = run(tiny_recipe(images, tmp_path / "run", run={"precision": "16"}))
    weights = load_file(result.model_dir / "model.safetensors").values()
    assert all(value.isfinite().all() for value in weights)
    assert {value.dtype for value in weights} == {torch.float32}
    state = torch.load(next((tmp_path / "run").rglob("*.ckpt")), weights_only=True)
    assert state["MixedPrecision"]["scale"] < 2**16  # halved at least once


@pytest.mark.usefixtures("_float16_on_cpu")
def test_float16_stops_when_every_step_is_skipped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, *arguments, **options) + (logits.sum() * 0).sqrt()

    monkeypatch.setattr(classification, "F", types.SimpleNamespace(cross_entropy=faulty))
    monkeypatch.setattr("piip.training.tasks.base.MAX_SKIPPED", 3)
    with pytest.raises(NonFiniteLoss, match="gradient norm is nan at step 3"):
        run(tiny_recipe(images, tmp_path / "run", run={"precision": "16"}))


@pytest.mark.parametrize(
    ("name", "has_units", "advised"), [("bf16", False, True), ("bf16", True, False), ("16", False, False)]
)
def test_emulated_bfloat16_is_said(name: str, has_units: bool, advised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_units or including_emulation)
    advice = check_precision("cuda", name)
    assert (advice is not None) == advised
    assert advice is None or "Tesla T4 has no bfloat16 units" in advice


def test_max_steps_end_in_mid_epoch(images: Path, tmp_path: Path) -> None:
    result = run(tiny_recipe(images, tmp_path / "run", schedule={"max_steps": 8}))
    assert result.steps == 8
    assert "val/top1" in result.metrics


def test_refusals_come_before_the_first_step(images: Path, tmp_path: Path) -> None:
    def refused(match: str, **changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=match):
            run(tiny_recipe(images, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()

    refused("does not exist", data={"root": str(tmp_path / "nothing")})
    refused("head 'pooled' has 4 classes, the training data 3", model={"head": {"kind": "pooled", "num_classes": 4}})
    refused("at least one batch of 64", data={"batch_size": 64})
    refused(r"warmup_epochs is 3.0 or 18 steps.*the 8 steps", schedule={"max_steps": 8, "warmup_epochs": 3})


def complaint(recipe: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line of a command that fails with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--device", "cpu", "--progress", "none"])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("piip: error: ")
    return line


def test_broken_images_of_both_splits_are_named_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "data")
    for name in ("train/red/3.png", "val/blue/0.png"):
        (data / name).write_bytes(b"no image")
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values(data, tmp_path / "run"))
    line = complaint(recipe, capsys)
    assert "2 problems in 36 images" in line
    assert "train/red/3.png cannot be opened (UnidentifiedImageError)" in line
    assert "val/blue/0.png cannot be opened (UnidentifiedImageError). Replace it" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "data")
    (data / "train" / "red" / "3.png").unlink()
    Image.effect_noise((40, 36), 50).save(data / "train" / "red" / "3.jpg")
    content = (data / "train" / "red" / "3.jpg").read_bytes()
    (data / "train" / "red" / "3.jpg").write_bytes(content[:-300])  # the header is whole
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values(data, tmp_path / "run", data={"workers": workers}))
    assert "red/3.jpg cannot be read" in complaint(recipe, capsys)


@pytest.mark.parametrize(
    ("device", "devices", "message"),
    [
        ("cpu", 0, "devices is 0, expected at least 1"),
        ("cuda:1", 2, r"device is 'cuda:1', one GPU, but devices is 2"),
        ("cuda", 3, "devices is 3, but PyTorch sees 2 GPUs"),
    ],
)
def test_devices_are_checked_first(
    device: str, devices: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(tmp_path, tmp_path / "run"), device=device, devices=devices)


# Writes down which training images a process reads, then goes on as `piip`.
READER = """
import os, sys
from pathlib import Path
from piip.cli import main
from piip.data.image_folder import ImageFolder
read, out = ImageFolder._read, Path(sys.argv[1])
def note(self, index):
    if self.root.name == "train":
        with (out / os.environ.get("LOCAL_RANK", "0")).open("a") as file:
            file.write(f"{self.epoch} {index}\\n")
    return read(self, index)
ImageFolder._read = note
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_two_processes_share_the_images(images: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values(images, tmp_path / "run"))
    (tmp_path / "reader.py").write_text(READER)
    (tmp_path / "read").mkdir()
    command = [sys.executable, str(tmp_path / "reader.py"), str(tmp_path / "read"), "train", str(recipe)]
    printed = succeed(*command, "--device", "cpu", "--devices", "2", "--json")
    assert json.loads(printed)["steps"] == 6  # 24 images, two processes of 4 each, two epochs; printed once
    first, second = ((tmp_path / "read" / rank).read_text().split("\n")[:-1] for rank in ("0", "1"))
    assert len(first) == len(second) == 24
    assert {*first, *second} == {f"{epoch} {index}" for epoch in range(2) for index in range(24)}


def test_other_classes_in_validation_are_refused(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    (data / "val" / "red").rename(data / "val" / "purple")
    with pytest.raises(ValueError, match="missing red, unexpected purple"):
        run(tiny_recipe(data, tmp_path / "run"))
