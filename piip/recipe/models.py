"""The section `model` of a recipe: a name with changes, or a description with optional number of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from piip.config import ModelConfig
from piip.fields import merged, nearest_names, plain, read_fields


@dataclass(frozen=True)
class NamedModel:
    """A model of the zoo, with changes.

    Args:
        name: One of `piip.list_models()`.
        num_classes: Number of classes K of a new head; None uses that of the training data.
        pretrained_branches: Load the pretrained weights of each branch through timm.
        overrides: Fields of `ModelConfig` to change; in YAML they are at the level of `name`. `branches` may give
            fields of single branches by number: {0: {frozen: true}}.
    """

    name: str
    num_classes: int | None = None
    pretrained_branches: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields at one level, as in YAML."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        overrides = values.pop("overrides")
        return {**values, **overrides}

    def description(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig`; `head.num_classes` is None if the data set defines it.

        Raises:
            ValueError: An unknown name or field, with the nearest known ones.
        """
        from piip.zoo.create import model_config

        values = merged(model_config(self.name).to_dict(), {"head": {"num_classes": None}})
        values = merged(values, {**self.overrides, **_changed_branches(values["branches"], self.overrides)})
        for name, kind in (("head", Mapping), ("branches", (list, tuple))):
            if not isinstance(values[name], kind):
                raise ValueError(f"recipe.model.{name} is {values[name]!r}, expected fields of ModelConfig.{name}.")
        if self.num_classes is not None:
            values["head"]["num_classes"] = self.num_classes
        if self.pretrained_branches:
            values["branches"] = [
                {**branch, "pretrained": True} if isinstance(branch, Mapping) else branch
                for branch in values["branches"]
            ]
        return values


@dataclass(frozen=True)
class OpenModel:
    """A full description without the number of classes, which the training data define.

    Args:
        config: The description; its `head.num_classes` is ignored.
    """

    config: ModelConfig

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig`, with None for the number of classes."""
        return self.description()

    def description(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig`, with None for the number of classes."""
        values: dict[str, Any] = merged(plain(self.config.to_dict()), {"head": {"num_classes": None}})
        return values


def read_model(values: Any) -> NamedModel | OpenModel | ModelConfig:
    """Read the section `model` of a recipe: a name, a name with changed fields, or a description.

    Raises:
        ValueError: An unknown field, with the nearest known ones, or a value of the wrong kind.
    """
    if isinstance(values, str) or (isinstance(values, Mapping) and "name" in values):
        return _read_named(values)
    if not isinstance(values, Mapping):
        raise ValueError(f"recipe.model is {values!r}, expected 'name: NAME' or the fields of ModelConfig.")
    return _read_description(values)


def _read_named(values: str | Mapping[str, Any]) -> NamedModel:
    if isinstance(values, str):
        return NamedModel(values)
    own = [f.name for f in dataclasses.fields(NamedModel) if f.name != "overrides"]
    allowed = own + [f.name for f in dataclasses.fields(ModelConfig)]
    for name in values:
        if name not in allowed:
            raise ValueError(f"recipe.model has no field {name!r}. {nearest_names(name, allowed)}")
    fields = {name: value for name, value in values.items() if name in own}
    overrides = {name: value for name, value in values.items() if name not in own}
    return read_fields(NamedModel, fields, "recipe.model", ready={"overrides": overrides})


def is_described(name: str) -> bool:
    """Return whether a dotted name is a field of a model's full description."""
    section, _, rest = name.partition(".")
    return section == "model" and rest.split(".")[0] in [f.name for f in dataclasses.fields(ModelConfig)]


def written_out(model: Any) -> Any:
    """Return the description of a named model; other models are returned unchanged."""
    is_named = isinstance(model, str) or (isinstance(model, Mapping) and "name" in model)
    return plain(_read_named(model).description()) if is_named else model


def _changed_branches(branches: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the branches of a named model with those fields changed that a recipe gives by the branch's number."""
    changes = overrides.get("branches")
    if not isinstance(changes, Mapping):
        return {}
    numbered = {str(index): dict(branch) for index, branch in enumerate(branches)}
    for number, fields in changes.items():
        if str(number) not in numbered or not isinstance(fields, Mapping):
            raise ValueError(
                f"recipe.model.branches has {number!r}: {fields!r}, expected the number of a branch, 0 to "
                f"{len(branches) - 1}, with its fields."
            )
        numbered[str(number)] |= fields
    return {"branches": list(numbered.values())}


def _read_description(values: Mapping[str, Any]) -> OpenModel | ModelConfig:
    head = values.get("head", {})
    if not isinstance(head, Mapping) or head.get("num_classes") not in (None, "null", "~"):
        return ModelConfig.from_dict(values)
    without = {name: value for name, value in head.items() if name != "num_classes"}
    config = ModelConfig.from_dict({**values, "head": without})
    return config if config.head.task == "features" else OpenModel(config)


def known_classes(model: NamedModel | OpenModel | ModelConfig) -> int | None:
    """Return the number of classes of a recipe's model, None if the data set defines it."""
    if isinstance(model, ModelConfig):
        return model.head.num_classes
    given: int | None = model.description()["head"]["num_classes"]
    return given


def full_config(model: NamedModel | OpenModel | ModelConfig, *, num_classes: int | None = None) -> ModelConfig:
    """Return the full description of a recipe's model.

    Args:
        model: Name or description of the model; fields given with a name override that model's, also nested ones.
        num_classes: Number of classes K if the recipe does not set it; None uses 1000.

    Raises:
        ValueError: An unknown name or field, with the nearest known ones.
    """
    if isinstance(model, ModelConfig):
        return model
    values = model.description()
    head = {name: value for name, value in values["head"].items() if value is not None}
    if num_classes is not None:
        head.setdefault("num_classes", num_classes)
    return ModelConfig.from_dict({**values, "head": head})
