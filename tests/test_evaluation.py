"""Evaluation: shares and confusions equal a count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import write_images, write_model

from piip.evaluation.classification import EvaluationReport, evaluate, format_report
from piip.inference.predictor import Predictor

SEVEN = tuple("abcdefg")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=1, val=3, classes=SEVEN)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), classes=SEVEN)


@pytest.fixture(scope="module")
def report(data: Path, model_dir: Path) -> EvaluationReport:
    return evaluate(model_dir, data, batch_size=4, workers=0, device="cpu")


def test_counts_by_hand(data: Path, model_dir: Path, report: EvaluationReport) -> None:
    rows = list(Predictor(model_dir, device="cpu").predict_paths([data / "val"]))
    truth = [Path(row.path or "").parent.name for row in rows]
    right = [row.label == name for row, name in zip(rows, truth, strict=True)]
    near = [name in [label for label, _ in row.top] for row, name in zip(rows, truth, strict=True)]
    assert report.images == 21
    assert report.top1 == pytest.approx(sum(right) / 21)
    assert report.top5 == pytest.approx(sum(near) / 21)
    assert report.top1 < report.top5 < 1
    for index, name in enumerate(SEVEN):
        share = sum(r for r, t in zip(right, truth, strict=True) if t == name) / 3
        assert report.per_class[name] == pytest.approx(share)
        for column, guess in enumerate(SEVEN):
            count = sum(t == name and row.label == guess for row, t in zip(rows, truth, strict=True))
            assert report.confusion[index][column] == count
    assert report.mean_class == pytest.approx(report.top1)  # equally many images a class


def test_batches_and_workers_do_not_matter(data: Path, model_dir: Path, report: EvaluationReport) -> None:
    assert evaluate(model_dir, data, batch_size=21, workers=2, device="cpu") == report


def test_broken_images_are_not_counted(model_dir: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path, train=1, val=1, classes=SEVEN)
    (data / "val" / "c" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c/0\.png cannot be read"):
        evaluate(model_dir, data, workers=0, device="cpu")
    report = evaluate(model_dir, data, workers=0, device="cpu", on_error="skip")
    assert (report.images, report.skipped) == (6, 1)
    assert report.per_class["c"] is None
    present = [value for value in report.per_class.values() if value is not None]
    assert report.mean_class == pytest.approx(sum(present) / 6)
    assert "(1 skipped)" in format_report(report)


def test_other_classes_are_refused(model_dir: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path, classes=(*SEVEN[:6], "z"))
    with pytest.raises(ValueError, match="missing g, unexpected z"):
        evaluate(model_dir, data, device="cpu")
    with pytest.raises(ValueError, match="does not exist"):
        evaluate(model_dir, data, split="nothing", device="cpu")


def test_the_table_names_classes_and_confusions(report: EvaluationReport) -> None:
    table = format_report(report)
    assert f"{report.top1:.4f}" in table
    assert all(f"\n{name} " in table for name in SEVEN)
    assert "taken for" in table
