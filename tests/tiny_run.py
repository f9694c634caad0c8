"""A data set and a recipe small enough to train in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from piip.build import build_model
from piip.config import ModelConfig
from piip.data.transforms.classification import TransformConfig
from piip.recipe import Recipe
from piip.serialization.save import save_model

CLASSES = ("blue", "green", "red")


def write_images(root: Path, *, train: int = 8, val: int = 4, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write noisy pictures whose colour is their class, `train` and `val` of each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for channel, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 200, (36, 40, 3))
                pixels[..., channel % 3] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def branch(image_size: int, embed_dim: int, **fields: Any) -> dict[str, Any]:
    """Describe a ViT with two blocks."""
    timm_args = {"patch_size": 8, "embed_dim": embed_dim, "depth": 2, "num_heads": 2}
    return {"network": "vit_tiny_patch16_224", "image_size": image_size, "timm_args": timm_args, **fields}


def recipe_values(root: Path, out: Path, /, **changes: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe of two epochs on `write_images`; `changes` go into its sections."""
    values: dict[str, dict[str, Any]] = {
        "model": {
            "branches": [branch(24, 32), branch(32, 16)],
            "interaction": {"num_heads": 4},
            "head": {"kind": "pooled", "num_classes": 3},
        },
        "data": {"root": str(root), "batch_size": 4, "workers": 0},
        "optim": {"lr": 1e-3, "rate_outside_branches": 1.0},
        "schedule": {"epochs": 2},
        "run": {"out": str(out), "log_every": 1},
    }
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields}
    return values


def tiny_recipe(root: Path, out: Path, /, **changes: dict[str, Any]) -> Recipe:
    """Return `recipe_values` as a recipe."""
    return Recipe.from_dict(recipe_values(root, out, **changes))


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    """Write a recipe file."""
    path.write_text(yaml.safe_dump(values))
    return path


def write_model(directory: Path, *, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """Export an untrained classifier whose logits differ from image to image."""
    torch.manual_seed(seed)
    values = recipe_values(directory, directory)["model"]
    model = build_model(ModelConfig.from_dict(values | {"head": {"kind": "pooled", "num_classes": len(classes)}}))
    head: Any = model.get_submodule("head")
    torch.nn.init.normal_(head.fc.weight, std=10.0)
    transform = TransformConfig(input_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)
    save_model(model, directory, {"classes": list(classes), "transform": dataclasses.asdict(transform)})
    return directory
