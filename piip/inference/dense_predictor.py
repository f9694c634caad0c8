"""Prediction with an exported detector or segmentor: pictures in, instances or classes of pixels out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from piip.data.collate import Batch
from piip.data.image_files import read_pictures
from piip.data.image_folder import to_rgb
from piip.data.orientation import turn_upright
from piip.data.transforms.dense import DenseTransformConfig
from piip.device import pick_device
from piip.fields import read_fields
from piip.heads.image_info import ImageFrame
from piip.inference.compact_masks import MaskPiece, Region
from piip.inference.predictions import InstancePrediction, MapPrediction, Prediction
from piip.inference.sliding_window import sliding_probabilities
from piip.inference.tiling import Found, Tiling, merge_objects, objects_of, tiled_labels
from piip.inference.tta import ViewTransform, mean_probabilities, with_flips, with_views
from piip.models import PIIPDenseModel
from piip.serialization.hub import find_model
from piip.serialization.load import DTYPES, load_model, read_description


class DensePredictor:
    """An exported detector or segmentor, ready for pictures and files.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        tiling: How pictures larger than a tile are cut; None takes them whole.
        scales: Factors on the size that pictures are looked at with; None takes the model's, which are 1 alone unless
            `data.dense.test_scales` said otherwise.
        flip: Also look at every picture flipped left to right; None takes the model's (`data.dense.flip_test`).

    Attributes:
        model: The model, in evaluation mode.
        kind: Its head: "mask_rcnn", "dino" or "upernet".
        classes: Names of its classes.
        detections: Limits on instances a picture; the last one is used.
        views: Prepares a picture for `run`, once for every scale.

    Raises:
        ValueError: The directory is no exported detector or segmentor, or scales are not above 0.
    """

    model: PIIPDenseModel

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "auto",
        dtype: str = "f32",
        tiling: Tiling | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> None:
        model_dir = find_model(model_dir)
        description = read_description(model_dir)
        if "dense" not in description or "classes" not in description:
            raise ValueError(f"{model_dir}/config.json has no 'dense' and 'classes', expected a trained dense model.")
        self.tiling = tiling
        self.device = pick_device(device)
        self.dtype = DTYPES.get(dtype, torch.float32)
        self.model = load_model(model_dir, device=str(self.device), dtype=dtype)  # type: ignore[assignment]
        self.kind = str(description["model"]["head"]["kind"])
        self.classes: list[str] = description["classes"]
        self.detections: list[int] = description.get("detections", [1, 10, 100])
        config = read_fields(DenseTransformConfig, description["dense"], f"{model_dir}/config.json dense")
        config = with_views(config, scales, flip)
        self.views = ViewTransform(config)

    def predict(self, pictures: Sequence[Image.Image]) -> list[Prediction]:
        """Return what the model says about pictures in memory, of any size and mode, one after the other.

        Args:
            pictures: Those with an EXIF orientation are turned upright first.
        """
        return [self._predict(to_rgb(turn_upright(picture)), None) for picture in pictures]

    def predict_paths(self, paths: Iterable[str | Path], *, on_error: str = "stop") -> Iterator[Prediction]:
        """Yield what the model says about files, in order.

        Args:
            paths: Files, folders or shell patterns.
            on_error: "stop" at an unreadable file, or "skip" it with a warning that names it.

        Raises:
            ValueError: Nothing is there, or a file is unreadable.
        """
        for path, picture in read_pictures(paths, on_error=on_error, allow_huge=self.tiling is not None):
            yield self._predict(picture, str(path))

    def _predict(self, picture: Image.Image, path: str | None) -> Prediction:
        shape = (picture.height, picture.width)
        tiles = self.tiling.tiles(shape) if self.tiling is not None else []
        if self.model.finds == ("class",):
            labels = self._labels(picture) if len(tiles) < 2 else self._tiled_labels(picture, shape)
            return MapPrediction(path, self.classes, labels)
        if len(tiles) < 2:
            return self._instances(self.run(self._prepare(picture)), path, shape)
        found: list[Found] = []
        for tile in tiles:
            found += objects_of(self.run(self._prepare(picture.crop(tile))), tile, shape)
        objects = merge_objects(found, tiles, shape)
        return InstancePrediction(
            path,
            shape,
            self.classes,
            boxes=torch.tensor([each.box for each in objects], dtype=torch.float32).view(-1, 4),
            scores=torch.tensor([each.score for each in objects], dtype=torch.float32),
            labels=torch.tensor([each.label for each in objects], dtype=torch.int64),
            masks=tuple(each.mask for each in objects if each.mask is not None) if self.has_masks else None,
        )

    def _instances(self, values: dict[str, Tensor], path: str | None, shape: tuple[int, int]) -> InstancePrediction:
        masks = tuple(MaskPiece.cut(mask.numpy()) for mask in values["masks"]) if self.has_masks else None
        return InstancePrediction(path, shape, self.classes, values["boxes"], values["scores"], values["labels"], masks)

    def _labels(self, picture: Image.Image) -> Tensor:
        return self.run(self._prepare(picture))["labels"].to(torch.uint8)

    def _tiled_labels(self, picture: Image.Image, shape: tuple[int, int]) -> Tensor:
        def probabilities(tile: Region) -> Tensor:
            return self.probabilities(self._prepare(picture.crop(tile)))

        assert self.tiling is not None  # there are several tiles
        return tiled_labels(probabilities, shape, self.tiling)

    @property
    def has_masks(self) -> bool:
        """Whether instances have masks."""
        return "mask" in self.model.finds

    def _prepare(self, picture: Image.Image) -> list[Batch]:
        return self.views(picture, {}, 0)

    @torch.no_grad()
    def run(self, batches: Sequence[Batch], *, most: int | None = None) -> dict[str, Tensor]:
        """Return what the model says about one prepared picture, on the CPU.

        Args:
            batches: The picture at every scale, from `views`.
            most: Instances kept; None takes the last of `detections`.
        """
        config = self.views.config
        if self.kind == "upernet" and (config.slide_crop is not None or config.flip_test or len(batches) > 1):
            return {"labels": self.probabilities(batches).argmax(0)}
        images, frames, flipped = zip(*self._all_views(batches), strict=True)
        most = most or self.detections[-1]
        if len(images) > 1:
            values = self.model.predict_views(images, frames, flipped, most=most)
        else:
            values = self.model.predict(images[0], frames, most=most)[0]
        return {name: value.cpu() for name, value in values.items()}

    @torch.no_grad()
    def probabilities(self, batches: Sequence[Batch]) -> Tensor:
        """Return the probabilities of classes of one prepared picture, mean of its views, (K, H, W) on the CPU.

        Args:
            batches: The picture at every scale, from `views`.
        """
        return mean_probabilities(self._probabilities, self._all_views(batches))[0].cpu()

    def _all_views(self, batches: Sequence[Batch]) -> list[tuple[Tensor, ImageFrame, bool]]:
        moved = [batch._replace(image=batch.image.to(device=self.device, dtype=self.dtype)) for batch in batches]
        return with_flips(moved, flip=self.views.config.flip_test)

    def _probabilities(self, image: Tensor, frame: ImageFrame) -> Tensor:
        config = self.views.config
        crop = config.slide_crop or max(image.shape[-2:])
        return sliding_probabilities(self.model.segment, image, frame, crop=crop, stride=config.slide_stride or crop)
