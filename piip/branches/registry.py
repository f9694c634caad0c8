"""From a timm name to a branch."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models import FeatureListNet
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from piip.branches import intern_vit, uni_perceiver  # noqa: F401 - registers their networks with timm
from piip.branches.base import Branch, group_ranges
from piip.branches.beit import BeitBranch
from piip.branches.conv_next import ConvNeXtBranch, list_entries
from piip.branches.staged import StagedBranch, count_stages
from piip.branches.tokens import PlainViT
from piip.branches.vit import ViTBranch
from piip.config import BranchConfig
from piip.fields import nearest_names

OWN_FIELDS = ("num_classes", "global_pool", "img_size", "drop_path_rate", "features_only", "out_indices")


def is_network(name: str) -> bool:
    """Tell whether timm, with the networks that this package adds to it, knows a name."""
    return bool(timm.is_model(name))


def create_network(config: BranchConfig) -> nn.Module:
    """Build the timm network of a branch, with its pretrained weights if asked.

    Args:
        config: The branch.

    Returns:
        A `VisionTransformer`, `Eva` or `Beit` to run on any image size, a `ConvNeXt` where it is cut between its
        blocks, or a `FeatureListNet`.

    Raises:
        ValueError: An unknown name (with the nearest ones), arguments the network does not take, a network that cannot
            be run stage by stage, or weights that cannot be had.
    """
    name = config.network
    if not is_network(name):
        raise ValueError(
            f"timm {timm.__version__} has no network {name!r}. {nearest_names(name.split('.')[0], timm.list_models())}"
        )
    tagged = timm.list_models(name.split(".")[0] + ".*", include_tags=True) if "." in name else []
    if tagged and name not in tagged:
        raise ValueError(f"timm {timm.__version__} knows no weights {name!r}. {nearest_names(name, tagged)}")
    clash = [key for key in config.timm_args if key in OWN_FIELDS]
    if clash:
        raise ValueError(f"timm_args of {name} sets {', '.join(clash)}; use the fields of BranchConfig instead.")
    if config.timm_args.get("patch_drop_rate"):
        raise ValueError(f"timm_args of {name} sets patch_drop_rate; a pyramid needs every patch.")
    args = _timm_arguments(config)
    network = _create_pretrained(name, args) if config.pretrained else timm.create_model(name, **args)
    if config.drop_path_rate and config.drop_path_rule == "constant":
        _set_constant_drop_path(network, config)
    return network


def _create_pretrained(name: str, args: dict[str, Any]) -> nn.Module:
    """Build a network, whose arguments are known to be right, with its weights."""
    if "init_values" in args:
        args["pretrained_strict"] = False  # the released DeiT weights know no layer scale: it starts at its init value
    try:
        return timm.create_model(name, pretrained=True, **args)
    except (OSError, RuntimeError) as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])
        raise ValueError(
            f"The weights of {name} could not be loaded ({reason}); check the network connection or timm's cache, "
            "bring them from a file with `piip convert --branch`, or build without pretrained weights."
        ) from error


def _timm_arguments(config: BranchConfig) -> dict[str, Any]:
    """Find the arguments that build this network for a pyramid, trying them on the meta device."""
    args = dict(config.timm_args)
    if config.drop_path_rate and config.drop_path_rule == "linear":
        args["drop_path_rate"] = config.drop_path_rate
    plain = _probe(config.network, {**args, "num_classes": 0})
    if isinstance(plain, Beit):
        return {**args, "num_classes": 0, "img_size": _table_side(plain, config)}
    if isinstance(plain, PlainViT):
        return {**args, "num_classes": 0, "img_size": _table_side(plain, config), "dynamic_img_size": True}
    if config.cut == "blocks":
        if not isinstance(plain, ConvNeXt):
            raise ValueError(
                f"cut 'blocks' is for ConvNeXt networks, {config.network} is a {type(plain).__name__}; "
                "leave it at 'stages'."
            )
        return {**args, "num_classes": 0}
    staged = {**args, "features_only": True}
    if needs_fixed_size(plain, config):
        staged["img_size"] = config.image_size
    tried: Exception | None = None
    for extra in ({}, {"feature_cfg": {"feature_cls": "list", "flatten_sequential": True}}):
        try:
            if isinstance(_probe(config.network, {**staged, **extra}), FeatureListNet):
                return {**staged, **extra}
        except ValueError as error:
            tried = error
    reason = f" ({tried})" if tried else ""
    raise ValueError(
        f"{config.network} ({type(plain).__name__}) is neither a plain ViT nor a network that timm can cut into "
        f"stages, so branches cannot interact inside it{reason}. Choose a ViT, EVA, ConvNeXt, ResNet, Swin, ..."
    )


def _table_side(vit: PlainViT, config: BranchConfig) -> int:
    """Return the side in pixels of the image whose grid the network's positions are stored for."""
    patch = int(vit.patch_embed.patch_size[0])
    if config.position_grid is not None:
        return config.position_grid * patch
    windows = {config.window_size} if isinstance(config.window_size, int) else set(config.window_size)
    if isinstance(vit, Beit) and len(windows) == 1 and 0 not in windows:
        return windows.pop() * patch  # its positions are those inside a window
    return config.image_size


