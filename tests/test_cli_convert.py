"""`piip convert` as its users meet it."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import environment, run
from published import MODEL, loaded_state, register, same

from piip.checkpoints import build_released, official_shapes
from piip.checkpoints.convert import bytes_bar
from piip.cli import main
from piip.cli.help import conversion_examples
from piip.serialization.load import load_model
from piip.zoo import list_models

ROOT = Path(__file__).resolve().parents[1]
CASE = "det3_deit_global_square"


def command_lines() -> list[str]:
    text = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8") + conversion_examples()
    return re.findall(r"^\s*(piip convert .*)$", text, flags=re.MULTILINE)


def test_a_file_becomes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = register(monkeypatch, CASE)
    file, out = tmp_path / "file.pth", tmp_path / "out"
    torch.save({"state_dict": {**{f"backbone.{k}": v for k, v in state.items()}, "neck.a": torch.zeros(1)}}, file)
    main(["convert", str(file), str(out), "--model", MODEL, "--max-shard-size", "1MB"])
    text = capsys.readouterr().out
    assert f"Converted {MODEL}, found under state_dict > backbone.*" in text
    assert "neck (1)" in text
    assert f'piip.from_pretrained("{out}")' in text
    assert same(dict(load_model(out).state_dict()), loaded_state(CASE, state))
    main(["convert", str(file), str(out), "--model", MODEL, "--dtype", "bf16", "--json"])
    done = json.loads(capsys.readouterr().out)
    assert done["files"] == ["model.safetensors"]
    assert done["left_out"] == {"neck": 1}


def test_a_real_model_from_a_real_process(tmp_path: Path) -> None:
    name = "single_b_1024.deit3_coco_mask_rcnn"
    with torch.device("meta"):
        shapes = official_shapes(build_released(name))
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "file.pth")
    arguments = ["convert", "file.pth", "out", "--model", name, "--max-shard-size", "60MB"]
    done = run(sys.executable, "-m", "piip", *arguments, cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    model = load_model(tmp_path / "out", dtype="bf16")
    assert torch.equal(model.branches[0].vit.blocks[11].mlp.fc1.weight, state["blocks.11.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pth", "out", "--model", MODEL], "There is no file nothing.pth"),
        (
            ["file.pth", "out", "--model", "piip_smal"],
            "No model is called 'piip_smal'. Did you mean: piip_small.golden",
        ),
        (["file.pth", "out", "--model", MODEL, "--branch", "4"], "branch is 4, piip_small.golden has branches 0"),
        (["file.pth", "out", "--model", MODEL, "--max-shard-size", "big"], "expected a size such as 5GB"),
        (["file.pth", "out", "--model", MODEL], "is never executed"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'made'}",)

    register(monkeypatch, CASE)
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "args": Attack()}, "file.pth")
    with pytest.raises(SystemExit) as caught:
        main(["convert", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


def test_progress_is_shown_in_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with bytes_bar("title") as progress:
        assert progress is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bytes_bar("title") as progress:
        assert progress is not None
        progress(1, 2)


@pytest.mark.parametrize("line", command_lines())
def test_documented_commands_name_real_models(line: str) -> None:
    words = shlex.split(line.split(" #")[0])
    assert words[words.index("--model") + 1] in [*list_models(), *list_models(official=True)]
