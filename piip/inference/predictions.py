"""Predictions for images: classes, detections or semantic masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from piip.inference.compact_masks import CompactMask

if TYPE_CHECKING:
    import supervision as sv

SCORE_THRESHOLD = 0.5  # detections below it are written to files, but neither counted nor drawn


class Prediction(ABC):
    """Prediction for one image.

    Attributes:
        path: The file, None for an image in memory.
        is_drawn: Whether the prediction can be drawn into the image.
        has_boxes: Whether the prediction is of a detector.
    """

    path: str | None
    is_drawn: ClassVar[bool] = True
    has_boxes: ClassVar[bool] = False

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the image, None if unknown."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return what `predictions.json` has about the image itself, such as its class."""
        return {}

    def row(self) -> dict[str, Any]:
        """Return the prediction as the writers of `piip.inference.formats` take it, without the image's name and size.

        Raises:
            ValueError: There are no such files for its task.
        """
        raise ValueError("formats are for classifiers and detectors; semantic masks are written as images anyway.")

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""

    @abstractmethod
    def summary(self) -> str:
        """Return a short text."""

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections in COCO format, without ids; empty for other tasks.

        Args:
            image_id: The image's number.
        """
        return []

    def to_supervision(self) -> sv.Detections:
        """Return the detections as supervision's `Detections`.

        Raises:
            ValueError: The prediction is of a classifier or segmentor.
        """
        raise ValueError("supervision's Detections are made of boxes, which only predictions of detectors have.")

    def semantic_mask(self) -> Image.Image | None:
        """Return the class indices of the pixels as an 8-bit image, None for other tasks."""
        return None

    def legend(self) -> Image.Image | None:
        """Return the classes with the colours that `draw` uses, None if no legend is needed."""
        return None

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the image with the prediction drawn.

        Args:
            image: RGB, the right way up.
        """
        return image


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """Predicted classes of one image.

    Args:
        path: The file, None for an image in memory.
        label: Name of the most probable class.
        score: Its probability, in [0, 1].
        top: The most probable classes and their probabilities, best first.
    """

    is_drawn = False

    path: str | None
    label: str
    score: float
    top: tuple[tuple[str, float], ...]

    def facts(self) -> dict[str, Any]:
        """Return the most probable class and its probability."""
        return {"label": self.label, "score": self.score}

    def row(self) -> dict[str, Any]:
        """Return "class", "score" and "top"; see `Prediction`."""
        return {"class": self.label, "score": self.score, "top": self.top}

    def to_dict(self) -> dict[str, Any]:
        """Return path, label, score and top as JSON values."""
        return {"path": self.path, "label": self.label, "score": self.score, "top": self.top}

    def summary(self) -> str:
        """Return the most probable classes."""
        return "  ".join(f"{name} {score:.4f}" for name, score in self.top)


