"""Instances and index maps: training and validation steps, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from piip.data.collate import Batch
from piip.evaluation.metrics.coco import score_results, to_results
from piip.evaluation.metrics.semantic import ClassOverlap
from piip.models import PIIPDenseModel
from piip.training.tasks.base import Configure, TrainingTask


class DenseTask(TrainingTask):
    """A model for places in the image, with its losses.

    Args:
        model: The model.
        configure: Builds optimiser and step-wise schedule for the model.
    """

    model: PIIPDenseModel

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the sum of the model's losses, and log them one by one."""
        parts: Any = self.model(batch.image, batch.frames, batch.targets)
        losses = {name: value for name, value in parts.items() if "loss" in name}
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=1)
        return torch.stack(list(losses.values())).sum()

    def is_last_validation_batch(self, batch_idx: int) -> bool:
        """Tell whether a batch ends the validation: callbacks that watch a metric run before the epoch's own end."""
        trainer = self.trainer
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return batch_idx + 1 == batches[0]


class InstanceTask(DenseTask):
    """Detection or instance segmentation, validated by COCO average precision.

    Args:
        model: The model.
        configure: Builds optimiser and step-wise schedule for the model.
        content: The validation file's content.
        image_ids: The file's id of every validation image.
        category_ids: The file's id of every class.
        detections: Limits on detections an image, see `score_results`.
    """

    def __init__(
        self,
        model: PIIPDenseModel,
        *,
        configure: Configure,
        content: Mapping[str, Any],
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        detections: Sequence[int],
    ) -> None:
        super().__init__(model, configure=configure)
        self.content = content
        self.image_ids = list(image_ids)
        self.category_ids = list(category_ids)
        self.detections = tuple(detections)
        self._results: list[dict[str, Any]] = []
        self._seen: list[int] = []

    @property
    def watched(self) -> str:
        """Name of the validation metric whose highest value tells the best model."""
        return f"val/{self.model.finds[-1]}_ap"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the instances of one batch; log the average precisions after the last."""
        predictions = self.model.predict(batch.image, batch.frames, most=self.detections[-1])
        for prediction, index in zip(predictions, batch.indices, strict=True):
            self._seen.append(self.image_ids[index])
            self._results += to_results(prediction, self.image_ids[index], self.category_ids)
        if self.is_last_validation_batch(batch_idx):
            self._log_scores()

    def _log_scores(self) -> None:
        scores = score_results(
            self.content,
            self._results,
            kinds=self.model.finds,
            detections=self.detections,
            image_ids=self._seen,
        )
        self._results, self._seen = [], []
        for kind in self.model.finds:
            for name in (f"{kind}_ap", f"{kind}_ap50"):
                self.log(
                    f"val/{name}", scores[name], on_epoch=True, batch_size=1, prog_bar=f"val/{name}" == self.watched
                )


class SemanticTask(DenseTask):
    """Semantic segmentation, validated by the mean intersection over union.

    Args:
        model: The model.
        configure: Builds optimiser and step-wise schedule for the model.
    """

    def __init__(self, model: PIIPDenseModel, *, configure: Configure) -> None:
        super().__init__(model, configure=configure)
        self._overlap = ClassOverlap(model.num_classes)

    @property
    def watched(self) -> str:
        """Name of the validation metric whose highest value tells the best model."""
        return "val/miou"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the pixels of one batch, at the size the images were resized to; log the overlap after the last."""
        predictions = self.model.predict(batch.image, batch.frames, rescale=False)
        for prediction, target, frame in zip(predictions, batch.targets, batch.frames, strict=True):
            height, width = frame.size
            self._overlap.add(prediction["labels"], target["labels"][:height, :width])
        if self.is_last_validation_batch(batch_idx):
            for name, value in self._overlap.scores().items():
                self.log(f"val/{name}", value, on_epoch=True, batch_size=1, prog_bar=f"val/{name}" == self.watched)
            self._overlap = ClassOverlap(self.model.num_classes)
