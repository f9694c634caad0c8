"""Any timm network with stages as a branch: ResNet, EfficientNet, ConvNeXt, Swin, RegNet, MaxViT, ...

timm can rewrite such a network as an ordered list of modules (`FeatureListNet`). The list is cut where timm takes
feature maps; what lies between two cuts is a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import Format
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD, Branch
from piip.structures import BranchFeatures, StageInfo

FINEST_STAGE_STRIDE = 4  # maps at stride 2 belong to the stem: as tokens they would be four times as many


class StagedBranch(Branch):
    """A timm network with stages, run stage by stage.

    Args:
        network: timm's rewritten network, all of its feature maps taken.
        stage_groups: Half-open range of the network's stages (at stride 4 and above) in each stage of the branch.
        pretrained_cfg: timm's description of the weights (mean, std).
        fixed_size: The only accepted image size (H, W), or None.
    """

    def __init__(
        self,
        network: FeatureListNet,
        stage_groups: Sequence[tuple[int, int]],
        *,
        pretrained_cfg: Mapping[str, object],
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        stem, stages, infos = _cut(network)
        self.stem = stem
        self.network_stages: Sequence[nn.Sequential] = nn.ModuleList(stages)  # type: ignore[assignment]
        self.stage_groups = list(stage_groups)
        self.channels_last = network.output_fmt == Format.NHWC
        self.depth = len(stages)
        self.stages = tuple(
            StageInfo(infos[stop - 1]["num_chs"], infos[stop - 1]["reduction"], stop) for _, stop in stage_groups
        )
        # a fixed size is taken as it is, else images are rounded to whole cells of the coarsest map
        self.stride = 1 if fixed_size else max(stage.stride for stage in self.stages)
        self.num_prefix_tokens = 0
        self.fixed_size = fixed_size
        self.mean = tuple(pretrained_cfg.get("mean", IMAGENET_MEAN))  # type: ignore[arg-type]
        self.std = tuple(pretrained_cfg.get("std", IMAGENET_STD))  # type: ignore[arg-type]

    def _tokens(self, maps: Tensor) -> BranchFeatures:
        if not isinstance(maps, Tensor):
            raise ValueError(
                "This network passes several tensors between its stages, so branches cannot interact inside it; "
                "choose another network, or a single branch with one group."
            )
        if self.channels_last:  # (B, H, W, C)
            prefix = maps.new_empty(maps.shape[0], 0, maps.shape[3])
            return BranchFeatures(maps.flatten(1, 2), prefix, (maps.shape[1], maps.shape[2]))
        height, width = maps.shape[2], maps.shape[3]
        prefix = maps.new_empty(maps.shape[0], 0, maps.shape[1])
        return BranchFeatures(BranchFeatures.map_to_tokens(maps), prefix, (height, width))

    def embed(self, image: Tensor) -> BranchFeatures:
        """Run the stem."""
        if self.fixed_size is not None and tuple(image.shape[-2:]) != self.fixed_size:
            raise ValueError(
                f"This network takes images of {self.fixed_size} pixels only, got {tuple(image.shape[-2:])}; "
                "build the model for that size, or choose a network that takes any size."
            )
        return self._tokens(self.stem(self.prepare(image)))

    def run_stage(self, stage: int, features: BranchFeatures) -> BranchFeatures:
        """Run the network's stages that make up one stage of the branch."""
        maps = features.patches.unflatten(1, features.grid) if self.channels_last else features.as_map()
        start, stop = self.stage_groups[stage]
        for index in range(start, stop):
            if self.grad_checkpointing and torch.is_grad_enabled():
                modules = self.network_stages[index]
                maps = checkpoint_sequential(modules, len(modules), maps, use_reentrant=False)
            else:
                maps = self.network_stages[index](maps)
        return self._tokens(maps)

    def finish(self, features: BranchFeatures) -> BranchFeatures:
        """Return the features: timm's feature maps carry no final norm."""
        return features

    def layer_depth(self, parameter_name: str) -> int:
        """Return 0 for the stem, k for the k-th stage."""
        parts = parameter_name.split(".")
        return int(parts[1]) + 1 if parts[0] == "network_stages" else 0


def count_stages(network: FeatureListNet) -> int:
    """Return how many stages a network offers, stem excluded."""
    return len(_used_stages(network))


def _used_stages(network: FeatureListNet) -> list[dict[str, Any]]:
    infos = network.feature_info.get_dicts()
    return [info for info in infos if info["reduction"] >= FINEST_STAGE_STRIDE] or infos


def _cut(network: FeatureListNet) -> tuple[nn.Sequential, list[nn.Sequential], list[dict[str, Any]]]:
    """Cut the module list into stem and stages; also return timm's description of each stage."""
    runs: list[list[nn.Module]] = [[]]
    for name, module in network.items():
        runs[-1].append(module)
        if name in network.return_layers:
            runs.append([])
    runs.pop()  # behind the last feature map
    infos = _used_stages(network)
    dropped = len(runs) - len(infos)
    stem = [module for run in runs[:dropped] for module in run]
    runs = runs[dropped:]
    if not stem:  # no feature map before the first stage: its leading modules are the stem
        stem, runs[0] = runs[0][:-1], runs[0][-1:]
    return nn.Sequential(*stem), [nn.Sequential(*run) for run in runs], infos
