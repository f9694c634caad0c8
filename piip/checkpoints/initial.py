"""Initial weights of single branches from files: `model.branches.K.weights` of a recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from piip.branches import Branch, StagedBranch, TokenBranch, create_network, wrap_network
from piip.checkpoints.layouts import Layout, Origin, Shape, layout_of, unchanged
from piip.checkpoints.networks import SingleNetwork, fit_branch, read_network
from piip.checkpoints.networks.names import below
from piip.checkpoints.reading import open_checkpoint
from piip.checkpoints.unwrapping import find_weights
from piip.config import BranchConfig
from piip.serialization.base import PyramidModel
from piip.serialization.hub import find_weights_of
from piip.serialization.model_card import require_config
from piip.serialization.weights import StoredTensor

OTHER_LAYOUTS = ("_clip_", "uni_perceiver", "beit", "convnext")  # networks that publishers store under other names
ANCHOR = "patch_embed.proj.weight"  # of every plain network of timm
SHOWN = 3  # names in the summary


class _TimmNames(Layout):
    """A plain ViT under timm's names."""

    renames = (("^vit\\.", ""),)

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        return unchanged(self.official(name), shape)


def load_branch_weights(model: PyramidModel) -> list[str]:
    """Load the files or repositories that the branches of a description name as their `weights`.

    Position tables and patch kernels are resized by the rules of `piip convert`.

    Args:
        model: A model that was just built; the branches are changed in place.

    Returns:
        One sentence per branch: what was loaded, resized, and newly initialised.

    Raises:
        ValueError: A file is missing, damaged or of another network.
    """
    told = []
    for index, (branch, config) in enumerate(
        zip(model.get_backbone().branches, require_config(model).branches, strict=True)
    ):
        if config.weights is not None:
            told.append(f"Branch {index}: {_load(branch, config)}")
    return told


def _load(branch: Branch, config: BranchConfig) -> str:
    source = str(config.weights)
    weights = find_weights(open_checkpoint(find_weights_of(source)), source=source)
    try:
        if isinstance(branch, StagedBranch):
            return _load_staged(branch, config, weights.tensors)
        network = read_network(weights.tensors)
        direct = _timm_network(weights.tensors) if isinstance(branch, TokenBranch) else None
        if direct is not None:
            with contextlib.suppress(ValueError):  # it may be a publisher's layout all the same
                return _load_fitted(branch, config, direct, _TimmNames())
        if network is None:
            names = ", ".join(list(weights.tensors)[:SHOWN])
            raise ValueError(f"it holds no network of a known layout, its first names are {names}")
        is_plain = isinstance(branch, TokenBranch) and not any(word in config.network for word in OTHER_LAYOUTS)
        layout = _TimmNames() if is_plain else layout_of(config.network, is_multimodal=False)
        return _load_fitted(branch, config, network, layout)
    except ValueError as error:
        raise ValueError(f"{source} does not fit the branch {config.network}: {str(error).rstrip('.')}.") from error


def _timm_network(tensors: Mapping[str, StoredTensor]) -> SingleNetwork | None:
    """Return the tensors of a file under timm's names, if there is one plain network in it."""
    found = [name for name in tensors if name.endswith(ANCHOR)]
    if len(found) != 1:
        return None
    own = below(tensors, found[0].removesuffix(ANCHOR))
    return SingleNetwork("timm's names", "vit", own, len(tensors) - len(own))


def _load_fitted(branch: Branch, config: BranchConfig, network: SingleNetwork, layout: Layout) -> str:
    """Fit a network to a branch whose parameters have the names of a layout, and load it."""
    state = branch.state_dict()
    origins = {name: layout.origin(name, tuple(value.shape)) for name, value in state.items()}
    wanted = dict(layout.unused(branch))  # published files hold these as well
    for origin in origins.values():
        wanted |= origin.shapes
    fitted = fit_branch(network, wanted)
    kept = []
    for name, origin in origins.items():
        if all(part in fitted.tensors for part in origin.reads):
            state[name].copy_(origin.make(*(fitted.tensors[part].read() for part in origin.reads)))
        else:
            kept.append(name)
    return _summary(str(config.weights), network.title, fitted.resized, kept)


def _load_staged(branch: StagedBranch, config: BranchConfig, tensors: Mapping[str, StoredTensor]) -> str:
    """Load a checkpoint of timm into a network with stages, through timm, which knows how to rewrite its names."""
    values: dict[str, Tensor] = {name: tensor.read() for name, tensor in tensors.items()}
    network = create_network(config, values)
    loaded = wrap_network(network, config, len(branch.stages)).state_dict()
    branch.load_state_dict(loaded)
    return _summary(str(config.weights), "timm's names", (), [])


def _summary(source: str, title: str, resized: tuple[str, ...], kept: list[str]) -> str:
    parts = [f"weights of {Path(source).name if Path(source).exists() else source} ({title})"]
    for words, names in (("resized", resized), ("newly initialised", kept)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{words} {', '.join(names[:SHOWN])}{more}")
    return "; ".join(parts) + "."
