"""What a training run needs before its first step, made and checked from a recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import Mixup
from torch import nn

from piip.build import build_model
from piip.config import ModelConfig
from piip.data.image_folder import ImageFolder
from piip.data.transforms import TransformConfig, build_transform
from piip.recipe import NamedModel, Recipe, RegularizeConfig


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Args:
        epochs: Passes over the data, the last one possibly incomplete.
        steps_per_epoch: Optimiser steps in one of them.
        total_steps: Optimiser steps of the run.
        warmup_steps: Optimiser steps of the warm-up.
        log_every: Optimiser steps between logged values and lines of progress, at most those of an epoch.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    log_every: int


def open_images(recipe: Recipe) -> tuple[ImageFolder, ImageFolder]:
    """Return training and validation images, still without transforms.

    Raises:
        ValueError: A split is missing or empty, or the validation split has other classes.
    """
    root, on_error = Path(recipe.data.root), recipe.data.on_error
    images = ImageFolder(root / recipe.data.train, seed=recipe.run.seed, on_error=on_error)
    val_images = ImageFolder(root / recipe.data.val, on_error=on_error, expected_classes=images.classes)
    return images, val_images


def recipe_model_config(recipe: Recipe, *, num_classes: int | None = None) -> ModelConfig:
    """Return the full description of a recipe's model.

    Args:
        recipe: Names or describes the model; fields beside a name change that model's, nested ones one by one.
        num_classes: Classes K where the recipe leaves them open; None keeps the model's own number.

    Raises:
        ValueError: An unknown name or field, with the nearest known ones.
    """
    if not isinstance(recipe.model, NamedModel):
        return recipe.model
    from piip.zoo import model_config

    named = recipe.model
    values = _merged(model_config(named.name).to_dict(), named.overrides)
    values["head"]["num_classes"] = named.num_classes or num_classes or values["head"]["num_classes"]
    if named.pretrained_branches:
        values["branches"] = [{**branch, "pretrained": True} for branch in values["branches"]]
    return ModelConfig.from_dict(values)


def build_recipe_model(recipe: Recipe, *, num_classes: int | None = None) -> nn.Module:
    """Return the recipe's model, freshly initialised or with the pretrained weights it asks for.

    Args:
        recipe: Names or describes the model.
        num_classes: Classes K where the recipe leaves them open; None keeps the model's own number.

    Raises:
        ValueError: The description is wrong, or pretrained weights are not to be had.
    """
    config = recipe_model_config(recipe, num_classes=num_classes)
    if isinstance(recipe.model, NamedModel) and recipe.model.pretrained:
        from piip.zoo import create_model

        model = create_model(recipe.model.name, num_classes=config.head.num_classes, pretrained=True)
    else:
        model = build_model(config)
    if recipe.run.grad_checkpointing:
        pyramid: Any = model
        pyramid.set_grad_checkpointing(True)
    return model


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {name: _merged(values[name], change) for name, change in changes.items() if isinstance(change, Mapping)}
    return {**values, **changes, **nested}


def check_classes(model: nn.Module, classes: list[str]) -> None:
    """Compare the classes of model and data.

    Raises:
        ValueError: They differ, or the model has no classifier.
    """
    config: Any = model.config
    num_classes = config.head.num_classes
    if config.head.kind == "none" or num_classes != len(classes):
        raise ValueError(
            f"The model's head {config.head.kind!r} has {num_classes} classes, the training data "
            f"{len(classes)} ({', '.join(classes[:3])}, ...). Set model.num_classes (named models) or "
            f"model.head.num_classes to {len(classes)}."
        )


def set_transforms(images: ImageFolder, val_images: ImageFolder, config: TransformConfig, model: nn.Module) -> Any:
    """Give both splits their transforms.

    Args:
        images: Training images.
        val_images: Validation images.
        config: The recipe's transform.
        model: Decides the normalisation, and the image size where the recipe has none.

    Returns:
        The resolved `TransformConfig`.
    """
    facts: Any = model.pretrained_cfg
    size = config.input_size or facts["input_size"][-1]
    config = dataclasses.replace(config, input_size=size, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    images.transform = build_transform(config, train=True)
    val_images.transform = build_transform(config, train=False)
    return config


def run_length(recipe: Recipe, batches: int) -> RunLength:
    """Return the length of a run over `batches` batches an epoch.

    Raises:
        ValueError: The warm-up does not end before the run.
    """
    steps_per_epoch = math.ceil(batches / recipe.run.accumulate)  # the last step of an epoch may have fewer batches
    total = recipe.schedule.max_steps or recipe.schedule.epochs * steps_per_epoch
    warmup = round(recipe.schedule.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        raise ValueError(
            f"schedule.warmup_epochs is {recipe.schedule.warmup_epochs} or {warmup} steps, "
            f"expected fewer than the {total} steps of the run."
        )
    log_every = min(recipe.run.log_every, steps_per_epoch)
    return RunLength(math.ceil(total / steps_per_epoch), steps_per_epoch, total, warmup, log_every)


def build_mix(config: RegularizeConfig, num_classes: int) -> Mixup | None:
    """Return timm's mixup and cutmix, or None where both are off."""
    if not config.mixes:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mix_prob,
        switch_prob=config.switch_prob,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
