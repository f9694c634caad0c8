"""`explain_image`: run a model on an image with hooks, once as it is and once without each branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piip.cost import CostReport, estimate_cost
from piip.data.image_reading import AS_STORED, to_rgb
from piip.data.orientation import turn_upright
from piip.data.transforms.classification import TransformConfig, build_transform
from piip.demo.tasks import TASKS
from piip.device import pick_device
from piip.explain.changes import CHANGES
from piip.explain.explanation import BranchView, Explanation, Removal
from piip.explain.recording import Position, Recording, read_gates
from piip.explain.removal import parts_with_shares, without_branch
from piip.inference.inputs import ImageInput, NamedImage, named_images
from piip.inference.predictions import Prediction
from piip.inference.predictor import Predictor
from piip.serialization.base import PyramidModel
from piip.serialization.description import read_description
from piip.serialization.hub import find_model
from piip.serialization.load import load_model

QUERIES = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
DEFAULT_TASK = "instances"  # of the demo, whose model is used without --model


@dataclass(frozen=True)
class Subject:
    """A model with an image to run on.

    Args:
        model: The model.
        name: Its directory or kind.
        mean: Channel means that the image was normalised with.
        std: Channel standard deviations.
        image: The image, RGB.
        path: Its file, None for an image in memory.
        run: Run the model; returns the prediction, None without a task.
        notes: What is missing and why.
    """

    model: PyramidModel
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    image: Image.Image
    path: str | None
    run: Callable[[], Prediction | None]
    notes: tuple[str, ...] = ()


def explain_image(
    image: ImageInput,
    model: str | Path | PyramidModel | None = None,
    *,
    device: str = "auto",
    queries: Sequence[Position] = QUERIES,
) -> Explanation:
    """Show what a pyramid does with one image; nothing is drawn yet, see `write_page`.

    Args:
        image: A Pillow image, an array uint8 (H, W, 3) in RGB, or a path.
        model: A saved model, "owner/name" on the Hugging Face hub, or a model in memory, of which only the backbone is
            explained; None uses the shipped detector of nuclei.
        device: "auto", "cpu", "cuda" or "cuda:INDEX"; a model in memory stays where it is.
        queries: Positions (x, y) relative to the image whose sampling points are recorded, in [0, 1].

    Raises:
        ValueError: The image is unreadable, the model cannot be loaded, or a query is outside the image.

    Example:
        >>> explanation = explain_image("cells.png", "runs/nuclei/best")
        >>> [view.share for view in explanation.branches]
    """
    if not queries or not all(0 <= value <= 1 for query in queries for value in query):
        raise ValueError(f"queries is {queries!r}, expected positions (x, y) relative to the image, in [0, 1].")
    subject = _subject(image, model, device)
    recording = Recording(subject.model, queries)
    with recording.running():
        prediction = subject.run()
    gates = read_gates(subject.model)
    cost = estimate_cost(subject.model, image_size=recording.image_size)
    macs = whole_parts(cost)
    removals, reasons = _removals(subject, prediction)
    return Explanation(
        subject.path,
        subject.name,
        _views(subject, recording, cost),
        macs,
        recording.points,
        recording.features,
        gates,
        subject.image,
        prediction,
        removals,
        (*subject.notes, *_notes(recording, has_gates=bool(gates)), *reasons),
    )


def _subject(image: ImageInput, model: str | Path | PyramidModel | None, device: str) -> Subject:
    if model is not None and not isinstance(model, (str, Path)):
        return _bare(image, model.get_backbone(), model.title, "The model is in memory, without its transform")
    folder = find_model(TASKS[DEFAULT_TASK].assets / "model" if model is None else model)
    description = read_description(folder)
    transform = description.get("transform") or description.get("dense")
    if transform is None or "classes" not in description:
        backbone = load_model(folder, device=str(pick_device(device))).get_backbone()
        return _bare(image, backbone, str(folder), "The model directory names no classes with a transform")
    is_dense = "dense" in description
    scales: tuple[float, ...] | None = (1.0,) if is_dense else None
    predictor = Predictor(folder, device=device, scales=scales, flip=False if is_dense else None)
    top = None if is_dense else len(predictor.classes)
    ((path, stored),) = _single(named_images(image, predictor.options, upright=is_dense))
    picture = to_rgb(turn_upright(stored) if is_dense else stored, white_level=predictor.options.white_level)

    def run() -> Prediction:
        return predictor.predict([picture], top=top)[0]

    own = predictor.model.pretrained_cfg
    mean, std = (transform.get(name) or own[name] for name in ("mean", "std"))
    return Subject(predictor.model, str(folder), mean, std, picture, path, run)


def _bare(image: ImageInput, backbone: PyramidModel, name: str, reason: str) -> Subject:
    """Return a backbone that runs on the central square of the image at its nominal size, as timm evaluates."""
    facts = backbone.pretrained_cfg
    mean, std, side = tuple(facts["mean"]), tuple(facts["std"]), facts["input_size"][-1]
    ((path, stored),) = _single(named_images(image, AS_STORED, upright=True))
    transform = build_transform(TransformConfig(input_size=side, mean=mean, std=std, crop_pct=1.0), train=False)
    parameter = next(backbone.parameters())
    picture = to_rgb(turn_upright(stored))
    batch = transform(picture)[None].to(device=parameter.device, dtype=parameter.dtype)

    def run() -> None:
        was_training = backbone.training
        backbone.eval()
        with torch.inference_mode():
            backbone(batch)
        backbone.train(was_training)

    note = f"{reason}: there is no result, and the backbone sees the central square of the image at {side} pixels."
    return Subject(backbone, name, mean, std, picture, path, run, (note,))


def _single(named: list[NamedImage]) -> list[NamedImage]:
    if len(named) != 1:
        raise ValueError(f"There are {len(named)} images, expected one: each is explained on its own.")
    return named


def whole_parts(cost: CostReport) -> dict[str, int]:
    """Return the multiply-adds by part, those of a head's parts together.

    Args:
        cost: Cost of a model.
    """
    macs: dict[str, int] = {}
    for name, part in cost.parts.items():
        whole = name.split(": ")[0]
        macs[whole] = macs.get(whole, 0) + part.macs
    return macs


def _views(subject: Subject, recording: Recording, cost: CostReport) -> list[BranchView]:
    assert recording.image is not None  # the model ran
    views = []
    for index, image in enumerate(subject.model.get_backbone().pyramid(recording.image)):
        part = f"branch {index}"
        macs = cost.parts[part].macs
        network = cost.names.get(part, "").split(" @ ")[0]  # the size is that of this image
        views.append(BranchView(network, denormalise(image, subject.mean, subject.std), macs, macs / max(cost.macs, 1)))
    return views


def denormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Return a normalised image as RGB.

    Args:
        image: The image, (1, 3, H, W).
        mean: Channel means that it was normalised with.
        std: Channel standard deviations.
    """
    shift, factor = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = ((image[0] * factor + shift).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.astype(np.uint8))


def _removals(subject: Subject, prediction: Prediction | None) -> tuple[list[Removal], list[str]]:
    """Return the results without each branch, and why there are none."""
    count = len(subject.model.get_backbone().branches)
    if prediction is None or count == 1:
        return [], []
    if not parts_with_shares(subject.model):
        return [], ["The parts that combine the branches do not add their shares: no branch can be taken away."]
    removals = []
    for branch in range(count):
        with without_branch(subject.model, branch):
            other = subject.run()
        assert other is not None  # as the first time
        removals.append(Removal(branch, CHANGES[type(prediction)](prediction, other), other))
    return removals, []


def _notes(recording: Recording, *, has_gates: bool) -> list[str]:
    notes = []
    if len(recording.model.get_backbone().branches) == 1:
        notes.append("There is one branch: nothing is exchanged, and there is nothing to take away.")
    elif not recording.points and has_gates:
        notes.append("Attention is dense: every position reads all others, so there are no sampling points.")
    if recording.passes > 1:
        notes.append(f"The image is predicted in {recording.passes} windows: images and features are of the first one.")
    return notes
