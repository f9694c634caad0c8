"""Sources of the official tensors of a model: a file of the whole model, or of one network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from piip.checkpoints.identify import HEAD_PARTS, count_branches, equal_fraction, explain_wrong_file
from piip.checkpoints.networks import FittedBranch, SingleNetwork, branch_shapes, fit_branch, read_network
from piip.checkpoints.official import OfficialModel, official_shapes, own_tensors
from piip.checkpoints.unwrapping import FoundWeights, sort_names
from piip.serialization.weights import StoredTensor, TensorFacts


@dataclass(frozen=True)
class Source:
    """Sources of the official tensors of a model.

    Args:
        tensors: By official name.
        base: By our name, for what `tensors` lacks.
        result: Fields of the conversion's report.
        initial: Official names of a filled branch that `tensors` lacks; they are initialised.
    """

    tensors: Mapping[str, StoredTensor]
    base: Mapping[str, StoredTensor]
    result: Mapping[str, Any]
    initial: tuple[str, ...] = ()


def has_head(names: Collection[str]) -> bool:
    """Return whether a file holds the head of a dense or multimodal model beside its backbone."""
    return any(name.startswith(HEAD_PARTS) or any(f".{part}" in name for part in HEAD_PARTS) for name in names)


def fits(weights: FoundWeights, official: OfficialModel) -> bool:
    """Return whether a file has all tensors of a model with equal shapes."""
    wanted = official_shapes(official)
    own = sort_names(weights.tensors, wanted).own
    return equal_fraction({name: tensor.facts.shape for name, tensor in own.items()}, wanted) == 1


def whole_model(weights: FoundWeights, official: OfficialModel, *, source: str, model: str) -> Source:
    """Select the tensors of a whole model from its file.

    Args:
        weights: The tensors of the file.
        official: The model, on the meta device.
        source: Name of the file in messages.
        model: The model's name.

    Returns:
        The model's tensors.

    Raises:
        ValueError: The file does not match; the message names the most similar model.
    """
    if any(re.match(r"(?:backbone\.)?branches\.\d+\.", name) for name in weights.tensors):
        raise ValueError(f"{source} is already a piip model: load it without conversion.")
    wanted = official_shapes(official)
    found = sort_names(weights.tensors, wanted)
    given = {name: tensor.facts.shape for name, tensor in found.own.items()}
    known = [name for name in given if name in wanted]
    network = None if _is_pyramid(weights.tensors) else read_network(weights.tensors)
    if network is not None and len(known) < len(wanted) / 2:
        raise ValueError(
            f"{source} holds one network ({network.title}), but {model} has {count_branches(wanted)} branches: "
            "choose the branch to load it into with --branch; 0 is the largest network."
        )
    problem = explain_wrong_file(given, wanted, source=source, model=model)
    if problem is not None:
        hint = " To load the weights of a single network into one branch, use --branch." if network is not None else ""
        raise ValueError(problem + hint)
    result = {"prefix": found.prefix, "wrappings": weights.wrappings, "left_out": found.others}
    return Source(found.own, {}, result)


def one_branch(
    weights: FoundWeights,
    official: OfficialModel,
    branch: int,
    *,
    source: str,
    model: str,
) -> Source:
    """Fit the tensors of a single network's file into one branch.

    Args:
        weights: The tensors of the file.
        official: The model, on the meta device.
        branch: Index of the branch, from 0.
        source: Name of the file in messages.
        model: The model's name.

    Returns:
        The tensors of that branch.

    Raises:
        ValueError: The file does not match; the message names the branch that it matches.
    """
    network = None if _is_pyramid(weights.tensors) else read_network(weights.tensors)
    if network is None:
        what = "a whole pyramid: remove --branch" if _is_pyramid(weights.tensors) else "no network of a known layout"
        names = ", ".join(list(weights.tensors)[:4])
        raise ValueError(f"{source} holds {what}; its first names are {names}.")
    shapes = official_shapes(official)
    count = len(official.config.branches)
    wanted = [branch_shapes(shapes, index, count=count) for index in range(count)]
    try:
        fitted = fit_branch(network, wanted[branch])
    except ValueError as error:
        others = [index for index in range(count) if index != branch and _fits(network, wanted[index])]
        hint = f" It fits --branch {' or '.join(map(str, others))}." if others else ""
        raise ValueError(f"{source} does not fit branch {branch} of {model}: {error}.{hint}") from error
    prefix = official.names.branch_prefix(branch)
    tensors = {f"{prefix}{name}": tensor for name, tensor in fitted.tensors.items()}
    left_out = _parts(fitted)
    if network.others:
        left_out["outside the network"] = network.others
    return Source(
        tensors,
        {},
        {
            "wrappings": weights.wrappings,
            "left_out": left_out,
            "network": network.title,
            "resized": fitted.resized,
            "initial": fitted.initial,
        },
        tuple(f"{prefix}{name}" for name in fitted.initial),
    )


def _is_pyramid(names: Collection[str]) -> bool:
    return any(re.search(r"(?:^|\.)(?:branch\d+|up1)\.", name) for name in names)


def _fits(network: SingleNetwork, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        fit_branch(network, wanted)
    except ValueError:
        return False
    return True


def _parts(fitted: FittedBranch) -> dict[str, int]:
    names = (re.sub(r"^(clip|convnext)_model\.", "", name) for name in fitted.unused)
    return dict(Counter(name.split(".")[0] for name in names))


def own_names(official: OfficialModel, parts: Collection[str]) -> list[str]:
    """Return our names of the tensors made from some official tensors.

    Args:
        official: The model.
        parts: Official names.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in official.model.state_dict().items()}
    wanted = {*parts}
    return [name for name, shape in shapes.items() if not wanted.isdisjoint(official.names.origin(name, shape).reads)]


def own_facts(official: OfficialModel, source: Source) -> dict[str, TensorFacts]:
    """Return the names and facts that `own_stream` will yield, by running the translation without data."""

    def pretend(stored: StoredTensor) -> Tensor:
        return torch.empty(stored.facts.shape, dtype=stored.facts.dtype, device="meta")

    return {name: TensorFacts(tuple(tensor.shape), tensor.dtype) for name, tensor in _stream(official, source, pretend)}


def own_stream(official: OfficialModel, source: Source) -> Iterator[tuple[str, Tensor]]:
    """Yield our names and tensors in order, reading each tensor on demand."""
    return _stream(official, source, lambda stored: stored.read())


def _stream(
    official: OfficialModel, source: Source, read: Callable[[StoredTensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield our names and tensors in order."""
    wanted = official_shapes(official)
    absent: set[str] = set()

    def fetch(name: str) -> Tensor:
        stored = source.tensors.get(name)
        if stored is None:
            absent.add(name)
            return torch.empty(wanted[name], device="meta")
        return read(stored)

    for name, tensor in own_tensors(official, fetch):
        if absent:
            tensor = read(source.base[name])
            absent.clear()
        yield name, tensor
