"""The programs in benchmarks/: they start, and what their figures are made of does what it says."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from processes import environment, run, succeed
from pyramids import image, randomise, tiny_vit

import piip
from piip.config import InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.cost.total import naming_parts
from piip.ops import native

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PROGRAMS = sorted([*FOLDER.glob("*.py"), *(FOLDER.parent / "tools").glob("*.py")])
WIDTH, PATCH = 32, 16


@pytest.fixture(scope="module")
def benchmarks() -> Any:
    """The modules of the folder, which import each other as programs do."""
    names = ("speed", "training_step", "common.competitors", "common.floors", "common.measuring", "common.progress")
    before = {*sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        modules = [__import__(name, fromlist=["*"]) for name in names]
    finally:
        sys.path.remove(str(FOLDER))
    yield SimpleNamespace(**{name.split(".")[-1]: module for name, module in zip(names, modules, strict=True)})
    for name in {*sys.modules} - before:
        if name.split(".")[0] in ("common", "speed", "training_step"):
            del sys.modules[name]


def pyramid() -> Any:
    """Return a detector's pyramid whose windows do not tile the grids of 4 and 8 patches."""
    fields = {"window_size": (3, 3, 0, 3), "prefix_tokens": False, "final_norm": False}
    parts = (tiny_vit(WIDTH, 2, 64, **fields), tiny_vit(16, 2, 128, **fields))
    config = ModelConfig(parts, InteractionConfig(count=2, num_heads=4), MergeConfig("conv"), NeckConfig("simple"))
    torch.manual_seed(0)
    return randomise(piip.build_backbone(config))


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_say_what_they_do(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    printed = succeed(*command, cwd=tmp_path, env=environment(PYTHONPATH=str(FOLDER.parent)))
    assert printed.startswith(f"usage: {path.name}")
    assert ("the next run starts anew" in " ".join(printed.split())) is (path.stem != "write_models_page")
    assert not any(tmp_path.iterdir())


STOPPED = """
import signal, sampling
measure, asked = sampling.measure, []
def stop(*arguments):
    asked.append(arguments)
    if len(asked) == 3:
        signal.raise_signal(signal.SIGKILL)
    return measure(*arguments)
sampling.measure, sampling.SHAPES = stop, {name: ((2, 2), (2, 2), 1, 4, 1) for name in "abcd"}
sampling.main()
"""


def test_a_killed_program_leaves_the_rows_measured_so_far(tmp_path: Path) -> None:
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent)])
    command = [sys.executable, "-c", STOPPED, "--repeats", "1", "--dtypes", "f32"]
    done = run(*command, cwd=tmp_path, env=environment(PYTHONPATH=path))
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen = json.loads((tmp_path / "out" / "sampling.json").read_text())
    assert [item["shape"] for item in seen["rows"]] == ["a", "b"]
    assert not seen["complete"]
    assert seen["machine"]["torch"] == torch.__version__
    said = [line.split("] ")[1] for line in done.stderr.splitlines() if " of 4: " in line]
    assert [line.split(",")[0] for line in said] == ["1 of 4: a", "2 of 4: b"]
    assert [*(tmp_path / "out").iterdir()] == [tmp_path / "out" / "sampling.json"]


