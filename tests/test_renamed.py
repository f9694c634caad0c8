"""Names of before in recipes, options and metrics: they are still read, with a line that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shapes import dense_recipe, write_coco

from piip.cli import main
from piip.evaluation.metrics.coco import Scores, annotated_iou_types
from piip.recipe import Recipe, load_recipe

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "instances" / "nuclei_piip.yaml"


def test_old_fields_of_recipes_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = dense_recipe(tmp_path, tmp_path / "run", "semantic_masks")
    values["data"] |= {"kind": "index_maps"}
    assert Recipe.from_dict(values).data.kind == "semantic_masks"
    values = dense_recipe(tmp_path, tmp_path / "run", "coco")
    values["data"] |= {"detections": [1, 5, 50]}
    assert Recipe.from_dict(values).data.max_detections == (1, 5, 50)
    assert "data.detections is deprecated, use data.max_detections." in caplog.messages
    assert "data.kind index_maps is deprecated, use semantic_masks." in caplog.messages
    values["data"]["max_detections"] = [1, 2, 3]
    with pytest.raises(ValueError, match=r"data\.detections is the old name of data\.max_detections"):
        Recipe.from_dict(values)


def test_an_old_override_is_read() -> None:
    recipe = load_recipe(RECIPE, {"data.max_detections": [1, 2, 3]})
    assert recipe.data.max_detections == (1, 2, 3)
    values = recipe.to_dict()
    del values["data"]["max_detections"]
    values["data"]["detections"] = [4, 5, 6]
    assert Recipe.from_dict(values).data.max_detections == (4, 5, 6)


def test_old_options_are_read(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "evaluate",
                "nowhere",
                "--data",
                ".",
                "--images",
                ".",
                "--detections",
                "1",
                "2",
                "3",
                "--counter=pycocotools",
            ]
        )
    assert "nowhere" in capsys.readouterr().err  # the options were understood, the model is missing
    assert "--detections is deprecated, use --max-detections." in caplog.messages
    assert "--counter is deprecated, use --backend." in caplog.messages


def test_old_names_of_recalls_are_read(caplog: pytest.LogCaptureFixture) -> None:
    scores = Scores({"box_ap": 0.5, "box_ar_1": 0.1, "box_ar_10": 0.2, "box_ar_500": 0.3}, (1, 10, 500))
    assert [scores[f"box_{name}"] for name in ("ar_first", "ar_second", "ar")] == [0.1, 0.2, 0.3]
    assert "The metric box_ar_first is deprecated, use box_ar_1." in caplog.messages
    with pytest.raises(KeyError):
        _ = scores["box_ap_tiny"]


def test_masks_are_not_evaluated_on_boxes(tmp_path: Path) -> None:
    content: dict[str, Any] = write_coco(tmp_path, "val", 1)
    assert annotated_iou_types(content, "instance") == ("box", "mask")
    assert annotated_iou_types(content, "detection") == ("box",)
    boxes = {**content, "annotations": [{**entry, "segmentation": []} for entry in content["annotations"]]}
    assert annotated_iou_types(json.loads(json.dumps(boxes)), "instance") == ("box",)
