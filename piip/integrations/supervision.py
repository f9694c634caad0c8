"""Predictions as objects of supervision, for its annotators, trackers, zones and metrics: `to_detections`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from piip.integrations import missing

if TYPE_CHECKING:
    from piip.inference.predictions import InstancePrediction

try:
    import supervision as sv
except ImportError as error:
    raise ImportError(missing("supervision", "supervision>=0.31")) from error


def to_detections(prediction: InstancePrediction) -> sv.Detections:
    """Return the detections of one image as supervision's `Detections`.

    All detections are returned, of any score: `detections[detections.confidence >= 0.5]` selects.

    Args:
        prediction: Prediction of a detector.

    Returns:
        `xyxy` in pixels, float32 (N, 4); `confidence` in [0, 1], float32 (N,); `class_id`, int64 (N,);
        `data["class_name"]`, names (N,); `mask`, bool (N, H, W), which takes N * H * W bytes, or None if the model
        predicts boxes only.

    Raises:
        ValueError: The prediction is of a classifier or segmentor.
    """
    if not prediction.has_boxes:
        raise ValueError(f"Expected the prediction of a detector, got {type(prediction).__name__}, which has no boxes.")
    height, width = prediction.shape
    masks = None
    if prediction.masks is not None:
        whole = [mask.whole(prediction.shape) for mask in prediction.masks]
        masks = np.stack(whole) if whole else np.zeros((0, height, width), bool)
    return sv.Detections(
        xyxy=prediction.boxes.numpy(),
        mask=masks,
        confidence=prediction.scores.numpy(),
        class_id=prediction.labels.numpy(),
        data={"class_name": np.array(prediction.names, dtype=str)},
    )
