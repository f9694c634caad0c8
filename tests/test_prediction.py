"""Prediction: files, folders and patterns in, classes and scores out; broken files are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import write_images, write_model

from piip.data.listing import find_images
from piip.inference.predictions import InstancePrediction
from piip.inference.predictor import ClassPredictor, Predictor


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> ClassPredictor:
    return ClassPredictor(model_dir, device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images") / "val"


def test_files_and_pictures_give_the_same(predictor: ClassPredictor, images: Path) -> None:
    paths = find_images([images])
    from_files = list(predictor.predict_paths([images], batch_size=5))
    from_memory = predictor.predict([Image.open(path) for path in paths])
    assert [row.path for row in from_files] == [str(path) for path in paths]
    assert [row.label for row in from_files] == [row.label for row in from_memory]
    assert len({row.label for row in from_files}) > 1
    for row, other in zip(from_files, from_memory, strict=True):
        assert row.score == pytest.approx(other.score, abs=1e-4)
        assert sum(score for _, score in row.top) == pytest.approx(1)
        assert [score for _, score in row.top] == sorted((score for _, score in row.top), reverse=True)
        assert (row.label, row.score) == row.top[0]


def test_top_limits_the_classes(predictor: ClassPredictor, images: Path) -> None:
    assert {len(row.top) for row in predictor.predict_paths([images], top=2)} == {2}


def test_pictures_of_any_size_and_mode(predictor: ClassPredictor) -> None:
    pictures = [Image.new("L", (7, 300), 90), Image.new("RGBA", (64, 64)), Image.new("P", (33, 20))]
    assert len(predictor.predict(pictures)) == 3


def test_no_classes_and_no_pictures(predictor: ClassPredictor, images: Path) -> None:
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="top is 0, expected at least 1"):
        predictor.predict([], top=0)
    with pytest.raises(ValueError, match="top is 0, expected at least 1"):
        list(predictor.predict_paths([images], top=0))


def test_16_bit_pictures_are_those_of_their_files(predictor: ClassPredictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (40, 40), dtype=np.uint16)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "deep.png")
    (from_memory,) = predictor.predict([picture])
    (from_file,) = predictor.predict_paths([tmp_path])
    assert from_memory.top == from_file.top


def test_workers_read_the_same(predictor: ClassPredictor, images: Path) -> None:
    alone, helped = (list(predictor.predict_paths([images], batch_size=4, workers=n)) for n in (0, 2))
    assert alone == helped


def test_bfloat16_agrees(model_dir: Path, predictor: ClassPredictor, images: Path) -> None:
    half = ClassPredictor(model_dir, device="cpu", dtype="bf16")
    batch = torch.stack([half.transform(Image.open(path)) for path in find_images([images])])
    expected, actual = predictor.logits(batch), half.logits(batch)
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() / expected.norm() < 0.1


def test_patterns_folders_and_files(images: Path) -> None:
    blue = sorted((images / "blue").glob("*.png"))
    assert find_images([images / "blue"]) == blue
    assert find_images([str(images / "bl*" / "*.png")]) == blue
    assert find_images([blue[1], images / "blue"]) == [blue[1], blue[0], *blue[2:]]
    assert len(find_images([str(images / "**" / "*")])) == 12
    with pytest.raises(ValueError, match=r"'.*nothing' is not an image file"):
        find_images([images / "nothing"])


def test_broken_files_stop_or_are_skipped(
    predictor: ClassPredictor, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "blue" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"blue/1\.png cannot be read .*--on-error skip"):
        list(predictor.predict_paths([images], on_error="stop"))
    with caplog.at_level(logging.WARNING):
        rows = list(predictor.predict_paths([images], batch_size=1))
    assert len(rows) == 11
    assert "blue/1.png cannot be read" in caplog.text


def test_names_and_head_must_agree(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "config.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "classes": ["blue", "green"]}))
    with pytest.raises(ValueError, match=r"lists 2 classes, but its model has head\.num_classes 3"):
        Predictor(tmp_path, device="cpu")


def test_a_backbone_is_refused(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((model_dir / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match="has no classes and no transform"):
        Predictor(tmp_path)
    with pytest.raises(ValueError, match="device is 'tpu', expected 'auto'"):
        Predictor(model_dir, device="tpu")


def test_classifiers_refuse_views(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"flip is True, but only detectors and segmentors"):
        Predictor(model_dir, device="cpu", flip=True)


def test_detections_below_the_threshold_are_listed_but_not_counted() -> None:
    scores = torch.tensor([0.9, 0.6, 0.3])
    boxes, labels = torch.tensor([[0.0, 0, 8, 8]] * 3), torch.tensor([0, 1, 1])
    for threshold, count in ((0.5, 2), (0.2, 3), (0.95, 0)):
        found = InstancePrediction("a.png", (32, 32), ["cat", "dog"], boxes, scores, labels, None, threshold)
        assert found.count == count
        assert found.summary().startswith(f"{count} instances (score >= {threshold:g}, 3 of any score)")
        assert (found.to_dict()["instances"], found.to_dict()["count"]) == (3, count)
        assert len(found.annotations(1)) == 3


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_thresholds_outside_the_range_are_refused(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score_threshold is"):
        Predictor(tmp_path, score_threshold=threshold)
