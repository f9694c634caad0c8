"""What a training run needs before its first step, made and checked from a recipe."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import Mixup
from torch import nn

from piip.build import build_model
from piip.config import ModelConfig
from piip.data.coco import CocoInstances
from piip.data.collate import DenseTransform, PadTogether
from piip.data.image_folder import ImageFolder
from piip.data.semantic_masks import IndexMaps
from piip.data.transforms.classification import build_transform
from piip.recipe import DataConfig, Recipe, RegularizeConfig
from piip.serialization.hub import find_model
from piip.serialization.load import start_from

Images = ImageFolder | CocoInstances | IndexMaps


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


def open_images(recipe: Recipe) -> tuple[Images, Images]:
    """Return training and validation images, still without transforms.

    Raises:
        ValueError: A split is missing or empty, or the validation split has other classes.
    """
    root, on_error, data = Path(recipe.data.root), recipe.data.on_error, recipe.data
    if data.kind == "coco":
        train = CocoInstances(
            root / data.train, root / data.train_images, train=True, seed=recipe.run.seed, on_error=on_error
        )
        val = CocoInstances(root / data.val, root / data.val_images, on_error=on_error, expected_classes=train.classes)
        return train, val
    if data.kind == "index_maps":
        count = _known_classes(recipe)
        maps = IndexMaps(
            root / data.train,
            root / data.train_images,
            num_classes=count,
            seed=recipe.run.seed,
            on_error=on_error,
        )
        return maps, IndexMaps(
            root / data.val, root / data.val_images, num_classes=count, on_error=on_error, expected_classes=maps.classes
        )
    images = ImageFolder(root / recipe.data.train, seed=recipe.run.seed, on_error=on_error)
    val_images = ImageFolder(root / recipe.data.val, on_error=on_error, expected_classes=images.classes)
    return images, val_images


def _known_classes(recipe: Recipe) -> int | None:
    """Return the number of classes that the recipe gives, None where it leaves that to the data."""
    if isinstance(recipe.model, ModelConfig):
        return recipe.model.head.num_classes
    given: int | None = recipe.model.description()["head"]["num_classes"]
    return given


def recipe_model_config(recipe: Recipe, *, num_classes: int | None = None) -> ModelConfig:
    """Return the full description of a recipe's model.

    Args:
        recipe: Names or describes the model; fields beside a name change that model's, nested ones one by one.
        num_classes: Classes K where the recipe leaves them open; None takes 1000.

    Raises:
        ValueError: An unknown name or field, with the nearest known ones.
    """
    if isinstance(recipe.model, ModelConfig):
        return recipe.model
    values = recipe.model.description()
    head = {name: value for name, value in values["head"].items() if value is not None}
    if num_classes is not None:
        head.setdefault("num_classes", num_classes)
    return ModelConfig.from_dict({**values, "head": head})


def build_recipe_model(recipe: Recipe, *, num_classes: int | None = None, resumed: bool = False) -> nn.Module:
    """Return the recipe's model, freshly initialised or with the pretrained weights it asks for.

    Args:
        recipe: Names or describes the model.
        num_classes: Classes K where the recipe leaves them open; None takes 1000.
        resumed: A checkpoint will bring all weights; `run.start` may be gone.

    Raises:
        ValueError: The description is wrong, or pretrained weights are not to be had or do not fit.
    """
    model = build_model(recipe_model_config(recipe, num_classes=num_classes))
    if recipe.run.start is not None and not resumed:
        start_from(model, find_model(recipe.run.start))
    if recipe.run.grad_checkpointing:
        pyramid: Any = model
        pyramid.set_grad_checkpointing(True)
    return model


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
            f"{len(classes)} ({', '.join(classes[:3])}, ...). Leave the number out of the recipe or "
            f"set it to null: --model.num_classes null (named models), --model.head.num_classes null."
        )


def resolve(recipe: Recipe, model: nn.Module) -> Recipe:
    """Return the recipe with nothing left open: the model's description in full, its image size and normalisation.

    Args:
        recipe: The recipe.
        model: Built from it.
    """
    facts: Any = model.pretrained_cfg
    config: Any = model.config
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    transform = dataclasses.replace(
        recipe.data.transform,
        input_size=recipe.data.transform.input_size or facts["input_size"][-1],
        mean=mean,
        std=std,
    )
    dense = dataclasses.replace(recipe.data.dense, mean=mean, std=std)
    return dataclasses.replace(
        recipe,
        model=recipe_model_config(recipe, num_classes=config.head.num_classes),
        data=dataclasses.replace(recipe.data, transform=transform, dense=dense),
    )


def set_transforms(images: Images, val_images: Images, config: DataConfig) -> None:
    """Give both splits their transforms.

    Args:
        images: Training images.
        val_images: Validation images.
        config: The resolved recipe's section.
    """
    for split, train in ((images, True), (val_images, False)):
        if isinstance(split, ImageFolder):
            split.transform = build_transform(config.transform, train=train)
        else:
            split.transform = DenseTransform(config.dense, train=train)


def collate(config: DataConfig, *, train: bool) -> PadTogether | None:
    """Return what makes a batch of samples; None for PyTorch's own."""
    if config.kind == "folder":
        return None
    dense = config.dense
    return PadTogether(dense.pad_divisor, least=dense.crop if train and dense.pad_to_crop and dense.crop else 1)


def run_length(recipe: Recipe, batches: int) -> RunLength:
    """Return the length of a run over `batches` batches an epoch.

    Raises:
        ValueError: The warm-up does not end before the run.
    """
    steps_per_epoch = math.ceil(batches / recipe.run.accumulate)  # the last step of an epoch may have fewer batches
    total = recipe.schedule.max_steps or recipe.schedule.epochs * steps_per_epoch
    schedule = recipe.schedule
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    name, value = "warmup_epochs", f"{schedule.warmup_epochs} or {warmup} steps"
    if schedule.warmup_steps is not None:
        name, value, warmup = "warmup_steps", f"{schedule.warmup_steps}", schedule.warmup_steps
    if warmup >= total:
        raise ValueError(
            f"schedule.{name} is {value}, expected fewer than the {total} steps of the run; for a short one add "
            f"--schedule.{name} 0."
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
