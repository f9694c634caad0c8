"""The command `piip predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Literal

from piip.output import to_json, writable_folder

if TYPE_CHECKING:
    from piip.inference.predictions import Prediction
    from piip.inference.predictor import Predictor
    from piip.inference.ray_actors import RayPool


def predict(
    model_dir: str,
    paths: list[str],
    *,
    top: int | None = None,
    score_threshold: float | None = None,
    out: str | None = None,
    formats: list[Literal["csv", "yolo"]] | None = None,
    tile: int | None = None,
    tile_overlap: float = 0.25,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    dtype: Literal["f32", "bf16"] = "f32",
    on_error: Literal["stop", "skip"] = "skip",
    white_level: int | None = None,
    page: int | None = None,
    runtime: Literal["torch", "onnx", "openvino", "openvino-int8"] = "torch",
    calibrate: str | None = None,
    ray: str | None = None,
    ray_actors: int | None = None,
    json: bool = False,
) -> None:
    """Predict classes, detections or semantic masks of image files with a trained model.

    Print one line per image. With --out DIR also write DIR/predictions.json (COCO format, detections of any score),
    semantic masks as DIR/index/NAME.png, and images with the predictions drawn as DIR/drawn/NAME.png.

    `torchrun --nproc-per-node N -m piip predict ...` shares the images among N processes; the first one prints and
    writes the results of all, in order. `--ray ADDRESS` shares them among the actors of a Ray cluster.

    Args:
        model_dir: The saved model, RUN/model or RUN/best, or owner/name on the Hugging Face hub.
        paths: Image files, folders, or patterns such as "in/**/*.png"; or Parquet files with the images in a column
            "image" (pip install "piip[parquet]").
        top: Number of classes to show per image, at least 1 (classifiers). Default: 5.
        score_threshold: Minimum score of a detection to be counted and drawn, in [0, 1] (detectors). Default: 0.5.
        out: Folder for results and drawn images.
        formats: Files to write to the folder as well: csv (a row per detection or image), yolo (a text file per image).
        tile: Side in pixels of the overlapping tiles that larger images are cut into (detectors and segmentors); each
            tile is prepared like a separate image, so choose about the size of the training images.
        tile_overlap: Overlap of neighbouring tiles as a fraction of their side; choose it wider than an object.
        batch_size: Images per batch (classifiers). Default: 32.
        workers: Data loading processes (classifiers). Default: 0, which loads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: Number format of weights and activations.
        on_error: Stop at an unreadable file, or skip it with a warning that names it; the exit code is then 1.
        white_level: Value of white in images with 16 bits per channel, such as 4095. Default: as in training, or 65535.
        page: Page or frame of image files with several, from 0. Default: as in training, or 0.
        runtime: Where the model runs: PyTorch, ONNX Runtime or OpenVINO (pip install "piip[export]"; on the CPU, f32).
            Each image size is exported once, which takes a minute or less, and kept in the cache folder; of detectors
            and segmentors everything but the head runs there. openvino-int8 computes in int8 after calibration
            (pip install "piip[int8]") and changes results; docs/export.md says by how much.
        calibrate: Folder of images like those to predict on, for --runtime openvino-int8; 100 of them are used.
        ray: Predict by actors of a Ray cluster, each with the model: its address such as "10.0.0.1:6379" or "auto", or
            "local" for actors on this machine (pip install "piip[ray]"). All machines read the files and the model
            under the same names. An actor that dies is replaced and its images are predicted again.
        ray_actors: Number of actors. Default: the GPUs of the cluster, or its processor cores if it has no GPU.
        json: Print one JSON object per line.

    Raises:
        ValueError: --formats without --out, --ray-actors without --ray, or --ray under torchrun.
        SystemExit: Files could not be read; the others were predicted.
    """
    from piip.data.listing import find_images
    from piip.inference.predictor import Predictor
    from piip.inference.processes import joined
    from piip.inference.ray_actors import predict_on_ray

    if formats and out is None:
        raise ValueError("--formats writes files, expected --out DIR with it.")
    if out is not None:
        writable_folder(out)
    pool = _ray_pool(ray, ray_actors, device)
    with joined() as processes:
        if pool is not None and processes.count > 1:
            raise ValueError("--ray and torchrun both share the images, expected one of them.")
        make_predictor = partial(
            Predictor,
            model_dir,
            dtype=dtype,
            tile=tile,
            tile_overlap=tile_overlap,
            score_threshold=score_threshold,
            white_level=white_level,
            page=page,
            runtime=runtime,
            calibrate=calibrate,
        )
        predictor = make_predictor(device=processes.device(device) if ray is None else "cpu")
        files = find_images(paths)
        predict_paths = partial(
            Predictor.predict_paths, top=top, batch_size=batch_size, workers=workers, on_error=on_error
        )
        if pool is None:
            rows = predict_paths(predictor, files, processes=processes)
        else:
            actor, block = partial(make_predictor, device=device), predictor.files_at_once(batch_size)
            rows = predict_on_ray(files, actor, predict_paths, pool, batch_size=block)
        if out is not None and processes.is_first:
            rows = _written(rows, predictor, out, formats or ())
        count = _print(rows, as_json=json, with_ray=pool is not None)
        if processes.is_first and count < len(files):
            print(f"{len(files) - count} of {len(files)} images could not be read and are left out.", file=sys.stderr)
            raise SystemExit(1)


def _ray_pool(address: str | None, actors: int | None, device: str) -> RayPool | None:
    """Return the actors to predict with, None without --ray."""
    from piip.inference.ray_actors import RayPool

    if address is not None:
        return RayPool(address, actors, use_gpus=device != "cpu")
    if actors is not None:
        raise ValueError("--ray-actors is the number of actors on a Ray cluster, expected --ray ADDRESS with it.")
    return None


def _written(
    rows: Iterator[Prediction], predictor: Predictor, out: str, formats: Sequence[str]
) -> Iterator[Prediction]:
    """Yield the predictions and write them."""
    from piip.inference.writer import write_predictions

    return write_predictions(
        rows,
        out,
        classes=predictor.classes,
        category_ids=predictor.category_ids,
        options=predictor.options,
        formats=formats,
    )


def _print(rows: Iterable[Prediction], *, as_json: bool, with_ray: bool) -> int:
    """Print a line per prediction; return how many there are."""
    count, results = 0, sys.stdout
    with redirect_stdout(sys.stderr if with_ray else results):  # Ray prints to the standard output, too
        for count, row in enumerate(rows, start=1):  # noqa: B007
            print(to_json(row.to_dict()) if as_json else f"{row.path}  {row.summary()}", file=results, flush=True)
    return count
