"""Prediction with an exported detector or segmentor: pictures in, instances or classes of pixels out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from piip.data.dense_transforms import DenseTransformConfig
from piip.data.image_folder import read_rgb, to_rgb
from piip.data.reading import find_images
from piip.data.samples import Batch
from piip.device import pick_device
from piip.fields import read_fields
from piip.heads.dense import PIIPDenseModel
from piip.heads.detection.frames import ImageFrame
from piip.heads.sliding import sliding_probabilities
from piip.hub import find_model
from piip.saving import DTYPES, load_model, read_description
from piip.scores.coco import to_results
from piip.views import ViewTransform, mean_probabilities, with_flips, with_views

RESULTS_NAME = "predictions.json"
DRAWN_SCORE = 0.5  # instances below are written but not drawn


@dataclass(frozen=True)
class DensePrediction:
    """What a model says about one picture.

    Args:
        path: The file, None for a picture in memory.
        values: "boxes", "scores", "labels" and, where the model finds them, "masks" of instances, or "labels" (H, W);
            in pixels of the picture.
    """

    path: str | None
    values: dict[str, Tensor]


class DensePredictor:
    """An exported detector or segmentor, ready for pictures and files.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
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
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> None:
        model_dir = find_model(model_dir)
        description = read_description(model_dir)
        if "dense" not in description or "classes" not in description:
            raise ValueError(f"{model_dir}/config.json has no 'dense' and 'classes', expected a trained dense model.")
        self.device = pick_device(device)
        self.dtype = DTYPES.get(dtype, torch.float32)
        self.model = load_model(model_dir, device=str(self.device), dtype=dtype)  # type: ignore[assignment]
        self.kind = str(description["model"]["head"]["kind"])
        self.classes: list[str] = description["classes"]
        self.detections: list[int] = description.get("detections", [1, 10, 100])
        config = read_fields(DenseTransformConfig, description["dense"], f"{model_dir}/config.json dense")
        config = with_views(config, scales, flip)
        self.views = ViewTransform(config)

    def predict(self, pictures: Sequence[Image.Image]) -> list[DensePrediction]:
        """Return what the model says about pictures in memory, of any size and mode, one after the other."""
        return [DensePrediction(None, self._predict(to_rgb(picture))) for picture in pictures]

    def predict_paths(self, paths: Iterable[str | Path]) -> Iterator[DensePrediction]:
        """Yield what the model says about files, in order.

        Args:
            paths: Files, folders or shell patterns.

        Raises:
            ValueError: Nothing is there, or a file is unreadable.
        """
        for path in find_images(paths):
            yield DensePrediction(str(path), self._predict(read_rgb(path)))

    def _predict(self, picture: Image.Image) -> dict[str, Tensor]:
        return self.run(self._prepare(picture))

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


def write_predictions(
    predictor: DensePredictor, paths: Iterable[str | Path], out: str | Path, *, draw: bool = True
) -> list[dict[str, Any]]:
    """Predict files and write the results: COCO JSON of instances or index PNGs, and drawn pictures.

    Args:
        predictor: The model.
        paths: Files, folders or shell patterns.
        out: Directory for `predictions.json` (instances), `index/NAME.png` (classes) and `drawn/NAME.png`.
        draw: Also draw pictures.

    Returns:
        For every file its path and the number of instances, or the classes found.

    Raises:
        ValueError: Nothing is there, or a file is unreadable.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    report: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, prediction in enumerate(predictor.predict_paths(paths), start=1):
        path = Path(str(prediction.path))
        name = f"{number:04d}_{path.stem}.png"  # files of one name may come from several folders
        if predictor.kind == "upernet":
            report.append(_write_index_map(prediction, predictor.classes, out / "index" / name))
        else:
            results += to_results(prediction.values, number, list(range(len(predictor.classes))))
            report.append({"id": number, "path": str(path), "instances": len(prediction.values["scores"])})
        if draw:
            (out / "drawn").mkdir(exist_ok=True)
            draw_prediction(read_rgb(path), prediction.values).save(out / "drawn" / name)
    if predictor.kind != "upernet":
        content = {"images": report, "classes": predictor.classes, "annotations": results}
        (out / RESULTS_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return report


def _write_index_map(prediction: DensePrediction, classes: Sequence[str], path: Path) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    labels = prediction.values["labels"].to(torch.uint8).numpy()
    Image.fromarray(labels).save(path)
    present, counts = np.unique(labels, return_counts=True)
    shares = {classes[index]: float(count / labels.size) for index, count in zip(present, counts, strict=True)}
    return {"path": str(prediction.path), "index": str(path), "classes": shares}


def draw_prediction(picture: Image.Image, values: dict[str, Tensor], *, score: float = DRAWN_SCORE) -> Image.Image:
    """Return a picture with instances of at least a score outlined and tinted, or with every class tinted.

    Args:
        picture: RGB.
        values: See `DensePrediction`.
        score: Least score of a drawn instance.
    """
    pixels = np.asarray(picture).astype(np.float32)
    if "scores" not in values:
        tints = _colours(int(values["labels"].max()) + 1)[values["labels"].numpy()]
        return Image.fromarray((pixels * 0.5 + tints * 0.5).astype(np.uint8))
    shown = (values["scores"] >= score).nonzero().squeeze(1).tolist()
    colours = _colours(len(shown))
    if "masks" in values:
        for colour, index in zip(colours, shown, strict=True):
            mask = values["masks"][index].numpy()
            pixels[mask] = pixels[mask] * 0.5 + colour * 0.5
    drawn = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for colour, index in zip(colours, shown, strict=True):
        pen.rectangle(values["boxes"][index].tolist(), outline=tuple(int(part) for part in colour))
    return drawn


def _colours(count: int) -> np.ndarray:
    """Return well-separated RGB colours (count, 3), the same ones every time."""
    hues = (np.arange(count) * 0.618034) % 1.0
    channels = [np.abs(((hues * 6 + offset) % 6) - 3) - 1 for offset in (0, 4, 2)]
    return (np.stack(channels, 1).clip(0, 1) * 200 + 55).astype(np.float32)


def prediction_to_dict(prediction: DensePrediction) -> dict[str, Any]:
    """Return boxes, scores and labels as JSON values, without masks."""
    values = {name: value.tolist() for name, value in prediction.values.items() if name != "masks"}
    return {**dataclasses.asdict(dataclasses.replace(prediction, values={})), **values}
