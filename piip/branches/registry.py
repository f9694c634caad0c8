"""From a timm name to a branch: families of networks, of which the first that matches is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.layers import DropPath
from torch import Tensor, nn

from piip.branches import (
    beit,
    conv_next,
    intern_vit,  # noqa: F401 - registers its networks with timm
    staged,
    uni_perceiver,  # noqa: F401 - registers its networks with timm
    vit,
)
from piip.branches.base import Branch, group_ranges
from piip.branches.family import Cut, Family
from piip.branches.probe import probe
from piip.branches.tokens import PlainViT
from piip.config import BranchConfig
from piip.fields import nearest_names

OWN_FIELDS = ("num_classes", "global_pool", "img_size", "drop_path_rate", "features_only", "out_indices")

# The first family that matches a network is taken; `register_family` puts one in front (docs/extending.md).
FAMILIES: list[Family] = [beit.FAMILY, vit.FAMILY, conv_next.FAMILY, staged.FAMILY]


def register_family(family: Family) -> None:
    """Add a family of networks, to be asked before the others.

    Args:
        family: The family.

    Raises:
        ValueError: The name already exists.
    """
    if any(family.name == known.name for known in FAMILIES):
        raise ValueError(f"The family {family.name!r} already exists; choose another name.")
    FAMILIES.insert(0, family)


def find_family(network: nn.Module, config: BranchConfig) -> Family:
    """Return the family of a network.

    Args:
        network: timm's model, as it is or from `create_network`.
        config: The branch.
    """
    return next(family for family in FAMILIES if family.matches(network, config))


def is_network(name: str) -> bool:
    """Return whether timm, with the networks that this package adds to it, has a network of that name."""
    return bool(timm.is_model(name))


def create_network(config: BranchConfig, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build the timm network of a branch, with its pretrained weights if asked.

    Args:
        config: The branch.
        state: Weights of the whole network under timm's names, instead of the pretrained ones.

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
        raise ValueError(f"timm {timm.__version__} has no weights {name!r}. {nearest_names(name, tagged)}")
    clash = [key for key in config.timm_args if key in OWN_FIELDS]
    if clash:
        raise ValueError(f"timm_args of {name} sets {', '.join(clash)}; use the fields of BranchConfig instead.")
    if config.timm_args.get("patch_drop_rate"):
        raise ValueError(f"timm_args of {name} sets patch_drop_rate; a pyramid needs every patch.")
    plain_args = dict(config.timm_args)
    if config.drop_path_rate and config.drop_path_rule == "linear":
        plain_args["drop_path_rate"] = config.drop_path_rate
    plain = probe(name, {**plain_args, "num_classes": 0})
    args = find_family(plain, config).timm_args(plain, config, plain_args)
    if state is not None:
        _check_names(plain, state)
        network = _create_pretrained(name, {**args, "pretrained_cfg_overlay": {"state_dict": dict(state)}})
    else:
        network = _create_pretrained(name, args) if config.pretrained else timm.create_model(name, **args)
    if config.drop_path_rate and config.drop_path_rule == "constant":
        _set_constant_drop_path(network, config)
    return network


def _check_names(plain: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise an error where weights are not those of a network; timm loads what it finds of a network with stages."""
    names = [*plain.state_dict()]
    missing = [name for name in names if name not in state and not name.endswith(("num_batches_tracked", "_index"))]
    if missing:
        raise ValueError(f"{len(missing)} of {len(names)} tensors are missing, such as {', '.join(missing[:2])}")


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


def _set_constant_drop_path(network: nn.Module, config: BranchConfig) -> None:
    if not isinstance(network, PlainViT):
        raise ValueError(f"drop_path_rule 'constant' needs a plain ViT, {config.network} is none; use 'linear'.")
    for block in network.blocks:
        block.drop_path1, block.drop_path2 = DropPath(config.drop_path_rate), DropPath(config.drop_path_rate)


def interaction_points(network: nn.Module, config: BranchConfig) -> int:
    """Return after how many blocks or stages of a network an interaction can follow.

    Args:
        network: From `create_network`.
        config: The branch.
    """
    return find_family(network, config).cut_points(network)


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
    family = find_family(network, config)
    points = family.cut_points(network)
    try:
        ranges = group_ranges(points, config.block_groups, groups)
    except ValueError as error:
        raise ValueError(f"Branch {config.network}: {error}") from error
    windows = [config.window_size] * points if isinstance(config.window_size, int) else config.window_size
    return family.wrap(network, config, Cut(ranges, windows))
