"""Predictions as files: one JSON file of all, index maps, and drawn pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from piip.data.image_files import read_pictures
from piip.inference.predictions import Prediction

RESULTS_NAME = "predictions.json"


def write_predictions(
    predictions: Iterable[Prediction], out: str | Path, *, classes: Sequence[str], draw: bool = True
) -> Iterator[Prediction]:
    """Write predictions of files while they are made, and pass them on.

    `predictions.json` has "images" ("id", "path", and what is known of the picture as a whole), "classes", and the
    "annotations" of instances as COCO writes them; it is written at the end, also where an error ends the iteration.
    `index/NAME.png` holds classes of pixels, `drawn/NAME.png` what was found.

    Args:
        predictions: Of files; nothing is written before they are iterated over.
        out: Directory to write to.
        classes: Names of the model's classes.
        draw: Also draw pictures.

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
            name = f"{number:04d}_{path.stem}.png"  # files of one name may come from several folders
            entry = {"id": number, "path": str(path), "summary": prediction.summary()}
            index_map = prediction.index_map()
            if index_map is not None:
                entry["index"] = _save(index_map, out / "index" / name)
            if draw and prediction.is_drawn:
                ((_, picture),) = read_pictures([path], allow_huge=True)
                entry["drawn"] = _save(prediction.draw(picture), out / "drawn" / name)
            images.append(entry)
            annotations += prediction.annotations(number)
            yield prediction
    finally:
        content = {"images": images, "classes": list(classes), "annotations": annotations}
        (out / RESULTS_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _save(picture: Image, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    picture.save(path)
    return str(path)
