"""The data of an explanation, before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from piip.inference.predictions import Prediction
from piip.structures import Size


@dataclass(frozen=True, eq=False)
class BranchView:
    """What one branch sees, and what it costs.

    Args:
        network: Name of its network, or "" for a model built from modules.
        image: The resized image, RGB.
        macs: Multiply-adds of the branch for this image.
        share: Its share of the multiply-adds of the whole model, in [0, 1].
    """

    network: str
    image: Image.Image
    macs: int
    share: float

    @property
    def size(self) -> Size:
        """(H, W) of the image in pixels."""
        return (self.image.height, self.image.width)


@dataclass(frozen=True, eq=False)
class SamplingPoints:
    """Where a few positions of one branch read from another, in one interaction.

    Args:
        interaction: Index of the interaction, from 0.
        source: Index of the branch that is read.
        target: Index of the branch that is updated.
        queries: Positions (x, y) relative to the image, (Q, 2).
        locations: Sampled positions (x, y) relative to the image, (Q, P, 2), of the points of all heads.
        weights: Their weights, which sum to 1 per query, (Q, P).
        image_size: (H, W) of the model's input in pixels.
    """

    interaction: int
    source: int
    target: int
    queries: np.ndarray
    locations: np.ndarray
    weights: np.ndarray
    image_size: Size

    @property
    def mean_distance(self) -> float:
        """Weighted mean distance of the points from their query, in pixels of the model's input."""
        height, width = self.image_size
        offsets = (self.locations - self.queries[:, None]) * np.array((width, height))
        return float((np.linalg.norm(offsets, axis=-1) * self.weights).sum(1).mean())

    @property
    def outside(self) -> float:
        """Share of the weight on points outside the image, where zeros are read, in [0, 1]."""
        is_outside = ((self.locations < 0) | (self.locations > 1)).any(-1)
        return float((self.weights * is_outside).sum(1).mean())

    def to_dict(self) -> dict[str, Any]:
        """Return a summary as JSON values."""
        names = {"interaction": self.interaction, "source": self.source, "target": self.target}
        return {**names, "mean_distance": self.mean_distance, "outside": self.outside}


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one branch around one interaction.

    Args:
        interaction: Index of the interaction, from 0.
        branch: Index of the branch.
        before: The first three principal components before the interaction as colours, uint8 (H, W, 3).
        after: The same after it, in the same basis and scale.
        change: Length of the change of each position's features, relative to the mean length before, (H, W).
        explained: Share of the variance that the components explain, in [0, 1].
    """

    interaction: int
    branch: int
    before: np.ndarray
    after: np.ndarray
    change: np.ndarray
    explained: float

    def to_dict(self) -> dict[str, Any]:
        """Return a summary as JSON values."""
        names = {"interaction": self.interaction, "branch": self.branch, "grid": self.change.shape}
        return {**names, "change": float(self.change.mean()), "explained": self.explained}


@dataclass(frozen=True)
class Gate:
    """Size of the gate of one direction of an interaction.

    Args:
        interaction: Index of the interaction, from 0.
        source: Index of the branch that is read.
        target: Index of the branch that is updated.
        kind: "attention" or "ffn".
        mean_abs: Mean absolute value over the channels; 0 lets nothing through.
    """

    interaction: int
    source: int
    target: int
    kind: str
    mean_abs: float


@dataclass(frozen=True)
class Change:
    """Difference between two results for one image, in the terms of the task.

    Args:
        measure: Meaning of `amount`.
        amount: Size of the change, in [0, 1].
        text: The change in words.
        values: Its numbers and names.
    """

    measure: str
    amount: float
    text: str
    values: Mapping[str, int | float | str]


@dataclass(frozen=True, eq=False)
class Removal:
    """The result without one branch.

    Args:
        branch: Index of the branch.
        change: Change of the result.
        prediction: The result.
    """

    branch: int
    change: Change
    prediction: Prediction


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a pyramid does with one image.

    Args:
        path: The image file, None for an image in memory.
        model: Directory of the model, or its kind.
        branches: What every branch sees, lowest resolution first.
        macs: Multiply-adds by part of the model for this image.
        points: Sampling points of every interaction and direction; empty with dense attention or one branch.
        features: Features of every branch around every interaction.
        gates: Sizes of all gates; empty with one branch.
        image: The image that the result is for, RGB.
        prediction: The result, None for a model without a task.
        removals: The results without each branch.
        notes: What is not there and why, in sentences.
    """

    path: str | None
    model: str
    branches: Sequence[BranchView]
    macs: Mapping[str, int]
    points: Sequence[SamplingPoints]
    features: Sequence[Features]
    gates: Sequence[Gate]
    image: Image.Image
    prediction: Prediction | None
    removals: Sequence[Removal]
    notes: Sequence[str]

    @property
    def interactions(self) -> int:
        """Number of interactions; 0 with one branch."""
        return 1 + max((gate.interaction for gate in self.gates), default=-1)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON values; images and sampling points are summarised."""
        return {
            "path": self.path,
            "model": self.model,
            "branches": [
                {"network": view.network, "size": view.size, "macs": view.macs, "share": view.share}
                for view in self.branches
            ],
            "macs": dict(self.macs),
            "points": [points.to_dict() for points in self.points],
            "features": [features.to_dict() for features in self.features],
            "gates": [vars(gate) for gate in self.gates],
            "result": None if self.prediction is None else self.prediction.to_dict(),
            "without": [
                {"branch": removal.branch, "change": removal.change.text, **removal.change.values}
                for removal in self.removals
            ],
            "notes": list(self.notes),
        }