def test_training_steps_are_saved_once_timed(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[bool] = []

    def stop(*_: Any, plain: bool) -> None:
        steps.append(plain)
        if len(steps) == 6:  # the second one that counts
            raise KeyboardInterrupt

    training = benchmarks.training_step
    monkeypatch.setattr(training, "prepare", lambda name, checkpointing: (pyramid(), image(batch=1)))
    monkeypatch.setattr(training, "step", stop)
    monkeypatch.setattr(benchmarks.measuring, "WORTH_A_LINE", -1)
    results = benchmarks.progress.Results(tmp_path / "rows.json", {})
    with pytest.raises(KeyboardInterrupt):
        training.measure(results, ["tsb"], "f32", 3)
    (kept,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (kept["model"], kept["form"], kept["checkpointing"]) == ("tsb", "piip", False)
    assert kept["seconds"]["min"] > 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert "round 1 of 3: tsb, piip, f32 took" in said[-1]


def test_rows_are_replaced_by_key_and_whole_on_disk(benchmarks: Any, tmp_path: Path) -> None:
    results = benchmarks.progress.Results(tmp_path / "new" / "rows.json", {"machine": "this"})
    results.put("a", {"seconds": 1})
    results.put("b", {"seconds": 2})
    results.put("a", {"seconds": 3})
    read = json.loads(results.path.read_text())
    assert read == {"machine": "this", "complete": False, "rows": [{"seconds": 3}, {"seconds": 2}]}
    results.write()
    assert json.loads(results.path.read_text())["complete"]
    assert [*results.path.parent.iterdir()] == [results.path]


def row(model: str, form: str, seconds: float, macs: float, **fields: Any) -> dict[str, Any]:
    facts = {"dtype": "f32", "floor": None, "checkpointing": False}
    return {"model": model, "form": form, "seconds": {"min": seconds}, "macs": macs, **facts, **fields}


def test_ratios_compare_with_the_best_form_of_the_single_network(benchmarks: Any) -> None:
    rows = [
        row("vit_b", "eager", 4.0, 10.0),
        row("vit_b", "optimized", 2.0, 10.0, floor=1.0),
        row("tsb", "optimized", 3.0, 5.0, floor=2.0),
        row("tsb", "eager", 6.0, 5.0, dtype="bf16"),
        row("vit_l", "eager", 8.0, 40.0),
    ]
    benchmarks.speed.add_ratios(rows)
    assert [item["time_ratio"] for item in rows] == [2.0, 1.0, 1.5, None, 4.0]
    assert [item["macs_ratio"] for item in rows] == [1.0, 1.0, 0.5, None, 4.0]
    assert [item["over_floor"] for item in rows] == [None, 2.0, 1.5, None, None]


def test_ratios_of_training_compare_like_with_like(benchmarks: Any) -> None:
    rows = [
        row("vit_b", "piip", 2.0, 10.0),
        row("vit_b", "piip", 3.0, 10.0, checkpointing=True),
        row("tsb", "piip", 3.0, 5.0),
        row("tsb", "as released", 9.0, 5.0, checkpointing=True),
        row("tsb", "piip", 9.0, 5.0, dtype="bf16"),
    ]
    benchmarks.training_step.add_ratios(rows)
    assert [item.get("time_ratio") for item in rows] == [1.0, 1.0, 1.5, 3.0, None]
    assert [item.get("macs_ratio") for item in rows] == [1.0, 1.0, 0.5, 0.5, None]


@pytest.mark.parametrize("dtype", native.SUFFIXES)
def test_floors_have_a_time_for_every_part(benchmarks: Any, dtype: torch.dtype) -> None:
    model = pyramid()
    seconds = benchmarks.floors.floor_seconds(model, (128, 128), dtype)
    assert {*seconds} == {"branch 0", "branch 1", "interactions", "merge", "neck"}
    assert all(0 < value < 10 for value in seconds.values())


def test_what_cannot_run_takes_for_ever(benchmarks: Any) -> None:
    def fail() -> None:
        raise NotImplementedError

    assert benchmarks.floors.shortest(fail) == float("inf")
    assert 0 <= benchmarks.floors.shortest(lambda: None) < 1


def test_callables_run_in_turn_and_the_first_round_does_not_count(benchmarks: Any) -> None:
    calls: list[str] = []
    seconds = benchmarks.measuring.in_turn({name: (lambda n=name: calls.append(n)) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert benchmarks.measuring.summary([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0}


def test_clocks_read_every_part_and_leave_nothing_behind(benchmarks: Any) -> None:
    model = pyramid()
    clock = benchmarks.measuring.PartClock()
    with torch.no_grad(), naming_parts(model.parts(), clock):
        model(image())
    assert {*clock.seconds} == {"branch 0", "branch 1", "interactions", "merge", "neck"}
    assert all("embed" not in branch.__dict__ for branch in model.branches)


def test_clocks_count_the_time_of_inner_parts_once(benchmarks: Any) -> None:
    clock = benchmarks.measuring.PartClock()
    for _ in range(2):
        with clock.part("outer"), clock.part("inner"):
            time.sleep(0.05)
    assert clock.seconds["inner"] >= 0.1
    assert clock.seconds["outer"] < 0.05


def test_parts_of_optimized_models_are_timed_too(benchmarks: Any) -> None:
    model = pyramid()
    ways = benchmarks.speed.forms(model, image(batch=1))
    assert [*ways] == ["optimized", "eager", "as released"]
    with torch.inference_mode():
        want = ways["eager"](image(batch=1))
        for form, run in ways.items():
            for got, level in zip(run(image(batch=1)), want, strict=True):
                assert (got - level).norm() <= 2e-5 * level.norm(), form
        for form in ("optimized", "eager"):
            parts = benchmarks.speed.part_seconds(ways[form], image(batch=1))
            assert {*parts} == {"branch 0", "branch 1", "interactions", "merge", "neck"}


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_the_authors_way_gives_the_same_outputs(benchmarks: Any, size: tuple[int, int]) -> None:
    model = pyramid()
    pictures = image(*size)
    ours = model(pictures)
    with benchmarks.competitors.like_the_authors():
        theirs = model(pictures)
    for got, want in zip(theirs, ours, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    parameters = [*model.branches[0].parameters()]
    gradients = [torch.autograd.grad(out[0].square().mean(), parameters) for out in (ours, theirs)]
    for got, want in zip(*gradients, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm() + 1e-7


def test_a_training_step_leaves_no_gradients(benchmarks: Any) -> None:
    model = pyramid().train()
    for plain in (False, True):
        benchmarks.training_step.step(model, image(batch=1), "bf16", plain=plain)
    assert all(parameter.grad is None for parameter in model.parameters())


def tiny_windowed_vit(benchmarks: Any, monkeypatch: pytest.MonkeyPatch, window: int) -> Any:
    tiny = functools.partial(timm.create_model, embed_dim=WIDTH, depth=4, num_heads=2)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", tiny)
        return benchmarks.competitors.WindowedViT("vit_tiny_patch16_224", 128, window=window).eval()


def test_windowed_vit_is_the_network_of_a_piip_branch(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The competitor shares no code with piip, and computes what piip's branch with such windows does."""
    model = tiny_windowed_vit(benchmarks, monkeypatch, window=4)
    model.is_global = [False, False, True, False]
    part = tiny_vit(WIDTH, 2, 128, window_size=(4, 4, 0, 4), prefix_tokens=False, final_norm=False)
    backbone = piip.build_backbone(ModelConfig((part,), merge=MergeConfig("none"))).eval()
    missing, unexpected = backbone.branches[0].vit.load_state_dict(model.vit.state_dict(), strict=False)
    assert all(key.startswith(("norm", "fc_norm")) for key in (*missing, *unexpected))
    with torch.no_grad():
        maps = model(image())
        want = backbone(image())[0]
    torch.testing.assert_close(maps[2], want, rtol=1e-4, atol=1e-5)
    assert [tuple(level.shape) for level in maps] == [(2, WIDTH, side, side) for side in (32, 16, 8, 4)]


def test_windowed_vit_without_windows_is_global(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_windowed_vit(benchmarks, monkeypatch, window=0)
    assert model.is_global == [True] * 4
    with torch.no_grad():
        want = model.vit.forward_features(image()).transpose(1, 2).unflatten(2, (8, 8))
        torch.testing.assert_close(model(image())[2], want)


def test_equal_pyramid_exchanges_nothing(benchmarks: Any) -> None:
    model = benchmarks.competitors.equal_pyramid("test_vit", (64, 128)).eval()
    with torch.no_grad():
        levels = model(image())
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4]
    assert piip.estimate_cost(model).parts["interactions"].macs == 0


def test_gates_are_opened(benchmarks: Any) -> None:
    config = ModelConfig((tiny_vit(WIDTH, 2, 64), tiny_vit(16, 2, 128)), InteractionConfig(count=2, num_heads=4))
    model = piip.build_backbone(config)
    benchmarks.competitors.open_gates(model)
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("gate")]
    assert len(gates) == 8
    assert all(gate.abs().min() > 0 for gate in gates)
