"""The paper's cost: the rule behind the published figures.

The published figures of the ViT models are not of the detection backbones: they were counted on a classification
model with the same branches and interactions, a light merge and a 1000-class head, without a neck
(`docs/cost.md`). One multiply-add counts one; convolutions with their bias, linear layers without,
norms two an element; attention by formula over the patch tokens.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piip.attention import CrossAttention, DeformableCrossAttention
from piip.backbone import PIIPBackbone
from piip.branches import ViTBranch
from piip.build import build_model
from piip.config import HeadConfig, MergeConfig, ModelConfig, NeckConfig
from piip.cost.report import CostReport, PartCost
from piip.heads.classification import PIIPClassifier

PUBLISHED_POINTS = 4  # the counting script fixes the number of points


def paper_cost(config: ModelConfig) -> CostReport:
    """Count a model as the authors did.

    Args:
        config: The model; a detection model is counted as the classification model it was converted to.

    Returns:
        The report, for the nominal square image.

    Raises:
        ValueError: A branch that is no plain ViT.
    """
    with torch.device("meta"):
        model = build_model(counted_config(config))
    assert isinstance(model, PIIPClassifier)
    others = [i for i, branch in enumerate(model.backbone.branches) if not isinstance(branch, ViTBranch)]
    if others:
        raise ValueError(
            f"The paper's rule is known for plain ViTs; branch {others[0]} ({config.branches[others[0]].network}) is "
            "none. Use rule='total'."
        )
    macs = _count_modules(model)
    for part, count in _attention(model.backbone).items():
        macs[part] += count
    for i, branch in enumerate(config.branches):
        if not branch.network.startswith("deit"):
            macs[f"branch {i}"] += _padded_qkv(model.backbone.branches[i], branch.image_size)  # type: ignore[arg-type]
    params = {
        part: sum(p.numel() for module in modules for p in module.parameters()) for part, modules in _rooms(model)
    }
    parts = {part: PartCost(macs[part], count) for part, count in params.items()}
    side = config.branches[-1].image_size
    return CostReport(parts, (side, side), "paper")


def counted_config(config: ModelConfig) -> ModelConfig:
    """Return the classification model that the authors counted for a model."""
    branches = config.branches
    # position tables at the resolution of each branch, as in the released classifiers
    branches = tuple(dataclasses.replace(branch, position_grid=None, pretrained=False) for branch in branches)
    head, merge = config.head, config.merge
    if head.kind == "none":
        head = HeadConfig("pooled", num_classes=1000)
        merge = MergeConfig("linear" if len(branches) > 1 else "none")
    return dataclasses.replace(config, branches=branches, merge=merge, neck=NeckConfig(), head=head, allow_direct=True)


def _rooms(model: PIIPClassifier) -> list[tuple[str, list[nn.Module]]]:
    backbone = model.backbone
    rooms: list[tuple[str, list[nn.Module]]] = [(f"branch {i}", [b]) for i, b in enumerate(backbone.branches)]
    if len(backbone.branches) > 1:
        rooms.append(("interactions", list(backbone.interactions)))
    if backbone.merge is not None:
        rooms.append(("merge", [backbone.merge]))
    return [*rooms, ("head", [model.head])]


def _module_macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
        return output.numel() * (kernel + (module.bias is not None))
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 2 * output.numel()  # norms


def _count_modules(model: PIIPClassifier) -> defaultdict[str, int]:
    macs: defaultdict[str, int] = defaultdict(int)
    handles = []

    def hook(part: str) -> Any:
        def count(module: nn.Module, args: Any, output: Tensor) -> None:
            macs[part] += _module_macs(module, output)

        return count

    for part, modules in _rooms(model):
        for room in modules:
            for module in room.modules():
                if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm | nn.GroupNorm):
                    handles.append(module.register_forward_hook(hook(part)))
    side = model.backbone.image_sizes[-1]
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, side, side, device="meta"))
    for handle in handles:
        handle.remove()
    return macs


def _attention(backbone: PIIPBackbone) -> dict[str, int]:
    """Return the analytic attention terms: prefix tokens and padding are left out."""
    macs: dict[str, int] = {}
    tokens = [
        (size // branch.stride) ** 2 for size, branch in zip(backbone.image_sizes, backbone.branches, strict=True)
    ]
    for i, branch in enumerate(backbone.branches):
        count, dim = tokens[i], branch.stages[-1].channels
        windows: Sequence[int] = branch.window_sizes  # type: ignore[assignment]
        spans = [window * window if window else count for window in windows]
        macs[f"branch {i}"] = sum(2 * count * span * dim for span in spans)
    interactions = 0
    for interaction in backbone.interactions:
        for pair, unit in enumerate(interaction.units):
            for injector, query, source in ((unit.to_coarse, pair, pair + 1), (unit.to_fine, pair + 1, pair)):
                if injector is not None:
                    dim = backbone.branches[query].stages[-1].channels
                    interactions += _cross(injector.attention, tokens[query], tokens[source], dim)
    if backbone.interactions and len(tokens) > 1:
        macs["interactions"] = interactions
    return macs


def _padded_qkv(branch: ViTBranch, image_size: int) -> int:
    """Return the cost of the qkv products of padded window tokens: the counted DeiT class pads after them."""
    side, dim = image_size // branch.stride, branch.stages[-1].channels
    padded = [-(-side // window) * window for window in branch.window_sizes if window]
    return sum((whole * whole - side * side) * 3 * dim * dim for whole in padded)


def _cross(attention: nn.Module, queries: int, sources: int, dim: int) -> int:
    if isinstance(attention, CrossAttention):
        return 2 * queries * sources * dim
    assert isinstance(attention, DeformableCrossAttention)
    return 5 * queries * PUBLISHED_POINTS * dim
