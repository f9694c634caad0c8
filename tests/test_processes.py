"""Prediction and evaluation in several processes give what one process gives."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run, succeed
from tiny_run import write_images, write_model

import piip
from piip.demo import ASSETS
from piip.inference.processes import ALONE, Processes, joined

PACKAGE = Path(piip.__file__).parent
COUNT = 2
pytestmark = pytest.mark.usefixtures("one_thread")


def command(count: int, *arguments: object) -> list[str]:
    """Return a command of piip for one process, or for several started by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    return [sys.executable, *launcher, "-m", "piip", *map(str, arguments)]


def without_paths(value: Any, folder: Path) -> Any:
    return json.loads(json.dumps(value).replace(str(folder), "OUT"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shipped images, one of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    for index, path in enumerate(sorted((PACKAGE / "assets" / "nuclei" / "images").glob("*"))[:4]):
        shutil.copy(path, folder / f"{2 * index}{path.suffix}")
    (folder / "1.png").write_bytes(b"damaged")
    return folder


def test_detections_of_two_processes_are_those_of_one(images: Path, tmp_path: Path) -> None:
    model, results, printed = PACKAGE / "assets" / "nuclei" / "model", [], []
    for count in (1, COUNT):
        out = tmp_path / str(count)
        done = run(*command(count, "predict", model, images, "--out", out, "--device", "cpu"), cwd=tmp_path)
        assert "1 of 5 images could not be read" in done.stderr
        assert done.returncode == 1
        printed.append(done.stdout)
        results.append(without_paths(json.loads((out / "predictions.json").read_text()), out))
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == 4
    assert results[0] == results[1]
    assert len(results[0]["annotations"]) > 10


@pytest.mark.slow
def test_classes_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    files = sorted((ASSETS / "images").glob("water*"))[:7]
    options = (ASSETS / "model", *files, "--batch-size", 2, "--device", "cpu", "--json")
    one, two = (succeed(*command(count, "predict", *options), cwd=tmp_path) for count in (1, COUNT))
    assert one == two
    assert one.count("\n") == 7


@pytest.mark.slow
def test_an_error_in_another_process_ends_all(images: Path, tmp_path: Path) -> None:
    model = PACKAGE / "assets" / "nuclei" / "model"
    done = run(*command(COUNT, "predict", model, images, "--on-error", "stop", "--device", "cpu"), cwd=tmp_path)
    assert done.returncode != 0
    assert "1.png" in done.stderr
    assert "Replace or remove it, or use --on-error skip" in done.stderr


@pytest.mark.slow
def test_ray_and_torchrun_exclude_each_other(images: Path, tmp_path: Path) -> None:
    model = PACKAGE / "assets" / "nuclei" / "model"
    done = run(*command(COUNT, "predict", model, images, "--ray", "local", "--device", "cpu"), cwd=tmp_path)
    assert done.returncode != 0
    assert "piip: error: --ray and torchrun both share the images, expected one of them." in done.stderr
    assert done.stdout == ""


def reports(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    """Evaluate in one process and in several."""
    options = ("evaluate", *arguments, "--workers", 0, "--device", "cpu", "--json")
    return [json.loads(succeed(*command(count, *options), cwd=folder)) for count in (1, COUNT)]


@pytest.mark.slow
def test_average_precision_of_two_processes_is_that_of_one(images: Path, tmp_path: Path) -> None:
    model = PACKAGE / "assets" / "nuclei" / "model"
    whole = [path for path in images.iterdir() if path.name != "1.png"]
    succeed(*command(1, "predict", model, *whole, "--out", tmp_path, "--device", "cpu"))  # the truth of this test
    split = ("--data", tmp_path, "--split", "predictions.json", "--images", images)
    one, two = reports(tmp_path, model, *split, "--out", tmp_path / "report")
    assert one == two
    assert one["images"] == 4
    assert one["mask_ap"] > 0.9


def test_accuracy_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    data, model = write_images(tmp_path / "images", train=1, val=5), write_model(tmp_path / "model")
    one, two = reports(tmp_path, model, "--data", data, "--batch-size", 4)
    assert one == two
    assert one["images"] == 15


def test_own_indices_are_blocks_in_turn() -> None:
    shares = [Processes(rank, 3).own(10, block=2) for rank in range(3)]
    assert shares == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5]]
    assert ALONE.own(3) == [0, 1, 2]


def test_every_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Processes(3, 4, local_rank=1).device(name) for name in ("auto", "cuda", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
    ]
    assert ALONE.device("auto") == "auto"


def test_one_process_joins_nothing() -> None:
    with joined() as processes:
        assert processes is ALONE
