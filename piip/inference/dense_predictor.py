"""Prediction with a saved detector or segmentor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from piip.data.collate import Batch
from piip.data.image_files import read_images
from piip.data.image_reading import ReadOptions, to_rgb, trained_options
from piip.data.orientation import turn_upright
from piip.data.transforms.dense import DenseTransformConfig
from piip.device import pick_device
from piip.export.int8 import Calibration
from piip.export.runtime import in_runtime
from piip.fields import read_fields
from piip.inference.compact_masks import CompactMask, Region
from piip.inference.inputs import ImageInput, named_images
from piip.inference.predictions import SCORE_THRESHOLD, InstancePrediction, Prediction, SemanticPrediction
from piip.inference.sliding_window import sliding_probabilities
from piip.inference.tiling import Detection, Tiling, merge_detections, tile_detections, tiled_labels
from piip.inference.tta import TTATransform, mean_probabilities, with_flips, with_tta
from piip.models import PIIPDenseModel
from piip.serialization.description import read_description
from piip.serialization.hub import find_model
from piip.serialization.load import load_model
from piip.structures import ImageInfo, Size


class DensePredictor(ABC):
    """A saved detector or segmentor that predicts on images and files.

    Args:
        model: The model, in evaluation mode.
        description: Contents of its `config.json`.
        source: Its directory, for messages.
        tiling: Tiling of large images; None predicts on whole images.
        scales: Test-time augmentation: factors on the image size; None uses the model's (`data.dense.test_scales`).
        flip: Test-time augmentation: also predict on flipped images; None uses the model's (`data.dense.flip_test`).
        score_threshold: Minimum score of a detection to be counted and drawn.
        options: How 16-bit and multi-page files are read; None reads them as in training.

    Attributes:
        model: The model, in evaluation mode.
        classes: Names of its classes.
        category_ids: Ids of the classes in the training file (COCO format), otherwise counted from 1.
        options: How 16-bit and multi-page files are read.
        naming: Ends of the names of training images and masks, see `SemanticMasks`.
        palette: RGB colour of every class, from the description, or None.
        max_detections: Limits on detections per image; the last one is used.
        tta: Prepares an image for `run` at every scale.

    Raises:
        ValueError: The model was not trained by this library, or scales are not above 0.
    """

    def __init__(
        self,
        model: PIIPDenseModel,
        description: dict[str, Any],
        *,
        source: str,
        tiling: Tiling | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        options: ReadOptions | None = None,
    ) -> None:
        self.model = model
        self.tiling = tiling
        self.score_threshold = score_threshold
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.classes: list[str] = description["classes"]
        self.category_ids: list[int] = description.get("category_ids", list(range(1, len(self.classes) + 1)))
        self.options = trained_options(description) if options is None else options
        self.naming = (description.get("image_suffix", ""), description.get("mask_suffix", ".png"))
        self.palette: list[list[int]] | None = description.get("palette")
        self.max_detections: list[int] = description.get("detections", [1, 10, 100])
        config = read_fields(DenseTransformConfig, description["dense"], f"{source}/config.json dense")
        self.tta = TTATransform(with_tta(config, scales, flip))

    def predict(self, images: ImageInput | Sequence[ImageInput]) -> list[Prediction]:
        """Return the predictions of images of any size and mode; see `Predictor.predict`.

        Args:
            images: An image, array or path, or several; they are rotated by their EXIF orientation.
        """
        white, named = self.options.white_level, named_images(images, self.options, upright=True)
        return [self._predict(to_rgb(turn_upright(image), white_level=white), path) for path, image in named]

    def predict_paths(self, paths: Iterable[str | Path], *, on_error: str = "skip") -> Iterator[Prediction]:
        """Yield the predictions of files, in order.

        Args:
            paths: Files, folders or shell patterns.
            on_error: "stop" at an unreadable file, or "skip" it with a warning that names it.

        Raises:
            ValueError: There are no images, or a file is unreadable.
        """
        for path, image in read_images(
            paths, on_error=on_error, allow_huge=self.tiling is not None, options=self.options
        ):
            yield self._predict(image, str(path))

    @abstractmethod
    def _predict(self, image: Image.Image, path: str | None) -> Prediction:
        """Return the prediction of an RGB image without EXIF orientation."""

    @abstractmethod
    def run(self, batches: Sequence[Batch], *, max_detections: int | None = None) -> dict[str, Tensor]:
        """Return the prediction of one prepared image, on the CPU; see `DenseHead.predict`.

        Args:
            batches: The image at every scale, from `tta`.
            max_detections: Maximum number of detections; None uses the last of the model's.
        """

    def _tiles(self, shape: Size) -> list[Region]:
        """Return the tiles of an image; empty if it is not tiled."""
        tiles = self.tiling.tiles(shape) if self.tiling is not None else []
        return tiles if len(tiles) > 1 else []

    def _prepare(self, image: Image.Image) -> list[Batch]:
        return self.tta(image, {}, 0)

    def _views(self, batches: Sequence[Batch]) -> list[tuple[Tensor, ImageInfo, bool]]:
        moved = [batch._replace(image=batch.image.to(device=self.device, dtype=self.dtype)) for batch in batches]
        return with_flips(moved, flip=self.tta.config.flip_test)


class DetectionPredictor(DensePredictor):
    """A saved detector, with or without masks; see `DensePredictor`."""

    def _predict(self, image: Image.Image, path: str | None) -> Prediction:
        shape = (image.height, image.width)
        tiles = self._tiles(shape)
        if not tiles:
            values = self.run(self._prepare(image))
            masks = tuple(CompactMask.crop(mask.numpy()) for mask in values["masks"]) if self.has_masks else None
            return self._prediction(path, shape, values["boxes"], values["scores"], values["labels"], masks)
        found: list[Detection] = []
        for tile in tiles:
            found += tile_detections(self.run(self._prepare(image.crop(tile))), tile, shape)
        merged = merge_detections(found, tiles, shape)
        return self._prediction(
            path,
            shape,
            torch.tensor([each.box for each in merged], dtype=torch.float32).view(-1, 4),
            torch.tensor([each.score for each in merged], dtype=torch.float32),
            torch.tensor([each.label for each in merged], dtype=torch.int64),
            tuple(each.mask for each in merged if each.mask is not None) if self.has_masks else None,
        )

    def _prediction(
        self,
        path: str | None,
        shape: Size,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        masks: tuple[CompactMask, ...] | None,
    ) -> InstancePrediction:
        return InstancePrediction(
            path, shape, self.classes, boxes, scores, labels, masks, self.score_threshold, self.category_ids
        )

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return self.model.task == "instance"

    @torch.no_grad()
    def run(self, batches: Sequence[Batch], *, max_detections: int | None = None) -> dict[str, Tensor]:
        """Return the detections of one prepared image, on the CPU; see `DensePredictor.run`."""
        images, image_infos, flipped = zip(*self._views(batches), strict=True)
        limit = max_detections or self.max_detections[-1]
        if len(images) > 1:
            values = self.model.predict_views(images, image_infos, flipped, max_detections=limit)
        else:
            values = self.model.predict(images[0], image_infos, max_detections=limit)[0]
        return {name: value.cpu() for name, value in values.items()}


class SemanticPredictor(DensePredictor):
    """A saved segmentor; see `DensePredictor`."""

    def _predict(self, image: Image.Image, path: str | None) -> Prediction:
        shape = (image.height, image.width)
        if not self._tiles(shape):
            labels = self.run(self._prepare(image))["labels"].to(torch.uint8)
            return SemanticPrediction(path, self.classes, labels, self.palette)

        def probabilities(tile: Region) -> Tensor:
            return self.probabilities(self._prepare(image.crop(tile)))

        assert self.tiling is not None  # there are several tiles
        labels = tiled_labels(probabilities, shape, self.tiling)
        return SemanticPrediction(path, self.classes, labels, self.palette)

    @torch.no_grad()
    def run(self, batches: Sequence[Batch], *, max_detections: int | None = None) -> dict[str, Tensor]:
        """Return "labels" (H, W) of one prepared image, on the CPU; see `DensePredictor.run`."""
        config = self.tta.config
        if config.slide_crop is not None or config.flip_test or len(batches) > 1:
            return {"labels": self.probabilities(batches).max(0).indices}
        ((image, image_info, _),) = self._views(batches)
        return {name: value.cpu() for name, value in self.model.predict(image, [image_info])[0].items()}

    @torch.no_grad()
    def probabilities(self, batches: Sequence[Batch]) -> Tensor:
        """Return the class probabilities of one image, averaged over its views, (K, H, W) on the CPU.

        Args:
            batches: The image at every scale, from `tta`.
        """
        return mean_probabilities(self._probabilities, self._views(batches))[0].cpu()

    def _probabilities(self, image: Tensor, image_info: ImageInfo) -> Tensor:
        config = self.tta.config
        crop = config.slide_crop or max(image.shape[-2:])
        stride = config.slide_stride or crop
        return sliding_probabilities(self.model.segment, image, image_info, crop=crop, stride=stride)


# By the task of the model's head.
DENSE_PREDICTORS: dict[str, type[DensePredictor]] = {
    "detection": DetectionPredictor,
    "instance": DetectionPredictor,
    "semantic": SemanticPredictor,
}


def load_dense_predictor(
    model_dir: str | Path,
    *,
    device: str = "auto",
    dtype: str = "f32",
    tiling: Tiling | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    runtime: str = "torch",
    calibration: Calibration | None = None,
    options: ReadOptions | None = None,
) -> DensePredictor:
    """Load a saved detector or segmentor for prediction.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        tiling: See `DensePredictor`.
        scales: See `DensePredictor`.
        flip: See `DensePredictor`.
        score_threshold: See `DensePredictor`.
        runtime: "torch", "onnx", "openvino" or "openvino-int8"; see `piip.export.runtime.in_runtime`.
        calibration: Images for "openvino-int8".
        options: See `DensePredictor`.

    Raises:
        ValueError: The directory is not a saved detector or segmentor, or scales are not above 0.
    """
    model_dir = find_model(model_dir)
    description = read_description(model_dir)
    if "dense" not in description or "classes" not in description:
        raise ValueError(f"{model_dir}/config.json has no 'dense' and 'classes', expected a trained dense model.")
    model: Any = load_model(model_dir, device=str(pick_device(device)), dtype=dtype)
    fast: Any = in_runtime(model, runtime, calibration=calibration)  # of the same class
    return DENSE_PREDICTORS[model.task](
        fast,
        description,
        source=str(model_dir),
        tiling=tiling,
        scales=scales,
        flip=flip,
        score_threshold=score_threshold,
        options=options,
    )
