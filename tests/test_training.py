"""Training: exact resume after a kill, averaging, accumulation, precision, and refusals before the first step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import branch, recipe_values, tiny_recipe, write_images, write_recipe

from piip.callbacks import AveragedWeights, StepCheckpoint
from piip.cli import main
from piip.data.image_folder import ImageFolder
from piip.data.loader import ResumableLoader
from piip.data.sampler import EpochSampler
from piip.preparation import open_images
from piip.recipe import Recipe, load_recipe, save_recipe
from piip.run_folder import read_history
from piip.tasks import classification
from piip.tasks.classification import NonFiniteLoss
from piip.training import TrainingResult, train

# pytorch-lightning 2.6.6 still asks PyTorch's trees the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")

# Everything that draws random numbers, or holds state between steps.
EVERYTHING: dict[str, dict[str, Any]] = {
    "model": {"branches": [branch(24, 32, drop_path_rate=0.2), branch(32, 16)]},
    "data": {"transform": {"auto_augment": "rand-m9-mstd0.5-inc1", "reprob": 0.3}},
    "regularize": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "optim": {"layer_decay": 0.8, "clip": 1.0},
    "schedule": {"epochs": 3, "warmup_epochs": 0.5},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def run(recipe: Recipe, resume: str | None = None) -> TrainingResult:
    return train(recipe, resume=resume, device="cpu", progress="none")


def losses(folder: str | Path) -> list[float]:
    return [row["train/loss"] for row in read_history(folder) if "train/loss" in row]


def without_rates(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Drop measured throughput, which no two runs share."""
    kept = [{name: value for name, value in row.items() if "images_per_second" not in name} for row in rows]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def newest_step(folder: Path) -> int:
    return max((int(path.stem[4:]) for path in folder.glob("checkpoints/step*.ckpt")), default=0)


