"""The command `piip evaluate`."""

from __future__ import annotations

from typing import Any, Literal

from piip.output import to_json


def evaluate(
    model_dir: str,
    *,
    data: str,
    split: str = "val",
    images: str | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    device: str = "auto",
    dtype: Literal["f32", "bf16"] = "f32",
    runtime: Literal["torch", "onnx", "openvino", "openvino-int8"] = "torch",
    calibrate: str | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    max_detections: list[int] | None = None,
    official: bool = False,
    backend: Literal["faster-coco-eval", "pycocotools"] | None = None,
    scales: list[float] | None = None,
    flip: bool | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Evaluate a trained model: accuracy of a classifier, COCO average precision of a detector, mIoU of a segmentor.

    Classifiers: --data ROOT --split FOLDER. Detectors: --data ROOT --split FILE.json --images FOLDER (COCO format).
    Segmentors: --data ROOT --split FOLDER_OF_SEMANTIC_MASKS --images FOLDER (ADE20K layout).

    With --out DIR, write a report: report.md to read, report.json and per_class.csv for programs, plots, and the
    worst-scoring images. docs/evaluation.md explains each number.

    `torchrun --nproc-per-node N -m piip evaluate ...` shares the images among N processes, with the numbers of one.

    Args:
        model_dir: The saved model, RUN/model or RUN/best, or owner/name on the Hugging Face hub.
        data: Folder that the other paths are relative to.
        split: The split: its folder, its COCO file, or its folder of semantic masks.
        images: Folder of the split's images; not for classifiers.
        batch_size: Images per batch (classifiers). Default: 64.
        workers: Data loading processes; 0 loads in this process.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        dtype: Number format of weights and activations.
        runtime: Where the model runs, see `piip predict --help`.
        calibrate: Folder of images for --runtime openvino-int8, not those of the split.
        on_error: Stop at a missing or unreadable image, or skip it with a warning that names it: it does not count.
        max_detections: Three increasing limits on detections per image; precision uses the last. Default: the model's.
        official: Evaluate detectors as the authors did: limits 100, 300 and 1000 with AP at 100 and everything else at
            1000, the head's own maximum number of detections, no test-time augmentation, pycocotools.
        backend: Package that computes average precision; both give the same. Default: faster-coco-eval.
        scales: Test-time augmentation: predict at several sizes and merge; factors such as 0.75 1 1.25. Default: the
            model's.
        flip: Test-time augmentation: also predict on images flipped left to right and merge, or not. Default: the
            model's.
        out: Folder for the report, and for the detections in COCO format (results.json).
        json: Print JSON, with fractions in [0, 1].
    """
    from piip.inference.processes import joined

    options: dict[str, Any] = {"split": split, "workers": workers, "device": device, "dtype": dtype, "out": out}
    options |= {"on_error": on_error, "runtime": runtime, "calibrate": calibrate}
    of_dense: dict[str, Any] = {
        "official": official,
        "flip": flip,
        "scales": scales,
        "max_detections": max_detections,
        "backend": backend,
    }
    if images is None:
        _only_dense(of_dense)
    elif batch_size is not None:
        _refuse("--batch-size", "classifiers; detectors and segmentors take one image at a time")
    with joined() as processes:
        options["processes"] = processes
        if images is not None:
            from piip.evaluation.dense import evaluate_dense, format_dense_report

            dense = evaluate_dense(model_dir, data, images=images, **options, **of_dense)
            text = to_json(dense.to_dict()) if json else format_dense_report(dense)
        else:
            from piip.evaluation.classification import evaluate as run
            from piip.evaluation.classification import format_report

            report = run(model_dir, data, batch_size=batch_size or 64, **options)
            text = to_json(report.to_dict()) if json else format_report(report)
        if processes.is_first:
            print(text)


def _refuse(option: str, whose: str) -> None:
    """Raise ValueError for an option that would have no effect."""
    raise ValueError(f"{option} is for {whose}.")


def _only_dense(options: dict[str, Any]) -> None:
    """Raise ValueError where a classifier gets options of detectors and segmentors."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise ValueError(f"{', '.join(given)} are for detectors and segmentors, which need --images FOLDER as well.")
