"""benchmarks/gpu.py: all of it runs, on the CPU here; what is wrong fails, and the rest goes on."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from processes import environment, outcome, start
from pyramids import tiny_pyramid
from shapes import dense_recipe, write_coco

import piip
from piip.ops import PROVIDERS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def program() -> Iterator[Any]:
    """The modules of the program, which import each other as programs do."""
    before = {*sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        gpu, checks = __import__("gpu"), __import__("common.gpu_checks", fromlist=["*"])
    finally:
        sys.path.remove(str(FOLDER))
    yield SimpleNamespace(gpu=gpu, checks=checks)
    for name in {*sys.modules} - before:
        if name.split(".")[0] in ("common", "gpu"):
            del sys.modules[name]


def plan(program: Any, tmp_path: Path, minutes: float = 1.0) -> Any:
    arguments = argparse.Namespace(shapes=["odd"], heads=["classifier"], out=tmp_path)
    return program.gpu.Plan(arguments, time.monotonic() + 60 * minutes, "cpu")


def test_a_wrong_provider_fails(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PROVIDERS["gather"]
    monkeypatch.setitem(PROVIDERS, "gather", lambda *given: 1.1 * right(*given))
    section = program.gpu.run_section("providers", plan(program, tmp_path))
    assert {row["check"] for row in section["failed"]} == {"provider gather, odd"}
    assert {row["check"] for row in section["rows"]} == {f"provider {name}, odd" for name in PROVIDERS}


def test_values_that_are_not_finite_fail_and_are_json(program: Any) -> None:
    made = program.checks.row("x", "f32", program.checks.relative(torch.tensor([float("nan")]), torch.ones(1)))
    assert made["ok"] is False
    json.dumps(made, allow_nan=False)


def test_what_raises_is_recorded(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(program.gpu.SECTIONS, "heads", broken)
    assert program.gpu.run_section("heads", plan(program, tmp_path))["error"] == "RuntimeError: no kernel image"
    assert program.gpu.run_section("heads", plan(program, tmp_path, 0))["left_out"] == "no time left"


def test_bench_keeps_what_was_measured(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = plan(program, tmp_path)
    given.arguments.models, given.arguments.repeats, given.arguments.forms = ["a"], 1, program.gpu.FORMS
    shares = []

    def stopped(given: Any, *words: str, share: float) -> float:
        shares.append(share)
        out = Path(words[-1])
        out.mkdir()
        rows = [{"name": "a", "seconds": 1.0}, {"name": "b", "seconds": None}]
        (out / "bench.json").write_text(json.dumps({"models": rows}))
        raise program.gpu.subprocess.TimeoutExpired("piip", 1)

    monkeypatch.setattr(program.gpu, "_command", stopped)
    rows = program.gpu.bench(given)
    assert [row["check"] for row in rows] == ["bench eager", "bench optimized", "bench compiled"]
    assert all(row["complete"] is False and [each["name"] for each in row["models"]] == ["a"] for row in rows)
    assert shares == pytest.approx([0.2, 0.3, 0.6])


@pytest.mark.slow
def test_everything_runs_on_the_cpu(tmp_path: Path) -> None:
    model = piip.build_backbone(tiny_pyramid())
    model.save_pretrained(tmp_path / "model")
    for split in ("train", "val"):
        write_coco(tmp_path / "data", split, 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dense_recipe(tmp_path / "data", tmp_path / "run", "coco")))
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--shapes", "small", "--repeats", "1"]
    command += ["--models", str(tmp_path / "model"), "--trained", str(tmp_path / "model"), "--minutes", "20"]
    command += ["--forms", "eager", "optimized"]  # compiling takes minutes on a CPU
    command += ["--recipe", str(recipe), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    done = outcome(start(*command, cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT))), timeout=900)
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [section["name"] for section in found["sections"]] == (
        ["providers", "heads", "training_steps", "training", "bench", "epoch"]
    )
    assert not [section for section in found["sections"] if "error" in section or section["failed"]], done.stderr
    assert done.returncode == 0
    assert found["complete"] is True
    bench = next(section for section in found["sections"] if section["name"] == "bench")["rows"]
    assert [len(row["models"]) for row in bench] == [1, 1]
    assert len(next(section for section in found["sections"] if section["name"] == "training")["rows"]) == 2
