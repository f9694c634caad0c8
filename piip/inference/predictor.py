"""Prediction with a saved model of any task: classes, detections or semantic masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from piip.data.image_reading import ReadOptions, trained_options
from piip.data.listing import find_images
from piip.export.int8 import Calibration
from piip.export.runtime import runtime_device
from piip.fields import at_least, at_most
from piip.inference.class_predictor import ClassPredictor
from piip.inference.dense_predictor import DensePredictor, load_dense_predictor
from piip.inference.inputs import ImageInput
from piip.inference.predictions import SCORE_THRESHOLD, Prediction
from piip.inference.processes import ALONE, Processes, shared
from piip.inference.tiling import Tiling
from piip.serialization.base import PyramidModel
from piip.serialization.description import read_description
from piip.serialization.hub import find_model

TOP, BATCH_SIZE = 5, 32  # of classifiers, by default


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
        white_level: Value of white in images with 16 bits per channel, such as 4095; None uses the model's.
        page: Page or frame of image files with several, from 0; None uses the model's.
        runtime: "torch", "onnx" or "openvino" (extra `export`; on the CPU, "f32"), or "openvino-int8" (extra `int8`):
            where the model runs, of detectors and segmentors their backbone. Every new image size is exported once.
        calibrate: Folder of images for "openvino-int8"; 100 of them are used.

    Attributes:
        model: The model, in evaluation mode.
        classes: Names of its classes, in the order of their indices.
        category_ids: Ids of the classes in its training file (COCO format), otherwise counted from 1.

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
        white_level: int | None = None,
        page: int | None = None,
        runtime: str = "torch",
        calibrate: str | Path | None = None,
    ) -> None:
        tiling = Tiling(tile, tile_overlap) if tile is not None else None
        if score_threshold is not None:
            at_least("score_threshold", score_threshold, 0)
            at_most("score_threshold", score_threshold, 1)
        device = runtime_device(device, runtime)
        calibration = Calibration(calibrate) if calibrate is not None else None
        folder = find_model(model_dir)
        trained = trained_options(read_description(folder))
        options = ReadOptions(
            trained.white_level if white_level is None else white_level, trained.page if page is None else page
        )
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
                calibration=calibration,
                options=options,
            )
        else:
            given = {"tile": tile, "scales": scales, "flip": flip, "score_threshold": score_threshold}
            _refuse(given, "detectors and segmentors")
            made = self._classifier = ClassPredictor(
                folder, device=device, dtype=dtype, runtime=runtime, calibration=calibration, options=options
            )
        self._made = made
        self.model: PyramidModel = made.model
        self.classes = made.classes
        self.category_ids = made.category_ids

    def predict(self, images: ImageInput | Sequence[ImageInput], *, top: int | None = None) -> list[Prediction]:
        """Return the predictions for images, of any size and mode.

        Args:
            images: An image or several: Pillow images, arrays uint8 (H, W, 3) in RGB or (H, W) in grey, or paths of
                files. An empty list returns an empty list.
            top: Number of classes to return per image, at least 1 (classifiers); None is 5.

        Returns:
            A `ClassPrediction`, `InstancePrediction` or `SemanticPrediction` per image (`piip.inference.predictions`).

        Raises:
            ValueError: `top` is below 1 or not for this model, or a file is unreadable.
            TypeError: Something is not an image; the message says what to pass.
        """
        if self._dense is not None:
            _refuse({"top": top}, "classifiers")
            return self._dense.predict(images)
        assert self._classifier is not None  # one of the two
        return list(self._classifier.predict(images, top=TOP if top is None else top))

    @property
    def options(self) -> ReadOptions:
        """How 16-bit and multi-page files are read."""
        return self._made.options

    def predict_paths(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        top: int | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        on_error: str = "skip",
        processes: Processes = ALONE,
    ) -> Iterator[Prediction]:
        """Return an iterator over the predictions for files, in order; see `predict`.

        Args:
            paths: Files, folders or shell patterns, or one of them.
            top: Number of classes to return per image, at least 1 (classifiers); None is 5.
            batch_size: Files at a time (classifiers); None is 32.
            workers: Reading processes (classifiers); None or 0 reads in this process.
            on_error: "skip" an unreadable file with a warning that names it, or "stop".
            processes: Processes that share the files: the first one yields the predictions of all, the others none.

        Raises:
            ValueError: There are no images, a file is unreadable, or an option is invalid or not for this model.
        """
        files = find_images(paths)
        block = self.files_at_once(batch_size)
        if self._dense is not None:
            _refuse({"top": top, "batch_size": batch_size, "workers": workers}, "classifiers")
            dense = self._dense
            return shared(files, lambda own: dense.predict_paths(own, on_error=on_error), processes, block=block)
        assert self._classifier is not None  # one of the two
        predict = partial(
            self._classifier.predict_paths,
            top=TOP if top is None else top,
            batch_size=block,
            workers=workers or 0,
            on_error=on_error,
        )
        return shared(files, predict, processes, block=block)

    def files_at_once(self, batch_size: int | None = None) -> int:
        """Return how many files are predicted together; detectors and segmentors take one at a time.

        Args:
            batch_size: As in `predict_paths`.
        """
        return 1 if self._dense is not None else BATCH_SIZE if batch_size is None else batch_size


def _refuse(options: Mapping[str, object], whose: str) -> None:
    """Raise ValueError for options that have no effect on a model, so that none is ignored in silence."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, but only {whose} have this option, this is no such model: remove it.")
