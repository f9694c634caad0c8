"""Recipes: one YAML file with everything a training run needs.

A recipe has six sections (`model`, `data`, `regularize`, `optim`, `schedule`, `run`), each a frozen dataclass.
`load_recipe` reads a file and applies dotted overrides ("optim.lr": 1e-3); `save_recipe` writes the resolved recipe
back, so a run can be repeated from the file next to its checkpoints.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from piip.config import ModelConfig
from piip.data.config import DataConfig
from piip.fields import plain, read_fields, set_dotted
from piip.kinds import DATA_KINDS
from piip.recipe.models import NamedModel, OpenModel, full_config, is_described, known_classes, read_model, written_out
from piip.recipe.renamed import with_current_names
from piip.recipe.sections import OptimConfig, RegularizeConfig, RunConfig, ScheduleConfig
from piip.texts import parse_yaml

__all__ = [
    "DataConfig",
    "NamedModel",
    "OpenModel",
    "OptimConfig",
    "Recipe",
    "RegularizeConfig",
    "RunConfig",
    "ScheduleConfig",
    "load_recipe",
    "save_recipe",
]


@dataclass(frozen=True)
class Recipe:
    """A whole training run; see the sections for their fields.

    Args:
        model: A model of the zoo by name, or a description; `head.num_classes` may come from the data set.
        data: Where the images are and how they are read.
        regularize: Mixup, cutmix and label smoothing.
        optim: AdamW and its parameter groups.
        schedule: Length and learning rates.
        run: Output folder, seed, precision, averaging, checkpoints.
    """

    model: NamedModel | OpenModel | ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    regularize: RegularizeConfig = field(default_factory=RegularizeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        self._check_unused()
        if self.regularize.mixes and self.data.batch_size % 2:
            raise ValueError(
                f"data.batch_size is {self.data.batch_size}, expected an even number: mixup and cutmix pair images."
            )
        ends = {"min_lr": self.schedule.min_lr}
        if self.schedule.warmup_epochs or self.schedule.warmup_steps:
            ends["warmup_lr"] = self.schedule.warmup_lr
        peak = self.optim.lr * min(1.0, self.optim.rate_outside_branches)
        for name, rate in ends.items():
            if peak < rate:
                raise ValueError(
                    f"schedule.{name} is {rate}, expected at most the lowest peak rate {peak:g} (optim.lr, times "
                    "optim.rate_outside_branches): lower it, or raise optim.lr."
                )

    def _check_unused(self) -> None:
        """Refuse fields that have no effect on the kind of data."""
        for name in DATA_KINDS[self.data.kind].unused:
            section, _, rest = name.partition(".")
            value, default = getattr(self, section), type(getattr(self, section))()
            for part in rest.split(".") if rest else []:
                value, default = getattr(value, part), getattr(default, part)
            changed = changed_fields(name, value, default)
            if changed:
                raise ValueError(
                    f"{changed[0]} has no effect on data of kind {self.data.kind!r}: remove it, or use another kind of "
                    "data."
                )

    @property
    def known_classes(self) -> int | None:
        """Number of classes of the model, None if the data set defines it."""
        return known_classes(self.model)

    def model_config(self, *, num_classes: int | None = None) -> ModelConfig:
        """Return the full description of the model.

        Args:
            num_classes: Number of classes K if the recipe does not set it; None uses 1000.

        Raises:
            ValueError: An unknown name or field, with the nearest known ones.
        """
        return full_config(self.model, num_classes=num_classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain dicts, lists, numbers and strings."""
        return {**plain(dataclasses.asdict(self)), "model": plain(self.model.to_dict())}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Recipe:
        """Read a recipe from nested mappings.

        Raises:
            ValueError: No `model`, an unknown field (with the nearest known ones), or a value of the wrong kind.
        """
        if "model" not in values:
            raise ValueError("The recipe has no 'model'. Write 'model: {name: NAME}' with a name from `piip list`.")
        sections = {key: value for key, value in with_current_names(values).items() if key != "model"}
        return read_fields(Recipe, sections, "recipe", ready={"model": read_model(values["model"])})


# Fields that resolving a recipe fills in for every kind of data.
FILLED_IN = ("input_size", "mean", "std", "masks")


def changed_fields(name: str, value: Any, default: Any) -> list[str]:
    """Return the dotted names of a section's or field's values that are not the defaults.

    Args:
        name: Dotted name of the section or field.
        value: Its value.
        default: Its default.
    """
    if not dataclasses.is_dataclass(value):
        return [name] if value != default and name.split(".")[-1] not in FILLED_IN else []
    fields = [field.name for field in dataclasses.fields(value)]
    return [
        changed
        for field in fields
        for changed in changed_fields(f"{name}.{field}", getattr(value, field), getattr(default, field))
    ]


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: YAML file.
        overrides: Dotted field names and their values, e.g. {"optim.lr": 1e-3, "model.branches.0.image_size": 64}.

    Raises:
        ValueError: The file is missing or not YAML, a field is unknown, or a value does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe {str(path)!r}. Recipes are YAML files such as those in recipes/.")
    values = parse_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected sections such as 'model:' and 'optim:'.")
    for name, value in sorted((overrides or {}).items(), key=lambda item: is_described(item[0])):
        if is_described(name):
            values["model"] = written_out(values.get("model", {}))
        set_dotted(values, name, value)
    return Recipe.from_dict(values)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a resolved recipe as YAML that `load_recipe` reads back equal."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False, width=120), encoding="utf-8")
    os.replace(temporary, path)  # atomically
