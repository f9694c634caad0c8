"""Image classification: training and validation steps, and their metrics.

Shapes: B batch, H W image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ADVICE = (
    "The last checkpoints are kept. Resume with run.precision 32, or start again with a lower optim.lr or with "
    "optim.clip."
)

Configure = Callable[[nn.Module], tuple[Optimizer, LRScheduler]]


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite; the message names the step."""


class ClassificationTask(pl.LightningModule):
    """A classifier with its loss and accuracies.

    Args:
        model: image (B, 3, H, W) -> logits (B, K).
        num_classes: K.
        configure: Builds optimiser and step-wise schedule for the model.
        mix: Mixup or cutmix: images and labels (B,) -> mixed images and soft labels (B, K); None leaves them alone.
        label_smoothing: Smoothing in the loss where `mix` is None (`mix` smooths by itself).
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
        super().__init__()
        self.model = model
        self.configure = configure
        self.mix = mix
        self.label_smoothing = label_smoothing
        self._losses: list[Tensor] = []  # of the batches of this optimiser step
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")
        self.mean_class = MulticlassAccuracy(num_classes, average="macro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            NonFiniteLoss: The loss is NaN or infinite.
        """
        image, target = batch  # (B, 3, H, W), (B,)
        smoothing = self.label_smoothing
        if self.mix is not None:
            image, target = self.mix(image, target)  # target (B, K)
            smoothing = 0.0
        loss = F.cross_entropy(self.model(image).float(), target, label_smoothing=smoothing)
        if not loss.isfinite():
            raise NonFiniteLoss(
                f"The loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}, batch "
                f"{batch_idx}). {ADVICE}"
            )
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._losses = []
        self._losses.append(loss.detach())
        self.log("train/loss", torch.stack(self._losses).mean(), prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at the gradients before they reach the weights.

        Raises:
            NonFiniteLoss: A gradient is NaN or infinite.
        """
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if not norm.isfinite():
            raise NonFiniteLoss(
                f"The gradient norm is {norm.item()} at step {self.global_step} (epoch {self.current_epoch}), the loss "
                f"was finite. {ADVICE}"
            )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add one batch to the accuracies and the mean loss."""
        image, label = batch
        logits = self.model(image).float()  # (B, K)
        self.top1.update(logits, label)
        self.top5.update(logits, label)
        self.mean_class.update(logits, label)
        self.log("val/loss", F.cross_entropy(logits, label), on_epoch=True, batch_size=len(label), sync_dist=True)
        self.log("val/top1", self.top1, on_epoch=True, prog_bar=True)
        self.log("val/top5", self.top5, on_epoch=True)
        self.log("val/mean_class", self.mean_class, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its step-wise schedule."""
        optimizer, schedule = self.configure(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
