"""Running the demo: predictions of the included models, cost and time of them and other networks, and the figure."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from piip.build import build_model
from piip.config import ModelConfig
from piip.cost import estimate_cost
from piip.data.image_reading import read_rgb
from piip.data.listing import find_images
from piip.demo.sheet import Bar, Tile, draw_sheet
from piip.demo.tasks import TASKS, Answer, DemoTask, Known, Sample, score_name
from piip.inference.predictor import Predictor
from piip.optimize.rewrite import optimize_for_inference
from piip.serialization.base import PyramidModel

ROUNDS = 7


@dataclass(frozen=True)
class DemoImage:
    """One image with what the included models predict.

    Args:
        path: The file.
        size: (H, W) in pixels.
        answers: Predictions by the name of the model, the pyramid's first.
    """

    path: str
    size: tuple[int, int]
    answers: Mapping[str, Answer]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; of every model what it found, and its seconds."""
        answers = {
            name: {**dataclasses.asdict(answer.result), "seconds": answer.seconds}
            for name, answer in self.answers.items()
        }
        return {"path": self.path, "size": self.size, "answers": answers}


@dataclass(frozen=True)
class ComparedModel:
    """Cost and time of a model.

    Args:
        name: "piip", or the name of another network.
        macs: Multiply-adds for one square image of the task's size, of the part that the task compares.
        params: Parameters of the whole model.
        seconds: Median time for that image, measured in turn with the others.
        scores: Scores recorded on the whole test split; empty for a model that was not trained.
    """

    name: str
    macs: int
    params: int
    seconds: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class DemoReport:
    """Results of the demo.

    Args:
        task: Name of the task.
        images: Every image with its predictions.
        models: Compared models, the included one first.
        figure: Path of the figure.
    """

    task: str
    images: tuple[DemoImage, ...]
    models: tuple[ComparedModel, ...]
    figure: Path

    @property
    def accuracy(self) -> dict[str, float]:
        """Mean accuracy of every included model on the images with known target; empty if there are none."""
        found: dict[str, list[float]] = {}
        for image in self.images:
            for name, answer in image.answers.items():
                if answer.result.accuracy is not None:
                    found.setdefault(name, []).append(answer.result.accuracy)
        return {name: statistics.fmean(values) for name, values in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        models = [dataclasses.asdict(model) for model in self.models]
        images = [image.to_dict() for image in self.images]
        values = {"task": self.task, "accuracy": self.accuracy, "images": images, "models": models}
        return {**values, "figure": str(self.figure)}


def run_demo(
    task: str = "instances",
    out: str | Path = "out/demo.png",
    *,
    images: Sequence[str] = (),
    device: str = "auto",
    assets: str | Path | None = None,
) -> DemoReport:
    """Predict on the included images, or the user's own, and draw the result.

    Args:
        task: "instances" or "segmentation" (nuclei), or "classification" (land cover).
        out: Output figure, PNG.
        images: Files, folders or patterns instead of the included images.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        assets: Folder of the assets; None uses the package's.

    Raises:
        ValueError: The demo's files are missing, or an image cannot be read.
    """
    shown = TASKS[task]
    folder = shown.assets if assets is None else Path(assets)
    if not (folder / "model").is_dir():
        raise ValueError(f"This installation has no demo model in {folder}. Train one and use `piip predict`.")
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    predictors = {
        row["name"]: Predictor(folder / row["folder"], device=device) for row in recorded if row["folder"] is not None
    }
    known: dict[str, Known] = {} if images else json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    paths = find_images(images) if images else [folder / "images" / name for name in known]
    found, tiles, legend = _predict_all(shown, predictors, paths, known, folder / "images")
    included = {name: predictor.model for name, predictor in predictors.items()}
    models = compare(shown, included, recorded)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    report = DemoReport(task, tuple(found), models, out)
    sheet = draw_sheet(shown.title, _subtitle(shown, models[0]), tiles, _charts(report), shown.layout, legend)
    sheet.save(out, format="PNG")
    return report


def _predict_all(
    shown: DemoTask,
    predictors: Mapping[str, Predictor],
    paths: Sequence[Path],
    known: Mapping[str, Known],
    folder: Path,
) -> tuple[list[DemoImage], list[Tile], Image.Image | None]:
    """Return predictions, tiles and legend; the first prediction of a model is repeated, because it is slower."""
    found: list[DemoImage] = []
    tiles: list[Tile] = []
    predictions: dict[str, Any] = {}
    for path in paths:
        sample = Sample(path.name, read_rgb(path, upright=True), known.get(path.name), folder)
        answers = {}
        for name, predictor in predictors.items():
            if not found:
                predictor.predict([sample.image])
            start = time.perf_counter()
            prediction: Any = predictor.predict([sample.image], top=shown.top)[0]
            seconds = time.perf_counter() - start
            predictions[name] = dataclasses.replace(prediction, path=str(path))
            answers[name] = Answer(shown.result(predictions[name], sample), seconds)
        found.append(DemoImage(str(path), (sample.image.height, sample.image.width), answers))
        results = {name: answer.result for name, answer in answers.items()}
        tiles.append(shown.tile(sample, predictions, results))
    return found, tiles, shown.legend(next(iter(predictions.values())))


def compare(
    shown: DemoTask, included: Mapping[str, PyramidModel], recorded: Sequence[Mapping[str, Any]]
) -> tuple[ComparedModel, ...]:
    """Count the included models and the recorded ones, and time them in alternation; on CPUs optimized for inference.

    Args:
        shown: The task.
        included: The included models by name.
        recorded: For each model "name", "scores" and, except for the included ones, "model", its description.
    """
    device = next(next(iter(included.values())).parameters()).device
    models = [
        included.get(row["name"]) or build_model(ModelConfig.from_dict(row["model"])).to(device).eval()
        for row in recorded
    ]
    parts = [shown.compared_part(model) for model in models]
    image = torch.zeros(1, 3, shown.side, shown.side, device=device)
    # Compiling for a GPU would take minutes.
    runs = [optimize_for_inference(part, image) if device.type == "cpu" else part for part in parts]
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for run, seconds in zip(runs, times, strict=True):
                seconds.append(_seconds(run, image))
    return tuple(
        ComparedModel(
            row["name"],
            estimate_cost(part, image_size=shown.side).macs,
            sum(parameter.numel() for parameter in model.parameters()),
            statistics.median(seconds[1:]),
            row["scores"],
        )
        for row, model, part, seconds in zip(recorded, models, parts, times, strict=True)
    )


def _seconds(run: Callable[[torch.Tensor], Any], image: torch.Tensor) -> float:
    start = time.perf_counter()
    run(image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _subtitle(shown: DemoTask, model: ComparedModel) -> str:
    size = f"{shown.side} x {shown.side} pixels"
    cost = f"The pyramid: {model.macs / 1e9:.2f} GMACs at {size} ({shown.part}), {model.params / 1e6:.1f} M parameters"
    return f"{cost}\n{shown.note}"


def _charts(report: DemoReport) -> dict[str, list[Bar]]:
    models = report.models
    charts = {
        "Multiply-adds": [Bar(model.name, model.macs / 1e9, f"{model.macs / 1e9:.2f} G") for model in models],
        "Time, measured in turn just now": [
            Bar(model.name, model.seconds, f"{model.seconds * 1000:.0f} ms") for model in models
        ],
    }
    name = next(iter(models[0].scores))
    scored = [model for model in models if name in model.scores]
    title = f"{score_name(name)}, recorded on the test split"
    charts[title] = [Bar(model.name, model.scores[name], f"{model.scores[name]:.1%}") for model in scored]
    return charts
