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
from torch import nn

from piip.demo.sheet import INK, RIGHT, WRONG, Layout, Tile
from piip.evaluation.metrics.semantic import SemanticMetric
from piip.inference.predictions import ClassPrediction, InstancePrediction, SemanticPrediction
from piip.serialization.base import PyramidModel
from piip.structures import IGNORE_INDEX

ROOT = Path(__file__).resolve().parents[1] / "assets"
ASSETS = ROOT / "landcover"  # of the classifier
Known = Mapping[str, Any]
SCORE_NAMES = {"miou": "mIoU", "aacc": "pixels right", "macc": "mean of classes"}


@dataclass(frozen=True)
class Sample:
    """An image with its target.

    Args:
        name: Name of the file.
        image: The image, RGB.
        known: Target of the image; None for the user's own.
        folder: Folder of the images.
    """

    name: str
    image: Image.Image
    known: Known | None
    folder: Path


@dataclass(frozen=True)
class Result:
    """The prediction of one image in the terms of a task.

    Args:
        found: Prediction: a number of objects, fractions of classes, or probabilities of classes.
        target: Target: a number of objects, or a class; None if unknown or not said in a word.
        accuracy: In [0, 1], see `DemoTask.accuracy_name`; None if unknown.
        text: Prediction as text.
    """

    found: int | dict[str, float]
    target: int | str | None
    accuracy: float | None
    text: str


@dataclass(frozen=True)
class Answer:
    """What one model says of an image.

    Args:
        result: The prediction.
        seconds: Time from the image in memory to the prediction.
    """

    result: Result
    seconds: float


class DemoTask(ABC):
    """One task of the demo.

    Attributes:
        assets: Folder of its assets.
        title: Title of the figure.
        side: Side in pixels of the square image for the comparison of cost and time.
        part: Name of the part of the models whose cost and time are compared, see `compared_part`.
        note: What the comparison says, for those who see only its numbers.
        accuracy_name: What the accuracy of an image is.
        layout: Arrangement of the images.
        top: Number of classes to predict per image, None if the task is not classification.
    """

    assets: ClassVar[Path]
    title: ClassVar[str]
    side: ClassVar[int]
    part: ClassVar[str] = "head included"
    note: ClassVar[str]
    accuracy_name: ClassVar[str] = "accuracy"
    layout: ClassVar[Layout] = Layout(columns=2, side=400)
    top: ClassVar[int | None] = None

    @abstractmethod
    def result(self, prediction: Any, sample: Sample) -> Result:
        """Return a prediction in the terms of the task.

        Args:
            prediction: Prediction of the model.
            sample: The image.
        """

    @abstractmethod
    def tile(self, sample: Sample, predictions: Mapping[str, Any], results: Mapping[str, Result]) -> Tile:
        """Return the tile of one image.

        Args:
            sample: The image.
            predictions: Predictions by model, the pyramid's first.
            results: The same in the terms of the task.
        """

    def compared_part(self, model: PyramidModel) -> nn.Module:
        """Return the part of a model whose cost and time are compared."""
        return model

    def legend(self, prediction: Any) -> Image.Image | None:
        """Return a legend for the figure, if it needs one."""
        return None


class Instances(DemoTask):
    """Nuclei in microscope images."""

    assets = ROOT / "nuclei"
    title = "Nuclei in microscope images, detected by an inverted image pyramid"
    side = 512
    part = "without the head"
    note = "The single network was not trained: it is there for cost and time."

    def result(self, prediction: InstancePrediction, sample: Sample) -> Result:
        """Return the number of nuclei above the score threshold."""
        count, target = prediction.count, None if sample.known is None else sample.known["count"]
        marked = "" if target is None else f", {target} marked by experts"
        text = f"{count} nuclei (score >= {prediction.score_threshold:g}){marked}"
        return Result(count, target, None, text)

    def tile(
        self, sample: Sample, predictions: Mapping[str, InstancePrediction], results: Mapping[str, Result]
    ) -> Tile:
        """Return the image, and with its nuclei drawn."""
        ((name, prediction),) = predictions.items()
        return Tile([sample.image, prediction.draw(sample.image)], [sample.name, results[name].text])

    def compared_part(self, model: PyramidModel) -> nn.Module:
        """Return the backbone: the time of the head depends on what it finds."""
        return model.up_to_dense_head()


