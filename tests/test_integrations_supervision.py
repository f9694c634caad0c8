"""Predictions become supervision's Detections, and its annotators draw them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from piip.demo import ASSETS
from piip.inference.compact_masks import CompactMask
from piip.inference.predictions import ClassPrediction, InstancePrediction, Prediction, SemanticPrediction
from piip.inference.predictor import Predictor

sv = pytest.importorskip("supervision", minversion="0.31")

from piip.integrations.supervision import to_detections  # noqa: E402 - after the check

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV .* is not installed:UserWarning")
NUCLEI = ASSETS.parent / "nuclei"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(NUCLEI / "images" / "ihc.png").convert("RGB").crop((0, 0, 160, 128))


@pytest.fixture(scope="module")
def prediction(picture: Image.Image, one_thread: None) -> InstancePrediction:
    (made,) = Predictor(NUCLEI / "model", device="cpu").predict(picture)
    assert isinstance(made, InstancePrediction)
    return made


def test_detections_are_those_of_the_prediction(prediction: InstancePrediction) -> None:
    detections = to_detections(prediction)
    assert len(detections) == len(prediction.scores) > 5
    assert np.array_equal(detections.xyxy, prediction.boxes.numpy())
    assert np.array_equal(detections.confidence, prediction.scores.numpy())
    assert set(detections.data["class_name"]) == {"nucleus"}
    assert detections.mask.dtype == bool
    assert detections.mask.shape == (len(detections), 128, 160)
    assert prediction.masks is not None
    assert all(np.array_equal(a, b.whole((128, 160))) for a, b in zip(detections.mask, prediction.masks, strict=True))
    likely = prediction.to_supervision()
    likely = likely[likely.confidence >= 0.5]
    assert 0 < len(likely) == prediction.count


@pytest.mark.parametrize("annotator", ["BoxAnnotator", "MaskAnnotator", "LabelAnnotator"])
def test_annotators_draw_them(annotator: str, prediction: InstancePrediction, picture: Image.Image) -> None:
    detections = prediction.to_supervision()
    plain = np.array(picture)
    drawn = getattr(sv, annotator)().annotate(plain.copy(), detections[detections.confidence >= 0.5])
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_labels_are_class_names(picture: Image.Image) -> None:
    made = InstancePrediction(
        None, (128, 160), ("cat", "dog"), torch.tensor([[9.0, 40, 60, 90]] * 2), torch.rand(2), torch.tensor([1, 0])
    )
    detections = to_detections(made)
    assert detections.mask is None
    assert detections["class_name"].tolist() == ["dog", "cat"]
    assert detections.class_id.tolist() == [1, 0]
    annotator = sv.LabelAnnotator(color_lookup=sv.ColorLookup.INDEX)
    by_name = annotator.annotate(np.array(picture), detections[:1])
    assert np.array_equal(by_name, annotator.annotate(np.array(picture), detections[:1], labels=["dog"]))


@pytest.mark.parametrize("masks", [None, ()])
def test_images_without_objects(masks: tuple[CompactMask, ...] | None) -> None:
    none = torch.zeros(0)
    made = InstancePrediction(None, (20, 30), ("cat",), torch.zeros(0, 4), none, none.long(), masks)
    detections = to_detections(made)
    assert len(detections) == 0
    assert detections.xyxy.shape == (0, 4)
    assert (detections.mask is None) if masks is None else (detections.mask.shape == (0, 20, 30))
    assert len(sv.Detections.merge([detections, to_detections(replace(made, path="a.png"))])) == 0


@pytest.mark.parametrize(
    "other",
    [
        ClassPrediction(None, "cat", 0.5, (("cat", 0.5),)),
        SemanticPrediction(None, ("cat",), torch.zeros(2, 2, dtype=torch.uint8)),
    ],
)
def test_other_predictions_are_refused(other: Prediction) -> None:
    with pytest.raises(ValueError, match="boxes"):
        other.to_supervision()
    with pytest.raises(ValueError, match=f"got {type(other).__name__}, which has no boxes"):
        to_detections(other)  # type: ignore[arg-type]
