"""Class names and image preparation of COCO and ADE20K for the released detectors and segmentors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from piip.config import ModelConfig
from piip.data.transforms.dense import DenseTransformConfig

ADE_FILE = "ade20k.txt"


def coco_classes() -> list[str]:
    """Return the names of COCO's 80 classes in the order of their ids."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    listed = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [name for name in listed if name not in ("__background__", "N/A")]


def ade_classes() -> list[str]:
    """Return the names of ADE20K's 150 classes in the order of their indices (1 to 150 in the masks).

    Source: objectInfo150 of the scene parsing benchmark, the first name of each.
    """
    return files("piip.data").joinpath(ADE_FILE).read_text(encoding="utf-8").splitlines()


def benchmark_metadata(config: ModelConfig, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that a released detector or segmentor needs for evaluation and prediction.

    Args:
        config: The model.
        evaluation: The published facts, see `PublishedModel`: "dense", "mean" and "std".

    Returns:
        "classes", the names in the order of the logits; "dense", the image preparation; for detectors "detections",
        the limits on detections per image.

    Raises:
        ValueError: The number of classes differs from the data set's.
    """
    is_segmentor = config.head.kind == "upernet"
    classes = ade_classes() if is_segmentor else coco_classes()
    if config.head.num_classes != len(classes):
        raise ValueError(f"The model is for {config.head.num_classes} classes, expected {len(classes)}.")
    transform = DenseTransformConfig(
        resize="official",
        mean=tuple(evaluation["mean"]),
        std=tuple(evaluation["std"]),
        reduce_zero_label=is_segmentor,
        **evaluation["dense"],
    )
    limits = {} if is_segmentor else {"detections": [1, 10, 100]}
    return {"classes": classes, "dense": dataclasses.asdict(transform), **limits}
