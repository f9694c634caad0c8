"""The folder of a run: locked, checked before data are read, and intact when the disk is full."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_recipe, write_model
from training_run import names, newest_step, run

from piip.serialization import weights
from piip.serialization.load import load_model
from piip.training.callbacks import StepSeed
from piip.training.run_folder import locked

pytestmark = pytest.mark.usefixtures("one_thread")


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_second_run_is_refused_while_the_first_lives(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, tmp_path / "run", schedule={"epochs": 1})
    with locked(tmp_path / "run"), pytest.raises(ValueError, match=r"Another process trains in .*run at the moment"):
        run(recipe)
    assert run(recipe).steps == 6


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom piip.training.run_folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="Another process"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with locked(tmp_path):
        pass


def test_an_unwritable_folder_is_noticed_before_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"The run folder .*file/run cannot be written \(Not a directory\)"):
        run(tiny_recipe(tmp_path / "no data", tmp_path / "file" / "run"))


def test_a_full_disk_leaves_earlier_checkpoints(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_lightning as pl

    save = pl.Trainer.save_checkpoint

    def save_until_full(trainer: pl.Trainer, path: Path, weights_only: bool | None = None) -> None:
        save(trainer, path, weights_only)
        if trainer.global_step == 6:
            full()

    recipe = tiny_recipe(images, tmp_path / "run", run={"checkpoint_every": 3})
    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "save_checkpoint", save_until_full)
        with pytest.raises(ValueError, match=r"step00000006\.ckpt could not be written \(No space left") as caught:
            run(recipe)
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "run") == ["recipe.yaml", "step00000003.ckpt"]
    run(recipe, resume="auto")
    assert newest_step(tmp_path / "run") == 12


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_step_that_a_signal_interrupts_is_saved(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    seed = StepSeed.on_train_batch_start

    def interrupt(self: StepSeed, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seed(self, trainer, pl_module, batch, batch_idx)
        if trainer.global_step == 3:
            os.kill(os.getpid(), sent)

    recipe = tiny_recipe(images, tmp_path / "run")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(StepSeed, "on_train_batch_start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(recipe)
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path / "run") == ["recipe.yaml", "step00000004.ckpt"]
    resumed = run(recipe, resume="auto").model_dir / "model.safetensors"
    whole = run(tiny_recipe(images, tmp_path / "whole")).model_dir / "model.safetensors"
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_full_disk_leaves_an_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_model(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    model = load_model(directory)

    def write_half(path: Path, *_: Any) -> Any:
        path.write_bytes(b"half")
        full()

    monkeypatch.setattr(weights, "_write_file", write_half)
    with pytest.raises(ValueError, match=r"could not be written to .*model \(No space left on device\)"):
        model.save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
