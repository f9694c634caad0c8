"""The shipped detector or segmentor on real pictures, beside one network alone.

Assets of a task: `model/`, `pictures/`, `truth.json` (what is known of every picture) and `results.json` (see
`RecordedScores`); MODEL_CARD.md says how they were made.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from piip.build import build_model
from piip.config import ModelConfig
from piip.cost.estimate import estimate_cost
from piip.data.image_files import find_images
from piip.data.image_folder import read_rgb
from piip.demo.sheet import Bar, Row, draw_sheet
from piip.inference.predictions import DRAWN_SCORE, InstancePrediction, MapPrediction
from piip.inference.predictor import Predictor

FOLDER = Path(__file__).resolve().parents[1] / "assets"
SIDE = 512  # pixels of the square image that cost and time are compared at
ROUNDS = 7
UNKNOWN = 255


@dataclass(frozen=True)
class Task:
    """What a demo shows.

    Args:
        assets: Folder of its assets in the package.
        title: Heading of the sheet.
        unit: What is counted or measured in every picture.
    """

    assets: str
    title: str
    unit: str


TASKS = {
    "instances": Task("nuclei", "Nuclei in microscope pictures, by an inverted image pyramid", "nuclei"),
    "segmentation": Task("landcover_maps", "Land cover of every pixel, by an inverted image pyramid", "pixels right"),
}


@dataclass(frozen=True)
class Finding:
    """What the model says about one picture.

    Args:
        path: The file.
        size: (H, W) in pixels.
        found: Objects of a score of at least one half, or the largest classes by share.
        truth: Number of objects, or share of known pixels that are right; None where nobody knows.
        seconds: Time from the picture in memory to the answer.
    """

    path: str
    size: tuple[int, int]
    found: int | dict[str, float]
    truth: float | None
    seconds: float


@dataclass(frozen=True)
class ComparedModel:
    """Cost and time of a backbone with its neck; the head is the same in both.

    Args:
        name: "piip" or "single".
        macs: Multiply-adds for a square image of `SIDE` pixels.
        params: Parameters of the whole model.
        seconds: Median time for that image, measured in turn with the other.
        scores: Recorded on the whole test split, empty for a model that was not trained.
    """

    name: str
    macs: int
    params: int
    seconds: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class DenseDemoReport:
    """What the demo found.

    Args:
        task: "instances" or "segmentation".
        findings: One a picture.
        models: The shipped model first.
        figure: The picture that was written.
    """

    task: str
    findings: tuple[Finding, ...]
    models: tuple[ComparedModel, ...]
    figure: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**dataclasses.asdict(self), "figure": str(self.figure)}


def run_dense_demo(
    task: str,
    out: str | Path = "out/demo.png",
    *,
    images: Sequence[str] = (),
    device: str = "auto",
    assets: str | Path | None = None,
) -> DenseDemoReport:
    """Find nuclei, or the land cover of every pixel, in the shipped pictures or the user's own, and draw the result.

    Args:
        task: "instances" or "segmentation".
        out: Picture to write, PNG.
        images: Files, folders or patterns instead of the shipped pictures.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        assets: Folder of the assets; None takes the package's.

    Raises:
        ValueError: The demo's files are missing, or a picture cannot be read.
    """
    folder = FOLDER / TASKS[task].assets if assets is None else Path(assets)
    if not (folder / "model").is_dir():
        raise ValueError(f"This installation has no demo model in {folder}. Train one and use `piip predict`.")
    predictor = Predictor(folder / "model", device=device)
    known = {} if images else json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    paths = find_images(images) if images else [folder / "pictures" / name for name in known]
    rows: list[Row] = []
    findings: list[Finding] = []
    for path in paths:
        picture = read_rgb(path, upright=True)
        if not findings:
            predictor.predict([picture])  # the first pass is slower
        start = time.perf_counter()
        answer = predictor.predict([picture])[0]
        seconds = time.perf_counter() - start
        finding, row = _look(answer, picture, path, known.get(path.name), folder)
        findings.append(dataclasses.replace(finding, seconds=seconds))
        rows.append(row)
    models = compare(predictor.model, json.loads((folder / "results.json").read_text(encoding="utf-8")), device)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(TASKS[task].title, _subtitle(models), rows, _bars(models)).save(out, format="PNG")
    return DenseDemoReport(task, tuple(findings), models, out)


def _look(
    answer: Any, picture: Image.Image, path: Path, known: Mapping[str, Any] | None, folder: Path
) -> tuple[Finding, Row]:
    """Return what is to be said and shown of one picture."""
    shape = (picture.height, picture.width)
    pictures = [picture, answer.draw(picture)]
    if isinstance(answer, InstancePrediction):
        count = int((answer.scores >= DRAWN_SCORE).sum())
        truth = None if known is None else known["count"]
        text = f"{count} nuclei found" + ("" if truth is None else f", {truth} marked by experts")
        return Finding(str(path), shape, count, truth, 0.0), Row(pictures, [path.name, text])
    assert isinstance(answer, MapPrediction)
    shares = dict(sorted(answer.shares().items(), key=lambda pair: -pair[1])[:3])
    text = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in shares.items())
    if known is None:
        return Finding(str(path), shape, shares, None, 0.0), Row(pictures, [path.name, text])
    with Image.open(folder / "pictures" / known["map"]) as stored:
        labels = torch.from_numpy(np.array(stored).astype(np.int64))
    right = float((answer.labels == labels)[labels != UNKNOWN].float().mean())
    drawn = dataclasses.replace(answer, labels=torch.where(labels == UNKNOWN, answer.labels, labels)).draw(picture)
    row = Row([picture, drawn, pictures[1]], [path.name, f"{right:.0%} of the pixels as in the map", text])
    return Finding(str(path), shape, shares, right, 0.0), row


def compare(model: nn.Module, recorded: Sequence[Mapping[str, Any]], device: str) -> tuple[ComparedModel, ...]:
    """Count and time the shipped model's backbone and neck and those of the models recorded beside it, in turn.

    Args:
        model: The shipped model.
        recorded: For each model "name", "scores" and, but for the shipped one, "model", its description.
        device: As in `run_dense_demo`.
    """
    place = next(model.parameters()).device
    others = [build_model(ModelConfig.from_dict(row["model"])).to(place).eval() for row in recorded[1:]]
    models = [model, *others]
    image = torch.zeros(1, 3, SIDE, SIDE, device=place)
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for each, seconds in zip(models, times, strict=True):
                seconds.append(_seconds(each.get_submodule("backbone"), image))
    costs = [estimate_cost(each, image_size=SIDE) for each in models]
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


def _subtitle(models: Sequence[ComparedModel]) -> str:
    first = models[0]
    return (
        f"{first.macs / 1e9:.2f} GMACs of backbone and neck at {SIDE} x {SIDE}, {first.params / 1e6:.1f} M parameters"
    )


def _bars(models: Sequence[ComparedModel]) -> dict[str, list[Bar]]:
    return {
        f"Multiply-adds of backbone and neck at {SIDE} x {SIDE}": [
            Bar(model.name, model.macs / 1e9, f"{model.macs / 1e9:.2f} G") for model in models
        ],
        "Time for them, measured in turn just now": [
            Bar(model.name, model.seconds, f"{model.seconds * 1000:.0f} ms") for model in models
        ],
    }
