"""Class names and image preparation of ImageNet-1K for the released classifiers."""

from __future__ import annotations

import dataclasses
from typing import Any

from piip.config import ModelConfig
from piip.data.transforms.classification import TransformConfig

NUM_CLASSES = 1000


def imagenet_metadata(config: ModelConfig) -> dict[str, Any]:
    """Return the metadata that an ImageNet-1K classifier needs for evaluation and prediction.

    Args:
        config: A classifier of the authors, with `mean` and `std`.

    Returns:
        "classes", the 1000 WordNet ids in the order of the logits, which are the folder names of the validation images;
        "transform": shorter side to the finest branch's size, bicubic, centre crop, as in the authors' evaluation.

    Raises:
        ValueError: The model is not a classifier for 1000 classes.
    """
    from timm.data import ImageNetInfo

    classes = ImageNetInfo("imagenet-1k").label_names()
    is_classifier = config.head.kind in ("pooled", "per_branch")
    if not is_classifier or config.head.num_classes != NUM_CLASSES:
        what = f"for {config.head.num_classes} classes" if is_classifier else "not a classifier"
        raise ValueError(f"The model is {what}, expected a classifier for the {NUM_CLASSES} classes of ImageNet-1K.")
    transform = TransformConfig(
        input_size=config.branches[-1].image_size,
        mean=config.mean or TransformConfig.mean,
        std=config.std or TransformConfig.std,
        crop_pct=1.0,
    )
    return {"classes": classes, "transform": dataclasses.asdict(transform)}
