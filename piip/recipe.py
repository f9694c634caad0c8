"""Recipes: one YAML file that says everything a training run needs.

A recipe has six sections (`model`, `data`, `regularize`, `optim`, `schedule`, `run`), each a frozen dataclass below.
`load_recipe` reads a file and applies dotted overrides ("optim.lr": 1e-3); `save_recipe` writes the resolved recipe
back, so that a run can be repeated from the file beside its checkpoints.
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
from piip.data.transforms import TransformConfig
from piip.fields import at_least, at_most, nearest_names, one_of, plain, read_fields, set_dotted

PRECISIONS = ("32", "bf16")
ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class NamedModel:
    """A model of the zoo, with changes.

    Args:
        name: One of `piip.list_models()`.
        num_classes: Classes K of a new head; None takes the number of class folders of the training data.
        pretrained_branches: Start every branch from its own weights through timm.
        overrides: Fields of `ModelConfig` to change; in YAML they stand beside `name`.
    """

    name: str
    num_classes: int | None = None
    pretrained_branches: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields beside each other, as in YAML."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        overrides = values.pop("overrides")
        return {**values, **overrides}

    def description(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig`; `head.num_classes` is None where the data decide it.

        Raises:
            ValueError: An unknown name or field, with the nearest known ones.
        """
        from piip.zoo import model_config

        values = _merged(model_config(self.name).to_dict(), {"head": {"num_classes": None}})
        values = _merged(values, self.overrides)
        if self.num_classes is not None:
            values["head"]["num_classes"] = self.num_classes
        if self.pretrained_branches:
            values["branches"] = [{**branch, "pretrained": True} for branch in values["branches"]]
        return values


