"""The other sections of a recipe: plain values, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass

from piip.fields import at_least, at_most, one_of

PRECISIONS = ("32", "bf16", "16")
STRATEGIES = ("ddp", "fsdp2")
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
CURVES = ("cosine", "step", "poly")
LAYER_DECAY_RULES = ("depth", "official")


@dataclass(frozen=True)
class RegularizeConfig:
    """Mixup, cutmix and label smoothing.

    Args:
        mixup: Alpha of mixup's beta distribution; 0 switches mixup off.
        cutmix: Alpha of cutmix's beta distribution; 0 switches cutmix off.
        mix_prob: Probability that a batch is mixed at all, in [0, 1].
        switch_prob: Probability of cutmix instead of mixup if both are on, in [0, 1].
        label_smoothing: Probability mass spread over all classes, in [0, 1).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            at_least(f"regularize.{name}", getattr(self, name), 0)
        for name in ("mix_prob", "switch_prob", "label_smoothing"):
            at_least(f"regularize.{name}", getattr(self, name), 0)
            at_most(f"regularize.{name}", getattr(self, name), 1)
        if self.label_smoothing == 1:
            raise ValueError("regularize.label_smoothing is 1, expected less than 1.")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its parameter groups.

    Args:
        lr: Peak learning rate of the branches.
        weight_decay: Decoupled weight decay.
        betas: AdamW's two averaging rates.
        layer_decay: Factor on the learning rate from each block to the one before it; None or 1 uses equal rates.
        layer_decay_rule: "depth" counts blocks from the end of each branch. "official" follows the released detectors:
            it stretches shallower branches to the depth of branch 0, excludes ConvNeXt branches and final norms, and
            applies weight decay to all weights except 1-d tensors.
        rate_outside_branches: Factor on the learning rate of interactions, merge and head (10 in the official runs).
        decay_all: Also apply weight decay to 1-d tensors, biases and the names in `no_weight_decay()` (as in the
            official runs).
        clip: Maximum gradient norm; None disables clipping.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None
    layer_decay_rule: str = "depth"
    rate_outside_branches: float = 10.0
    decay_all: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        at_least("optim.weight_decay", self.weight_decay, 0)
        for name in ("lr", "rate_outside_branches", "layer_decay", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"optim.{name} is {value}, expected a value above 0.")
        if self.layer_decay is not None:
            at_most("optim.layer_decay", self.layer_decay, 1)
        one_of("optim.layer_decay_rule", self.layer_decay_rule, LAYER_DECAY_RULES)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas is {self.betas}, expected two values in [0, 1).")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule with linear warm-up, updated every optimiser step.

    Args:
        epochs: Number of epochs; the schedule ends with the last one.
        max_steps: Number of optimiser steps, instead of `epochs`.
        curve: "cosine", "step" (divided by 10 at each of `drops`) or "poly" (a power of the remaining fraction).
        drops: Increasing fractions of the run at which "step" drops, in (0, 1); 8/12 and 11/12 in the official
            detectors.
        power: Exponent of "poly".
        warmup_epochs: Length of the warm-up in epochs; may be fractional.
        warmup_steps: Length of the warm-up in optimiser steps, instead of `warmup_epochs`.
        warmup_lr: Learning rate at step 0.
        min_lr: Learning rate at the end of "cosine" and "poly"; the same number for all parameter groups.
    """

    epochs: int = 20
    max_steps: int | None = None
    curve: str = "cosine"
    drops: tuple[float, ...] = (8 / 12, 11 / 12)
    power: float = 1.0
    warmup_epochs: float = 0.0
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5

    def __post_init__(self) -> None:
        at_least("schedule.epochs", self.epochs, 1)
        if self.max_steps is not None:
            at_least("schedule.max_steps", self.max_steps, 1)
        one_of("schedule.curve", self.curve, CURVES)
        if list(self.drops) != sorted(self.drops) or not all(0 < drop < 1 for drop in self.drops):
            raise ValueError(f"schedule.drops is {self.drops}, expected increasing fractions of the run in (0, 1).")
        if self.warmup_steps is not None:
            at_least("schedule.warmup_steps", self.warmup_steps, 0)
            if self.warmup_epochs:
                raise ValueError("schedule.warmup_steps and warmup_epochs both set the warm-up: remove one.")
        if self.power <= 0:
            raise ValueError(f"schedule.power is {self.power}, expected a value above 0.")
        for name in ("warmup_epochs", "warmup_lr", "min_lr"):
            at_least(f"schedule.{name}", getattr(self, name), 0)
        if self.max_steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.warmup_epochs}, expected less than schedule.epochs ({self.epochs}); "
                "for a short run add --schedule.warmup_epochs 0."
            )


@dataclass(frozen=True)
class RunConfig:
    """Output, precision, parallelism, checkpoints and logging of a run.

    Args:
        out: Folder for checkpoints, logs and the saved model.
        start: Model directory, or owner/name on the Hugging Face hub, to load initial weights from. A head for other
            classes, or of another kind, is initialised anew.
        seed: Seed of initial weights, data order, augmentation, mixing and dropout.
        precision: "32", "bf16" (bfloat16 mixed precision) or "16" (float16 mixed precision with loss scaling, on GPUs
            only, not with `strategy` "fsdp2").
        strategy: With several processes: "ddp" (each holds the whole model) or "fsdp2" (weights, gradients and
            optimiser states are sharded; not with `ema_decay`).
        accumulate: Number of batches per optimiser step (gradient accumulation).
        ema_decay: Decay of the averaged weights, which are then validated and saved; None disables averaging.
        ema_warmup: Use a decay of (1 + step) / (10 + step) while that is smaller.
        checkpoint_every: Optimiser steps between checkpoints; one is also written after every epoch.
        log_every: Optimiser steps between logged losses.
        loggers: "csv" and "tensorboard" write to the run's folder, "wandb" and "mlflow" to the location in their own
            configuration (`pip install wandb`, `pip install mlflow`).
        patience: Stop after this number of validations without improvement; None trains to the end.
        grad_checkpointing: Recompute blocks, interactions, merge and neck in the backward pass: less memory, about a
            third more time.
    """

    out: str = "runs/piip"
    start: str | None = None
    seed: int = 0
    precision: str = "32"
    strategy: str = "ddp"
    accumulate: int = 1
    ema_decay: float | None = None
    ema_warmup: bool = True
    checkpoint_every: int = 1000
    log_every: int = 50
    loggers: tuple[str, ...] = ("csv", "tensorboard")
    patience: int | None = None
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        one_of("run.precision", self.precision, PRECISIONS)
        one_of("run.strategy", self.strategy, STRATEGIES)
        if self.strategy == "fsdp2" and self.ema_decay is not None:
            raise ValueError("run.strategy 'fsdp2' cannot average sharded weights: set run.ema_decay to null.")
        if self.strategy == "fsdp2" and self.precision == "16":
            raise ValueError("run.strategy 'fsdp2' cannot scale losses for run.precision '16': set it to bf16 or 32.")
        for name in ("accumulate", "checkpoint_every", "log_every"):
            at_least(f"run.{name}", getattr(self, name), 1)
        at_least("run.seed", self.seed, 0)
        for logger in self.loggers:
            one_of("run.loggers", logger, LOGGERS)
        if self.patience is not None:
            at_least("run.patience", self.patience, 1)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"run.ema_decay is {self.ema_decay}, expected a value between 0 and 1.")
