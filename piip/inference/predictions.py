"""What models say about pictures: classes, instances, or the class of every pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from piip.inference.compact_masks import MaskPiece

DRAWN_SCORE = 0.5  # instances below are written but not drawn


class Prediction(ABC):
    """What a model says about one picture.

    Attributes:
        path: The file, None for a picture in memory.
        is_drawn: Whether there are places in the picture to be drawn.
    """

    path: str | None
    is_drawn: ClassVar[bool] = True

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""

    @abstractmethod
    def summary(self) -> str:
        """Return the prediction in a few words."""

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """Return the instances as COCO writes them; none where the model finds none.

        Args:
            image_id: The picture's number.
        """
        return []

    def index_map(self) -> Image.Image | None:
        """Return the classes of pixels as an 8-bit picture, None where the model gives none."""
        return None

    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the picture with what was found.

        Args:
            picture: RGB, the right way up.
        """
        return picture


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The class of one picture.

    Args:
        path: The file, None for a picture in memory.
        label: Name of the most probable class.
        score: Its probability, in [0, 1].
        top: The most probable classes and their probabilities, best first.
    """

    is_drawn = False

    path: str | None
    label: str
    score: float
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return path, label, score and top as JSON values."""
        return {"path": self.path, "label": self.label, "score": self.score, "top": self.top}

    def summary(self) -> str:
        """Return the most probable classes."""
        return "  ".join(f"{name} {score:.4f}" for name, score in self.top)


@dataclass(frozen=True, eq=False)
class InstancePrediction(Prediction):
    """Objects in one picture, best first.

    Args:
        path: The file, None for a picture in memory.
        shape: (H, W) of the picture.
        classes: Names of the model's classes.
        boxes: x1, y1, x2, y2 in pixels, float32 (N, 4).
        scores: In [0, 1], (N,).
        labels: Indices of classes, int64 (N,).
        masks: One an object, None where the model finds boxes only.
    """

    path: str | None
    shape: tuple[int, int]
    classes: Sequence[str]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: tuple[MaskPiece, ...] | None = None

    @property
    def names(self) -> list[str]:
        """Name of every object's class."""
        return [self.classes[label] for label in self.labels.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Return path, number of instances, boxes (x1, y1, x2, y2), scores, labels (names) and masks (run lengths)."""
        values = {"path": self.path, "instances": len(self.scores), "boxes": self.boxes.tolist()}
        values |= {"scores": self.scores.tolist(), "labels": self.names}
        return values | ({} if self.masks is None else {"masks": self._run_lengths()})

    def summary(self) -> str:
        """Return how many objects of which class there are."""
        counts = Counter(self.names)
        return f"{len(self.scores)} instances" + "".join(f"  {name} {count}" for name, count in counts.most_common())

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """Return the instances as COCO writes them; ids of categories are indices of classes.

        Args:
            image_id: The picture's number.
        """
        corners = self.boxes.tolist()
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": label, "bbox": [x, y, right - x, bottom - y], "score": score}
            for (x, y, right, bottom), score, label in zip(
                corners, self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]
        for row, outline in zip(rows, self._run_lengths(), strict=self.masks is not None):
            row["segmentation"] = outline
        return rows

    def _run_lengths(self) -> list[dict[str, Any]]:
        return [mask.run_lengths(self.shape) for mask in self.masks or ()]

    def draw(self, picture: Image.Image, *, score: float = DRAWN_SCORE) -> Image.Image:
        """Return the picture with its objects outlined and tinted.

        Args:
            picture: RGB, the right way up.
            score: Least score of a drawn object.
        """
        shown = (self.scores >= score).nonzero().squeeze(1).tolist()
        colours = _colours(len(shown))
        pixels = np.array(picture)
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
class MapPrediction(Prediction):
    """The class of every pixel of one picture.

    Args:
        path: The file, None for a picture in memory.
        classes: Names of the model's classes.
        labels: Indices of classes, integers (H, W).
    """

    path: str | None
    classes: Sequence[str]
    labels: Tensor

    def shares(self) -> dict[str, float]:
        """Return the share of pixels of every class that occurs, in [0, 1]."""
        counts = self.labels.flatten().bincount(minlength=len(self.classes)).tolist()
        return {name: count / self.labels.numel() for name, count in zip(self.classes, counts, strict=True) if count}

    def to_dict(self) -> dict[str, Any]:
        """Return the path and the classes' shares as JSON values."""
        return {"path": self.path, "classes": self.shares()}

    def summary(self) -> str:
        """Return the classes' shares, largest first."""
        ranked = sorted(self.shares().items(), key=lambda pair: -pair[1])
        return "  ".join(f"{name} {share:.4f}" for name, share in ranked)

    def index_map(self) -> Image.Image:
        """Return the indices as an 8-bit picture."""
        return Image.fromarray(self.labels.numpy().astype(np.uint8))

    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the picture with every class tinted.

        Args:
            picture: RGB, the right way up.
        """
        tints = self.index_map()
        tints.putpalette(_colours(len(self.classes)).tobytes())
        return Image.blend(picture, tints.convert("RGB"), 0.5)


def _colours(count: int) -> np.ndarray:
    """Return well-separated RGB colours, uint8 (count, 3), the same ones every time."""
    hues = (np.arange(count) * 0.618034) % 1.0
    channels = [np.abs(((hues * 6 + offset) % 6) - 3) - 1 for offset in (0, 4, 2)]
    return (np.stack(channels, 1).clip(0, 1) * 200 + 55).astype(np.uint8)
