"""What a task adds to a backbone, and the recipe that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.tables import Table

DENSE_DATA = {"root": "DATA", "batch_size": 2, "dense": {}}
OPTIM = {"lr": 1.0e-4, "weight_decay": 0.05}


@dataclass(frozen=True)
class PlanTask:
    """Parts after the branches, and data and optimiser of the recipe.

    Args:
        merge: Branch merging.
        neck: Levels.
        head: Head.
        data: Section "data" of a recipe; paths in capitals are to be filled in.
        prefix_tokens: Whether the networks keep their class tokens.
    """

    merge: MergeConfig
    neck: NeckConfig
    head: HeadConfig
    data: Mapping[str, Any]
    prefix_tokens: bool = False

    def model(
        self, branches: tuple[BranchConfig, ...], interactions: int | None, num_classes: int | None = None
    ) -> ModelConfig:
        """Return a model of these branches.

        Args:
            branches: The largest network first.
            interactions: Number of interactions; None for as many as the networks allow.
            num_classes: Classes of the head; None for the usual number of the task.
        """
        head = self.head if num_classes is None else HeadConfig(**{**vars(self.head), "num_classes": num_classes})
        return ModelConfig(branches, InteractionConfig(count=interactions), self.merge, self.neck, head)


_COCO = {
    **DENSE_DATA,
    "kind": "coco",
    "train": "TRAIN.json",
    "train_images": "TRAIN",
    "val": "VAL.json",
    "val_images": "VAL",
}
_MASKS = {
    **DENSE_DATA,
    "kind": "semantic_masks",
    "train": "annotations/training",
    "train_images": "images/training",
    "val": "annotations/validation",
    "val_images": "images/validation",
}

TASKS: Table[PlanTask, None] = Table.of(
    "task",
    {
        "classification": PlanTask(
            MergeConfig("linear"), NeckConfig("none"), HeadConfig("pooled"), {"root": "DATA", "batch_size": 32}, True
        ),
        "detection": PlanTask(MergeConfig("slim"), NeckConfig("simple"), HeadConfig("dino", num_classes=80), _COCO),
        "instance": PlanTask(MergeConfig("slim"), NeckConfig("simple"), HeadConfig("mask_rcnn", num_classes=80), _COCO),
        # the released width of 512 would cost ten times as much as most backbones
        "semantic": PlanTask(
            MergeConfig("slim"), NeckConfig("simple"), HeadConfig("upernet", num_classes=150, width=128), _MASKS
        ),
    },
)
