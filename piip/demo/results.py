"""What the demo shows: predictions with their truth, and results recorded after training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from piip.inference.predictions import ClassPrediction


@dataclass(frozen=True)
class DemoPicture:
    """One picture and what the model says about it.

    Args:
        path: The file.
        truth: Its true class, None where nobody knows.
        prediction: What the model says.
    """

    path: str
    truth: str | None
    prediction: ClassPrediction

    @property
    def is_correct(self) -> bool | None:
        """Whether the most probable class is the true one; None where nobody knows."""
        return None if self.truth is None else self.prediction.label == self.truth


@dataclass(frozen=True)
class RecordedModel:
    """A trained model as it was measured on the whole test split.

    Args:
        name: "piip" (the shipped one), "single" (one branch) or "equal" (a pyramid of equal networks).
        recipe: The recipe in this repository that it was trained by.
        seed: The run's seed.
        test_top1: Share of test images whose class comes first, in [0, 1].
        mean_class_top1: Mean of the classes' accuracies, in [0, 1].
        macs: Multiply-adds for one image.
        params: Parameters.
        seconds_per_image: Time for one image on the machine it was recorded on, None if it was not.
    """

    name: str
    recipe: str
    seed: int
    test_top1: float
    mean_class_top1: float
    macs: int
    params: int
    seconds_per_image: float | None = None


def read_recorded(path: Path) -> tuple[RecordedModel, ...]:
    """Read recorded results; further fields of the file are for its readers.

    Args:
        path: JSON list of objects with the fields of `RecordedModel`.

    Raises:
        ValueError: The file is missing, or a field of a row is.
    """
    if not path.is_file():
        raise ValueError(f"There is no {path}, expected the recorded results of the demo's models.")
    fields = [field.name for field in dataclasses.fields(RecordedModel)]
    models = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        try:
            models.append(RecordedModel(**{name: row[name] for name in fields if name in row}))
        except TypeError as error:
            raise ValueError(f"{path}, row {row.get('name')!r}: {error}.") from error
    return tuple(models)
