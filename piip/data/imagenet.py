"""ImageNet-1K as classifiers of the papers know it."""

from __future__ import annotations

import dataclasses
from typing import Any

from piip.config import ModelConfig
from piip.data.transforms.classification import TransformConfig

NUM_CLASSES = 1000


def imagenet_metadata(config: ModelConfig) -> dict[str, Any]:
    """Return what a classifier of ImageNet-1K needs beside its weights for evaluation and prediction.

    Args:
        config: A classifier of the authors, with `mean` and `std`.

    Returns:
        "classes", the 1000 WordNet ids in the order of the logits, which are the folder names of the validation images;
        "transform": shorter side to the finest branch's size, bicubic, centre crop, as in the authors' evaluation.

    Raises:
        ValueError: A model with another number of classes.
    """
    from timm.data import ImageNetInfo

    classes = ImageNetInfo("imagenet-1k").label_names()
    is_classifier = config.head.kind in ("pooled", "per_branch")
    if not is_classifier or config.head.num_classes != NUM_CLASSES:
        what = f"for {config.head.num_classes} classes" if is_classifier else "no classifier"
        raise ValueError(f"The model is {what}, expected a classifier for the {NUM_CLASSES} classes of ImageNet-1K.")
    transform = TransformConfig(
        input_size=config.branches[-1].image_size,
        mean=config.mean or TransformConfig.mean,
        std=config.std or TransformConfig.std,
        crop_pct=1.0,
    )
    return {"classes": classes, "transform": dataclasses.asdict(transform)}
