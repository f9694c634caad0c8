"""The command line as its users meet it: real processes, help, JSON, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run, succeed
from tiny_run import recipe_values, write_images, write_model, write_recipe

from piip import __version__
from piip.cli import COMMANDS, main
from piip.cli.parser import split_overrides

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(ROOT / "recipes" / "classification" / "landcover_piip.yaml")
NAMES = [
    "list",
    "cost",
    "bench",
    "compare",
    "data landcover",
    "data nuclei",
    "train",
    "evaluate",
    "predict",
    "explain",
    "convert",
    "export",
    "app",
]


def piip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "piip", *arguments)


def refused(*arguments: str) -> str:
    """Run a command line that is wrong, and return its one line of complaint."""
    done = piip(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("piip: error: ")
    return done.stderr


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command in this process, and return its JSON."""
    main(arguments)
    return json.loads(capsys.readouterr().out)


def test_help_lists_every_command_without_loading_torch() -> None:
    code = (
        "import sys; from piip.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    printed = succeed(sys.executable, "-c", code)
    assert printed.splitlines()[-1] == "False"
    for name in COMMANDS:
        assert f"    {name} " in printed


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code in (0, None)
    text = capsys.readouterr().out
    words = text.split("options:")[1].split("\n  -")
    assert len(words) > 2
    assert all(len(option.split()) > 4 for option in words[1:]), "an option without explanation"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    models = printed(capsys, "list", "*in1k", "--json")
    tsb = next(model for model in models if model["name"] == "piip_tsb_368_192_128.deit1_in1k")
    assert (tsb["task"], tsb["results"], tsb["flops"]) == ("classification", {"Top-1 Acc": "82.1"}, "17.4G")
    main(["list", "*in1k"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [model["name"] for model in models]
    assert "Top-1 Acc 82.1" in lines[-1]


def test_cost_of_names_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    report = printed(capsys, "cost", "piip_tsb_368_192_128.deit1_in1k", "--rule", "paper", "--json")
    assert report["macs"] == pytest.approx(17.4e9, rel=0.01)
    small, large = (
        printed(capsys, "cost", RECIPE, "--image-size", size, size, "--json")["macs"] for size in ("64", "128")
    )
    assert small < large
    main(["cost", RECIPE])
    assert "interactions" in capsys.readouterr().out


def test_train_evaluate_predict(tmp_path: Path) -> None:
    """The whole way through processes of their own, as in the README."""
    data = write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values(data, tmp_path / "unused"))
    out = tmp_path / "run"
    trained = piip("train", str(recipe), "--out", str(out), "--schedule.epochs", "1", "--optim.lr=2e-3", "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["steps"] == 6
    assert 0 <= result["val/top1"] <= 1
    assert "step 6/6" in trained.stderr
    assert "Warning" not in trained.stderr
    assert not (tmp_path / "unused").exists()

    evaluated = piip("evaluate", result["model_dir"], "--data", str(data), "--json")
    assert json.loads(evaluated.stdout)["top1"] == pytest.approx(result["val/top1"])

    (data / "val" / "red" / "0.png").write_bytes(b"no image")
    predicted = piip("predict", result["model_dir"], str(data / "val"), "--on-error", "skip", "--json")
    rows = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert len(rows) == 11
    assert rows[0].keys() == {"path", "label", "score", "top"}
    assert "red/0.png cannot be read" in predicted.stderr


def test_the_shipped_recipe_trains_on_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the README."""
    data = write_images(tmp_path / "data")
    own = ["--out", str(tmp_path / "run"), "--data.root", str(data), "--schedule.epochs", "2", "--device", "cpu"]
    small = ["--data.batch_size", "8", "--data.workers", "0", "--progress", "none", "--json"]
    with pytest.raises(SystemExit):
        main(["train", RECIPE, *own, *small])
    line = capsys.readouterr().err
    assert "has 10 classes, the training data 3" in line
    assert "--model.head.num_classes null" in line
    result = printed(capsys, "train", RECIPE, *own, *small, "--model.head.num_classes", "null")
    assert result["steps"] == 6
    assert len(json.loads(Path(result["model_dir"], "config.json").read_text())["classes"]) == 3


def test_errors_are_one_line(tmp_path: Path) -> None:
    assert "Unknown command 'trainn'. Did you mean: train" in refused("trainn")
    assert "recipe.optim has no field 'lrr'. Did you mean: lr?" in refused("train", RECIPE, "--optim.lrr", "1")
    assert "has no config.json" in refused("evaluate", str(tmp_path), "--data", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost"], "See `piip cost --help`"),
        (["cost", "piip_tsb"], "No model is called 'piip_tsb'. Did you mean"),
        (["cost", "x", "--rule", "ours"], "invalid choice: 'ours' (choose from 'total', 'paper')"),
        (["cost", RECIPE, "--image-size", "128"], "--image-size: expected 2 arguments"),
        (["cost", "x", "--optim.lr", "1"], "no option --optim.lr"),
        (["list", "nothing*"], "No model name matches 'nothing*'"),
        (["data"], "{check,convert,landcover,nuclei}"),
        (["train", "nothing.yaml"], "There is no recipe 'nothing.yaml'"),
        (["train", RECIPE, "--optim.lr"], "--optim.lr has no value"),
        (["train", RECIPE, "--schedule.epochs", "@x"], "recipe.schedule.epochs: '@x' is not YAML"),
        (["train", RECIPE, "--data.root", "/nothing"], "/nothing/train does not exist"),
        (["train", RECIPE, "--device", "cuda:9"], "PyTorch sees"),
        (["predict", "x", "y"], "There is no directory x, and it is not a repository id"),
        (["--nothing"], "nrecognized arguments: --nothing. See `piip --help`"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_errors_of_the_system_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_values(data, tmp_path / "recipe.yaml" / "run"))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--device", "cpu", "--progress", "none"])
    assert caught.value.code == 2
    assert "Not a directory" in capsys.readouterr().err.splitlines()[-1]


def test_training_without_its_packages_names_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("piip.training.train")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_lightning.utilities", None)
    with pytest.raises(SystemExit) as caught:
        main(["train", RECIPE])
    assert caught.value.code == 2
    assert 'pip install "piip[train]"' in capsys.readouterr().err


def test_dotted_options_are_taken_out() -> None:
    others, overrides = split_overrides(
        ["train", "r.yaml", "--optim.lr", "1e-3", "--out", "a.b", "--run.ema_decay=null"]
    )
    assert others == ["train", "r.yaml", "--out", "a.b"]
    assert overrides == {"optim.lr": "1e-3", "run.ema_decay": "null"}


def test_prediction_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = write_model(tmp_path / "model"), write_images(tmp_path / "data")
    main(["predict", str(model), str(data / "val" / "red"), "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(str(data / "val" / "red" / "0.png"))
    assert len(lines[0].split()) == 5


def test_version_help_and_parts_of_names() -> None:
    assert piip("--version").stdout == f"piip {__version__}\n"
    assert "commands" in piip().stdout
    assert "piip_tsb_368_192_128.deit1_in1k" in piip("list", "tsb").stdout
    assert "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16" in piip("list", "vit_b", "--official").stdout
