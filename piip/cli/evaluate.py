"""The commands `piip evaluate` and `piip predict`."""

from __future__ import annotations

import json as json_module
from typing import Any, Literal


def evaluate(
    model_dir: str,
    *,
    data: str,
    split: str = "val",
    images: str | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    dtype: Literal["f32", "bf16"] = "f32",
    on_error: Literal["stop", "skip"] = "stop",
    detections: list[int] | None = None,
    official: bool = False,
    counter: Literal["faster-coco-eval", "pycocotools"] | None = None,
    scales: list[float] | None = None,
    flip: bool | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Measure a trained model: accuracies of a classifier, precision of instances, overlap of classes of pixels.

    Classifiers: --data ROOT --split FOLDER. Instances: --data ROOT --split FILE.json --images FOLDER (COCO format).
    Classes of pixels: --data ROOT --split FOLDER_OF_INDEX_PNGS --images FOLDER (ADE20K layout).

    With --out DIR a report is written: report.md to read, report.json and per_class.csv for programs, plots, and the
    images that went worst. docs/evaluation.md says what each number is.

    Args:
        model_dir: The exported model, RUN/model or RUN/best, or owner/name on the Hugging Face hub.
        data: Folder that the other paths start from.
        split: The split: its folder, its COCO file, or its folder of index PNGs.
        images: Folder of the split's images; not for classifiers.
        batch_size: Images at a time (classifiers).
        workers: Reading processes; 0 reads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: Number format of weights and activations.
        on_error: Stop at an unreadable image, or skip it with a warning that names it (classifiers).
        detections: Three rising limits on instances an image; precision is at the last one. Default: the model's.
        official: Measure detectors as the authors did: limits 100, 300 and 1000 with AP at 100 and everything else
            at 1000, as many instances as the head keeps, one view of each picture, counted by pycocotools.
        counter: Program that counts average precision; both give the same. Default: faster-coco-eval.
        scales: Look at pictures in several sizes, and merge: factors such as 0.75 1 1.25. Default: the model's.
        flip: Also look at pictures flipped left to right, and merge, or not. Default: the model's.
        out: Folder for the report, and for the instances found as COCO writes them (results.json).
        json: Print JSON, with shares in [0, 1].
    """
    options: dict[str, Any] = {"split": split, "workers": workers, "device": device, "dtype": dtype, "out": out}
    of_dense: dict[str, Any] = {
        "official": official,
        "flip": flip,
        "scales": scales,
        "detections": detections,
        "counter": counter,
    }
    if images is not None:
        from piip.evaluation.dense import evaluate_dense, format_dense_report

        dense = evaluate_dense(model_dir, data, images=images, **options, **of_dense)
        print(json_module.dumps(dense.to_dict()) if json else format_dense_report(dense))
        return
    _only_dense(of_dense)
    from piip.evaluation.classification import evaluate as run
    from piip.evaluation.classification import format_report

    report = run(model_dir, data, batch_size=batch_size, on_error=on_error, **options)
    print(json_module.dumps(report.to_dict()) if json else format_report(report))


def _only_dense(options: dict[str, Any]) -> None:
    """Raise ValueError where a classifier gets options of detectors and segmentors."""
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise ValueError(f"{', '.join(given)} are for detectors and segmentors, which need --images FOLDER as well.")


def predict(
    model_dir: str,
    paths: list[str],
    *,
    top: int = 5,
    out: str | None = None,
    tile: int | None = None,
    tile_overlap: float = 0.25,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    dtype: Literal["f32", "bf16"] = "f32",
    on_error: Literal["stop", "skip"] = "stop",
    json: bool = False,
) -> None:
    """Classify image files, find instances in them, or map their pixels, with a trained model.

    Prints a line a picture. With --out DIR also writes DIR/predictions.json (instances as COCO writes them), classes
    of pixels as DIR/index/NAME.png, and what was found as DIR/drawn/NAME.png.

    Args:
        model_dir: The exported model, RUN/model or RUN/best, or owner/name on the Hugging Face hub.
        paths: Image files, folders, or patterns such as "in/**/*.png".
        top: Classes to show for each image, at least 1 (classifiers).
        out: Folder for results and drawn pictures.
        tile: Side in pixels of the overlapping tiles that larger pictures are cut into (detectors and segmentors);
            each is prepared like a picture of its own, so take about the size of the training pictures.
        tile_overlap: Share of a tile's side that neighbours have in common; best wider than an object.
        batch_size: Images at a time (classifiers).
        workers: Reading processes; 0 reads in this process (classifiers).
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: Number format of weights and activations.
        on_error: Stop at an unreadable file, or skip it with a warning that names it.
        json: Print one JSON object a line.
    """
    from piip.inference.predictor import Predictor
    from piip.inference.writer import write_predictions

    predictor = Predictor(model_dir, device=device, dtype=dtype, tile=tile, tile_overlap=tile_overlap)
    rows = predictor.predict_paths(paths, top=top, batch_size=batch_size, workers=workers, on_error=on_error)
    if out is not None:
        rows = write_predictions(rows, out, classes=predictor.classes)
    for row in rows:
        print(json_module.dumps(row.to_dict()) if json else f"{row.path}  {row.summary()}")
