"""A saved model as the page uses it: with a scale, tiles and a threshold that change from request to request."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from piip.app.limits import Limits
from piip.data.image_reading import ReadOptions
from piip.data.transforms.classification import TransformConfig, build_transform
from piip.fields import read_fields
from piip.inference.class_predictor import ClassPredictor
from piip.inference.dense_predictor import DENSE_PREDICTORS, DensePredictor, load_dense_predictor
from piip.inference.predictions import Prediction
from piip.inference.tiling import Tiling
from piip.serialization.base import PyramidModel
from piip.serialization.description import read_description
from piip.serialization.hub import find_model

TOP = 5  # classes of a classifier


@dataclass(frozen=True)
class Settings:
    """Settings of one request.

    Args:
        scale: Factor on the size at which the model sees the image.
        tile: Side of the tiles of a larger image in pixels; 0 takes it whole.
        threshold: Minimum score of a detection to be drawn and counted.
    """

    scale: float = 1.0
    tile: int = 0
    threshold: float = 0.5


class ServedModel(ABC):
    """A saved model on a device.

    Attributes:
        model: The model.
        classes: Names of its classes.
        category_ids: Ids of the classes in files of results.
        options: How images are read.
        mean: Channel means that images are normalised with.
        std: Channel standard deviations.
        is_upright: Whether images are rotated by their EXIF orientation.
        has_threshold: Whether the threshold has an effect.
        has_tiles: Whether images may be cut into tiles.
    """

    model: PyramidModel
    classes: Sequence[str]
    category_ids: Sequence[int]
    options: ReadOptions
    mean: Sequence[float]
    std: Sequence[float]
    is_upright: bool
    has_threshold: bool
    has_tiles: bool

    @abstractmethod
    def prepare(self, image: Image.Image, settings: Settings) -> Tensor:
        """Return the model's input (1, 3, H, W) for an RGB image, or for the first of its tiles."""

    @abstractmethod
    def count_tiles(self, image: Image.Image, settings: Settings) -> int:
        """Return the number of tiles of an image, 1 if it is taken whole."""

    @abstractmethod
    def predict(self, image: Image.Image, settings: Settings) -> Prediction:
        """Return the prediction for an RGB image."""

    def check(self, image: Image.Image, settings: Settings, limits: Limits) -> Tensor:
        """Return the model's input for an image after checking the limits; see `prepare`.

        Args:
            image: The image, RGB.
            settings: The settings.
            limits: The limits.

        Raises:
            ValueError: There are too many tiles, or the input would be too large.
        """
        tiles = self.count_tiles(image, settings)
        if tiles > limits.tiles:
            raise ValueError(f"The image has {tiles} tiles, expected at most {limits.tiles}: choose larger tiles.")
        pixels = image.width * image.height / tiles * settings.scale**2
        most = limits.input_pixels / 1e6
        advice = f"expected at most {most:g} million: choose a smaller scale or tiles."
        # before it is made, as far as that can be told; models that resize every image are checked after it
        if pixels > 4 * limits.input_pixels and self.has_tiles:
            raise ValueError(f"The model would see {pixels / 1e6:.1f} million pixels at once, {advice}")
        batch = self.prepare(image, settings)
        seen = batch.shape[-2] * batch.shape[-1]
        if seen > limits.input_pixels:
            raise ValueError(f"The model would see {seen / 1e6:.1f} million pixels at once, {advice}")
        return batch


class ServedClassifier(ServedModel):
    """A saved classifier.

    Args:
        folder: Its directory.
        description: Contents of its `config.json`.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
    """

    is_upright = False
    has_threshold = False
    has_tiles = False

    def __init__(self, folder: Path, description: dict[str, Any], device: str) -> None:
        self._predictor = ClassPredictor(folder, device=device)
        self.model = self._predictor.model
        self.classes, self.category_ids = self._predictor.classes, self._predictor.category_ids
        self.options = self._predictor.options
        self._transform = read_fields(TransformConfig, description["transform"], f"{folder}/config.json transform")
        self._side = self._transform.input_size or self.model.pretrained_cfg["input_size"][-1]
        self.mean, self.std = self._transform.mean, self._transform.std

    def prepare(self, image: Image.Image, settings: Settings) -> Tensor:
        """Return the transformed image; see `ServedModel.prepare`."""
        batch: Tensor = self._scaled(settings).transform(image)[None]
        return batch

    def count_tiles(self, image: Image.Image, settings: Settings) -> int:
        """Return 1: images are classified whole."""
        return 1

    def predict(self, image: Image.Image, settings: Settings) -> Prediction:
        """Return the most probable classes; see `ServedModel.predict`."""
        return self._scaled(settings).predict(image, top=TOP)[0]

    def _scaled(self, settings: Settings) -> ClassPredictor:
        side = max(1, round(self._side * settings.scale))
        scaled = copy.copy(self._predictor)
        scaled.transform = build_transform(dataclasses.replace(self._transform, input_size=side), train=False)
        return scaled


class ServedDenseModel(ServedModel):
    """A saved detector or segmentor.

    Args:
        folder: Its directory.
        description: Contents of its `config.json`.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
    """

    is_upright = True
    has_tiles = True

    def __init__(self, folder: Path, description: dict[str, Any], device: str) -> None:
        self._predictor = load_dense_predictor(folder, device=device, scales=(1.0,), flip=False)
        self._description = description
        self._name = str(folder)
        self.model = self._predictor.model
        self.has_threshold = self._predictor.model.max_detections > 0
        self.classes, self.category_ids = self._predictor.classes, self._predictor.category_ids
        self.options = self._predictor.options
        config, own = self._predictor.tta.config, self.model.pretrained_cfg
        self.mean, self.std = config.mean or own["mean"], config.std or own["std"]

    def prepare(self, image: Image.Image, settings: Settings) -> Tensor:
        """Return the prepared image or its first tile; see `ServedModel.prepare`."""
        tiles = Tiling(settings.tile).tiles((image.height, image.width)) if settings.tile else []
        part = image.crop(tiles[0]) if len(tiles) > 1 else image
        return self._with(settings).tta(part, {}, 0)[0].image

    def count_tiles(self, image: Image.Image, settings: Settings) -> int:
        """Return the number of tiles of an image; see `ServedModel.count_tiles`."""
        return len(Tiling(settings.tile).tiles((image.height, image.width))) if settings.tile else 1

    def predict(self, image: Image.Image, settings: Settings) -> Prediction:
        """Return detections or a semantic mask in pixels of the image; see `ServedModel.predict`."""
        return self._with(settings).predict(image)[0]

    def _with(self, settings: Settings) -> DensePredictor:
        """Return a predictor with the same model; it costs nothing to make."""
        return DENSE_PREDICTORS[self._predictor.model.task](
            self._predictor.model,
            self._description,
            source=self._name,
            tiling=Tiling(settings.tile) if settings.tile else None,
            scales=(settings.scale,),
            flip=False,
            score_threshold=settings.threshold,
        )


def serve_model(model_dir: str | Path, *, device: str) -> ServedModel:
    """Load a model for the page.

    Args:
        model_dir: A saved model, or "owner/name" on the Hugging Face hub.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ValueError: It is no saved classifier, detector or segmentor.
    """
    folder = find_model(model_dir)
    description = read_description(folder)
    served = ServedDenseModel if "dense" in description else ServedClassifier
    return served(folder, description, device)
