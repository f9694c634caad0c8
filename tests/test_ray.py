"""Prediction by Ray actors gives what one process gives, though one of them is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import environment, free_port, outcome, run, start

import piip
from piip.cli import main
from piip.inference.predictions import ClassPrediction
from piip.inference.predictor import Predictor
from piip.inference.ray_actors import Actor, RayPool

pytest.importorskip("ray")
MODEL = Path(piip.__file__).parent / "assets" / "nuclei" / "model"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve files, the second damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    shipped = sorted((MODEL.parent / "images").glob("nuclei*"))[:3]
    for index in range(12):
        shutil.copy(shipped[index % 3], folder / f"{index:02}.png")
    (folder / "01.png").write_bytes(b"damaged")
    return folder


def actors_of(pid: int) -> list[int]:
    """Return the processes of actors that descend from a process, oldest first."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdecimal() else []
            if status:
                parents[int(entry.name)] = int(status[1])
                names[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue  # it ended

    def descends(child: int) -> bool:
        while child in parents and child != pid:
            child = parents[child]
        return child == pid

    return sorted(child for child, name in names.items() if name.startswith("ray::Map") and descends(child))


def test_no_image_is_lost_or_doubled_when_an_actor_is_killed(images: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "piip", "predict", MODEL, images, "--device", "cpu", "--json")
    quiet = environment(RAY_USAGE_STATS_ENABLED="0")
    shared = start(*command, "--ray", "local", "--ray-actors", "2", "--out", tmp_path / "out", env=quiet)
    assert shared.stdout is not None
    first = shared.stdout.readline()
    victim = actors_of(shared.pid)[0]
    os.kill(victim, signal.SIGKILL)
    done = outcome(shared)
    alone = run(*command)
    lines = [first, *done.stdout.splitlines(keepends=True)]
    assert lines == alone.stdout.splitlines(keepends=True)
    assert len(lines) == 11
    assert "unexpected system error" in done.stderr  # the kill came before the end
    assert done.returncode == alone.returncode == 1
    assert "01.png cannot be read" in done.stderr
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["file_name"] for entry in written["images"]] == [f"{i:02}.png" for i in range(12) if i != 1]


class ShyPredictor:
    """Predicts files until it meets a damaged one."""

    def predict_paths(self, paths: list[str], *, on_error: str) -> Iterator[ClassPrediction]:
        for path in paths:
            if "damaged" in path and on_error == "stop":
                raise ValueError(f"The image {path} cannot be read.")
            yield ClassPrediction(path, "nucleus", 1.0, ())


def test_an_actor_returns_what_it_did_before_an_error() -> None:
    from ray import cloudpickle

    actor = Actor(ShyPredictor, partial(ShyPredictor.predict_paths, on_error="stop"), ".")  # type: ignore[arg-type]
    predictions, warnings, problem = cloudpickle.loads(actor({"paths": ["a.png", "damaged.png", "b.png"]})["results"])
    assert [prediction.path for prediction in predictions] == ["a.png"]
    assert (warnings, problem) == ([], "The image damaged.png cannot be read.")


def test_an_actor_returns_why_it_has_no_model(tmp_path: Path) -> None:
    from ray import cloudpickle

    actor = Actor(partial(Predictor, tmp_path), Predictor.predict_paths, ".")
    predictions, _, problem = cloudpickle.loads(actor({"paths": ["a.png"]})["results"])
    assert predictions == []
    assert "expected a model directory" in problem
    elsewhere = Actor(partial(Predictor, MODEL), Predictor.predict_paths, str(tmp_path / "missing"))
    assert "missing" in cloudpickle.loads(elsewhere({"paths": []})["results"])[2]


def test_an_actor_returns_warnings(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import cloudpickle

    monkeypatch.chdir("/")  # actors of a running cluster start where the cluster was started
    actor = Actor(partial(Predictor, MODEL, device="cpu"), Predictor.predict_paths, str(images))
    predictions, warnings, problem = cloudpickle.loads(actor({"paths": ["01.png"]})["results"])
    assert (predictions, problem) == ([], "")
    assert len(warnings) == 1
    assert "01.png cannot be read" in warnings[0]


def test_an_address_without_a_cluster_is_named(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(MODEL), str(images), "--ray", address])
    assert time.monotonic() - started < 60
    assert f"--ray {address}: nothing answers at this address" in capsys.readouterr().err


def test_actors_need_a_cluster(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(MODEL), str(images), "--ray-actors", "2"])
    assert "expected --ray ADDRESS with it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ray-actors is 0"):
        RayPool("local", 0)


def test_each_actor_gets_its_part_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import data

    from piip.inference.ray_actors import _dataset

    class Recorder:
        context = SimpleNamespace(execution_options=SimpleNamespace())

        def map(self, function: object, **options: object) -> dict[str, object]:
            return options

    monkeypatch.setattr(data, "from_items", lambda items, **options: Recorder())
    files = [Path(f"{index}.png") for index in range(100)]
    cluster = {"CPU": 16.0, "GPU": 4.0}

    def options(pool: RayPool) -> tuple[object, object]:
        made: dict[str, object] = _dataset(files, (), 1, pool, cluster)  # type: ignore[assignment]
        return made["num_gpus"], made["compute"].max_size  # type: ignore[attr-defined]

    assert options(RayPool("auto")) == (1.0, 4)
    assert options(RayPool("auto", 8)) == (0.5, 8)
    assert options(RayPool("auto", 5)) == (0.5, 5)
    assert options(RayPool("auto", 2)) == (1.0, 2)
    assert options(RayPool("auto", use_gpus=False)) == (None, 16)
