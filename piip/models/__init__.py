"""Whole models: a pyramid backbone with a head for classification, dense tasks, or a language model.

`base` is what they share; `classifier`, `dense` (detectors and segmentors) and `vision_tower` are one file each.

Models call backbones and heads; `piip.build` makes them from descriptions.
"""

from piip.models.classifier import PIIPClassifier
from piip.models.dense import PIIPDenseModel
from piip.models.vision_tower import PIIPVisionTower

__all__ = ["PIIPClassifier", "PIIPDenseModel", "PIIPVisionTower"]
