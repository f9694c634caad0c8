"""Going on after a kill, a fault or damage: bit for bit, from whole checkpoints, with the same recipe and images."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapes
import torch
from processes import finish, outcome, start
from tiny_run import branch, recipe_values, tiny_recipe, write_images, write_recipe
from training_run import EVERYTHING, losses, names, newest_step, run

from piip.data.image_folder import ImageFolder
from piip.data.loader import ResumableLoader
from piip.data.sampler import EpochSampler
from piip.recipe import save_recipe
from piip.training.callbacks import StepCheckpoint
from piip.training.run_folder import read_history
from piip.training.setup import open_images
from piip.training.tasks import classification
from piip.training.tasks.base import NonFiniteLoss

pytestmark = pytest.mark.usefixtures("one_thread")


def start_training(recipe: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    return start(sys.executable, "-m", "piip", "train", recipe, "--out", out, "--device", "cpu", *options)


def without_rates(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Drop measured throughput, which no two runs share."""
    kept = [{name: value for name, value in row.items() if "images_per_second" not in name} for row in rows]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


def kill_and_resume(recipe: Path, folder: Path, *, epoch: int, steps: int) -> None:
    """Kill -9 after the first epoch; from the checkpoint on, every logged number is that of a run left alone.

    Args:
        recipe: The recipe.
        folder: For the runs.
        epoch: Optimiser steps in an epoch.
        steps: Optimiser steps of the run.
    """
    whole, killed = folder / "whole", folder / "killed"
    process = start_training(recipe, killed)
    deadline = time.monotonic() + 200
    while newest_step(killed) < epoch + 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert outcome(process, timeout=60).returncode == -signal.SIGKILL
    stopped_at = newest_step(killed)
    assert epoch < stopped_at < steps
    assert stopped_at % epoch, "the kill should fall into an epoch"

    finish(start_training(recipe, whole))
    finish(start_training(recipe, killed, "--resume", "auto"))
    resumed = [row for row in read_history(killed) if row["step"] >= stopped_at]
    assert {row["step"] for row in resumed} >= set(range(stopped_at, steps))
    rows = without_rates(read_history(killed))
    want = without_rates(read_history(whole))
    assert [row for row in rows if row["step"] >= stopped_at] == [row for row in want if row["step"] >= stopped_at]
    # Lightning logs a step after its checkpoint is written: a kill in between loses that one row, nothing else
    assert all(row in want for row in rows)
    assert len(want) - len(rows) <= 1
    weights = [run_folder / "model" / "model.safetensors" for run_folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=56)  # 42 batches, 21 optimiser steps an epoch
    run_fields = {"accumulate": 2, "ema_decay": 0.99, "checkpoint_every": 3}
    values = recipe_values(data, tmp_path, **EVERYTHING, run=run_fields)
    values["data"]["workers"] = 1
    kill_and_resume(write_recipe(tmp_path / "recipe.yaml", values), tmp_path, epoch=21, steps=63)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "semantic_masks"])
def test_a_killed_dense_run_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    for split, count in (("train", 24), ("val", 2)):
        write = shapes.write_coco if kind == "coco" else shapes.write_semantic_masks
        write(tmp_path, split, count, seed=count)
    values = shapes.dense_recipe(tmp_path, tmp_path, kind)
    values["data"] |= {"workers": 1, "group_by_aspect": True}
    values["data"]["dense"] |= {"scale_jitter": [0.7, 1.5], "photometric": True}
    values["schedule"]["epochs"] = 3
    values["run"] |= {"ema_decay": 0.9}
    kill_and_resume(write_recipe(tmp_path / "recipe.yaml", values), tmp_path, epoch=12, steps=36)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(images: Path, tmp_path: Path, sent: signal.Signals) -> None:
    values = recipe_values(images, tmp_path, schedule={"epochs": 1000}, run={"checkpoint_every": 2})
    process = start_training(write_recipe(tmp_path / "recipe.yaml", values), tmp_path / "run", "--progress", "none")
    deadline = time.monotonic() + 200
    while not newest_step(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sent)
    done = outcome(process, timeout=60)
    assert done.returncode == 130
    told = ["piip: error: Interrupted. Resume from the last checkpoint with --resume auto."]
    if sent == signal.SIGINT:
        told.insert(0, "Interrupted: finishing and saving this step. Press Ctrl-C again to stop at once.")
    assert done.stderr.splitlines() == told


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
    problem = r"loss is nan at step [1-5] \(epoch 0, batch [1-5]\).*checkpoints are available"
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
    with pytest.raises(ValueError, match=r"second contains a run .*step00000012.ckpt.* is not one of its checkpoints"):
        run(second, resume=str(checkpoints / "step00000006.ckpt"))
    assert names(tmp_path / "second") == ["recipe.yaml", "step00000006.ckpt", "step00000012.ckpt"]
    run(tiny_recipe(images, tmp_path / "third"), resume=str(checkpoints / "step00000006.ckpt"))
    assert names(tmp_path / "third") == ["recipe.yaml", "step00000012.ckpt"]
    assert len(names(tmp_path / "first")) == 4


def flipped(content: bytes) -> bytes:
    """Change one byte among the weights."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-1000], lambda content: bytes(len(content))])
def test_damaged_checkpoints_are_named(images: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    recipe = tiny_recipe(images, tmp_path / "run")
    weights = run(recipe).model_dir / "model.safetensors"
    content = weights.read_bytes()
    newest = tmp_path / "run" / "checkpoints" / "step00000012.ckpt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(ValueError, match=r"step00000012\.ckpt is damaged .*Delete it and use --resume auto"):
        run(recipe, resume="auto")
    newest.rename(newest.with_name("step00000007.ckpt.part"))  # what a kill leaves
    run(recipe, resume="auto")
    assert weights.read_bytes() == content
    assert names(tmp_path / "run") == ["recipe.yaml", "step00000006.ckpt", "step00000012.ckpt"]


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
    assert f"{path.name} cannot be opened" in caplog.text


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
    with pytest.raises(ValueError, match=r"replicas 1 -> 2 \(.*number of processes"):
        two.check_facts(one.facts())


def test_runs_are_not_mixed(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, tmp_path / "run")
    run(recipe)
    with pytest.raises(ValueError, match=r"contains a run .*--resume auto"):
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
