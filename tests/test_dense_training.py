"""Instances and classes of pixels from a recipe to scores and files, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapes
import torch
import yaml
from PIL import Image

from piip.cli import main
from piip.data.coco import CocoInstances
from piip.data.coco_file import read_coco
from piip.evaluation.dense import evaluate_dense
from piip.evaluation.metrics.coco import score_results, to_results
from piip.evaluation.metrics.semantic import SemanticMetric
from piip.inference.dense_predictor import load_dense_predictor
from piip.recipe import Recipe
from piip.training.run_folder import read_history
from piip.training.train import train


@pytest.fixture(scope="module")
def instance_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("instances")
    shapes.write_coco(root, "train", 6)
    shapes.write_coco(root, "val", 3, seed=1)
    train(Recipe.from_dict(shapes.dense_recipe(root, root / "run", "coco")), device="cpu", progress="none")
    return root, root / "run"


@pytest.fixture(scope="module")
def semantic_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("semantic")
    for split, count in (("train", 6), ("val", 2)):
        shapes.write_semantic_masks(root, split, count, seed=count)
    train(Recipe.from_dict(shapes.dense_recipe(root, root / "run", "semantic_masks")), device="cpu", progress="none")
    return root, root / "run"


def test_a_detector_is_trained_evaluated_and_written(instance_run, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = instance_run
    history = read_history(run)
    assert {"train/loss", "train/loss_mask", "val/mask_ap", "val/box_ap50"} <= {key for row in history for key in row}
    command = ["evaluate", str(run / "model"), "--data", str(root), "--split", "val.json", "--images", "val"]
    main([*command, "--workers", "0", "--device", "cpu", "--out", str(root / "found"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 3
    assert report["max_detections"] == [1, 10, 100]
    last = [row for row in history if "val/mask_ap" in row][-1]
    assert report["mask_ap"] == pytest.approx(last["val/mask_ap"], abs=1e-6)
    results = json.loads((root / "found" / "results.json").read_text())
    again = score_results(read_coco(root / "val.json"), results, backend="pycocotools")
    assert again["mask_ap"] == pytest.approx(report["mask_ap"], abs=1e-9)
    main([*command, "--workers", "0", "--device", "cpu"])
    assert "mask_ap50" in capsys.readouterr().out


def test_instances_are_predicted_drawn_and_written(instance_run, tmp_path: Path, capsys) -> None:
    root, run = instance_run
    main(["predict", str(run / "model"), str(root / "val"), "--out", str(tmp_path), "--device", "cpu", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["1.png", "2.png", "3.png"]
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert len(content["annotations"]) == sum(line["instances"] for line in lines)
    with Image.open(tmp_path / "drawn" / "0001_1.png") as drawn:
        assert drawn.size == (96, 64)


def test_boxes_are_trained_evaluated_and_written(instance_run, tmp_path: Path, capsys) -> None:
    root, _ = instance_run
    recipe = shapes.dense_recipe(root, tmp_path / "run", "coco")
    recipe["model"]["head"] = {"kind": "dino", "num_classes": 2, "width": 64}
    train(Recipe.from_dict(recipe), device="cpu", progress="none")
    last = [row for row in read_history(tmp_path / "run") if "val/box_ap" in row][-1]
    assert not any("mask" in name for name in last)
    model = tmp_path / "run" / "model"
    report = evaluate_dense(model, root, split="val.json", images="val", workers=0, device="cpu")
    assert report.scores["box_ap"] == pytest.approx(last["val/box_ap"], abs=1e-6)
    assert not any("mask" in name for name in report.scores)
    main(["predict", str(model), str(root / "val"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert "3" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["annotations"]
    assert not any("segmentation" in row for row in content["annotations"])
    with Image.open(tmp_path / "out" / "drawn" / "0001_1.png") as drawn:
        assert drawn.size == (96, 64)


def test_masks_are_counted_against_the_boxes_of_files_without_outlines(tmp_path: Path) -> None:
    content = shapes.write_coco(tmp_path, "val", 2)
    bare = {**content, "annotations": [{**row, "segmentation": None} for row in content["annotations"]]}
    (tmp_path / "val.json").write_text(json.dumps(bare))
    data = CocoInstances(tmp_path / "val.json", tmp_path / "val")
    results = []
    for index, image_id in enumerate(data.image_ids):
        truth = data.read_target(index, data.shapes[index])
        results += to_results({**truth, "scores": torch.ones(len(truth["labels"]))}, image_id, data.category_ids)
    for backend in ("faster-coco-eval", "pycocotools"):
        assert score_results(bare, results, backend=backend)["mask_ap"] == pytest.approx(1)


def test_classes_of_pixels_are_trained_evaluated_and_written(semantic_run, tmp_path: Path, capsys) -> None:
    root, run = semantic_run
    report = evaluate_dense(run / "model", root, split="annotations/val", images="images/val", workers=0, device="cpu")
    last = [row for row in read_history(run) if "val/miou" in row][-1]
    assert report.scores["miou"] == pytest.approx(last["val/miou"], abs=1e-6)
    assert set(report.per_class) == {"box", "disc"}
    main(["predict", str(run / "model"), str(root / "images/val/1.jpg"), "--out", str(tmp_path), "--device", "cpu"])
    assert "box" in capsys.readouterr().out
    with Image.open(tmp_path / "index" / "0001_1.png") as index:
        labels = np.asarray(index)
    assert labels.shape == (64, 64)
    assert labels.max() <= 1


def test_windows_and_flips_are_an_option_of_the_description(semantic_run, tmp_path: Path) -> None:
    root, run = semantic_run
    copied = tmp_path / "model"
    shutil.copytree(run / "model", copied)
    description = json.loads((copied / "config.json").read_text())
    description["dense"] |= {"slide_crop": 32, "slide_stride": 20, "flip_test": True}
    (copied / "config.json").write_text(json.dumps(description))
    report = evaluate_dense(copied, root, split="annotations/val", images="images/val", workers=0, device="cpu")
    assert report.images == 2
    assert 0 <= report.scores["miou"] <= 1


def test_a_resumed_detector_goes_on_bit_for_bit(instance_run, tmp_path: Path) -> None:
    root, run = instance_run
    whole = {row["step"]: row["train/loss"] for row in read_history(run) if "train/loss" in row}
    recipe = shapes.dense_recipe(root, tmp_path / "run", "coco")
    first = Recipe.from_dict(recipe)
    train(first, device="cpu", progress="none")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step*.ckpt"))
    checkpoints[-1].unlink()
    train(first, device="cpu", progress="none", resume="auto")
    again = {row["step"]: row["train/loss"] for row in read_history(tmp_path / "run") if "train/loss" in row}
    assert again == whole


def test_data_and_head_must_fit(tmp_path: Path) -> None:
    shapes.write_coco(tmp_path, "train", 2)
    shapes.write_coco(tmp_path, "val", 1)
    recipe = shapes.dense_recipe(tmp_path, tmp_path / "run", "coco")
    recipe["model"]["head"]["kind"] = "upernet"
    with pytest.raises(
        ValueError, match="The model's head is 'upernet', data of kind 'coco' need one of mask_rcnn, dino"
    ):
        train(Recipe.from_dict(recipe), device="cpu", progress="none")
    recipe["model"]["head"] = {"kind": "mask_rcnn", "num_classes": 5, "width": 16}
    with pytest.raises(ValueError, match="has 5 classes, the training data 2"):
        train(Recipe.from_dict(recipe), device="cpu", progress="none")


def test_a_folder_that_is_no_dense_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": {}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="expected a trained dense model"):
        load_dense_predictor(tmp_path)


def test_both_backends_agree_and_perfect_results_score_one(tmp_path: Path) -> None:
    content = shapes.write_coco(tmp_path, "val", 4)
    data = CocoInstances(tmp_path / "val.json", tmp_path / "val")
    results = []
    generator = torch.Generator().manual_seed(0)
    for index, image_id in enumerate(data.image_ids):
        truth = data.read_target(index, data.shapes[index])
        scores = torch.rand(len(truth["labels"]), generator=generator)
        results += to_results({**truth, "scores": scores}, image_id, data.category_ids)
    perfect = score_results(content, results)
    assert perfect["mask_ap"] == pytest.approx(1)
    assert perfect["box_ap"] == pytest.approx(1)
    worse = [{**row, "bbox": [row["bbox"][0] + 3, *row["bbox"][1:]]} for row in results[:-2]]
    fast = score_results(content, worse)
    slow = score_results(content, worse, backend="pycocotools")
    assert fast == pytest.approx(slow, abs=1e-9)
    assert 0 < fast["box_ap"] < 1
    assert score_results(content, [])["mask_ap"] == 0
    few = score_results(content, results, max_detections=(1, 2, 3), headline=0)
    assert few["mask_ap"] < 1
    wrong = (
        ({"backend": "mine"}, "expected one of"),
        ({"max_detections": (3, 2, 1)}, "increasing limits"),
        ({"iou_types": ["point"]}, "expected box or mask"),
    )
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            score_results(content, results, **options)


def test_overlap_of_classes_counts_totals_and_leaves_out_unknown_pixels() -> None:
    overlap = SemanticMetric(3)
    overlap.add(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
    scores = overlap.scores()
    assert scores == pytest.approx({"miou": (1 / 2 + 1 / 2) / 2, "aacc": 2 / 3, "macc": (1 + 1 / 2) / 2})
    assert torch.isnan(overlap.class_iou()[2])


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes" / "instances").glob("*.yaml")))
def test_recipes_for_instances_parse(path: Path) -> None:
    recipe = Recipe.from_dict(yaml.safe_load(path.read_text()))
    assert recipe.data.kind == "coco"
