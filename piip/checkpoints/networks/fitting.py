"""Fitting the tensors of one network to a branch: names, sizes, and parts that may be missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from piip.checkpoints.networks import convnext
from piip.checkpoints.networks.layouts import SingleNetwork
from piip.checkpoints.networks.names import Tensors, count_blocks, rename
from piip.checkpoints.networks.resizing import fitted
from piip.checkpoints.official import INDEX_BUFFERS
from piip.serialization.weights import StoredTensor

Shapes = Mapping[str, tuple[int, ...]]

# Parts of a branch that the network may lack; they are initialised: layer scales, classifiers, unused norms.
MAY_BE_MISSING = re.compile(
    r"(gamma_[12]|ls[12]\.gamma)$|^head\.(weight|bias)$"
    r"|^clip_model\.post_layernorm\.|^convnext_model\.(layernorm|head\.norm|head\.pre_logits\.fc)\."
)
# Parts of a network that the branch may lack; anything else would change the output.
MAY_BE_LEFT = re.compile(
    r"^(head|head_dist|fc_norm|norm|cls_token|dist_token|mask_token|register_tokens|reg_token|pre_logits|decoder\w*"
    r"|lm_head|clip_projector|classifier|proj|attn_pool|visual_projection|logit_scale|position_ids)(\.|$|/)"
    r"|^(clip_model|convnext_model)\.(proj|head|classifier)\b"
)
FAMILIES = {
    "vit": "a plain ViT",
    "beit": "a BEiT",
    "clip": "a CLIP network",
    "convnext": "a ConvNeXt",
    "uniperceiver": "a Uni-Perceiver",
}


@dataclass(frozen=True)
class FittedBranch:
    """A network's tensors in the form of a branch.

    Args:
        tensors: By the branch's official names, without the branch.
        initial: Names of the branch that the network lacks; they are initialised.
        unused: Names of the network that the branch lacks.
        resized: Names of the resized tables and kernels.
    """

    tensors: Tensors
    initial: tuple[str, ...]
    unused: tuple[str, ...]
    resized: tuple[str, ...]


def branch_shapes(shapes: Shapes, branch: int, *, count: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of one branch of an official model.

    Args:
        shapes: All names and shapes of the model.
        branch: Index of the branch, from 0.
        count: Number of branches; the names of a single one have no prefix.
    """
    if count > 1:
        prefix = f"branch{branch + 1}."
        return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    return {name: shape for name, shape in shapes.items() if not re.match(r"(up|fpn)\d\.", name)}


def branch_family(names: Collection[str]) -> str:
    """Return the family of a branch by its official names."""
    words = {"clip_model.": "clip", "convnext_model.": "convnext", "visual_embed.": "uniperceiver"}
    found = next((family for word, family in words.items() if any(name.startswith(word) for name in names)), "vit")
    return "beit" if any(name.endswith("relative_position_bias_table") for name in names) else found


def first_width(names: Shapes) -> int | None:
    """Return the width of a network's first layer, the only convolution of most networks; None if there is none."""
    return next((shape[0] for name, shape in names.items() if len(shape) == 4 and re.search("embed|stem", name)), None)


def describe_network(names: Shapes) -> str:
    """Return width and depth of a branch or network as text, from its names and shapes."""
    width = first_width(names)
    depth = max(count_blocks([*names], word) for word in ("blocks", "layers"))
    parts = [f"width {width}" if width else "", f"{depth} blocks" if depth else ""]
    return ", ".join(part for part in parts if part) or "unknown sizes"


def fit_branch(network: SingleNetwork, wanted: Shapes) -> FittedBranch:
    """Convert a network's tensors to a branch's names and sizes.

    Args:
        network: The network.
        wanted: The branch's official names, without the branch, and shapes.

    Returns:
        The tensors of the branch.

    Raises:
        ValueError: Family, sizes or parts differ.
    """
    named = _under_branch_names(network, wanted)
    if named is None:
        raise ValueError(f"the file holds {network.title}, the branch is {FAMILIES[branch_family(wanted)]}")
    tensors: dict[str, StoredTensor] = {}
    wrong: list[str] = []
    for name, shape in wanted.items():
        if name not in named:
            if not MAY_BE_MISSING.search(name) and not name.endswith(INDEX_BUFFERS):
                wrong.append(f"{name} is missing")
            continue
        tensor = fitted(name, named[name], shape)
        if tensor is not None:
            tensors[name] = tensor
        elif not name.startswith("head."):  # a classifier for other classes
            wrong.append(f"{name} is {named[name].facts.shape}, expected {shape}")
    unused = [name for name in named if name not in tensors]
    wrong += [f"{name} has no place" for name in unused if name not in wanted and not _may_be_left(name)]
    if wrong:
        given = {name: tensor.facts.shape for name, tensor in named.items()}
        more = f", and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise ValueError(
            f"the file holds {network.title}, {describe_network(given)}, the branch is "
            f"{FAMILIES[branch_family(wanted)]}, {describe_network(wanted)} ({'; '.join(wrong[:2])}{more})"
        )
    initial = tuple(name for name in wanted if name not in tensors and not name.endswith(INDEX_BUFFERS))
    resized = tuple(name for name, tensor in tensors.items() if tensor.facts.shape != named[name].facts.shape)
    return FittedBranch(tensors, initial, tuple(unused), resized)


def _may_be_left(name: str) -> bool:
    return MAY_BE_LEFT.search(name) is not None or name.endswith(INDEX_BUFFERS)


def _under_branch_names(network: SingleNetwork, wanted: Shapes) -> dict[str, StoredTensor] | None:
    """Return a network's tensors under the names of the branch's family, None for another family."""
    family = branch_family(wanted)
    if family in ("vit", "beit") and network.family == "vit":
        plain = any(name.endswith(".gamma_1") for name in wanted)
        return rename(network.tensors, [(r"\.ls([12])\.gamma$", r".gamma_\1")] if plain else [])
    if family != network.family:
        return None
    if family == "convnext":
        return convnext.to_branch(network.tensors, wanted)
    if family == "clip":
        return {f"clip_model.{name}": tensor for name, tensor in network.tensors.items()}
    return dict(network.tensors)
