"""Image classification: training and validation steps, and their metrics.

Shapes: B batch, H W image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from piip.training.tasks.base import Configure, TrainingTask

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ClassificationTask(TrainingTask):
    """A classifier with its loss and accuracies.

    Args:
        model: image (B, 3, H, W) -> logits (B, K).
        num_classes: K.
        configure: Builds optimiser and step-wise schedule for the model.
        mix: Mixup or cutmix: images and labels (B,) -> mixed images and soft labels (B, K); None disables mixing.
        label_smoothing: Label smoothing in the loss if `mix` is None (`mix` smooths the labels itself).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        configure: Configure,
        mix: Mix | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, configure=configure)
        self.mix = mix
        self.label_smoothing = label_smoothing
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        self.mean_class = MulticlassAccuracy(num_classes, average="macro")

    @property
    def watched(self) -> str:
        """Name of the validation metric to maximise."""
        return "val/top1"

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy of one batch."""
        image, target = batch  # (B, 3, H, W), (B,)
        smoothing = self.label_smoothing
        if self.mix is not None:
            image, target = self.mix(image, target)  # target (B, K)
            smoothing = 0.0
        return F.cross_entropy(self.model(image).float(), target, label_smoothing=smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add one batch to the accuracies and the mean loss."""
        image, label = batch
        if not len(label):  # all its images are unreadable and skipped
            return
        logits = self.model(image).float()  # (B, K)
        self.top1.update(logits, label)
        self.top5.update(logits, label)
        self.mean_class.update(logits, label)
        self.log("val/loss", F.cross_entropy(logits, label), on_epoch=True, batch_size=len(label), sync_dist=True)
        self.log("val/top1", self.top1, on_epoch=True, prog_bar=True)
        self.log("val/top5", self.top5, on_epoch=True)
        self.log("val/mean_class", self.mean_class, on_epoch=True)
