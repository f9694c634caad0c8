"""A validation split taken from the training images: seeded, by class, with related images on one side."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def held_out(
    samples: Sequence[tuple[Path, int]], fraction: float, *, seed: int, group: str | None, by_class: bool
) -> set[Path]:
    """Return the paths of the images to validate on.

    Args:
        samples: Path and class (or any number) of every image.
        fraction: Fraction of the images, in (0, 1); at least one group is held out.
        seed: Seed of the selection; the same images and seed give the same split.
        group: Regular expression; images whose paths match it with the same text stay together. None separates all.
        by_class: Take the fraction of every class.

    Raises:
        ValueError: The expression is invalid, matches not all images, or too few groups are left for training.
    """
    groups = _groups([path for path, _ in samples], group)
    strata: defaultdict[int, list[str]] = defaultdict(list)
    members: defaultdict[str, list[Path]] = defaultdict(list)
    for (path, number), key in zip(samples, groups, strict=True):
        if key not in members:
            strata[number if by_class else 0].append(key)
        members[key].append(path)
    if len(members) < 2:
        raise ValueError(
            f"data.val_fraction needs at least two groups of images, found {len(members)}: change data.val_group."
        )
    chosen: set[Path] = set()
    generator = np.random.default_rng(seed)
    for number in sorted(strata):
        keys = sorted(strata[number])
        total = sum(len(members[key]) for key in keys)
        taken: list[Path] = []
        for key in [keys[index] for index in generator.permutation(len(keys))][:-1]:
            if taken and len(taken) + len(members[key]) / 2 > fraction * total:
                break
            taken += members[key]
        chosen.update(taken)
    return chosen


def _groups(paths: Sequence[Path], group: str | None) -> list[str]:
    if group is None:
        return [str(path) for path in paths]
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"data.val_group is {group!r}, which is not a regular expression: {error}.") from error
    keys = []
    for path in paths:
        match = pattern.search(path.as_posix())
        if match is None:
            raise ValueError(f"data.val_group {group!r} does not match {path}, expected a match in every path.")
        keys.append(match.group(1) if pattern.groups else match.group())
    return keys
