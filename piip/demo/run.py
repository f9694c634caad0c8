"""Running the demo: predictions of an included model, cost and time of it and other networks, and the figure."""

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
from piip.demo.tasks import TASKS, DemoTask, Known, Result
from piip.inference.predictor import Predictor
from piip.serialization.base import PyramidModel

ROUNDS = 7


@dataclass(frozen=True)
class DemoImage:
    """One image with its prediction.

    Args:
        path: The file.
        size: (H, W) in pixels.
        result: The prediction.
        seconds: Time from the image in memory to the prediction.
    """

    path: str
    size: tuple[int, int]
    result: Result
    seconds: float


@dataclass(frozen=True)
class ComparedModel:
    """Cost and time of a model; for detectors and segmentors without the head, which is the same for all.

    Args:
        name: "piip", or the name of another network.
        macs: Multiply-adds for one square image of the task's size.
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
        images: Every image with its prediction.
        models: Compared models, the included one first.
        figure: Path of the figure.
    """

    task: str
    images: tuple[DemoImage, ...]
    models: tuple[ComparedModel, ...]
    figure: Path

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy of the images with known target; None if there are none."""
        known = [image.result.accuracy for image in self.images if image.result.accuracy is not None]
        return statistics.fmean(known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        images = [
            {**dataclasses.asdict(image.result), "path": image.path, "size": image.size, "seconds": image.seconds}
            for image in self.images
        ]
        models = [dataclasses.asdict(model) for model in self.models]
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
        task: "instances" (nuclei), "segmentation" or "classification" (land cover).
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
    predictor = Predictor(folder / "model", device=device)
    known: dict[str, Known] = {} if images else json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    paths = find_images(images) if images else [folder / "images" / name for name in known]
    found, tiles, legend = _predict_all(shown, predictor, paths, known, folder / "images")
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    models = compare(predictor.model, recorded, side=shown.side)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet = draw_sheet(shown.title, _subtitle(models[0], shown.side), tiles, _charts(models), shown.layout, legend)
    sheet.save(out, format="PNG")
    return DemoReport(task, tuple(found), models, out)


def _predict_all(
    shown: DemoTask, predictor: Predictor, paths: Sequence[Path], known: Mapping[str, Known], folder: Path
) -> tuple[list[DemoImage], list[Tile], Image.Image | None]:
    """Return results, tiles and legend; the first prediction is repeated, because it is slower."""
    found: list[DemoImage] = []
    tiles: list[Tile] = []
    prediction: Any = None
    for path in paths:
        image = read_rgb(path, upright=True)
        if not found:
            predictor.predict([image])
        start = time.perf_counter()
        prediction = dataclasses.replace(predictor.predict([image], top=shown.top)[0], path=str(path))  # type: ignore[type-var]
        seconds = time.perf_counter() - start
        result = shown.result(prediction, known.get(path.name), folder)
        found.append(DemoImage(str(path), (image.height, image.width), result, seconds))
        tiles.append(shown.tile(image, prediction, result, known.get(path.name), folder))
    return found, tiles, shown.legend(prediction)


def compare(model: PyramidModel, recorded: Sequence[Mapping[str, Any]], *, side: int) -> tuple[ComparedModel, ...]:
    """Count and time the included model and the recorded ones, in alternation.

    Args:
        model: The included model.
        recorded: For each model "name", "scores" and, except for the included one, "model", its description.
        side: Side of the square image in pixels.
    """
    device = next(model.parameters()).device
    others = [build_model(ModelConfig.from_dict(row["model"])).to(device).eval() for row in recorded[1:]]
    models = [model, *others]
    image = torch.zeros(1, 3, side, side, device=device)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for each, seconds in zip(models, times, strict=True):
                seconds.append(_seconds(each.up_to_dense_head(), image))
    costs = [estimate_cost(each.up_to_dense_head(), image_size=side) for each in models]
    return tuple(
        ComparedModel(
            row["name"],
            cost.macs,
            sum(parameter.numel() for parameter in each.parameters()),
            statistics.median(seconds[1:]),
            row["scores"],
        )
        for row, each, cost, seconds in zip(recorded, models, costs, times, strict=True)
    )


def _seconds(run: Callable[[torch.Tensor], Any], image: torch.Tensor) -> float:
    start = time.perf_counter()
    run(image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _subtitle(model: ComparedModel, side: int) -> str:
    return f"{model.macs / 1e9:.2f} GMACs at {side} x {side} pixels, {model.params / 1e6:.1f} M parameters"


def _charts(models: Sequence[ComparedModel]) -> dict[str, list[Bar]]:
    charts = {
        "Multiply-adds": [Bar(model.name, model.macs / 1e9, f"{model.macs / 1e9:.2f} G") for model in models],
        "Time, measured in turn just now": [
            Bar(model.name, model.seconds, f"{model.seconds * 1000:.0f} ms") for model in models
        ],
    }
    name = next(iter(models[0].scores))
    scored = [model for model in models if name in model.scores]
    title = f"{name.replace('_', ' ')}, recorded on the test split"
    charts[title] = [Bar(model.name, model.scores[name], f"{model.scores[name]:.1%}") for model in scored]
    return charts
