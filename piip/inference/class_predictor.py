"""Prediction with a saved classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from piip.data.image_files import read_batches
from piip.data.image_reading import ReadOptions, to_rgb, trained_options
from piip.data.listing import find_images
from piip.data.transforms.classification import TransformConfig, build_transform
from piip.device import pick_device
from piip.export.int8 import Calibration
from piip.export.runtime import in_runtime
from piip.fields import at_least, read_fields
from piip.inference.inputs import ImageInput, named_images
from piip.inference.predictions import ClassPrediction
from piip.serialization.description import read_description
from piip.serialization.hub import find_model
from piip.serialization.load import load_model
from piip.serialization.save import DTYPES


class ClassPredictor:
    """A saved classifier that predicts on images and files.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        runtime: "torch", "onnx", "openvino" or "openvino-int8"; see `piip.export.runtime.in_runtime`.
        calibration: Images for "openvino-int8".
        options: How 16-bit and multi-page files are read; None reads them as in training.

    Attributes:
        model: The model, in evaluation mode.
        classes: Names of its classes in the order of the logits.
        category_ids: Their numbers in files of results, from 1.
        transform: RGB image -> normalised float (3, H, W).

    Raises:
        ValueError: The directory is not a saved classifier.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "auto",
        dtype: str = "f32",
        runtime: str = "torch",
        calibration: Calibration | None = None,
        options: ReadOptions | None = None,
    ) -> None:
        model_dir = find_model(model_dir)
        description = read_description(model_dir)
        if "dense" in description:
            raise ValueError(
                f"{model_dir} is a detector or segmentor, expected a classifier; to evaluate it, give --images FOLDER."
            )
        missing = [name for name in ("classes", "transform") if name not in description]
        if missing:
            raise ValueError(
                f"{model_dir}/config.json has no {' and no '.join(missing)}, expected the directory of a trained "
                "model such as RUN/model."
            )
        self.device = pick_device(device)
        self.dtype = DTYPES.get(dtype, torch.float32)
        self.model = load_model(model_dir, device=str(self.device), dtype=dtype)
        self.classes: list[str] = description["classes"]
        self.category_ids = list(range(1, len(self.classes) + 1))
        self.options = trained_options(description) if options is None else options
        self._run = in_runtime(self.model, runtime, calibration=calibration)
        num_classes = description["model"].get("head", {}).get("num_classes")
        if num_classes != len(self.classes):
            raise ValueError(
                f"{model_dir}/config.json names {len(self.classes)} classes, but its model.head.num_classes is "
                f"{num_classes}: it was changed after `piip train` wrote it."
            )
        config = read_fields(TransformConfig, description["transform"], f"{model_dir}/config.json transform")
        self.transform = build_transform(config, train=False)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits (B, K) on the CPU for transformed images (B, 3, H, W)."""
        result: Tensor = self._run(images.to(device=self.device, dtype=self.dtype))
        return result.float().cpu()

    def predict(self, images: ImageInput | Sequence[ImageInput], *, top: int = 5) -> list[ClassPrediction]:
        """Return the predictions for images of any size and mode; see `Predictor.predict`.

        Args:
            images: An image, array or path, or several; an empty list returns an empty list.
            top: Classes to return for each, at least 1.

        Raises:
            ValueError: `top` is below 1.
        """
        at_least("top", top, 1)
        named = named_images(images, self.options, upright=False)
        if not named:
            return []
        white = self.options.white_level
        batch = torch.stack([self.transform(to_rgb(image, white_level=white)) for _, image in named])
        rows = zip(named, self.logits(batch), strict=True)
        return [self._prediction(path, logits, top) for (path, _), logits in rows]

    def predict_paths(
        self,
        paths: Iterable[str | Path],
        *,
        top: int = 5,
        batch_size: int = 32,
        workers: int = 0,
        on_error: str = "skip",
    ) -> Iterator[ClassPrediction]:
        """Yield the predictions for files, in order.

        Args:
            paths: Files, folders or shell patterns.
            top: Classes to return for each, at least 1.
            batch_size: Files at a time.
            workers: Reading processes; 0 reads in this process.
            on_error: "stop" at an unreadable file, or "skip" it with a warning that names it.

        Raises:
            ValueError: There are no images, a file is unreadable, or `top` is below 1.
        """
        at_least("top", top, 1)
        files = find_images(paths)
        for indices, images in read_batches(
            files, self.transform, batch_size=batch_size, workers=workers, on_error=on_error, options=self.options
        ):
            for index, logits in zip(indices, self.logits(images), strict=True):
                yield self._prediction(str(files[index]), logits, top)

    def _prediction(self, path: str | None, logits: Tensor, top: int) -> ClassPrediction:
        scores, indices = logits.softmax(0).topk(min(top, len(self.classes)))
        pairs = tuple(
            (self.classes[index], score) for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
        )
        return ClassPrediction(path, pairs[0][0], pairs[0][1], pairs)
