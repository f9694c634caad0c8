"""Published data of the authors' 50 models."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from piip.fields import nearest_names

MAIN_RESULTS = {
    "classification": "Top-1 Acc",
    "detection": "Box mAP",
    "segmentation": "mIoU",
    "multimodal": "Avg",
}
FACTS = (
    "Model",
    "Backbone",
    "Detector",
    "Pretrain",
    "Resolution",
    "Schd",
    "Vision Encoder",
    "LLM",
    "Data",
    "Training Time",
)


@dataclass(frozen=True)
class PublishedTable:
    """One row of the authors' tables.

    Args:
        table: Heading of the table.
        source: File of the authors' repository that holds it.
        row: Column to text, verbatim.
    """

    table: str
    source: str
    row: Mapping[str, str]


@dataclass(frozen=True)
class PublishedModel:
    """Published data of one of the authors' models.

    Args:
        name: Our name.
        record: Name of the official record.
        task: "classification", "detection", "segmentation" or "multimodal".
        config_file: Configuration in the authors' repository.
        head: Head in the authors' configuration.
        tables: Table rows of the model, none for two models.
        file: URL of its weights, None if the authors link none: a file, or for multimodal models a repository.
        evaluation: "images" (how they are sized) and channel "mean" and "std" for RGB in [0, 1]; of detectors and
            segmentors also "dense", the same sizes as fields of `DenseTransformConfig`.
        training: Length and batch size.
        note: Note on comparability.
    """

    name: str
    record: str
    task: str
    config_file: str
    head: str
    tables: tuple[PublishedTable, ...]
    file: str | None
    evaluation: Mapping[str, Any]
    training: str
    note: str = ""

    @property
    def results(self) -> dict[str, str]:
        """Measured results of the first table, e.g. {"Box mAP": "43.6", "Mask mAP": "38.7"}; empty where none."""
        row = self.tables[0].row if self.tables else {}
        return {
            column: value
            for column, value in row.items()
            if column not in FACTS and not column.startswith("#") and value != "-"
        }

    @property
    def main_result(self) -> str:
        """The task's main metric with its value, e.g. "Box mAP 43.6"; empty where none is published."""
        metric = MAIN_RESULTS[self.task]
        return f"{metric} {self.results[metric]}" if metric in self.results else ""

    @property
    def flops(self) -> str:
        """Published cost as printed, e.g. "243G" multiply-adds by the authors' count; empty where none."""
        return self._column("#FLOPs")

    @property
    def params(self) -> str:
        """Published number of backbone parameters as printed, e.g. "146M"; empty where none."""
        return self._column("#Param")

    def _column(self, name: str) -> str:
        return next((table.row[name] for table in self.tables if name in table.row), "")

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {
            "name": self.name,
            "record": self.record,
            "task": self.task,
            "results": self.results,
            "flops": self.flops or None,
            "params": self.params or None,
            "file": self.file,
            "config_file": self.config_file,
            "head": self.head,
            "evaluation": dict(self.evaluation),
            "training": self.training,
            "note": self.note,
        }


@functools.cache
def published_models() -> tuple[PublishedModel, ...]:
    """Return all 50 models in the order of the authors' tasks."""
    text = files("piip.zoo").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(_read(record, values) for record, values in json.loads(text)["models"].items())


def published_results(name: str) -> PublishedModel:
    """Return the published data of a model.

    Args:
        name: Our name or the official record's.

    Raises:
        ValueError: A model that the authors did not publish, with the nearest names.
    """
    by_name = {key: model for model in published_models() for key in (model.name, model.record)}
    if name not in by_name:
        raise ValueError(f"The authors published no model called {name!r}. {nearest_names(name, list(by_name))}")
    return by_name[name]


def _read(record: str, values: Mapping[str, Any]) -> PublishedModel:
    tables = tuple(PublishedTable(**table) for table in values["tables"])
    return PublishedModel(**{**values, "record": record, "tables": tables})


def published_facts(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the authors' figures for a converted model's card.

    Args:
        metadata: Of the model: "name" and "converted", the files that `piip convert` read.

    Returns:
        "record", the authors' name, and "results", empty where they do not hold for these weights; None for a model
        that the authors did not publish.
    """
    name = metadata.get("name", "")
    model = next((model for model in published_models() if name in (model.name, model.record)), None)
    if model is None:
        return None
    is_whole = all(item.get("branch") is None for item in metadata["converted"])
    is_theirs = model.task != "classification" or name == model.record  # by our names classifiers read otherwise
    return {"record": model.record, "results": model.results if is_whole and is_theirs else {}}
