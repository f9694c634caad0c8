"""Prediction with a saved model of any task: classes, detections or semantic masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from piip.data.image_files import find_images, read_batches
from piip.data.image_folder import to_rgb
from piip.data.transforms.classification import TransformConfig, build_transform
from piip.device import pick_device
from piip.export.runtime import TORCH, in_runtime
from piip.fields import at_least, at_most, read_fields
from piip.inference.dense_predictor import DensePredictor, load_dense_predictor
from piip.inference.predictions import SCORE_THRESHOLD, ClassPrediction, Prediction
from piip.inference.tiling import Tiling
from piip.serialization.base import PyramidModel
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
        runtime: "torch", "onnx" or "openvino"; see `piip.export.runtime.in_runtime`.

    Attributes:
        model: The model, in evaluation mode.
        classes: Names of its classes in the order of the logits.
        transform: RGB image -> normalised float (3, H, W).

    Raises:
        ValueError: The directory is not a saved classifier.
    """

    def __init__(
        self, model_dir: str | Path, *, device: str = "auto", dtype: str = "f32", runtime: str = "torch"
    ) -> None:
        model_dir = find_model(model_dir)
        description = read_description(model_dir)
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
        self._run = in_runtime(self.model, runtime)
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

    def predict(self, images: Sequence[Image], *, top: int = 5) -> list[ClassPrediction]:
        """Return the predictions for images in memory, of any size and mode.

        Args:
            images: Images; an empty list returns an empty list.
            top: Classes to return for each, at least 1.

        Raises:
            ValueError: `top` is below 1.
        """
        at_least("top", top, 1)
        if not images:
            return []
        batch = torch.stack([self.transform(to_rgb(image)) for image in images])
        return [self._prediction(None, logits, top) for logits in self.logits(batch)]

    def predict_paths(
        self,
        paths: Iterable[str | Path],
        *,
        top: int = 5,
        batch_size: int = 32,
        workers: int = 0,
        on_error: str = "stop",
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
            files, self.transform, batch_size=batch_size, workers=workers, on_error=on_error
        ):
            for index, logits in zip(indices, self.logits(images), strict=True):
                yield self._prediction(str(files[index]), logits, top)

    def _prediction(self, path: str | None, logits: Tensor, top: int) -> ClassPrediction:
        scores, indices = logits.softmax(0).topk(min(top, len(self.classes)))
        pairs = tuple(
            (self.classes[index], score) for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
        )
        return ClassPrediction(path, pairs[0][0], pairs[0][1], pairs)


class Predictor:
    """A saved classifier, detector or segmentor that predicts on images and files.

    Args:
        model_dir: Written by `piip train`, or the id of a repository on the Hugging Face hub, "owner/name".
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: "f32" or "bf16".
        tile: Detectors and segmentors: side in pixels of the overlapping tiles that larger images are cut into; None
            takes them whole.
        tile_overlap: Overlap of neighbouring tiles as a fraction of their side, in [0, 1).
        scales: Detectors and segmentors: test-time augmentation, factors on the image size; None uses the model's.
        flip: Detectors and segmentors: test-time augmentation, also predict on flipped images; None uses the model's.
        score_threshold: Detectors: minimum score of a detection to be counted and drawn, in [0, 1]; None uses 0.5.
        runtime: "torch", "onnx" or "openvino" (extra `export`; on the CPU, "f32"): where the model runs, of detectors
            and segmentors their backbone. Every new image size is exported once.

    Attributes:
        model: The model, in evaluation mode.
        classes: Names of its classes, in the order of their indices.

    Raises:
        ValueError: The directory is not a saved model, or an option is not for classifiers.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "auto",
        dtype: str = "f32",
        tile: int | None = None,
        tile_overlap: float = 0.25,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        score_threshold: float | None = None,
        runtime: str = "torch",
    ) -> None:
        tiling = Tiling(tile, tile_overlap) if tile is not None else None
        if score_threshold is not None:
            at_least("score_threshold", score_threshold, 0)
            at_most("score_threshold", score_threshold, 1)
        if device == "auto" and runtime != TORCH:
            device = "cpu"
        folder = find_model(model_dir)
        self._dense: DensePredictor | None = None
        self._classifier: ClassPredictor | None = None
        made: DensePredictor | ClassPredictor
        if "dense" in read_description(folder):
            made = self._dense = load_dense_predictor(
                folder,
                device=device,
                dtype=dtype,
                tiling=tiling,
                scales=scales,
                flip=flip,
                score_threshold=SCORE_THRESHOLD if score_threshold is None else score_threshold,
                runtime=runtime,
            )
        else:
            given = {"tile": tile, "scales": scales, "flip": flip, "score_threshold": score_threshold}
            for name, value in given.items():
                if value is not None:
                    raise ValueError(
                        f"{name} is {value}, but {folder} is a classifier, which has no such option; remove {name}."
                    )
            made = self._classifier = ClassPredictor(folder, device=device, dtype=dtype, runtime=runtime)
        self.model: PyramidModel = made.model
        self.classes = made.classes

    def predict(self, images: Sequence[Image], *, top: int = 5) -> Sequence[Prediction]:
        """Return the predictions for images in memory, of any size and mode.

        Args:
            images: Images; an empty list returns an empty list.
            top: Number of classes to return per image, at least 1 (classifiers).

        Returns:
            A `ClassPrediction`, `InstancePrediction` or `SemanticPrediction` per image (`piip.inference.predictions`).

        Raises:
            ValueError: `top` is below 1.
        """
        if self._dense is not None:
            return self._dense.predict(images)
        assert self._classifier is not None  # one of the two
        return self._classifier.predict(images, top=top)

    def predict_paths(
        self,
        paths: Iterable[str | Path],
        *,
        top: int = 5,
        batch_size: int = 32,
        workers: int = 0,
        on_error: str = "stop",
    ) -> Iterator[Prediction]:
        """Return an iterator over the predictions for files, in order; see `predict`.

        Args:
            paths: Files, folders or shell patterns.
            top: Number of classes to return per image, at least 1 (classifiers).
            batch_size: Files at a time (classifiers).
            workers: Reading processes; 0 reads in this process (classifiers).
            on_error: "stop" at an unreadable file, or "skip" it with a warning that names it.

        Raises:
            ValueError: There are no images, a file is unreadable, or `top` is below 1.
        """
        if self._dense is not None:
            return self._dense.predict_paths(paths, on_error=on_error)
        assert self._classifier is not None  # one of the two
        return self._classifier.predict_paths(paths, top=top, batch_size=batch_size, workers=workers, on_error=on_error)
