"""AdamW's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from piip.checkpoints.layer_decay import MIXED_LAYERS
from piip.recipe import OptimConfig, ScheduleConfig

DROP = 0.1  # factor at every drop of the curve "step"
BRANCH_PREFIX = "backbone.branches."


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return AdamW groups: one rate for the branches, one for other parts, and optional layer-wise decay.

    Groups have `peak_lr` (the peak rate of the schedule) and `lr_scale` (a factor on the whole schedule, from layer
    decay). The scale of a parameter of block k in a branch of depth D is layer_decay ** (D + 1 - k), with 0 for the
    embeddings and D + 1 for the final norm; outside the branches it is 1. With the rule "official", D is the depth of
    branch 0 for all branches, and k is stretched to it and truncated to an integer.

    Args:
        model: A model with `backbone.branches` and `no_weight_decay()`.
        config: Learning rates and decays.

    Returns:
        Dicts with "params", "names", "lr", "peak_lr", "lr_scale", "weight_decay", in the order of the parameters.

    Source:
        Rates: official classification/main.py and its optimizer grouping (from_scratch_lr_ratio); decay by depth: BEiT.
    """
    pyramid: Any = model
    exempt: set[str] = pyramid.no_weight_decay()
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        peak = config.lr if name.startswith(BRANCH_PREFIX) else config.lr * config.rate_outside_branches
        scale = _depth_scale(model, name, config)
        decays = config.decay_all or not _exempt_from_decay(name, parameter, exempt, config)
        # AdamW cannot update sharded and replicated tensors in one group
        key = (peak, scale, config.weight_decay if decays else 0.0, type(parameter.data))
        if key not in groups:
            groups[key] = {
                "params": [],
                "names": [],
                "lr": peak * scale,
                "peak_lr": peak,
                "lr_scale": scale,
                "weight_decay": key[2],
            }
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Return AdamW over `parameter_groups`."""
    groups = [{key: value for key, value in g.items() if key != "names"} for g in parameter_groups(model, config)]
    return AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, *, total_steps: int, warmup_steps: int
) -> LambdaLR:
    """Return the step-wise schedule of every group, `learning_rate` relative to the group's peak.

    Args:
        optimizer: Optimiser with groups from `parameter_groups`.
        config: Warm-up and final rates.
        total_steps: Optimiser steps of the whole run.
        warmup_steps: Optimiser steps of the warm-up.
    """

    def relative_rate(peak: float) -> Callable[[int], float]:
        def at(step: int) -> float:
            return learning_rate(step, peak, config, total_steps=total_steps, warmup_steps=warmup_steps) / peak

        return at

    return LambdaLR(optimizer, [relative_rate(group["peak_lr"]) for group in optimizer.param_groups])


def learning_rate(step: int, peak: float, config: ScheduleConfig, *, total_steps: int, warmup_steps: int) -> float:
    """Return the learning rate of a group at one optimiser step.

    Cosine: linear from `warmup_lr` to `peak` during the warm-up, then a cosine that starts at step 0 (the warm-up
    replaces its beginning) and ends with `min_lr` at `total_steps`. Step and poly: the warm-up is an increasing factor
    on the curve, from `warmup_lr / peak` to 1. `warmup_lr` and `min_lr` are absolute and equal for all groups.

    Source:
        Cosine: timm `CosineLRScheduler` with `t_in_epochs=False` and its defaults, which the official classifiers used
        per epoch. Step and poly: the schedules of the official detectors and segmentors.
    """
    progress = min(step / total_steps, 1.0)
    rising = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    first = config.warmup_lr / peak
    if config.curve == "step":
        reached = sum(progress >= drop for drop in config.drops)
        return peak * DROP**reached * (first + (1 - first) * rising)
    if config.curve == "poly":
        left: float = (1 - progress) ** config.power
        return (config.min_lr + (peak - config.min_lr) * left) * (first + (1 - first) * rising)
    if rising < 1:
        return config.warmup_lr + (peak - config.warmup_lr) * rising
    return config.min_lr + 0.5 * (peak - config.min_lr) * (1 + math.cos(math.pi * progress))


def _exempt_from_decay(name: str, parameter: Tensor, exempt: set[str], config: OptimConfig) -> bool:
    if config.layer_decay is not None and config.layer_decay_rule == "official":
        return parameter.ndim == 1  # scalars, position tables and class tokens are decayed there
    return parameter.ndim <= 1 or name.endswith(".bias") or name in exempt


def _depth_scale(model: nn.Module, name: str, config: OptimConfig) -> float:
    if config.layer_decay is None or not name.startswith(BRANCH_PREFIX):
        return 1.0
    index, _, local_name = name[len(BRANCH_PREFIX) :].partition(".")
    branch: Any = model.get_submodule(BRANCH_PREFIX + index)
    depth, layers = branch.layer_depth(local_name), branch.depth
    if config.layer_decay_rule == "official":
        if not branch.is_decayed_officially or depth > branch.depth:
            return 1.0
        largest: Any = model.get_submodule(BRANCH_PREFIX + "0")
        layers = largest.depth if largest.is_decayed_officially else MIXED_LAYERS
        depth = int(depth * layers / branch.depth)
    scale: float = config.layer_decay ** (layers + 1 - depth)
    return scale