@dataclass(frozen=True, eq=False)
class InstancePrediction(Prediction):
    """Detections in one image, sorted by score.

    Args:
        path: The file, None for an image in memory.
        shape: (H, W) of the image.
        classes: Names of the model's classes.
        boxes: x1, y1, x2, y2 in pixels, float32 (N, 4).
        scores: In [0, 1], (N,).
        labels: Indices of classes, int64 (N,).
        masks: One per object, None if the model predicts only boxes.
        score_threshold: Minimum score of a detection to be counted in the summary and drawn.
        category_ids: Id of every class in COCO files; None counts them from 1.
    """

    has_boxes = True

    path: str | None
    shape: tuple[int, int]
    classes: Sequence[str]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: tuple[CompactMask, ...] | None = None
    score_threshold: float = SCORE_THRESHOLD
    category_ids: Sequence[int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.shape

    @property
    def names(self) -> list[str]:
        """Name of every object's class."""
        return [self.classes[label] for label in self.labels.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Return all detections, of any score, and the number of counted ones as JSON values.

        Keys: "path", "instances" (number of all), "count" (those of at least "score_threshold"), "boxes" (x1, y1, x2,
        y2), "scores", "labels" (names) and "masks" (run lengths).
        """
        values: dict[str, Any] = {"path": self.path, "instances": len(self.scores), "boxes": self.boxes.tolist()}
        values |= {"score_threshold": self.score_threshold, "count": self.count}
        values |= {"scores": self.scores.tolist(), "labels": self.names}
        return values | ({} if self.masks is None else {"masks": self._run_lengths()})

    def summary(self) -> str:
        """Return the number of counted detections by class and in total."""
        names = [name for name, score in zip(self.names, self.scores.tolist(), strict=True) if self._counts(score)]
        by_class = "".join(f"  {name} {count}" for name, count in Counter(names).most_common())
        scores = f"score >= {self.score_threshold:g}, {len(self.scores)} of any score"
        return f"{len(names)} instances ({scores}){by_class}"

    @property
    def count(self) -> int:
        """Number of detections with a score of at least the threshold."""
        return sum(self._counts(score) for score in self.scores.tolist())

    def _counts(self, score: float) -> bool:
        return score >= self.score_threshold

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections in COCO format, without ids.

        Args:
            image_id: The image's number.
        """
        ids = self.category_ids or range(1, len(self.classes) + 1)
        values = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": ids[label], "bbox": [x, y, right - x, bottom - y], "score": score}
            | {"area": (right - x) * (bottom - y), "iscrowd": 0}
            for (x, y, right, bottom), score, label in values
        ]
        for row, mask in zip(rows, self.masks or (), strict=self.masks is not None):
            row |= {"segmentation": mask.run_lengths(self.shape), "area": float(mask.pixels.sum())}
        return rows

    def row(self) -> dict[str, Any]:
        """Return "boxes" (x, y, width, height), "scores" and "class_names"; see `Prediction`."""
        sides = self.boxes.clone()
        sides[:, 2:] -= sides[:, :2]
        return {"boxes": sides.tolist(), "scores": self.scores.tolist(), "class_names": self.names}

    def to_supervision(self) -> sv.Detections:
        """Return all detections as supervision's; see `piip.integrations.supervision.to_detections`."""
        from piip.integrations.supervision import to_detections

        return to_detections(self)

    def _run_lengths(self) -> list[dict[str, Any]]:
        return [mask.run_lengths(self.shape) for mask in self.masks or ()]

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the image with its objects above the threshold outlined and tinted.

        Args:
            image: RGB, the right way up.
        """
        shown = (self.scores >= self.score_threshold).nonzero().squeeze(1).tolist()
        colours = _colours(len(shown))
        pixels = np.array(image)
        for colour, index in zip(colours, shown, strict=True):
            if self.masks is not None:
                region = self.masks[index].region
                part = pixels[region.top : region.bottom, region.left : region.right]
                part[self.masks[index].pixels] = part[self.masks[index].pixels] // 2 + colour // 2
        drawn = Image.fromarray(pixels)
        pen = ImageDraw.Draw(drawn)
        for colour, index in zip(colours, shown, strict=True):
            pen.rectangle(self.boxes[index].tolist(), outline=tuple(colour.tolist()))
        return drawn


@dataclass(frozen=True, eq=False)
class SemanticPrediction(Prediction):
    """Semantic mask of one image.

    Args:
        path: The file, None for an image in memory.
        classes: Names of the model's classes.
        labels: Indices of classes, integers (H, W).
        palette: RGB colour of every class, each in [0, 255]; None uses well-separated colours.
    """

    path: str | None
    classes: Sequence[str]
    labels: Tensor
    palette: Sequence[Sequence[int]] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return (self.labels.shape[0], self.labels.shape[1])

    def fractions(self) -> dict[str, float]:
        """Return the fraction of pixels of every class that occurs, in [0, 1]."""
        counts = self.labels.flatten().bincount(minlength=len(self.classes)).tolist()
        return {name: count / self.labels.numel() for name, count in zip(self.classes, counts, strict=True) if count}

    def to_dict(self) -> dict[str, Any]:
        """Return the path and the fractions of the classes as JSON values."""
        return {"path": self.path, "classes": self.fractions()}

    def summary(self) -> str:
        """Return the fractions of the classes, largest first."""
        ranked = sorted(self.fractions().items(), key=lambda pair: -pair[1])
        return "  ".join(f"{name} {fraction:.4f}" for name, fraction in ranked)

    def semantic_mask(self) -> Image.Image:
        """Return the class indices as an 8-bit image."""
        return Image.fromarray(self.labels.numpy().astype(np.uint8))

    def colours(self) -> np.ndarray:
        """Return the RGB colour of every class, uint8 (K, 3): the palette, or well-separated ones."""
        if self.palette is not None:
            return np.array(self.palette, np.uint8)
        return _colours(len(self.classes))

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the image with every class tinted.

        Args:
            image: RGB, the right way up.
        """
        tints = self.semantic_mask()
        tints.putpalette(self.colours().tobytes())
        return Image.blend(image, tints.convert("RGB"), 0.5)

    def legend(self, *, columns: int = 5) -> Image.Image:
        """Return the classes with their colours, RGB.

        Args:
            columns: Classes next to each other.
        """
        names = [name.replace("_", " ") for name in self.classes]
        font = ImageFont.load_default(15)
        width = round(max(font.getlength(name) for name in names)) + 42
        rows = -(-len(names) // columns)
        drawn = Image.new("RGB", (width * min(columns, len(names)), 24 * rows), "white")
        pen = ImageDraw.Draw(drawn)
        for index, (name, colour) in enumerate(zip(names, self.colours().tolist(), strict=True)):
            left, top = width * (index % columns), 24 * (index // columns)
            pen.rectangle((left, top + 2, left + 24, top + 19), fill=tuple(colour), outline="#66707c")
            pen.text((left + 32, top + 10), name, fill="#1c2430", font=font, anchor="lm")
        return drawn


def _colours(count: int) -> np.ndarray:
    """Return well-separated RGB colours, uint8 (count, 3), the same on every call."""
    hues = (np.arange(count) * 0.618034) % 1.0
    channels = [np.abs(((hues * 6 + offset) % 6) - 3) - 1 for offset in (0, 4, 2)]
    return (np.stack(channels, 1).clip(0, 1) * 200 + 55).astype(np.uint8)
