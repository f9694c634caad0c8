"""Detection, instance and semantic segmentation: training and validation steps, and their metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from piip.data.coco import CocoInstances
from piip.data.collate import Batch
from piip.evaluation.metrics.coco import TASK_IOU_TYPES, annotated_iou_types, score_results, to_results
from piip.evaluation.metrics.semantic import SemanticMetric
from piip.models import PIIPDenseModel
from piip.training.tasks.base import Configure, TrainingTask

logger = logging.getLogger("piip")


class DenseTask(TrainingTask):
    """A detector or segmentor with its losses.

    Args:
        model: The model.
        configure: Builds optimiser and step-wise schedule for the model.
    """

    model: PIIPDenseModel

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the sum of the model's losses, and log them one by one."""
        losses: Any = self.model(batch.image, batch.image_infos, batch.targets)
        for name, value in losses.items():
            if name != "loss":  # the name of the total
                self.log(f"train/{name}", value.detach(), batch_size=1)
        return torch.stack(list(losses.values())).sum()

    def is_last_validation_batch(self, batch_idx: int) -> bool:
        """Return whether a batch ends the validation; callbacks that monitor a metric run before the epoch ends."""
        trainer = self.trainer
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return batch_idx + 1 == batches[0]


class DetectionTask(DenseTask):
    """Detection or instance segmentation, validated by COCO average precision.

    Args:
        model: The model.
        configure: Builds optimiser and step-wise schedule for the model.
        val_images: The validation images, None if there are none.
        max_detections: Limits on detections per image, see `score_results`.
    """

    def __init__(
        self,
        model: PIIPDenseModel,
        *,
        configure: Configure,
        val_images: CocoInstances | None,
        max_detections: Sequence[int],
    ) -> None:
        super().__init__(model, configure=configure)
        self.val_images = val_images
        self.max_detections = tuple(max_detections)
        self.iou_types: tuple[str, ...] = TASK_IOU_TYPES[model.task]
        if val_images is not None:
            self.iou_types = annotated_iou_types(val_images.ground_truth(), model.task)
            if not val_images.has_objects:
                logger.warning(
                    "%s has no objects (apart from crowds): there is nothing to validate, and no best model.",
                    val_images.file,
                )
        self._results: list[dict[str, Any]] = []
        self._seen: list[int] = []

    @property
    def watched(self) -> str:
        """Name of the validation metric to maximise."""
        return f"val/{self.iou_types[-1]}_ap"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the detections of one batch; log average precision after the last one."""
        assert self.val_images is not None  # Lightning does not call this without validation images
        if batch.indices:
            limit = self.max_detections[-1]
            for values, index in zip(
                self.model.predict(batch.image, batch.image_infos, max_detections=limit), batch.indices, strict=True
            ):
                _, image_id = self.val_images.samples[index]
                self._seen.append(image_id)
                self._results += to_results(values, image_id, self.val_images.label_ids)
        if self.is_last_validation_batch(batch_idx):
            self._log_scores(self.val_images.ground_truth(self._seen))

    def _log_scores(self, content: Mapping[str, Any]) -> None:
        scores = score_results(
            content, self._results, iou_types=self.iou_types, max_detections=self.max_detections, image_ids=self._seen
        )
        self._results, self._seen = [], []
        for kind in self.iou_types:
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
        self._overlap = SemanticMetric(model.num_classes)

    @property
    def watched(self) -> str:
        """Name of the validation metric to maximise."""
        return "val/miou"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the pixels of one batch at the resized image size; log mIoU after the last one."""
        if batch.indices:
            predictions = self.model.predict(batch.image, batch.image_infos, rescale=False)
            for prediction, target, image_info in zip(predictions, batch.targets, batch.image_infos, strict=True):
                height, width = image_info.size
                self._overlap.add(prediction["labels"], target["labels"][:height, :width])
        if self.is_last_validation_batch(batch_idx):
            for name, value in self._overlap.scores().items():
                self.log(f"val/{name}", value, on_epoch=True, batch_size=1, prog_bar=f"val/{name}" == self.watched)
            self._overlap = SemanticMetric(self.model.num_classes)
