"""The file of a comparison: a base recipe, the models and what they change in it, and the budget."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piip.bench.worker import FORMS
from piip.fields import at_least, get_dotted, merged, nearest_names, one_of, plain, read_fields, set_dotted
from piip.recipe import Recipe
from piip.recipe.models import is_described, written_out
from piip.serialization.save import DTYPES
from piip.texts import parse_yaml

SECTIONS = tuple(section.name for section in dataclasses.fields(Recipe))
LABEL = re.compile(r"\w[\w .,+@()-]*")  # also a folder's name
FAMILY = "family"


@dataclass(frozen=True)
class BudgetConfig:
    """What every model may spend on training; exactly one field.

    Args:
        steps: Optimiser steps.
        epochs: Epochs.
        macs: Multiply-adds: every model gets as many steps as fit, at three times those of its forward pass per image.
    """

    steps: int | None = None
    epochs: int | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"budget has {' and '.join(given) or 'no field'}, expected one of steps, epochs or macs.")
        for name, value in given.items():
            at_least(f"budget.{name}", value, 1)


@dataclass(frozen=True)
class TuningConfig:
    """How the learning rate of a family is chosen from `rates`.

    Args:
        fraction: Length of the runs that try a rate, as a fraction of the budget, in (0, 1]. With 1 the run at the
            chosen rate is one of the comparison's and not repeated.
        models: Label of the model that tries the rates, by family; the first of the family where none is named.
    """

    fraction: float = 1.0
    models: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"tuning.fraction is {self.fraction}, expected a fraction in (0, 1].")


@dataclass(frozen=True)
class SplitConfig:
    """The split that is measured at the end.

    Args:
        split: Its folder, its COCO file, or its folder of semantic masks, relative to `data.root`.
        images: Folder of its images; not for classifiers.
    """

    split: str
    images: str | None = None


@dataclass(frozen=True)
class TimingConfig:
    """How the models are timed once all runs are done; see `piip bench`.

    Args:
        threads: Threads of PyTorch's operations on the CPU.
        repeats: Rounds that count, after the first.
        form: "optimized", "eager", "compiled", "onnx" or "openvino".
        dtype: "f32" or "bf16".
        batch_size: Images per pass.
    """

    threads: int = 1
    repeats: int = 5
    form: str = "optimized"
    dtype: str = "f32"
    batch_size: int = 1

    def __post_init__(self) -> None:
        one_of("bench.form", self.form, FORMS)
        one_of("bench.dtype", self.dtype, DTYPES)
        for name in ("threads", "repeats", "batch_size"):
            at_least(f"bench.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class CompareConfig:
    """A comparison.

    Args:
        recipe: The base: a recipe file, relative to the folder of this file, or its sections.
        models: By label: "family", and the fields that the model changes in the base. Fields are those of the section
            `model`; names that begin with a section of recipes, such as "data.dense.crop", are of the whole recipe.
        budget: What every model may spend on training.
        rates: Learning rates to try, once per family; none keeps `optim.lr` of each recipe.
        tuning: How they are tried.
        seeds: Seeds of the runs, the first is also that of the runs that try rates.
        test: The split that is measured at the end; None measures the validation split.
        metrics: Metrics to report, the headline first; none reports the first that training validates.
        bench: How models are timed; None does not time them.
    """

    recipe: str | Mapping[str, Any]
    models: Mapping[str, Any]
    budget: BudgetConfig
    rates: tuple[float, ...] = ()
    tuning: TuningConfig = field(default_factory=TuningConfig)
    seeds: tuple[int, ...] = (0,)
    test: SplitConfig | None = None
    metrics: tuple[str, ...] = ()
    bench: TimingConfig | None = None

    def __post_init__(self) -> None:
        for label, fields in self.models.items():
            if not LABEL.fullmatch(label):
                raise ValueError(f"models has {label!r}, expected letters, digits and any of ' .,+@()-_'.")
            if not isinstance(fields, Mapping):
                raise ValueError(f"models.{label} is {fields!r}, expected the fields that it changes.")
        if not self.models:
            raise ValueError("models is empty, expected a label and changed fields for every model.")
        for name, values in (("seeds", self.seeds), ("rates", self.rates), ("metrics", self.metrics)):
            if len({*values}) != len(values):
                raise ValueError(f"{name} is {list(values)}, expected different values.")
        if not self.seeds:
            raise ValueError("seeds is empty, expected at least one.")
        if any(rate <= 0 for rate in self.rates):
            raise ValueError(f"rates is {list(self.rates)}, expected values above 0.")
        self._check_tuning()

    def _check_tuning(self) -> None:
        families = self.families()
        for family, label in self.tuning.models.items():
            if family not in families:
                raise ValueError(f"tuning.models has no family {family!r}. {nearest_names(family, [*families])}")
            if label not in families[family]:
                known = ", ".join(families[family])
                raise ValueError(f"tuning.models.{family} is {label!r}, expected a model of the family: {known}.")

    def families(self) -> dict[str, list[str]]:
        """Return the labels of every family, in the order of the file; a model without one is its own."""
        families: dict[str, list[str]] = {}
        for label, fields in self.models.items():
            families.setdefault(str(fields.get(FAMILY, label)), []).append(label)
        return families

    def recipe_values(self, label: str) -> dict[str, Any]:
        """Return the recipe of a model as nested values: the base with the model's changes.

        Args:
            label: A label of `models`.

        Raises:
            ValueError: A name does not fit into the recipe.
        """
        assert not isinstance(self.recipe, str)  # `load_comparison` reads the file
        fields = {name: value for name, value in self.models[label].items() if name != FAMILY}
        fields = {name if name.split(".")[0] in SECTIONS else f"model.{name}": value for name, value in fields.items()}
        values: dict[str, Any] = plain(self.recipe)
        if "model.name" in fields:  # another model of the zoo: nothing of the base's model stays
            values["model"] = {}
        elif any(is_described(name) for name in fields):
            values["model"] = written_out(values.get("model", {}))
        for name, value in fields.items():
            before = get_dotted(values, name)
            is_section = isinstance(before, Mapping) and isinstance(value, Mapping)
            set_dotted(values, name, merged(before, plain(value)) if is_section else plain(value))
        return values


def load_comparison(path: str | Path) -> CompareConfig:
    """Read the file of a comparison, and the base recipe that it names.

    Args:
        path: YAML file.

    Raises:
        ValueError: A file is missing or not YAML, a field is unknown, or a value does not fit.
    """
    path = Path(path)
    config = read_fields(CompareConfig, _sections(path, "comparison"), "comparison")
    if isinstance(config.recipe, str):
        base = _sections(path.parent / config.recipe, "recipe")
        config = dataclasses.replace(config, recipe=base)
    for name in config.recipe:
        if name not in SECTIONS:
            raise ValueError(f"comparison.recipe has no section {name!r}. {nearest_names(str(name), SECTIONS)}")
    return config


def _sections(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"There is no {what} {str(path)!r}, expected a YAML file; see docs/compare.md.")
    values = parse_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected fields such as 'recipe:' and 'models:'.")
    return values
