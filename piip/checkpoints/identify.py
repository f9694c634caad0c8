"""Explaining files that do not match a model: differing branches, and the most similar known model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from piip.branches import create_network
from piip.checkpoints.networks import branch_shapes, describe_network, first_width
from piip.checkpoints.official import INDEX_BUFFERS, build_released, official_shapes
from piip.config import BranchConfig, ModelConfig
from piip.device import without_values
from piip.serialization.mismatch import explain_mismatch
from piip.zoo.create import model_config
from piip.zoo.registry import OFFICIAL

HEAD_PARTS = ("mm_projector.", "roi_head.", "bbox_head.", "decode_head.")  # multimodal, detectors, segmentors
Shapes = Mapping[str, tuple[int, ...]]
LOOKS_LIKE = 0.5  # minimum fraction of equal tensors to report a similar model


@dataclass(frozen=True)
class Likeness:
    """The known models that are most similar to a file.

    Args:
        names: Their names; several if only resolutions differ.
        fraction: Fraction of tensors with equal names and shapes, in [0, 1]; 1 is a match.
    """

    names: tuple[str, ...]
    fraction: float


def count_branches(names: Collection[str]) -> int:
    """Return the number of branches in official names; 1 if the names have no number."""
    numbers = (re.match(r"branch(\d+)\.", name) for name in names)
    return max((int(found.group(1)) for found in numbers if found), default=1)


def equal_fraction(given: Shapes, wanted: Shapes) -> float:
    """Return the fraction of tensors that two models have in common, without index buffers."""
    first = {(name, tuple(shape)) for name, shape in given.items() if not name.endswith(INDEX_BUFFERS)}
    second = {(name, tuple(shape)) for name, shape in wanted.items() if not name.endswith(INDEX_BUFFERS)}
    return len(first & second) / max(1, len(first | second))


def most_alike(given: Shapes, names: Iterable[str] | None = None) -> Likeness:
    """Find the known models that are most similar to a file by names and shapes.

    Args:
        given: Names and shapes of the file, without prefixes.
        names: Models to compare with; None compares with all that the authors released.

    Returns:
        The most similar models; without names if no model has this number of branches.
    """
    best = Likeness((), 0.0)
    with_head = any(name.startswith(HEAD_PARTS) for name in given)
    for group in _likely_groups(given, sorted(OFFICIAL.values()) if names is None else names):
        with without_values():
            fraction = equal_fraction(given, official_shapes(build_released(group[0], with_head=with_head)))
        if fraction > best.fraction:
            best = Likeness(tuple(group), fraction)
        if fraction == 1:
            break
    return best


def _likely_groups(given: Shapes, names: Iterable[str]) -> list[list[str]]:
    """Return the models with the same number of branches and the most equal widths, grouped by equal shapes."""
    count = count_branches(given)
    wanted = [first_width(branch_shapes(given, branch, count=count)) for branch in range(count)]
    groups: dict[str, list[str]] = {}
    equal: dict[str, int] = {}
    known: dict[str, int | None] = {}  # networks by their description
    for name in names:
        config = model_config(name)
        if len(config.branches) != count:
            continue
        sizes = _sizes(config)
        groups.setdefault(sizes, []).append(name)
        if sizes not in equal:
            widths = [_network_width(branch, known) for branch in config.branches]
            equal[sizes] = sum(ours == theirs for ours, theirs in zip(widths, wanted, strict=True))
    most = max(equal.values(), default=0)
    return [group for sizes, group in groups.items() if equal[sizes] == most > 0]


def _network_width(branch: BranchConfig, known: dict[str, int | None]) -> int | None:
    key = f"{branch.network} {branch.timm_args}"
    if key not in known:
        with without_values():
            network = create_network(dataclasses.replace(branch, pretrained=False))
        known[key] = first_width({name: tuple(value.shape) for name, value in network.named_parameters()})
    return known[key]


def _sizes(config: ModelConfig) -> str:
    """Return a description without fields that do not affect shapes, so models of equal shapes are built once."""
    branches = tuple(
        # a classifier's position table depends on its resolution, and is described by its grid
        dataclasses.replace(branch, image_size=16, window_size=0, drop_path_rate=0.0, block_groups=None)
        if branch.position_grid is not None
        else dataclasses.replace(branch, drop_path_rate=0.0, block_groups=None)
        for branch in config.branches
    )
    interaction = dataclasses.replace(config.interaction, drop_path_rate=0.0)
    return repr(dataclasses.replace(config, branches=branches, interaction=interaction, mean=None, std=None))


def explain_wrong_file(given: Shapes, wanted: Shapes, *, source: str, model: str) -> str | None:
    """Compare a file with a model.

    Args:
        given: Names and shapes of the file, without prefixes.
        wanted: Names and shapes of the model.
        source: Name of the file in the message.
        model: The model's name.

    Returns:
        A message with the differing branches and the most similar models, or None if the file matches.
    """
    kept = {name: shape for name, shape in given.items() if name in wanted or not name.endswith(INDEX_BUFFERS)}
    needed = {name: shape for name, shape in wanted.items() if name in given or not name.endswith(INDEX_BUFFERS)}
    problem = explain_mismatch(needed, kept, source=source)
    if problem is None:
        return None
    differences = _branch_differences(kept, needed)
    if not differences:  # same networks: list missing and unexpected tensors
        differences = [line.strip() for line in problem.splitlines()[1:-1]]
    alike = most_alike(kept)
    return f"{source} does not fit {model}: {'; '.join(differences)}. {_advice(alike, model)}"


def _branch_differences(given: Shapes, wanted: Shapes) -> list[str]:
    has, needs = count_branches(given), count_branches(wanted)
    if has != needs:
        return [f"it has {has} branch{'es' if has > 1 else ''}, expected {needs}"]
    differences = []
    for branch in range(needs):
        theirs, ours = (branch_shapes(shapes, branch, count=needs) for shapes in (given, wanted))
        found, expected = describe_network(theirs), describe_network(ours)
        if found != expected:
            title = f"branch {branch} (branch{branch + 1} in the file)" if needs > 1 else "its network"
            differences.append(f"{title} has {found}, expected {expected}")
    return differences


def _advice(alike: Likeness, model: str) -> str:
    if alike.fraction < LOOKS_LIKE:
        return "It is not similar to any known model."
    names = [name for name in alike.names if name not in (model, OFFICIAL.get(model))]
    if len(names) < len(alike.names):
        return "No known model is more similar: the file may be damaged, or of another version."
    more = f" or {len(names) - 1} more of the same sizes" if len(names) > 1 else ""
    if alike.fraction == 1:
        return f"It fits {names[0]}{more}: convert it with that --model."
    return f"It is most similar to {names[0]}{more} ({int(100 * alike.fraction)} % of the tensors)."
