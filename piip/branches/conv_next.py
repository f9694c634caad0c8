"""ConvNeXt cut after any block or downsampling layer.

`StagedBranch` cuts networks with stages at their ends only; the released hybrids interact inside the stages. All
knowledge of the insides of timm's `ConvNeXt` is in this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from timm.models.convnext import ConvNeXt, ConvNeXtStage
from torch import Tensor, nn

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD, Branch
from piip.branches.family import Cut, Family
from piip.config import BranchConfig
from piip.layers import checkpointing
from piip.structures import BranchFeatures, StageInfo


class Entry(NamedTuple):
    """One step of a ConvNeXt.

    Attributes:
        stage: Which stage of the network.
        block: Which block of the stage, or None for the downsampling layer in front of the blocks.
        channels: Width after the step.
        stride: Image pixels per cell after the step.
    """

    stage: int
    block: int | None
    channels: int
    stride: int


def list_entries(network: ConvNeXt) -> list[Entry]:
    """Return the steps of a network in order: the blocks of every stage, downsampling layers as steps of their own."""
    entries: list[Entry] = []
    for index, (stage, info) in enumerate(zip(_stages(network), network.feature_info, strict=True)):
        described: Mapping[str, Any] = info
        channels, stride = int(described["num_chs"]), int(described["reduction"])
        if not isinstance(stage.downsample, nn.Identity):
            entries.append(Entry(index, None, channels, stride))
        entries += [Entry(index, block, channels, stride) for block in range(len(stage.blocks))]
    return entries


class ConvNeXtBranch(Branch):
    """A timm `ConvNeXt` run over groups of its steps.

    Args:
        network: The timm model.
        entry_ranges: Half-open range of steps of each stage of the branch; see `list_entries`.
    """

    is_decayed_officially = False  # parity: its names match no pattern of the authors' optimiser

    def __init__(self, network: ConvNeXt, entry_ranges: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        network.reset_classifier(0, "")
        network.norm_pre = nn.Identity()
        network.head = nn.Identity()  # type: ignore[assignment]  # a branch holds no unused parameters
        self.network = network
        self.entries = list_entries(network)
        self.entry_ranges = list(entry_ranges)
        self.depth = len(self.entries)
        ends = [self.entries[stop - 1] for _, stop in self.entry_ranges]
        self.stages = tuple(
            StageInfo(end.channels, end.stride, stop) for end, (_, stop) in zip(ends, self.entry_ranges, strict=True)
        )
        self.stride = max(stage.stride for stage in self.stages)
        self.num_prefix_tokens = 0
        self.fixed_size = None
        config: Mapping[str, Any] = network.pretrained_cfg or {}  # type: ignore[assignment]
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))

    def embed(self, image: Tensor) -> BranchFeatures:
        """Run the stem: cells of 4 pixels."""
        return _tokens(self.network.stem(self.prepare(image)))

    def run_stage(self, stage: int, features: BranchFeatures) -> BranchFeatures:
        """Run one group of blocks and downsampling layers."""
        maps = features.as_map()
        for entry in self.entries[slice(*self.entry_ranges[stage])]:
            network_stage = _stages(self.network)[entry.stage]
            step = network_stage.downsample if entry.block is None else network_stage.blocks[entry.block]
            maps = checkpointing.call(step, maps, recompute=self.grad_checkpointing)
        return _tokens(maps)

    def finish(self, features: BranchFeatures) -> BranchFeatures:
        """Return the features: ConvNeXt has a norm behind its pooling only."""
        return features

    def layer_depth(self, parameter_name: str) -> int:
        """Return 0 for the stem, k for the k-th block or downsampling layer."""
        parts = parameter_name.split(".")
        if parts[1] != "stages":
            return 0
        block = int(parts[4]) if parts[3] == "blocks" else None
        found = [i for i, entry in enumerate(self.entries) if (entry.stage, entry.block) == (int(parts[2]), block)]
        return found[0] + 1


def _stages(network: ConvNeXt) -> list[ConvNeXtStage]:
    return list(network.stages)  # type: ignore[arg-type]  # timm makes them of this class


def _tokens(maps: Tensor) -> BranchFeatures:
    prefix = maps.new_empty(maps.shape[0], 0, maps.shape[1])
    return BranchFeatures(BranchFeatures.map_to_tokens(maps), prefix, (maps.shape[2], maps.shape[3]))


def _wrap(network: ConvNeXt, config: BranchConfig, cut: Cut) -> ConvNeXtBranch:
    if config.window_size:
        raise ValueError(f"Branch {config.network}: window_size needs a plain ViT; set it to 0.")
    return ConvNeXtBranch(network, cut.ranges)


FAMILY = Family(
    "ConvNeXt cut between blocks",
    matches=lambda network, config: isinstance(network, ConvNeXt) and config.cut == "blocks",
    timm_args=lambda network, config, args: {**args, "num_classes": 0},
    cut_points=lambda network: len(list_entries(network)),
    wrap=_wrap,
)
