"""Which images of a collection belong together: near-duplicates, and tiles cut from one image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from PIL import Image

SIDE = 24  # pixels of the small copies that are compared
ALIKE = 0.95  # correlation of small copies from which images count as near-duplicates
CONTINUED = 0.9  # correlation of the lines on both sides of a seam
SEAM = 0.5  # grey levels by which lines across a seam may differ more than lines inside the images do
CONTRAST = 4.0  # grey levels an edge must vary to say anything


def group_similar(images: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Group images (H, W, 3) that look alike or continue each other.

    Two images look alike if small grey copies, in any of the eight orientations, correlate above 0.95. Two of equal
    height continue each other sideways if the last column of one equals the first of the other about as well as their
    own neighbouring columns equal each other; likewise up and down.

    Returns:
        Groups of names, each sorted.
    """
    names = sorted(images)
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, second in [*_alike(images, names), *_seams(images, names)]:
        parent[root(first)] = root(second)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[root(name)].append(name)
    return sorted(groups.values())


def _grey(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32).mean(2)


def _alike(images: Mapping[str, np.ndarray], names: list[str]) -> list[tuple[str, str]]:
    small = []
    for name in names:
        copy = Image.fromarray(images[name]).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        values = np.asarray(copy, np.float32)
        values = values - values.mean()
        small.append(values / max(float(np.linalg.norm(values)), 1e-6))
    stacked = np.stack(small)
    flat = stacked.reshape(len(names), -1)
    pairs = []
    for turns in range(4):
        for flipped in (False, True):
            other = np.rot90(stacked[:, ::-1] if flipped else stacked, turns, axes=(1, 2)).reshape(len(names), -1)
            pairs += [(names[i], names[j]) for i, j in zip(*np.nonzero(flat @ other.T > ALIKE), strict=True) if i < j]
    return pairs


def _seams(images: Mapping[str, np.ndarray], names: list[str]) -> list[tuple[str, str]]:
    """Return pairs whose edges continue each other."""
    pairs = []
    for axis in (0, 1):
        by_length: defaultdict[int, list[str]] = defaultdict(list)
        for name in names:
            by_length[images[name].shape[axis]].append(name)
        for members in by_length.values():
            lines = [np.moveaxis(_grey(images[name]), axis, 1) for name in members]
            first, last = np.stack([line[0] for line in lines]), np.stack([line[-1] for line in lines])
            inner = (
                np.array([np.abs(line[1] - line[0]).mean() + np.abs(line[-1] - line[-2]).mean() for line in lines]) / 2
            )
            varied = (first.std(1) > CONTRAST), (last.std(1) > CONTRAST)
            for index, name in enumerate(members):
                seam = np.abs(last[index] - first).mean(1)
                limit = SEAM + np.minimum(inner[index], inner) * 1.25
                continued = _correlation(last[index], first) > CONTINUED
                close = (seam < limit) & continued & varied[0] & varied[1][index]
                pairs += [(name, members[other]) for other in np.nonzero(close)[0] if other != index]
    return pairs


def _correlation(line: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the correlation of one line (L,) with each of several (N, L)."""
    centred, rest = line - line.mean(), others - others.mean(1, keepdims=True)
    scale = np.linalg.norm(centred) * np.linalg.norm(rest, axis=1)
    return (rest @ centred) / np.maximum(scale, 1e-6)
