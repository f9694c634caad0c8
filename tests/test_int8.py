"""Int8: images prepared as for prediction, products alone quantized, and what does not go together."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image
from pyramids import randomise, tiny_vit

import piip
from piip.cli import main
from piip.config import HeadConfig, InteractionConfig, ModelConfig
from piip.export.int8 import Calibration, preparation
from piip.export.runtime import INT8, content_key, in_runtime

METADATA = {"classes": ["a", "b", "c"], "transform": {"input_size": 64, "crop_pct": 0.9}}


def classifier() -> Any:
    parts = (tiny_vit(32, 2, 32, depth=1), tiny_vit(16, 2, 64, depth=1))
    head = HeadConfig("pooled", num_classes=3)
    torch.manual_seed(0)
    model = randomise(piip.build_model(ModelConfig(parts, InteractionConfig(count=1, num_heads=2), head=head)))
    model.metadata = dict(METADATA)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of colours that vary, of two sizes."""
    root, numbers = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(6):
        pixels = numbers.integers(0, 255, (8, 12 if index % 2 else 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96 if index % 2 else 80, 80)).save(root / f"{index}.png")
    return root


def test_images_are_prepared_as_the_predictor_does(folder: Path, tmp_path: Path) -> None:
    model = classifier()
    images = Calibration(folder).images(model, (64, 64))
    model.save_pretrained(tmp_path)
    predictor: Any = piip.Predictor(tmp_path)
    for index, path in enumerate(images.files):
        want = predictor._classifier.transform(Image.open(path).convert("RGB"))
        assert np.array_equal(images[index], want.numpy()[None])


def test_detectors_pad_and_other_sizes_are_resized(folder: Path) -> None:
    section = {"dense": {"pad_divisor": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    image = Image.open(folder / "1.png")
    prepared = preparation(classifier(), section)(image)
    assert prepared.shape == (3, 96, 96)
    assert (prepared[:, 80:] == 0).all()
    assert [*Calibration(folder, metadata=section).images(classifier(), (64, 96))][1].shape == (1, 3, 64, 96)


def test_the_sample_is_fixed_and_a_small_one_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [path.name for path in Calibration(folder, 4).files()]
    assert len(names) == 4
    assert names == [path.name for path in Calibration(folder, 4).files()]
    assert Calibration(folder, 4).digest() != Calibration(folder, 3).digest()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert len(Calibration(folder).files()) == 6
    assert [each.message for each in caplog.records] == [f"{folder} has 6 images, fewer than the 100 for calibration."]
    with pytest.raises(ValueError, match="calibration_images is 0, expected at least 1"):
        Calibration(folder, 0)


def test_keys_change_with_the_images(folder: Path) -> None:
    model, form = classifier(), piip.export.formats.EXPORT_FORMATS["openvino"]
    keys = {content_key(model, form, (64, 64), each) for each in ("", "a", "b")}
    assert len(keys) == 3


def test_what_does_not_go_together(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"runtime is 'openvino-int8'.*belong together.*calibrate"):
        in_runtime(classifier(), INT8)
    with pytest.raises(ValueError, match=r"runtime is 'onnx'.*belong together"):
        in_runtime(classifier(), "onnx", calibration=Calibration(folder))
    for options in (["--int8"], ["--calibrate", str(folder)]):
        with pytest.raises(SystemExit, match="2"):
            main(["export", "name", "--out", str(tmp_path / "x.xml"), "--format", "openvino", *options])
        assert "--int8 and --calibrate FOLDER belong together" in capsys.readouterr().err
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="format is 'torch', which has no int8, expected openvino"):
        piip.export_model(classifier(), tmp_path / "x.pt2", format="torch", calibrate=folder)


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    find = piip.export.formats.importlib.util.find_spec
    hidden = lambda name: None if name == "nncf" else find(name)  # noqa: E731
    monkeypatch.setattr(piip.export.formats.importlib.util, "find_spec", hidden)
    with pytest.raises(ValueError, match=r'Int8 needs nncf: pip install "piip\[int8\]"'):
        piip.export_model(classifier(), tmp_path / "x.xml", format="openvino", calibrate=folder)


@pytest.mark.slow
@pytest.mark.skipif(Version(torch.__version__).release < (2, 9), reason="OpenVINO needs PyTorch 2.9")
@pytest.mark.usefixtures("one_thread")
def test_int8_classifiers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    classifier().save_pretrained(tmp_path / "model")
    out = tmp_path / "model.xml"
    options = ["--format", "openvino", "--int8", "--calibrate", str(folder), "--calibration-images", "5", "--json"]
    main(["export", str(tmp_path / "model"), "--out", str(out), *options])
    printed = json.loads(capsys.readouterr().out)
    assert printed["int8"]["images"] == 5
    assert 1e-4 < printed["int8"]["differences"][0]["relative"] < 0.2
    assert json.loads(out.with_name("model.xml.json").read_text())["int8"] == printed["int8"]

    model = openvino.Core().read_model(out)
    quantized = {
        user.get_node().get_type_name()
        for operation in model.get_ops()
        if operation.get_type_name() == "FakeQuantize"
        for user in operation.output(0).get_target_inputs()
    }
    assert "MatMul" in quantized
    assert quantized <= {"MatMul", "Convolution", "GroupConvolution", "Reshape", "Transpose", "FakeQuantize"}

    paths = sorted(folder.iterdir())
    rows, others = (
        [*piip.Predictor(tmp_path / "model", runtime=runtime, calibrate=images).predict_paths(paths)]
        for runtime, images in (("torch", None), (INT8, folder))
    )
    for row, other in zip(rows, others, strict=True):
        assert other.score == pytest.approx(row.score, abs=0.05)
    assert len([*(tmp_path / "cache" / "piip" / "exported").iterdir()]) == 1