class Segmentation(DemoTask):
    """Nuclei, their borders and the background, pixel by pixel, by a pyramid and by single networks."""

    assets = ROOT / "nuclei_maps"
    title = "Nuclei and their borders: an inverted image pyramid beside single networks"
    side = 768
    note = "Three seeds do not tell these models apart: docs/evidence.md in the repository."
    accuracy_name = "mIoU"
    layout = Layout(columns=2, side=200)

    def result(self, prediction: SemanticPrediction, sample: Sample) -> Result:
        """Return the classes by area, and mIoU where the classes of the pixels are known."""
        found = dict(sorted(prediction.fractions().items(), key=lambda pair: -pair[1]))
        text = ", ".join(f"{name.replace('_', ' ')} {fraction:.0%}" for name, fraction in found.items())
        accuracy = None
        if sample.known is not None:
            metric = SemanticMetric(len(prediction.classes))
            metric.add(prediction.labels, read_labels(sample.folder / sample.known["map"]))
            accuracy = metric.scores()["miou"]
        return Result(found, None, accuracy, text)

    def tile(
        self, sample: Sample, predictions: Mapping[str, SemanticPrediction], results: Mapping[str, Result]
    ) -> Tile:
        """Return the image, its target where that is known, and the predictions of all models."""
        image, names = sample.image, ["image"]
        shown = [image]
        if sample.known is not None:
            prediction = next(iter(predictions.values()))
            labels = read_labels(sample.folder / sample.known["map"])
            filled = torch.where(labels == IGNORE_INDEX, prediction.labels, labels)
            shown.append(dataclasses.replace(prediction, labels=filled).draw(image))
            names.append("target")
        shown += [each.draw(image) for each in predictions.values()]
        scores = {name: result.accuracy for name, result in results.items()}
        lines = [f"{name}: {self.accuracy_name} {score:.1%}" for name, score in scores.items() if score is not None]
        return Tile(shown, [f"{sample.name}: {', '.join([*names, *predictions])}", *lines])

    def legend(self, prediction: SemanticPrediction) -> Image.Image:
        """Return the classes with their colours."""
        return prediction.legend()


class Classification(DemoTask):
    """Land cover of whole satellite images."""

    assets = ASSETS
    title = "Land cover of satellite images, classified by an inverted image pyramid"
    side = 128
    note = "At 128 pixels multiply-adds do not decide the time, and the single network was the more accurate one."
    top = 3
    layout = Layout(columns=10, side=136, max_tiles=40)

    def result(self, prediction: ClassPrediction, sample: Sample) -> Result:
        """Return the most probable classes."""
        target = None if sample.known is None else sample.known["class"]
        text = ", ".join(f"{name.replace('_', ' ')} {score:.0%}" for name, score in prediction.top)
        accuracy = None if target is None else float(prediction.label == target)
        return Result(dict(prediction.top), target, accuracy, text)

    def tile(self, sample: Sample, predictions: Mapping[str, ClassPrediction], results: Mapping[str, Result]) -> Tile:
        """Return the image with the class below it, green where it is right and red where it is wrong."""
        ((name, prediction),) = predictions.items()
        result = results[name]
        colour = INK if result.accuracy is None else RIGHT if result.accuracy else WRONG
        lines = [f"{prediction.score:.0%} {prediction.label.replace('_', ' ')}"]
        if result.accuracy == 0:
            lines.append(f"is {str(result.target).replace('_', ' ')}")
        return Tile([sample.image], lines, colour)


def score_name(key: str) -> str:
    """Return a recorded score's name for people."""
    return SCORE_NAMES.get(key, key.replace("_", " "))


def read_labels(path: Path) -> torch.Tensor:
    """Return the class of every pixel, int64 (H, W), of an image of indices."""
    with Image.open(path) as stored:
        return torch.from_numpy(np.array(stored).astype(np.int64))


TASKS: dict[str, DemoTask] = {
    "instances": Instances(),
    "segmentation": Segmentation(),
    "classification": Classification(),
}
