"""The shipped model on real held-out pictures, beside the models it should be compared with.

The land-cover model, its pictures and the recorded results of all three models lie in `piip/assets/landcover`;
MODEL_CARD.md there says how they were made.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from piip.cost.estimate import CostReport, estimate_cost
from piip.data.image_files import find_images
from piip.data.image_folder import read_rgb
from piip.demo.figure import draw_demo
from piip.demo.results import DemoPicture, RecordedModel, read_recorded
from piip.inference.predictions import ClassPrediction
from piip.inference.predictor import ClassPredictor

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "landcover"
BATCH = 16  # pictures at a time
SHOWN_CLASSES = 3

__all__ = ["ASSETS", "DemoReport", "run_demo"]


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Args:
        pictures: Every picture with its true class (None for the user's own) and what the model says.
        cost: Cost of the shipped model for one image.
        seconds_per_image: Time for one image, in batches: transform and model, without reading files.
        models: Recorded results of the shipped model and of the two it is compared with, on the whole test split.
        figure: The picture that was written.
    """

    pictures: tuple[DemoPicture, ...]
    cost: CostReport
    seconds_per_image: float
    models: tuple[RecordedModel, ...]
    figure: Path

    @property
    def correct(self) -> int:
        """Number of pictures whose true class came first."""
        return sum(picture.is_correct is True for picture in self.pictures)

    @property
    def labelled(self) -> int:
        """Number of pictures whose true class is known."""
        return sum(picture.truth is not None for picture in self.pictures)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; "top1" is None where no true class is known."""
        return {
            "top1": self.correct / self.labelled if self.labelled else None,
            "correct": self.correct,
            "labelled": self.labelled,
            "seconds_per_image": self.seconds_per_image,
            "cost": self.cost.to_dict(),
            "models": [dataclasses.asdict(model) for model in self.models],
            "pictures": [
                {**picture.prediction.to_dict(), "path": picture.path, "truth": picture.truth}
                for picture in self.pictures
            ],
            "figure": str(self.figure),
        }


def run_demo(
    out: str | Path = "out/demo.png",
    *,
    images: Sequence[str] = (),
    device: str = "auto",
    assets: str | Path = ASSETS,
) -> DemoReport:
    """Classify the shipped held-out pictures, or the user's own, and draw the result.

    Args:
        out: Picture to write, PNG.
        images: Files, folders or patterns instead of the shipped pictures.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        assets: Folder with model/, images/ and results.json.

    Returns:
        Predictions, cost, time and the recorded results.

    Raises:
        ValueError: The demo's files are missing, or a picture cannot be read.
    """
    assets, out = Path(assets), Path(out)
    if not (assets / "model").is_dir():
        raise ValueError(
            f"This installation has no demo model in {assets}. Train one with "
            "`piip train recipes/classification/landcover_piip.yaml` and use `piip predict`."
        )
    models = read_recorded(assets / "results.json")
    labelled = [(path, None) for path in find_images(images)] if images else _shipped_pictures(assets / "images")
    pictures = [read_rgb(path) for path, _ in labelled]
    predictor = ClassPredictor(assets / "model", device=device)
    predictions, seconds = _timed_predictions(predictor, pictures)
    shown = tuple(
        DemoPicture(str(path), truth, prediction)
        for (path, truth), prediction in zip(labelled, predictions, strict=True)
    )
    cost = estimate_cost(predictor.model)
    sheet = draw_demo(shown, pictures, cost, models)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, format="PNG")
    return DemoReport(shown, cost, seconds, models, out)


def _shipped_pictures(folder: Path) -> list[tuple[Path, str | None]]:
    rows = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return [(folder / row["file"], row["class"]) for row in rows]


def _timed_predictions(
    predictor: ClassPredictor, pictures: Sequence[Image.Image]
) -> tuple[list[ClassPrediction], float]:
    """Return the predictions and the seconds for one image; the first, slower pass is not timed."""
    predictor.predict(pictures[:BATCH])
    start = time.perf_counter()
    predictions: list[ClassPrediction] = []
    for first in range(0, len(pictures), BATCH):
        predictions += predictor.predict(pictures[first : first + BATCH], top=SHOWN_CLASSES)
    return predictions, (time.perf_counter() - start) / len(pictures)
