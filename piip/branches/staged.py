"""Any timm network with stages as a branch: ResNet, EfficientNet, ConvNeXt, Swin, RegNet, MaxViT, ...

timm can rewrite such a network as an ordered list of modules (`FeatureListNet`). The list is cut where timm takes
feature maps; what lies between two cuts is a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import Format
from timm.models import FeatureListNet, swin_transformer, swin_transformer_v2
from timm.models.maxxvit import PartitionAttention2d, PartitionAttentionCl
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock as SwinV2CrBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD, Branch
from piip.branches.family import Cut, Family
from piip.branches.probe import probe
from piip.config import BranchConfig
from piip.structures import BranchFeatures, StageInfo

AS_LIST = {"feature_cfg": {"feature_cls": "list", "flatten_sequential": True}}  # not the network's own way
ANY_SIZE = {"strict_img_size": False}  # Swin: windows are padded, their masks made in the forward pass
SWIN_BLOCKS = (swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block, SwinV2CrBlock)
PARTITIONS = (PartitionAttention2d, PartitionAttentionCl)  # of MaxViT
FINEST_STAGE_STRIDE = 4  # maps at stride 2 belong to the stem: as tokens they would be four times as many


class StagedBranch(Branch):
    """A timm network with stages, run stage by stage.

    Args:
        network: timm's rewritten network, all of its feature maps taken.
        stage_groups: Half-open range of the network's stages (at stride 4 and above) in each stage of the branch.
        pretrained_cfg: timm's description of the weights (mean, std).
        fixed_size: The only accepted image size (H, W), or None.
        multiple: Image sides must be multiples of this in pixels; None takes the coarsest stride.
    """

    def __init__(
        self,
        network: FeatureListNet,
        stage_groups: Sequence[tuple[int, int]],
        *,
        pretrained_cfg: Mapping[str, object],
        fixed_size: tuple[int, int] | None = None,
        multiple: int | None = None,
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
        self.stride = 1 if fixed_size else multiple or max(stage.stride for stage in self.stages)
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


def _timm_arguments(plain: nn.Module, config: BranchConfig, args: dict[str, Any]) -> dict[str, Any]:
    """Find the arguments by which timm cuts a network into stages, trying them on the meta device."""
    if config.cut == "blocks":
        raise ValueError(
            f"cut 'blocks' is for ConvNeXt networks, {config.network} is a {type(plain).__name__}; "
            "leave it at 'stages'."
        )
    sizes: list[dict[str, Any]] = [{}]
    if needs_size(plain):
        sizes = [{"img_size": config.image_size, **extra} for extra in (ANY_SIZE, {})]
    for listed in ({}, AS_LIST):
        for size in sizes:
            staged = {**args, "features_only": True, **listed, **size}
            try:
                if isinstance(probe(config.network, staged), FeatureListNet):
                    return staged
            except ValueError:
                continue
    raise ValueError(
        f"{config.network} ({type(plain).__name__}) is neither a plain ViT nor a network that timm can cut into "
        "stages, so branches cannot interact inside it. Choose a ViT, EVA, ConvNeXt, ResNet, Swin, ..."
    )


def needs_size(network: nn.Module) -> bool:
    """Return whether timm builds a network for one image size."""
    return bool(network.pretrained_cfg.get("fixed_input_size", False))  # type: ignore[union-attr, operator]


def _wrap(network: FeatureListNet, config: BranchConfig, cut: Cut) -> StagedBranch:
    if config.window_size:
        raise ValueError(f"Branch {config.network}: window_size needs a plain ViT; set it to 0.")
    side = config.image_size
    modules = list(network.modules())
    pads_windows = any(isinstance(module, SWIN_BLOCKS) and module.dynamic_mask for module in modules)
    tiles_windows = any(isinstance(module, PARTITIONS) for module in modules)
    is_fixed = needs_size(network) and not (pads_windows or tiles_windows)
    return StagedBranch(
        network,
        cut.ranges,
        pretrained_cfg=network.pretrained_cfg,  # type: ignore[arg-type]
        fixed_size=(side, side) if is_fixed else None,
        # MaxViT's windows are a fixed part of the image it was built for, and must tile others
        multiple=side if tiles_windows else None,
    )


# The last family: what timm cannot cut is refused by its arguments.
FAMILY = Family(
    "network with stages",
    matches=lambda network, config: True,
    timm_args=_timm_arguments,
    cut_points=count_stages,
    wrap=_wrap,
)
