"""What the training of every task shares: the loss of a step, its checks, optimiser and schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from piip.training.sharding import clip_gradients, gradient_norm, is_sharded, shard

ADVICE = (
    "The last checkpoints are available. Resume with run.precision 32, or start again with a lower optim.lr or with "
    "optim.clip."
)

MAX_SKIPPED = 25  # steps in a row: loss scaling starts at 2^16 and halves with each, so that less than 1 is hopeless

Configure = Callable[[nn.Module], tuple[Optimizer, LRScheduler]]


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite; the message names the step."""


class TrainingTask(pl.LightningModule):
    """A model with its loss and metrics.

    Args:
        model: The model.
        configure: Builds optimiser and step-wise schedule for the model.
    """

    def __init__(self, model: nn.Module, *, configure: Configure) -> None:
        super().__init__()
        self.model = model
        self.configure = configure
        self._losses: list[Tensor] = []  # of the batches of this optimiser step
        self._skipped = 0  # optimiser steps in a row that loss scaling left out

    def configure_model(self) -> None:
        """Shard the model if the strategy requires it."""
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self.model, self.device_mesh["data_parallel"])

    @property
    @abstractmethod
    def watched(self) -> str:
        """Name of the validation metric to maximise."""

    @abstractmethod
    def batch_loss(self, batch: Any) -> Tensor:
        """Return the loss of one batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            NonFiniteLoss: The loss is NaN or infinite.
        """
        loss = self.batch_loss(batch)
        if not loss.isfinite():
            raise NonFiniteLoss(
                f"The loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}, batch "
                f"{batch_idx}). {ADVICE}"
            )
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._losses = []
        self._losses.append(loss.detach())
        self.log("train/loss", torch.stack(self._losses).mean(), prog_bar=True, batch_size=1)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Check the gradients before the optimiser step.

        Raises:
            NonFiniteLoss: A gradient is NaN or infinite; with loss scaling, which leaves out such steps and lowers the
                scale, in many steps in a row.
        """
        norm = gradient_norm(self.model)
        if norm.isfinite():
            self._skipped = 0
            return
        self._skipped += 1
        if self.trainer.scaler is None or self._skipped > MAX_SKIPPED:
            raise NonFiniteLoss(
                f"The gradient norm is {norm.item()} at step {self.global_step} (epoch {self.current_epoch}), the loss "
                f"was finite. {ADVICE}"
            )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients, including those of replicated parameters."""
        if gradient_clip_val is not None:
            clip_gradients(self.model, gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its step-wise schedule."""
        optimizer, schedule = self.configure(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
