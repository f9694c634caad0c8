"""The examples run as they are, and docs/integrations.md shows them."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from processes import environment, succeed
from tiny_run import CLASSES, write_images

import piip

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUCLEI = ROOT / "piip" / "assets" / "nuclei"
DOCS = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
NEEDS = {
    "llava": "transformers",
    "ray_bulk": "ray",
    "smp_unet": "segmentation_models_pytorch",
    "supervision_annotators": "supervision",
    "transformers_segmentor": "transformers",
}
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None) -> Run:
    """Return a function that runs an example in this process, with arguments, and returns what it prints."""

    def made(name: str, *arguments: object) -> str:
        library = NEEDS.get(name)
        if library is not None and find_spec(library) is None:
            pytest.skip(f"needs {library}")
        torch.manual_seed(0)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return made


@pytest.mark.slow
def test_timm_features(run: Run) -> None:
    printed = run("timm_features")
    assert "channels [256, 256, 256, 256] strides [4, 8, 16, 32]" in printed
    assert "[(1, 256, 8, 12), (1, 256, 4, 6)]" in printed


@pytest.mark.slow
def test_torchvision_detector(run: Run) -> None:
    assert "loss_mask" in run("torchvision_detector")


@pytest.mark.slow
def test_transformers_segmentor(run: Run) -> None:
    assert "logits (2, 5, 128, 192)" in run("transformers_segmentor")


@pytest.mark.slow
def test_smp_unet(run: Run) -> None:
    printed = run("smp_unet")
    assert "u-piip-ts (2, 5, 128, 96)" in printed
    assert "dpt-piip-ts (2, 5, 128, 96)" in printed


@pytest.mark.filterwarnings("ignore:OpenCV .* is not installed:UserWarning")
def test_supervision_annotators(run: Run, tmp_path: Path) -> None:
    assert "76 nuclei, ['nucleus']" in run("supervision_annotators", tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").is_file()


@pytest.mark.slow
def test_ray_bulk(tmp_path: Path) -> None:
    """In a process of its own: actors import what the main program is."""
    pytest.importorskip("ray")
    import pyarrow
    import pyarrow.parquet

    files = sorted((NUCLEI / "images").glob("nuclei*"))[:4]
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in files]  # as on the Hugging Face hub
    columns = {"name": [path.name for path in files], "image": pictures}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "images.parquet")
    command = [sys.executable, ROOT / "examples" / "ray_bulk.py", NUCLEI / "model", "--actors", "1"]
    quiet = environment(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT))
    succeed(*command, tmp_path / "images.parquet", tmp_path / "table", "--column", "image", env=quiet)
    succeed(*command, NUCLEI / "images", tmp_path / "folder", env=quiet)
    alone = [prediction.to_dict() for prediction in piip.Predictor(NUCLEI / "model").predict(files)]
    for name, key in (("table", "name"), ("folder", "path")):
        rows = pyarrow.parquet.read_table(tmp_path / name).to_pylist()
        counts = {Path(row[key]).name: json.loads(row["prediction"])["count"] for row in rows}
        assert [counts[path.name] for path in files] == [values["count"] for values in alone]
    assert len(rows) == 6


def test_llava(run: Run) -> None:
    assert "16 image tokens, answer: [" in run("llava")


def test_train_pytorch(run: Run, tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", train=2, val=1), tmp_path / "out"
    assert "epoch 1: loss" in run("train_pytorch", images, out, "--epochs", 1, "--size", 32)
    (first,) = piip.Predictor(out).predict(images / "val" / "red" / "0.png", top=1)
    assert first.label in CLASSES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers, intervals of logging and the like
def test_train_lightning(run: Run, images: Path, tmp_path: Path) -> None:
    assert "accuracy" in run("train_lightning", images, tmp_path, "--epochs", 1)
    assert piip.from_pretrained(tmp_path).metadata["classes"] == list(CLASSES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_use_public_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"test_{path.stem}" in globals()
    public = {"piip", "piip.demo", *(f"piip.integrations.{name}" for name in ("smp", "torchvision", "transformers"))}
    modules = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert {module for module in modules if module and module.startswith("piip")} <= public


def test_docs_link_every_example() -> None:
    assert [path.name for path in EXAMPLES if f"(../examples/{path.name})" not in DOCS] == []


def test_docs_show_lines_of_the_examples() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS, flags=re.DOTALL | re.MULTILINE)
    texts = [path.read_text(encoding="utf-8") for path in EXAMPLES]
    assert len(blocks) >= 7
    assert [block for block in blocks if not any(block in text for text in texts)] == []


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("transformers", "transformers", r"piip\[transformers\]"),
        ("smp", "segmentation_models_pytorch", r"piip\[smp\]"),
        ("supervision", "supervision", "supervision>=0.31"),
    ],
)
def test_a_missing_library_is_one_line(module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith((library, f"piip.integrations.{module}"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f'This adapter needs .*: pip install "{extra}"'):
        __import__(f"piip.integrations.{module}")