@dataclass(frozen=True)
class OpenModel:
    """A model described in full but for the number of classes, which the training data decide.

    Args:
        config: The description; its `head.num_classes` stands for nothing.
    """

    config: ModelConfig

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig`, with None for the number of classes."""
        return self.description()

    def description(self) -> dict[str, Any]:
        """Return the fields of `ModelConfig`, with None for the number of classes."""
        values: dict[str, Any] = _merged(plain(self.config.to_dict()), {"head": {"num_classes": None}})
        return values


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are read.

    Args:
        root: Folder with one folder a split, each with one folder a class (ImageNet layout).
        train: Name of the training split's folder.
        val: Name of the validation split's folder.
        batch_size: Images a process and forward pass, at least 1 (even with mixup or cutmix).
        workers: Reading processes; 0 reads in the training process.
        on_error: "stop" at an unreadable image, or "skip" to the next one with a warning.
        transform: Resizing and augmentation; `input_size` None takes the side of the finest branch.
    """

    root: str = "data"
    train: str = "train"
    val: str = "val"
    batch_size: int = 128
    workers: int = 2
    on_error: str = "stop"
    transform: TransformConfig = field(default_factory=TransformConfig)

    def __post_init__(self) -> None:
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.workers", self.workers, 0)
        one_of("data.on_error", self.on_error, ON_ERROR)


@dataclass(frozen=True)
class RegularizeConfig:
    """Mixing of images and softening of labels.

    Args:
        mixup: Alpha of mixup's beta distribution; 0 switches mixup off.
        cutmix: Alpha of cutmix's beta distribution; 0 switches cutmix off.
        mix_prob: Probability that a batch is mixed at all, in [0, 1].
        switch_prob: Probability of cutmix instead of mixup where both are on, in [0, 1].
        label_smoothing: Probability mass spread over all classes, in [0, 1).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            at_least(f"regularize.{name}", getattr(self, name), 0)
        for name in ("mix_prob", "switch_prob", "label_smoothing"):
            at_least(f"regularize.{name}", getattr(self, name), 0)
            at_most(f"regularize.{name}", getattr(self, name), 1)
        if self.label_smoothing == 1:
            raise ValueError("regularize.label_smoothing is 1, expected less: nothing would be left of the labels.")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its parameter groups.

    Args:
        lr: Peak learning rate of the branches.
        weight_decay: Decoupled weight decay.
        betas: AdamW's two averaging rates.
        layer_decay: Factor on the rate from each block to the one before it; None or 1 leaves all equal.
        rate_outside_branches: Factor on the rate of interactions, merge and head (10 in the official runs).
        decay_all: Also decay 1-d tensors, biases and the names in `no_weight_decay()` (as the official runs did).
        clip: Largest gradient norm; None does not clip.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None
    rate_outside_branches: float = 10.0
    decay_all: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        at_least("optim.weight_decay", self.weight_decay, 0)
        for name in ("lr", "rate_outside_branches", "layer_decay", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"optim.{name} is {value}, expected a value above 0.")
        if self.layer_decay is not None:
            at_most("optim.layer_decay", self.layer_decay, 1)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas is {self.betas}, expected two values in [0, 1).")


@dataclass(frozen=True)
class ScheduleConfig:
    """Cosine with linear warm-up, stepped every optimiser step.

    Args:
        epochs: Passes over the training data; the cosine ends there.
        max_steps: Optimiser steps, instead of `epochs`.
        warmup_epochs: Length of the warm-up, may be a fraction.
        warmup_lr: Rate at step 0.
        min_lr: Rate at the end; the same number for all parameter groups.
    """

    epochs: int = 20
    max_steps: int | None = None
    warmup_epochs: float = 0.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5

    def __post_init__(self) -> None:
        at_least("schedule.epochs", self.epochs, 1)
        if self.max_steps is not None:
            at_least("schedule.max_steps", self.max_steps, 1)
        for name in ("warmup_epochs", "warmup_lr", "min_lr"):
            at_least(f"schedule.{name}", getattr(self, name), 0)
        if self.max_steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.warmup_epochs}, expected less than schedule.epochs ({self.epochs})."
            )


@dataclass(frozen=True)
class RunConfig:
    """The run itself.

    Args:
        out: Folder for checkpoints, logs and the exported model.
        seed: Initial weights, data order, augmentation, mixing and dropout follow from it.
        precision: "32", or "bf16" (bfloat16 mixed precision).
        accumulate: Batches whose gradients are added before one optimiser step.
        ema_decay: Decay of the averaged weights, which are then validated and exported; None does not average.
        ema_warmup: Lower the decay to (1 + step) / (10 + step) while that is smaller.
        checkpoint_every: Optimiser steps between checkpoints; one more is written after every epoch.
        log_every: Optimiser steps between logged losses.
        grad_checkpointing: Recompute the branches' blocks in the backward pass: less memory, a third more time.
    """

    out: str = "runs/piip"
    seed: int = 0
    precision: str = "32"
    accumulate: int = 1
    ema_decay: float | None = None
    ema_warmup: bool = True
    checkpoint_every: int = 1000
    log_every: int = 50
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        one_of("run.precision", self.precision, PRECISIONS)
        for name in ("accumulate", "checkpoint_every", "log_every"):
            at_least(f"run.{name}", getattr(self, name), 1)
        at_least("run.seed", self.seed, 0)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"run.ema_decay is {self.ema_decay}, expected a value between 0 and 1.")


@dataclass(frozen=True)
class Recipe:
    """A whole training run; see the sections for their fields.

    Args:
        model: A model of the zoo by name, or a description; without `head.num_classes` the data decide the classes.
        data: Where the images are and how they are read.
        regularize: Mixup, cutmix and label smoothing.
        optim: AdamW and its parameter groups.
        schedule: Length and learning rates.
        run: Output folder, seed, precision, averaging, checkpoints.
    """

    model: NamedModel | OpenModel | ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    regularize: RegularizeConfig = RegularizeConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        if self.regularize.mixes and self.data.batch_size % 2:
            raise ValueError(
                f"data.batch_size is {self.data.batch_size}, expected an even number: mixup and cutmix pair images."
            )
        ends = {"min_lr": self.schedule.min_lr}
        if self.schedule.warmup_epochs:
            ends["warmup_lr"] = self.schedule.warmup_lr
        peak = self.optim.lr * min(1.0, self.optim.rate_outside_branches)
        for name, rate in ends.items():
            if peak < rate:
                raise ValueError(
                    f"schedule.{name} is {rate}, expected at most the lowest peak rate {peak:g} (optim.lr, times "
                    "optim.rate_outside_branches): lower it, or raise optim.lr."
                )

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
        sections = {key: value for key, value in values.items() if key != "model"}
        return read_fields(Recipe, sections, "recipe", ready={"model": _read_model(values["model"])})


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
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected sections such as 'model:' and 'optim:'.")
    for name, value in sorted((overrides or {}).items(), key=lambda item: _is_described(item[0])):
        if _is_described(name):
            values["model"] = _written_out(values.get("model", {}))
        set_dotted(values, name, value)
    return Recipe.from_dict(values)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a resolved recipe as YAML that `load_recipe` reads back equal."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False, width=120), encoding="utf-8")
    os.replace(temporary, path)  # never half a file


def _is_described(name: str) -> bool:
    """Return whether a dotted name is a field of a model's full description."""
    section, _, rest = name.partition(".")
    return section == "model" and rest.split(".")[0] in [f.name for f in dataclasses.fields(ModelConfig)]


def _written_out(model: Any) -> Any:
    """Return a named model's description, any other model as it is."""
    named = _read_model(model) if isinstance(model, str) or (isinstance(model, Mapping) and "name" in model) else None
    return plain(named.description()) if isinstance(named, NamedModel) else model


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(values[name], change)
        for name, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
    }
    return {**values, **changes, **nested}


def _read_model(values: Any) -> NamedModel | OpenModel | ModelConfig:
    if isinstance(values, str):
        return NamedModel(values)
    if not isinstance(values, Mapping):
        raise ValueError(f"recipe.model is {values!r}, expected 'name: NAME' or the fields of ModelConfig.")
    if "name" not in values:
        return _read_description(values)
    own = [f.name for f in dataclasses.fields(NamedModel) if f.name != "overrides"]
    allowed = own + [f.name for f in dataclasses.fields(ModelConfig)]
    for name in values:
        if name not in allowed:
            raise ValueError(f"recipe.model has no field {name!r}. {nearest_names(name, allowed)}")
    fields = {name: value for name, value in values.items() if name in own}
    overrides = {name: value for name, value in values.items() if name not in own}
    return read_fields(NamedModel, fields, "recipe.model", ready={"overrides": overrides})


def _read_description(values: Mapping[str, Any]) -> OpenModel | ModelConfig:
    head = values.get("head", {})
    if not isinstance(head, Mapping) or head.get("num_classes") not in (None, "null", "~"):
        return ModelConfig.from_dict(values)
    without = {name: value for name, value in head.items() if name != "num_classes"}
    config = ModelConfig.from_dict({**values, "head": without})
    return config if config.head.kind == "none" else OpenModel(config)