def start(recipe: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "piip", "train", str(recipe), "--out", str(out), "--device", "cpu", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """kill -9 in mid-epoch; from the checkpoint on, every logged number is that of a run left alone."""
    data = write_images(tmp_path / "data", train=56)  # 42 batches, 21 optimiser steps an epoch
    run_fields = {"accumulate": 2, "ema_decay": 0.99, "checkpoint_every": 3}
    values = recipe_values(data, tmp_path, **EVERYTHING, run=run_fields)
    values["data"]["workers"] = 1
    recipe = write_recipe(tmp_path / "recipe.yaml", values)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    process = start(recipe, killed)
    deadline = time.monotonic() + 200
    while newest_step(killed) < 24 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    stopped_at = newest_step(killed)
    assert 21 < stopped_at < 63
    assert stopped_at % 21, "the kill should fall into an epoch"

    finish(start(recipe, whole))
    finish(start(recipe, killed, "--resume", "auto"))
    resumed = [row for row in read_history(killed) if row["step"] >= stopped_at]
    assert {row["step"] for row in resumed} >= set(range(stopped_at, 63))
    rows = without_rates(read_history(killed))
    want = without_rates(read_history(whole))
    assert [row for row in rows if row["step"] >= stopped_at] == [row for row in want if row["step"] >= stopped_at]
    # Lightning logs a step after its checkpoint is written: a kill in between loses that one row, nothing else
    assert all(row in want for row in rows)
    assert len(want) - len(rows) <= 1
    weights = [folder / "model" / "model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(images: Path, tmp_path: Path, sent: signal.Signals) -> None:
    values = recipe_values(images, tmp_path, schedule={"epochs": 1000}, run={"checkpoint_every": 2})
    process = start(write_recipe(tmp_path / "recipe.yaml", values), tmp_path / "run", "--progress", "none")
    deadline = time.monotonic() + 200
    while not newest_step(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == [
        "piip: error: Interrupted. The same command with --resume auto goes on from the last checkpoint."
    ]


@pytest.mark.parametrize("stop", [3, 6, 9], ids=["mid-epoch", "epoch end", "second epoch"])
def test_resume_from_every_kind_of_checkpoint(images: Path, tmp_path: Path, stop: int) -> None:
    fields = {"checkpoint_every": 3, "ema_decay": 0.9}
    whole = tiny_recipe(images, tmp_path / "whole", **EVERYTHING, run=fields)
    kept = KeptCheckpoints(tmp_path / "kept")
    with kept:
        run(whole)
    recipe = tiny_recipe(images, tmp_path / "resumed", **EVERYTHING, run=fields)
    run(recipe, resume=str(kept.folder / f"step{stop:08d}.ckpt"))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[stop:]
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


class KeptCheckpoints:
    """Keep a copy of every checkpoint that a run writes; of one written twice (the last step's), the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        import pytorch_lightning as pl

        save = pl.Trainer.save_checkpoint

        def keep(trainer: pl.Trainer, path: Path, weights_only: bool | None = None) -> None:
            save(trainer, path, weights_only)
            self.folder.mkdir(exist_ok=True)
            copy = self.folder / Path(path).name.removesuffix(".part")
            if not copy.exists():
                copy.write_bytes(Path(path).read_bytes())

        self.patch.setattr(pl.Trainer, "save_checkpoint", keep)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


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


def test_max_steps_end_in_mid_epoch(images: Path, tmp_path: Path) -> None:
    result = run(tiny_recipe(images, tmp_path / "run", schedule={"max_steps": 8}))
    assert result.steps == 8
    assert "val/top1" in result.metrics


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_no_step_is_taken_after_the_last(images: Path, tmp_path: Path, ema_decay: float | None) -> None:
    """Killed between the last step and the validation after it."""
    fields: dict[str, Any] = {"schedule": {"max_steps": 8}, "run": {"checkpoint_every": 4, "ema_decay": ema_decay}}
    kept = KeptCheckpoints(tmp_path / "kept")
    with kept:
        first = run(tiny_recipe(images, tmp_path / "run", **fields))
    again = run(tiny_recipe(images, tmp_path / "again", **fields), resume=str(kept.folder / "step00000008.ckpt"))
    assert again.steps == 8
    assert again.metrics == pytest.approx(first.metrics)
    weights = [result.model_dir / "model.safetensors" for result in (first, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_resuming_a_finished_run_changes_nothing(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, tmp_path / "run", run={"ema_decay": 0.9})
    first = run(recipe)
    weights = (first.model_dir / "model.safetensors").read_bytes()
    again = run(recipe, resume="auto")
    assert again.metrics == pytest.approx(first.metrics)
    assert (again.model_dir / "model.safetensors").read_bytes() == weights


def test_a_nan_loss_stops_with_its_step(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, tmp_path / "run", optim={"lr": 1e30}, run={"checkpoint_every": 1})
    problem = r"loss is nan at step [1-5] \(epoch 0, batch [1-5]\).*checkpoints are kept"
    with pytest.raises(NonFiniteLoss, match=problem) as first:
        run(recipe)
    assert newest_step(tmp_path / "run") >= 1
    with pytest.raises(NonFiniteLoss) as second:
        run(recipe, resume="auto")
    assert str(second.value) == str(first.value)


def test_a_nan_gradient_does_not_reach_the_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite; without the fault, the run goes on to the weights of a run that never had it."""
    calls = iter(range(100))

    def faulty(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits, *arguments, **options)
        # the root's slope at 0 is infinite, times 0: NaN; call 0 is that of the sanity check
        return loss + (logits.sum() * 0).sqrt() if next(calls) == 5 else loss

    recipe = tiny_recipe(images, tmp_path / "run", run={"checkpoint_every": 2})
    with monkeypatch.context() as patch:
        patch.setattr(classification, "F", types.SimpleNamespace(cross_entropy=faulty))
        with pytest.raises(NonFiniteLoss, match=r"gradient norm is nan at step 4 \(epoch 0\), the loss was finite"):
            run(recipe)
    assert names(tmp_path / "run") == ["recipe.yaml", "step00000002.ckpt", "step00000004.ckpt"]
    run(recipe, resume="auto")
    run(tiny_recipe(images, tmp_path / "whole"))
    resumed, whole = (tmp_path / name / "model" / "model.safetensors" for name in ("run", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_only_checkpoints_of_the_run_are_deleted(images: Path, tmp_path: Path) -> None:
    first, second = (tiny_recipe(images, tmp_path / name, run={"seed": 0}) for name in ("first", "second"))
    run(first)
    assert names(tmp_path / "first") == ["recipe.yaml", "step00000006.ckpt", "step00000012.ckpt"]
    checkpoints = tmp_path / "first" / "checkpoints"
    kept = checkpoints / "step00000003.ckpt"  # somebody's copy
    kept.write_bytes((checkpoints / "step00000006.ckpt").read_bytes())
    (checkpoints / "step00000012.ckpt").unlink()
    run(first, resume="auto")
    assert names(tmp_path / "first") == ["recipe.yaml", kept.name, "step00000006.ckpt", "step00000012.ckpt"]
    run(second)
    with pytest.raises(ValueError, match=r"second holds a run .*step00000012.ckpt.* is not one of its checkpoints"):
        run(second, resume=str(checkpoints / "step00000006.ckpt"))
    assert names(tmp_path / "second") == ["recipe.yaml", "step00000006.ckpt", "step00000012.ckpt"]
    run(tiny_recipe(images, tmp_path / "third"), resume=str(checkpoints / "step00000006.ckpt"))
    assert names(tmp_path / "third") == ["recipe.yaml", "step00000012.ckpt"]
    assert len(names(tmp_path / "first")) == 4


@pytest.mark.parametrize("damage", [lambda content: content[:-1000], lambda content: bytes(len(content))])
def test_damaged_checkpoints_are_named(images: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    recipe = tiny_recipe(images, tmp_path / "run")
    weights = run(recipe).model_dir / "model.safetensors"
    content = weights.read_bytes()
    newest = tmp_path / "run" / "checkpoints" / "step00000012.ckpt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(ValueError, match=r"step00000012\.ckpt is damaged .*Delete it and use --resume auto"):
        run(recipe, resume="auto")
    newest.unlink()
    run(recipe, resume="auto")
    assert weights.read_bytes() == content


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
    assert "2 of 36 images do not open" in line
    assert "train/red/3.png (UnidentifiedImageError)" in line
    assert "val/blue/0.png (UnidentifiedImageError). Replace it" in line
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


def test_a_run_stopped_by_an_image_goes_on_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file spoilt while the run goes: no check before the first step can find it."""
    data = write_images(tmp_path / "data")
    recipe = tiny_recipe(data, tmp_path / "run", run={"checkpoint_every": 1})
    order = list(EpochSampler(24, seed=0, epoch=1))
    path = open_images(recipe)[0].samples[order[9]][0]
    whole = path.read_bytes()

    def spoil(*_: object) -> None:
        path.write_bytes(whole[: len(whole) // 2])

    monkeypatch.setattr(StepCheckpoint, "on_train_epoch_end", spoil)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read.*--data\.on_error skip"):
        run(recipe)
    monkeypatch.undo()
    stopped_at = newest_step(tmp_path / "run")
    assert 6 < stopped_at < 12
    skipping = tiny_recipe(data, tmp_path / "run", run={"checkpoint_every": 1}, data={"on_error": "skip"})
    with caplog.at_level("WARNING"):
        assert run(skipping, resume="auto").steps == 12
    assert f"{path.name} cannot be read" in caplog.text


@pytest.mark.parametrize("stop", [3, 6], ids=["mid-epoch", "epoch end"])
def test_other_images_are_not_the_same_run(tmp_path: Path, stop: int) -> None:
    data = write_images(tmp_path / "data")
    kept = KeptCheckpoints(tmp_path / "kept")
    with kept:
        run(tiny_recipe(data, tmp_path / "run", run={"checkpoint_every": 3}))
    checkpoint = str(kept.folder / f"step{stop:08d}.ckpt")
    data.rename(tmp_path / "moved")  # the place is free
    run(tiny_recipe(tmp_path / "moved", tmp_path / "resumed"), resume=checkpoint)
    folder = tmp_path / "moved" / "train" / "red"
    (folder / "0.png").rename(folder / "other.png")
    with pytest.raises(ValueError, match=r"fingerprint \w{16} -> \w{16}.*needs the same files"):
        run(tiny_recipe(tmp_path / "moved", tmp_path / "renamed"), resume=checkpoint)
    (folder / "other.png").unlink()
    with pytest.raises(ValueError, match="images 24 -> 23"):
        run(tiny_recipe(tmp_path / "moved", tmp_path / "removed"), resume=checkpoint)


def test_a_loader_knows_its_processes(images: Path) -> None:
    folder = ImageFolder(images / "train")
    one, two = (
        ResumableLoader(folder, EpochSampler(24, seed=0, num_replicas=n), batch_size=4, workers=0) for n in (1, 2)
    )
    with pytest.raises(ValueError, match=r"replicas 1 -> 2 \(.*as many processes"):
        two.check_facts(one.facts())


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
    done = subprocess.run(
        [*command, "--device", "cpu", "--devices", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 6  # 24 images, two processes of 4 each, two epochs; printed once
    first, second = ((tmp_path / "read" / rank).read_text().split("\n")[:-1] for rank in ("0", "1"))
    assert len(first) == len(second) == 24
    assert {*first, *second} == {f"{epoch} {index}" for epoch in range(2) for index in range(24)}


def test_other_classes_in_validation_are_refused(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    (data / "val" / "red").rename(data / "val" / "purple")
    with pytest.raises(ValueError, match="missing red, unexpected purple"):
        run(tiny_recipe(data, tmp_path / "run"))


def test_runs_are_not_mixed(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, tmp_path / "run")
    run(recipe)
    with pytest.raises(ValueError, match=r"holds a run .*--resume auto"):
        run(recipe)
    save_recipe(recipe, tmp_path / "run" / "checkpoints" / "recipe.yaml")  # as it was before being resolved
    run(recipe, resume="auto")
    smaller = tiny_recipe(images, tmp_path / "run", model={"branches": [branch(16, 32), branch(32, 16)]})
    with pytest.raises(ValueError, match=r"differs from this recipe: model\.branches\.0\.image_size 24 -> 16\. An"):
        run(smaller, resume="auto")
    changed = tiny_recipe(images, tmp_path / "run", optim={"lr": 5e-3}, data={"workers": 1})
    with pytest.raises(ValueError, match=r"optim\.lr 0\.001 -> 0\.005\. An exact resume"):
        run(changed, resume="auto")
    with pytest.raises(ValueError, match="no checkpoint"):
        run(recipe, resume=str(tmp_path / "nothing.ckpt"))
