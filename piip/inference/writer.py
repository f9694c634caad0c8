"""Predictions as files: one JSON file, semantic masks and drawn images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from piip.data.image_files import read_images
from piip.inference.predictions import Prediction

RESULTS_NAME = "predictions.json"
LEGEND_NAME = "legend.png"


def write_predictions(
    predictions: Iterable[Prediction], out: str | Path, *, classes: Sequence[str], draw: bool = True
) -> Iterator[Prediction]:
    """Write predictions of files and yield them.

    `predictions.json` has "images" ("id", "path", "summary" and written files), "classes", and the "annotations" of
    detections in COCO format. It is written at the end, even if an error ends the iteration. `index/NAME.png` are
    semantic masks, `drawn/NAME.png` images with the predictions drawn.

    Args:
        predictions: Predictions of files; nothing is written before the iteration starts.
        out: Output directory.
        classes: Names of the model's classes.
        draw: Also draw images.

    Yields:
        The predictions.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        for number, prediction in enumerate(predictions, start=1):
            path = Path(str(prediction.path))
            name = f"{number:04d}_{path.stem}.png"  # several folders may have files with the same name
            entry = {"id": number, "path": str(path), "summary": prediction.summary()}
            mask = prediction.semantic_mask()
            if mask is not None:
                entry["index"] = _save(mask, out / "index" / name)
            if draw and prediction.is_drawn:
                ((_, image),) = read_images([path], allow_huge=True)
                entry["drawn"] = _save(prediction.draw(image), out / "drawn" / name)
                legend = prediction.legend()
                if legend is not None and not images:
                    _save(legend, out / "drawn" / LEGEND_NAME)
            images.append(entry)
            annotations += prediction.annotations(number)
            yield prediction
    finally:
        content = {"images": images, "classes": list(classes), "annotations": annotations}
        (out / RESULTS_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _save(image: Image, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return str(path)
