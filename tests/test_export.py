"""Exported files compute what the models compute, in every runtime."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import outcome, start
from pyramids import randomise, tiny_vit
from shapes import dense_recipe
from torch import nn

import piip
from piip.build import build_model
from piip.cli import main
from piip.export.comparison import Difference, example_images
from piip.export.exporter import wrap_model
from piip.export.files import keep, scratch_folder
from piip.export.formats import EXPORT_FORMATS, find_format
from piip.heads.mask_rcnn.masks import paste_masks

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("onnxscript")
SLOW = pytest.mark.slow
SUFFIXES = {name: form.suffix for name, form in EXPORT_FORMATS.items()}


def classifier() -> Any:
    branches = (tiny_vit(32, 2, 32, 2), tiny_vit(16, 2, 64, 2))
    interaction = piip.InteractionConfig(num_heads=2)
    head = piip.HeadConfig("pooled", num_classes=3)
    torch.manual_seed(0)
    model = randomise(build_model(piip.ModelConfig(branches, interaction, head=head)))
    model.metadata = {"classes": ["a", "b", "c"], "transform": {"input_size": 64, "crop_pct": 0.9}}
    return model


def dense(kind: str) -> Any:
    torch.manual_seed(0)
    values = dense_recipe(Path(), Path(), kind)["model"]
    return randomise(build_model(piip.ModelConfig.from_dict(values)))


def detector() -> Any:
    """Return a detector that finds a few things: trained heads have small weights, these would see every class."""
    model = dense("coco")
    nn.init.normal_(model.head.boxes.scores.weight, std=0.5)
    return model


MODELS = {"classifier": classifier, "segmentor": lambda: dense("semantic_masks"), "detector": detector}


def run(path: Path, form: str, image: torch.Tensor) -> list[torch.Tensor]:
    return [torch.from_numpy(values) for values in find_format(form).load(path, None)(image.numpy())]


def assert_same(model: nn.Module, path: Path, form: str, image: torch.Tensor, **options: bool) -> None:
    target = wrap_model(model, **options)
    with torch.no_grad():
        wanted = target(image)
    found = target.in_order_of(wanted, run(path, form, image))
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        if want.is_floating_point():
            assert (got - want).norm() <= 1e-4 * want.norm()
        else:
            assert (got != want).double().mean() <= 1e-3


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=SLOW) if form == "torch" else form for form in EXPORT_FORMATS]
)
def test_classifiers_take_any_number_of_images(form: str, tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / f"model{SUFFIXES[form]}"
    report = piip.export_model(model, path, format=form, dynamic_batch=True)
    assert report.input_shape == ("batch", 3, 64, 64)
    assert [each.name for each in report.differences] == ["logits"]
    for batch in (1, 3):
        assert_same(model, path, form, torch.randn(batch, 3, 64, 64))


DENSE = [
    pytest.param("segmentor", "torch", marks=SLOW),
    pytest.param("segmentor", "onnx", marks=SLOW),
    pytest.param("segmentor", "openvino", marks=SLOW),
    pytest.param("detector", "torch", marks=SLOW),
    pytest.param("detector", "onnx", marks=SLOW),
    pytest.param("detector", "openvino", marks=SLOW),
]


@pytest.mark.parametrize(("kind", "form"), DENSE)
def test_dense_models_of_any_aspect_ratio(kind: str, form: str, tmp_path: Path) -> None:
    model, path = MODELS[kind](), tmp_path / f"model{SUFFIXES[form]}"
    piip.export_model(model, path, format=form, image_size=(64, 96), dynamic_batch=kind == "segmentor")
    image = example_images(1, (64, 96), seed=3)
    assert_same(model, path, form, image)
    if kind == "segmentor":
        assert_same(model, path, form, image.expand(3, -1, -1, -1).contiguous())
    else:
        assert len(run(path, form, image)[0]) > 0


@pytest.mark.parametrize("size", [pytest.param((64, 64), marks=SLOW), pytest.param((96, 48), marks=SLOW), (100, 75)])
def test_maps_of_a_backbone(size: tuple[int, int], tmp_path: Path) -> None:
    """At other sizes than the nominal one position tables are resized, which exporters must know."""
    model, path = classifier(), tmp_path / "maps.onnx"
    report = piip.export_model(model, path, features_only=True, image_size=size)
    assert [each.name for each in report.differences] == ["map_0"]
    assert_same(model, path, "onnx", torch.randn(1, 3, *size), features_only=True)


@SLOW
def test_any_size(tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / "model.onnx"
    report = piip.export_model(model, path, dynamic_batch=True, dynamic_size=True)
    assert report.input_shape == ("batch", 3, "height", "width")
    for size in ((64, 64), (64, 160), (112, 80)):
        assert_same(model, path, "onnx", torch.randn(3, 3, *size))
    with pytest.raises(ValueError, match="outputs of the exported file differ from the model's: logits"):
        piip.export_model(model, tmp_path / "model.xml", format="openvino", dynamic_size=True)


def test_the_description_is_all_that_a_program_needs(tmp_path: Path) -> None:
    report = piip.export_model(classifier(), tmp_path / "model.onnx", format="onnx", dynamic_batch=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]
    assert report.files == (str(tmp_path / "model.onnx"), str(tmp_path / "model.onnx.json"))
    text = json.loads((tmp_path / "model.onnx.json").read_text())
    assert text["input"]["shape"] == ["batch", 3, 64, 64]
    assert text["input"]["mean"] == [0.5, 0.5, 0.5]
    assert text["outputs"][0] == {
        "name": "logits",
        "dtype": "float32",
        "meaning": "logits of the classes, float32 (B, K)",
    }
    assert (text["classes"], text["random_weights"]) == (["a", "b", "c"], False)
    assert text["preparation"]["crop_pct"] == 0.9
    assert text["differences"][0]["relative"] <= 1e-4


def test_a_file_that_differs_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = Difference("logits", (1, 3), 0.5, 0.5, 1e-4)
    monkeypatch.setattr("piip.export.exporter.compare", lambda *_: [far])
    out = tmp_path / "new" / "model.pt2"
    with pytest.raises(ValueError, match=r"exported file differ .* logits differs by 5.0e-01, accepted 1.0e-04"):
        piip.export_model(classifier(), out, format="torch")
    assert not list(out.parent.iterdir())
    piip.export_model(classifier(), out, format="torch", check=False)
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.pt2", "model.pt2.json"]


def test_what_is_no_number_is_refused() -> None:
    assert not Difference("logits", (1,), float("nan"), float("nan"), 1e-4).is_small


def test_instances_are_compared_whatever_their_order() -> None:
    target = wrap_model(detector())
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]])
    wanted = [boxes, torch.ones(3), torch.tensor([0, 1, 0]), torch.rand(3, 28, 28)]
    order = torch.tensor([2, 0, 1])
    for got, want in zip(target.in_order_of(wanted, [values[order] for values in wanted]), wanted, strict=True):
        assert torch.equal(got, want)


def test_masks_as_large_as_the_image() -> None:
    """The function of the documentation, which needs NumPy alone."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(def whole_mask.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"np": np}
    exec(code, names)
    masks = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.3, 4.1, 20.2, 31.7], [-2.0, 0.0, 90.0, 12.5], [50.0, 30.0, 52.5, 60.0]])
    whole = [names["whole_mask"](mask.numpy(), box.numpy(), 48, 64) for mask, box in zip(masks, boxes, strict=True)]
    different = torch.from_numpy(np.stack(whole)) != paste_masks(masks, boxes, (48, 64))
    assert different.sum() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite', expected one of torch, onnx, openvino"),
        ({"format": "torch"}, r"expected a file ending in \.pt2 for the format torch"),
        ({"image_size": (8, 8)}, "smaller than one patch"),
        ({"image_size": (-64, 64)}, r"image_size is \(-64, 64\), expected positive pixels"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        piip.export_model(classifier(), tmp_path / "model.onnx", **arguments)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ValueError, match=r"file/model.pt2 cannot be written \(File exists\): choose a"):
        piip.export_model(classifier(), tmp_path / "file" / "model.pt2", format="torch")
    with pytest.raises(ValueError, match=r"folder.pt2', which is a directory, expected a file"):
        piip.export_model(classifier(), tmp_path / "folder.pt2", format="torch")


