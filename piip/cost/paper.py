"""The paper's cost: the rule behind the published figures.

The published figures of the ViT models are not of the detection backbones: they were counted on a classification
model with the same branches and interactions, a light merge and a 1000-class head, without a neck
(`docs/cost.md`). One multiply-add counts one; convolutions with their bias, linear layers without,
norms two per element; attention by formula over the patch tokens.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.branches import ConvNeXtBranch, TokenBranch
from piip.build import build_model
from piip.config import HeadConfig, MergeConfig, ModelConfig, NeckConfig
from piip.cost.report import CostReport, PartCost
from piip.device import without_values
from piip.layers.attention import CrossAttention, DeformableCrossAttention

PUBLISHED_POINTS = 4  # the counting script fixes the number of points


def paper_cost(config: ModelConfig) -> CostReport:
    """Count a model as the authors did.

    Args:
        config: The model; a ViT detection model is counted as the classification model it was converted to, one with
            ConvNeXt branches as it is without its neck, a multimodal one without its projector.

    Returns:
        The report, for the nominal square image.

    Raises:
        ValueError: A branch that is neither a transformer of uniform blocks nor a ConvNeXt cut between its blocks.
    """
    counted = counted_config(config)
    with without_values():
        model = build_model(counted)
    backbone = model.get_backbone()
    for i, branch in enumerate(backbone.branches):
        if not isinstance(branch, TokenBranch | ConvNeXtBranch):
            raise ValueError(
                f"The paper's rule is known for ViTs and ConvNeXts cut between blocks; branch {i} "
                f"({config.branches[i].network}) is neither. Use rule='total'."
            )
    counted_parts = {name: modules for name, modules in model.parts().items() if name != "neck"}
    macs = _count_modules(model, backbone.image_sizes[-1], counted_parts)
    for part, count in _attention(backbone, is_tower=_is_tower(config)).items():
        macs[part] += count
    for i, described in enumerate(config.branches):
        branch = backbone.branches[i]
        # the counted DeiT classifier pads windows behind the products, the real backbones pad before them
        if isinstance(branch, TokenBranch) and not (described.network.startswith("deit") and counted != _real(config)):
            macs[f"branch {i}"] += _padded_qkv(branch, described.image_size)
    parts = {
        part: PartCost(macs[part], sum(p.numel() for module in modules for p in module.parameters()))
        for part, modules in counted_parts.items()
    }
    side = config.branches[-1].image_size
    return CostReport(parts, (side, side), "paper", meaning="as the paper counts (light merge, no neck)")


def counted_config(config: ModelConfig) -> ModelConfig:
    """Return the model that the authors counted for a model: the real one, or a classifier with its branches."""
    if any(branch.cut == "blocks" for branch in config.branches) or _is_tower(config):
        return _real(config)
    # position tables at the resolution of each branch, as in the released classifiers
    branches = tuple(dataclasses.replace(branch, position_grid=None) for branch in _real(config).branches)
    head, merge = config.head, config.merge
    if head.task == "features" or head.is_dense:
        head = HeadConfig("pooled", num_classes=1000)
        merge = MergeConfig("linear" if len(branches) > 1 else "none")
    return dataclasses.replace(config, branches=branches, merge=merge, neck=NeckConfig(), head=head, allow_direct=True)


def _is_tower(config: ModelConfig) -> bool:
    """Return whether a model is a vision tower, with or without its projector: several branches and a map of each."""
    return config.head.task in ("features", "tokens") and len(config.branches) > 1 and not config.merge.makes_one_map


def _real(config: ModelConfig) -> ModelConfig:
    branches = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    head = config.head if config.head.task == "classification" else HeadConfig()
    return dataclasses.replace(config, branches=branches, head=head, allow_direct=True)


def _module_macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
        return output.numel() * (kernel + (module.bias is not None))
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.ReLU):
        return output.numel()
    return 2 * output.numel()  # norms


def _is_counted(module: nn.Module, part: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm) and isinstance(part, ConvNeXtBranch):
        return False  # a class of its own upstream, which the counting script does not know
    return isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm | nn.GroupNorm | nn.ReLU)


def _count_modules(model: nn.Module, side: int, parts: Mapping[str, Sequence[nn.Module]]) -> defaultdict[str, int]:
    macs: defaultdict[str, int] = defaultdict(int)
    handles = []

    def hook(part: str) -> Any:
        def count(module: nn.Module, args: Any, output: Tensor) -> None:
            macs[part] += _module_macs(module, output)

        return count

    for name, modules in parts.items():
        for part in modules:
            for module in part.modules():
                if _is_counted(module, part):
                    handles.append(module.register_forward_hook(hook(name)))
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, side, side, device="meta"))
    for handle in handles:
        handle.remove()
    return macs


def _attention(backbone: PIIPBackbone, *, is_tower: bool) -> dict[str, int]:
    """Return the analytic attention terms: prefix tokens and padding are left out.

    parity: of vision towers the counting script takes the grids of the first interaction for all of them.
    """
    macs: dict[str, int] = {}
    for i, (size, branch) in enumerate(zip(backbone.image_sizes, backbone.branches, strict=True)):
        if isinstance(branch, TokenBranch):
            count, dim = (size // branch.stride) ** 2, branch.stages[-1].channels
            spans = [window * window if window else count for window in branch.window_sizes]
            macs[f"branch {i}"] = sum(2 * count * span * dim for span in spans)
    if len(backbone.branches) > 1:
        stages = range(len(backbone.interactions))
        macs["interactions"] = sum(_interaction(backbone, stage, 0 if is_tower else stage) for stage in stages)
    return macs


def _interaction(backbone: PIIPBackbone, stage: int, grid_stage: int) -> int:
    widths = [branch.stages[stage].channels for branch in backbone.branches]
    strides = [branch.stages[grid_stage].stride for branch in backbone.branches]
    tokens = [(size // stride) ** 2 for size, stride in zip(backbone.image_sizes, strides, strict=True)]
    macs = 0
    for pair, unit in enumerate(backbone.interactions[stage].units):
        for injector, query, source in ((unit.to_coarse, pair, pair + 1), (unit.to_fine, pair + 1, pair)):
            if injector is not None:
                macs += _cross(injector.attention, tokens[query], tokens[source], widths[query])
    return macs


def _padded_qkv(branch: TokenBranch, image_size: int) -> int:
    """Return the cost of the qkv products of padded window tokens: the counted DeiT class pads after them."""
    side, dim = image_size // branch.stride, branch.stages[-1].channels
    padded = [-(-side // window) * window for window in branch.window_sizes if window]
    return sum((whole * whole - side * side) * 3 * dim * dim for whole in padded)


def _cross(attention: nn.Module, queries: int, sources: int, dim: int) -> int:
    if isinstance(attention, CrossAttention):
        return 2 * queries * sources * dim
    assert isinstance(attention, DeformableCrossAttention)
    return 5 * queries * PUBLISHED_POINTS * dim