def _probe(name: str, args: dict[str, Any]) -> nn.Module:
    """Build a network without allocating weights.

    Raises:
        ValueError: timm refuses the arguments.
    """
    try:
        with torch.device("meta"):
            return timm.create_model(name, **args)
    except (TypeError, AssertionError, RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        raise ValueError(f"timm cannot build {name} with {args}: {type(error).__name__}: {error}") from error


def needs_fixed_size(network: nn.Module, config: BranchConfig) -> bool:
    """Tell whether a network accepts only the image size it was built for."""
    described = network.pretrained_cfg.get("fixed_input_size", False)  # type: ignore[union-attr, operator]
    return bool(described) and not config.timm_args.get("dynamic_img_size", False)


def _set_constant_drop_path(network: nn.Module, config: BranchConfig) -> None:
    if not isinstance(network, PlainViT):
        raise ValueError(f"drop_path_rule 'constant' needs a plain ViT, {config.network} is none; use 'linear'.")
    for block in network.blocks:
        block.drop_path1, block.drop_path2 = DropPath(config.drop_path_rate), DropPath(config.drop_path_rate)


def interaction_points(network: nn.Module) -> int:
    """Return after how many places of a network an interaction can follow: its blocks or its stages."""
    if isinstance(network, PlainViT):
        return len(network.blocks)
    if isinstance(network, ConvNeXt):
        return len(list_entries(network))
    return count_stages(network)  # type: ignore[arg-type]


def wrap_network(network: nn.Module, config: BranchConfig, groups: int) -> Branch:
    """Make a branch of a network from `create_network`.

    Args:
        network: The timm network.
        config: The branch.
        groups: Number of stages the branch is cut into.

    Returns:
        The branch.

    Raises:
        ValueError: A field that this kind of network does not know, or groups that do not fit.
    """
    points = interaction_points(network)
    try:
        ranges = group_ranges(points, config.block_groups, groups)
    except ValueError as error:
        raise ValueError(f"Branch {config.network}: {error}") from error
    windows = [config.window_size] * points if isinstance(config.window_size, int) else config.window_size
    if isinstance(network, Beit):
        if config.window_padding != "before_qkv":
            raise ValueError(f"Branch {config.network}: BEiT pads windows 'before_qkv' only; leave window_padding.")
        return BeitBranch(
            network,
            ranges,
            window_sizes=windows,
            prefix_tokens=config.prefix_tokens,
            final_norm=config.final_norm,
        )
    if isinstance(network, VisionTransformer | Eva):
        return ViTBranch(
            network,
            ranges,
            window_sizes=windows,
            window_padding=config.window_padding,
            prefix_tokens=config.prefix_tokens,
            final_norm=config.final_norm,
            position_resize=config.position_resize,
        )
    if config.window_size:
        raise ValueError(f"Branch {config.network}: window_size needs a plain ViT; leave it at 0.")
    if isinstance(network, ConvNeXt):
        return ConvNeXtBranch(network, ranges)
    side = config.image_size
    return StagedBranch(
        network,  # type: ignore[arg-type]  # what `create_network` makes where there is no plain ViT
        ranges,
        pretrained_cfg=network.pretrained_cfg,  # type: ignore[arg-type]
        fixed_size=(side, side) if needs_fixed_size(network, config) else None,
    )