def test_formats_of_one_name_keep_their_descriptions(tmp_path: Path) -> None:
    for suffix in SUFFIXES.values():
        out = tmp_path / f"model{suffix}"
        with scratch_folder(out) as folder:
            (folder / out.name).write_text("")
            assert keep(folder, out, {"input": suffix}) == (str(out), f"{out}.json")
    for suffix in SUFFIXES.values():
        described = json.loads((tmp_path / f"model{suffix}.json").read_text())
        assert described == {"files": [f"model{suffix}"], "input": suffix}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("detector", {"dynamic_batch": True}, "one image of a fixed size: remove dynamic_batch and dynamic_size"),
        ("detector", {"dynamic_size": True}, "one image of a fixed size"),
        ("segmentor", {"dynamic_size": True}, "Segmentors are exported for a fixed size"),
        ("classifier", {"dynamic_size": True, "check": False}, "dynamic_size needs the check"),
        (
            "classifier",
            {"dynamic_size": True, "image_size": (72, 64)},
            r"image_size is \(72, 64\), expected multiples of 16",
        ),
    ],
)
def test_sides_that_cannot_be_free(kind: str, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        piip.export_model(MODELS[kind](), tmp_path / "model.onnx", **arguments)


def test_programs_have_fixed_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The format torch has fixed sizes"):
        piip.export_model(classifier(), tmp_path / "model.pt2", format="torch", dynamic_size=True)


@pytest.mark.parametrize(("kind", "form"), [("classifier", "onnx"), ("classifier", "openvino"), ("detector", "torch")])
def test_an_older_pytorch_is_refused(kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    with pytest.raises(ValueError, match=r"needs PyTorch 2\.\d+ or newer, but 2\.8\.0 is installed\.$"):
        piip.export_model(MODELS[kind](), tmp_path / f"model{SUFFIXES[form]}", format=form, image_size=(64, 96))


def test_models_that_cannot_be_exported_are_refused(tmp_path: Path) -> None:
    values = dense_recipe(Path(), Path(), "coco")["model"]
    model = build_model(piip.ModelConfig.from_dict(values | {"head": {"kind": "dino", "num_classes": 2, "width": 32}}))
    with pytest.raises(ValueError, match="DINO detectors cannot be exported"):
        piip.export_model(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16 on cpu, expected torch.float32 on the CPU"):
        piip.export_model(classifier().bfloat16(), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="The model is a Linear"):
        piip.export_model(nn.Linear(1, 1), tmp_path / "model.onnx")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["export", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("form", "absent"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_a_missing_package_is_named(
    form: str, absent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    line = refused(capsys, "nothing", "--out", str(tmp_path / f"m{SUFFIXES[form]}"), "--format", form)
    assert f'The format {form} needs {absent}: pip install "piip[export]"' in line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier().save_pretrained(tmp_path / "model")
    out = str(tmp_path / "model.pt2")
    main(["export", str(tmp_path / "model"), "--out", out, "--format", "torch", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["files"][0] == out
    assert (report["input_shape"], report["has_random_weights"]) == ([1, 3, 64, 64], False)
    main(["export", str(tmp_path / "model"), "--out", out, "--format", "torch", "--no-check"])
    assert "Not compared with PyTorch." in capsys.readouterr().out
    assert "Did you mean" in refused(capsys, "piip_tsb", "--out", out, "--format", "torch")
    assert "--image-size: expected 2 arguments" in refused(capsys, "x", "--out", out, "--image-size", "64")
    assert "--image-size: expected int, got a. See" in refused(capsys, "x", "--out", out, "--image-size", "64", "a")


def test_names_get_random_weights_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piip.export.exporter.create_model", lambda name, features_only: classifier())
    main(["export", "piip_tsb_368_192_128.deit1_in1k", "--out", str(tmp_path / "m.pt2"), "--format", "torch"])
    assert "The weights are random" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.pt2.json").read_text())["random_weights"] is True


HANGING = """
import sys, time
import piip.export.exporter
from piip.cli import main

def hang(*_):
    print("half-way", flush=True)
    time.sleep(600)

piip.export.exporter.trace = hang
main(["export", *sys.argv[1:], "--format", "torch"])
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An export of OUT/model.pt2 in a process of its own, which got half-way."""
    classifier().save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", HANGING, str(tmp_path / "model"), "--out", str(tmp_path / "out" / "model.pt2")]
    with start(*command) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half-way\n"
            assert len([*(tmp_path / "out").iterdir()]) == 1
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(
    hanging: subprocess.Popen[str], tmp_path: Path, sent: signal.Signals
) -> None:
    hanging.send_signal(sent)
    done = outcome(hanging, timeout=60)
    assert (done.returncode, done.stderr) == (130, "piip: error: Interrupted.\n")
    assert not [*(tmp_path / "out").iterdir()]


def test_what_a_killed_export_left_goes_with_the_next(hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (left,) = out.iterdir()
    (out / ".other.pt2.part-12345678").mkdir()
    with scratch_folder(out / "model.pt2") as folder:
        assert left.exists(), "the other export still runs"
        assert folder.exists()
    hanging.kill()
    hanging.wait()
    with scratch_folder(out / "model.pt2") as folder:
        assert {*out.iterdir()} == {folder, out / ".other.pt2.part-12345678"}
