"""From a description to a backbone."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import torch

from piip.backbone import PIIPBackbone
from piip.branches import Branch, create_network, interaction_points, wrap_network
from piip.build.interaction import interaction_unit
from piip.build.merge import MERGES, map_width
from piip.build.neck import NECKS
from piip.config import BranchConfig, HeadConfig, ModelConfig
from piip.cost.counting import count_forward
from piip.device import without_values
from piip.layers.interaction import Interaction
from piip.layers.merge import Merge


class PyramidWarning(UserWarning):
    """A pyramid whose larger networks see higher resolutions."""


def build_backbone(config: ModelConfig) -> PIIPBackbone:
    """Build the pyramid that a description names.

    Args:
        config: The description; its head is not built.

    Returns:
        A backbone: image (B, 3, H, W) -> list of maps.

    Raises:
        ValueError: Unknown networks, or parts that do not fit together.
    """
    if not isinstance(config, ModelConfig):
        raise ValueError(f"Expected ModelConfig(branches=(BranchConfig(...), ...)), got {type(config).__name__}.")
    networks = [create_network(branch) for branch in config.branches]
    points = [interaction_points(network, branch) for network, branch in zip(networks, config.branches, strict=True)]
    groups = _number_of_groups(config, points)
    branches = [
        wrap_network(network, branch, groups) for network, branch in zip(networks, config.branches, strict=True)
    ]
    for branch, description in zip(branches, config.branches, strict=True):
        if description.frozen:
            branch.freeze()
    if config.resize == "exact":
        _check_sizes(config, branches)
    if not config.allow_direct:
        _warn_unless_inverted(config, branches)
    if config.normalize == "per_branch":
        for branch in branches:
            branch.renormalize_from(config.mean or branches[0].mean, config.std or branches[0].std)
    interactions = [
        Interaction(
            [
                interaction_unit(config.interaction, coarse.stages[stage], fine.stages[stage])
                for coarse, fine in zip(branches[:-1], branches[1:], strict=True)
            ]
        )
        for stage in range(groups)
    ]
    merge = _merge_of(config, branches)
    builder = NECKS[config.neck.kind]
    stage_merges = {stage: builder.stage_merge(branches, stage) for stage in builder.stages(config, groups)}
    neck = None
    if builder.build is not None:
        widths = [*(part.out_channels for part in stage_merges.values()), map_width(branches, merge)]
        neck = builder.build(config, branches, widths)
    for part in (merge, neck, *stage_merges.values()):
        if part is not None:  # as tokens seen as maps are: convolutions then copy nothing
            part.to(memory_format=torch.channels_last)
    return PIIPBackbone(
        branches,
        interactions,
        merge,
        neck,
        image_sizes=[branch.image_size for branch in config.branches],
        stage_merges=stage_merges,
        official_resize=config.resize == "official",
        config=dataclasses.replace(config, head=HeadConfig()),
    )


def _number_of_groups(config: ModelConfig, points: list[int]) -> int:
    if config.interaction.count is not None and len(points) > 1:
        groups = config.interaction.count
    elif stated := [branch.block_groups for branch in config.branches if branch.block_groups is not None]:
        groups = len(stated[0])
    else:
        groups = min(points) if len(points) > 1 else 1
    for branch, available in zip(config.branches, points, strict=True):
        if groups > available:
            raise ValueError(
                f"{groups} interactions were asked for, but {branch.network} can take at most {available} (one after "
                "each block or stage); lower interaction.count."
            )
    return groups


def _check_sizes(config: ModelConfig, branches: list[Branch]) -> None:
    for description, branch in zip(config.branches, branches, strict=True):
        size, stride = description.image_size, branch.stride
        if size % stride:
            below, above = size // stride * stride, (size // stride + 1) * stride
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"image_size {size} of {description.network} is not a multiple of its stride {stride}; use {nearest}."
            )


def _warn_unless_inverted(config: ModelConfig, branches: list[Branch]) -> None:
    """Warn when a network is not larger than its neighbour at the next higher resolution."""
    params = [sum(p.numel() for p in branch.parameters()) for branch in branches]
    sizes = [branch.image_size for branch in config.branches]
    wrong = [i for i in range(len(params) - 1) if params[i] <= params[i + 1] or sizes[i] > sizes[i + 1]]
    if not wrong:
        return
    lines = [
        f"  branch {i}: {branch.network} at {branch.image_size} px, {params[i] / 1e6:.1f} M parameters, "
        f"{_branch_macs(branch) / 1e9:.2f} GMACs"
        for i, branch in enumerate(config.branches)
    ]
    warnings.warn(
        "This pyramid is not parameter-inverted: every branch should be a larger network at a lower resolution than "
        f"the next one, but branch {wrong[0]} is not, compared with branch {wrong[0] + 1}. Such a pyramid costs more "
        "and gains less; reorder the branches, or set ModelConfig(allow_direct=True) for a baseline.\n"
        + "\n".join(lines),
        PyramidWarning,
        stacklevel=3,
    )


def _branch_macs(config: BranchConfig) -> int:
    with without_values():
        bare = dataclasses.replace(config, pretrained=False, block_groups=None)
        branch = wrap_network(create_network(bare), bare, 1)
    return count_forward(branch, (config.image_size, config.image_size))


def _merge_of(config: ModelConfig, branches: Sequence[Branch]) -> Merge | None:
    """Return the final merge: that of the neck if it has one, else the description's."""
    neck_merge = NECKS[config.neck.kind].final_merge
    if config.merge.makes_one_map and neck_merge is not None:
        return neck_merge(branches, -1)
    return MERGES[config.merge.kind](config.merge, [branch.stages[-1].channels for branch in branches])
