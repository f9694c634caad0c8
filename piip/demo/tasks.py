"""Tasks of the demo: one class per task, in a table."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from piip.demo.sheet import INK, RIGHT, WRONG, Layout, Tile
from piip.inference.predictions import ClassPrediction, InstancePrediction, SemanticPrediction
from piip.structures import IGNORE_INDEX

ROOT = Path(__file__).resolve().parents[1] / "assets"
ASSETS = ROOT / "landcover"  # of the classifier
Known = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The prediction of one image in the terms of a task.

    Args:
        found: Prediction: a number of objects, fractions of classes, or probabilities of classes.
        target: Target: a number of objects, or a class; None if unknown.
        accuracy: Whether the class is right, or the fraction of labelled pixels that are right; None if unknown.
        text: Prediction as text.
    """

    found: int | dict[str, float]
    target: int | str | None
    accuracy: float | None
    text: str


class DemoTask(ABC):
    """One task of the demo.

    Attributes:
        assets: Folder of its assets.
        title: Title of the figure.
        side: Side in pixels of the square image for the comparison of cost and time.
        layout: Arrangement of the images.
        top: Number of classes to predict per image, None if the task is not classification.
    """

    assets: ClassVar[Path]
    title: ClassVar[str]
    side: ClassVar[int]
    layout: ClassVar[Layout] = Layout(columns=2, side=400)
    top: ClassVar[int | None] = None

    @abstractmethod
    def result(self, prediction: Any, known: Known | None, folder: Path) -> Result:
        """Return a prediction in the terms of the task.

        Args:
            prediction: Prediction of the model.
            known: Target of the image; None for the user's own.
            folder: Folder of the images.
        """

    @abstractmethod
    def tile(self, image: Image.Image, prediction: Any, result: Result, known: Known | None, folder: Path) -> Tile:
        """Return the tile of one image.

        Args:
            image: The image.
            prediction: See `result`.
            result: Result of this image.
            known: See `result`.
            folder: See `result`.
        """

    def legend(self, prediction: Any) -> Image.Image | None:
        """Return a legend for the figure, if it needs one."""
        return None


class Instances(DemoTask):
    """Nuclei in microscope images."""

    assets = ROOT / "nuclei"
    title = "Nuclei in microscope images, detected by an inverted image pyramid"
    side = 512

    def result(self, prediction: InstancePrediction, known: Known | None, folder: Path) -> Result:
        """Return the number of nuclei above the score threshold."""
        count, target = prediction.count, None if known is None else known["count"]
        marked = "" if target is None else f", {target} marked by experts"
        text = f"{count} nuclei (score >= {prediction.score_threshold:g}){marked}"
        return Result(count, target, None, text)

    def tile(self, image: Image.Image, prediction: Any, result: Result, known: Known | None, folder: Path) -> Tile:
        """Return the image, and with its nuclei drawn."""
        return Tile([image, prediction.draw(image)], [Path(prediction.path).name, result.text])


class Segmentation(DemoTask):
    """Land cover of satellite tiles."""

    assets = ROOT / "landcover_maps"
    title = "Land cover of satellite tiles, segmented by an inverted image pyramid"
    side = 512

    def result(self, prediction: SemanticPrediction, known: Known | None, folder: Path) -> Result:
        """Return the largest classes, and the fraction of known pixels that are right."""
        found = dict(sorted(prediction.fractions().items(), key=lambda pair: -pair[1])[:3])
        text = ", ".join(f"{name.replace('_', ' ')} {fraction:.0%}" for name, fraction in found.items())
        if known is None:
            return Result(found, None, None, text)
        target = _read_mask(folder / known["map"])
        right = (prediction.labels == target)[target != IGNORE_INDEX].float().mean()
        return Result(found, None, float(right), text)

    def tile(self, image: Image.Image, prediction: Any, result: Result, known: Known | None, folder: Path) -> Tile:
        """Return the image, with its target drawn where that is known, and with the prediction drawn."""
        drawn = prediction.draw(image)
        name = Path(prediction.path).name
        if known is None:
            return Tile([image, drawn], [name, result.text])
        labels = _read_mask(folder / known["map"])
        filled = torch.where(labels == IGNORE_INDEX, prediction.labels, labels)
        target = dataclasses.replace(prediction, labels=filled).draw(image)
        line = f"{result.accuracy:.0%} of the pixels right (image, target, prediction)"
        return Tile([image, target, drawn], [name, line, result.text])

    def legend(self, prediction: SemanticPrediction) -> Image.Image:
        """Return the classes with their colours."""
        return prediction.legend()


class Classification(DemoTask):
    """Land cover of whole satellite images."""

    assets = ASSETS
    title = "Land cover of satellite images, classified by an inverted image pyramid"
    side = 128
    top = 3
    layout = Layout(columns=10, side=136, max_tiles=40)

    def result(self, prediction: ClassPrediction, known: Known | None, folder: Path) -> Result:
        """Return the most probable classes."""
        target = None if known is None else known["class"]
        text = ", ".join(f"{name.replace('_', ' ')} {score:.0%}" for name, score in prediction.top)
        accuracy = None if target is None else float(prediction.label == target)
        return Result(dict(prediction.top), target, accuracy, text)

    def tile(self, image: Image.Image, prediction: Any, result: Result, known: Known | None, folder: Path) -> Tile:
        """Return the image with the class below it, green where it is right and red where it is wrong."""
        colour = INK if result.accuracy is None else RIGHT if result.accuracy else WRONG
        lines = [f"{prediction.score:.0%} {prediction.label.replace('_', ' ')}"]
        if result.accuracy == 0:
            lines.append(f"is {str(result.target).replace('_', ' ')}")
        return Tile([image], lines, colour)


def _read_mask(path: Path) -> torch.Tensor:
    with Image.open(path) as stored:
        return torch.from_numpy(np.array(stored).astype(np.int64))


TASKS: dict[str, DemoTask] = {
    "instances": Instances(),
    "segmentation": Segmentation(),
    "classification": Classification(),
}
