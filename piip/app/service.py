"""Answers for the page: predictions, costs and files, for one request after another."""

from __future__ import annotations

import dataclasses
import html
import json
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from piip.app.limits import Limits, deadline, read_upload
from piip.app.served import ServedModel, Settings, serve_model
from piip.cost import CostReport, estimate_cost
from piip.demo.tasks import TASKS
from piip.explain.inspect import denormalise, whole_parts
from piip.inference.predictions import Prediction
from piip.inference.writer import RESULTS_NAME, write_predictions
from piip.output import write_json
from piip.structures import Size

KEPT_ANSWERS = 50  # files of earlier answers are deleted
SAMPLES = 3  # images per shipped model
BAR_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, 2008
OTHER_COLOUR = "#808080"


@dataclass(frozen=True)
class Answer:
    """What the page shows for one image.

    Args:
        drawn: The image with the prediction drawn.
        legend: Classes with their colours, None if none are needed.
        text: The prediction in words.
        views: The image of every branch with a caption.
        cost: Cost by part, HTML.
        image_file: The drawn image, PNG.
        json_file: The prediction as `piip predict` writes it.
    """

    drawn: Image.Image
    legend: Image.Image | None
    text: str
    views: Sequence[tuple[Image.Image, str]]
    cost: str
    image_file: Path
    json_file: Path


class Service:
    """The models of the page.

    Args:
        models: Directories or hub names by the name that the page shows; None serves the shipped models.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        limits: Limits per request.

    Raises:
        ValueError: A model cannot be loaded.
    """

    def __init__(self, models: Sequence[str] = (), *, device: str = "auto", limits: Limits | None = None) -> None:
        shipped = {name: str(task.assets / "model") for name, task in TASKS.items()}
        chosen = {name: name for name in models} or shipped
        self.limits = limits or Limits()
        self.models: Mapping[str, ServedModel] = {
            name: serve_model(folder, device=device) for name, folder in chosen.items()
        }
        self.samples = [] if models else shipped_samples()
        self._lock = threading.Lock()  # counting costs and predicting use the same modules
        self._costs: dict[tuple[str, Size], CostReport] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="piip-app-")
        self._answers: deque[tempfile.TemporaryDirectory[str]] = deque()

    def predict(self, name: str, path: str | None, settings: Settings) -> Answer:
        """Return the answer for an uploaded image.

        Args:
            name: Name of the model.
            path: The file, None without an image.
            settings: The settings.

        Raises:
            ValueError: There is no image, it is refused, or the prediction takes too long.
        """
        served, image = self._read(name, path)
        with self._lock, deadline(served.model, self.limits.seconds):
            batch = served.check(image, settings, self.limits)
            prediction = served.predict(image, settings)
            images = served.model.get_backbone().pyramid(batch)
        folder = self._new_folder()
        drawn = prediction.draw(image)
        drawn.save(folder / "prediction.png")
        results = _write_results(prediction, folder, served, name=Path(str(path)).name)
        captions = [f"branch {index}: {each.shape[3]} x {each.shape[2]}" for index, each in enumerate(images)]
        views = [denormalise(each, served.mean, served.std) for each in images]
        return Answer(
            drawn,
            prediction.legend(),
            prediction.summary(),
            list(zip(views, captions, strict=True)),
            self.cost(name, path, settings),
            folder / "prediction.png",
            results,
        )

    def cost(self, name: str, path: str | None, settings: Settings) -> str:
        """Return the cost of a prediction as HTML: bars of the multiply-adds by part.

        Args:
            name: Name of the model.
            path: The image, None for the model's nominal square.
            settings: The settings.

        Raises:
            ValueError: The image is refused.
        """
        served = self.models[name]
        side = served.model.get_backbone().image_sizes[-1]
        image = Image.new("RGB", (side, side)) if path is None else self._read(name, path)[1]
        with self._lock:
            batch = served.check(image, settings, self.limits)
            size = (batch.shape[2], batch.shape[3])
            if (name, size) not in self._costs:
                self._costs[name, size] = estimate_cost(served.model, image_size=size)
            report = self._costs[name, size]
        return cost_bars(report, tiles=served.count_tiles(image, settings))

    def _read(self, name: str, path: str | None) -> tuple[ServedModel, Image.Image]:
        if name not in self.models:
            raise ValueError(f"There is no model {name!r}, expected one of {', '.join(self.models)}.")
        if path is None:
            raise ValueError("There is no image: upload one, paste one, use the webcam or choose a sample.")
        served = self.models[name]
        return served, read_upload(path, self.limits, upright=served.is_upright, options=served.options)

    def _new_folder(self) -> Path:
        """Return a folder for the files of an answer, and delete those of old ones."""
        self._answers.append(tempfile.TemporaryDirectory(dir=self._folder.name))
        path = Path(self._answers[-1].name)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popleft().cleanup()
        return path

    def close(self) -> None:
        """Delete the files of all answers."""
        while self._answers:
            self._answers.popleft().cleanup()
        self._folder.cleanup()


def _write_results(prediction: Prediction, folder: Path, served: ServedModel, *, name: str) -> Path:
    """Write the prediction as `piip predict` does, under the name of the uploaded file instead of the server's path."""
    named: Any = dataclasses.replace(prediction, path=str(folder / "prediction.png"))  # type: ignore[type-var]
    list(write_predictions([named], folder, classes=served.classes, category_ids=served.category_ids, draw=False))
    results = folder / RESULTS_NAME
    content = json.loads(results.read_text(encoding="utf-8"))
    for image in content["images"]:
        image |= {"file_name": name, "path": name}
        image.pop("index", None)  # the mask is not downloaded
    write_json(content, results)
    return results


def shipped_samples() -> list[tuple[str, str]]:
    """Return sample images with the names of the shipped models that fit them."""
    samples = []
    for name, task in TASKS.items():
        known = json.loads((task.assets / "truth.json").read_text(encoding="utf-8"))
        files = sorted(known)[:: max(1, len(known) // SAMPLES)][:SAMPLES]
        samples += [(str(task.assets / "images" / file), name) for file in files]
    return samples


def cost_bars(report: CostReport, *, tiles: int = 1) -> str:
    """Return bars of the multiply-adds by part as HTML.

    Args:
        report: Cost of one image or tile.
        tiles: Number of tiles.
    """
    macs = whole_parts(report)
    height, width = report.image_size
    times = f"{tiles} tiles of " if tiles > 1 else ""
    head = f"{times}{width} x {height} pixels: {tiles * report.macs / 1e9:.3g} G multiply-adds"
    most = max(max(macs.values()), 1)
    rows = []
    for index, (name, value) in enumerate(macs.items()):
        colour = BAR_COLOURS[index % len(BAR_COLOURS)] if name.startswith("branch") else OTHER_COLOUR
        label = f"{name} {report.names.get(name, '').split(' @ ')[0]}"
        bar = f'<div style="background:{colour};height:1em;width:{100 * value / most:.1f}%"></div>'
        share = f"{value / max(report.macs, 1):.0%}"
        rows.append(f'<tr><td>{html.escape(label)}</td><td style="width:55%">{bar}</td><td>{share}</td></tr>')
    return f'<div><b>{head}</b><table style="width:100%">{"".join(rows)}</table></div>'
