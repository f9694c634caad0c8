"""Choosing pyramids within a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from piip.cost import CostReport
from piip.plan.candidates import Candidate, Costs, pyramids, singles
from piip.plan.evidence import Evidence, nearest, shape
from piip.structures import Size

LISTED = 6  # pyramids that are counted as a whole and shown
Say = Callable[[str], None]


@dataclass(frozen=True)
class Option:
    """A pyramid or single network that fits the budget.

    Attributes:
        candidate: Networks and resolutions.
        cost: Multiply-adds and parameters by part, for one image.
        image_size: (H, W) in pixels; of single networks at lower resolutions the size of the smaller image.
        evidence: The published pyramid of the nearest shape; None for a single network.
    """

    candidate: Candidate
    cost: CostReport
    image_size: Size
    evidence: Evidence | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "title": self.candidate.title,
            "networks": list(self.candidate.networks),
            "resolutions": list(self.candidate.sides),
            "image_size": list(self.image_size),
            "macs": self.cost.macs,
            "params": self.cost.params,
            "macs_by_part": {name: part.macs for name, part in self.cost.parts.items()},
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
        }


@dataclass(frozen=True)
class Budget:
    """Limits for one image; None is no limit.

    Attributes:
        macs: Multiply-adds.
        params: Parameters.
        seconds: Time on this machine.
        bytes: Peak memory of the process.
    """

    macs: float | None = None
    params: float | None = None
    seconds: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machine until models are measured.

    Attributes:
        seconds_per_mac: Time per multiply-add; None where no time is asked for.
        base_bytes: Memory of a process without a model.
        bytes_per_param: Memory per parameter: weights and their packed copies.
        bytes_per_pixel: Memory of activations per pixel of the image.
    """

    seconds_per_mac: float | None = None
    base_bytes: float = 8e8
    bytes_per_param: float = 8.0
    bytes_per_pixel: float = 1400.0

    def seconds(self, macs: float) -> float | None:
        """Return the expected time of an image."""
        return None if self.seconds_per_mac is None else macs * self.seconds_per_mac

    def memory(self, params: float, image_size: Size) -> float:
        """Return the expected peak memory."""
        return self.base_bytes + self.bytes_per_param * params + self.bytes_per_pixel * image_size[0] * image_size[1]

    def fits(self, budget: Budget, macs: float, params: float, image_size: Size) -> bool:
        """Return whether a model is expected to fit a budget."""
        known = [
            (budget.macs, macs),
            (budget.params, params),
            (budget.seconds, self.seconds(macs)),
            (budget.bytes, self.memory(params, image_size)),
        ]
        return all(limit is None or (value is not None and value <= limit) for limit, value in known)


def choose(
    networks: Sequence[str], costs: Costs, budget: Budget, machine: Machine, say: Say
) -> tuple[list[Option], list[Option]]:
    """Return the pyramids to consider, the best supported first, and the single networks of equal cost.

    A pyramid is left out if another one costs no more, has at least its parameters and at least the support of its
    evidence, and is better in one of the three.

    Args:
        networks: The largest first.
        costs: Counts them.
        budget: Limits.
        machine: What is assumed of the machine.
        say: Called with what is being done.

    Raises:
        ValueError: Nothing fits; with what the smallest pyramid costs.
    """
    say("patches and parameters of the networks")
    costs.measure(networks)
    rows = []
    for candidate in pyramids(networks, costs):
        say(f"cost of {candidate.title}")
        counts = [costs.params[name] for name in candidate.networks]
        found = nearest(shape(candidate.sides, counts))
        rows.append((candidate, costs.estimate(candidate), float(sum(counts)), found))
    if not rows:
        raise ValueError(f"There is no pyramid of {', '.join(networks)}: give two networks or more, the largest first.")
    usable = [row for row in rows if machine.fits(budget, row[1], row[2], costs.image_size)]
    if not usable:
        cheapest = min(rows, key=lambda row: row[1])
        raise ValueError(
            f"No pyramid fits the budget. The cheapest is {cheapest[0].title} with {cheapest[1] / 1e9:.3g} GMACs and "
            f"{cheapest[2] / 1e6:.3g} M parameters: raise the budget, or choose smaller networks or images."
        )
    front = non_dominated([(-macs, params, found.support) for _, macs, params, found in usable])
    ordered = sorted((usable[index] for index in front), key=lambda row: (-row[3].support, row[1]))
    chosen = []
    for candidate, _, _, found in ordered:
        say(f"count {candidate.title}")
        report = costs.exact(candidate)
        if machine.fits(budget, report.macs, report.params, costs.image_size):
            chosen.append(Option(candidate, report, costs.image_size, found))
        if len(chosen) == LISTED:
            break
    return chosen, _equal_singles(networks, costs, budget, machine, say)


def _equal_singles(networks: Sequence[str], costs: Costs, budget: Budget, machine: Machine, say: Say) -> list[Option]:
    """Return every network at the highest resolution that fits."""
    best: dict[str, Candidate] = {}
    for candidate in singles(networks, costs):
        params = costs.params[candidate.networks[0]]
        size = _scaled(costs, candidate)
        if machine.fits(budget, costs.estimate(candidate), params, size):
            best[candidate.networks[0]] = candidate  # resolutions go up
    options = []
    for candidate in best.values():
        say(f"count {candidate.title}")
        size = _scaled(costs, candidate)
        options.append(Option(candidate, dataclasses.replace(costs, image_size=size).exact(candidate), size, None))
    return options


def _scaled(costs: Costs, candidate: Candidate) -> Size:
    """Return the size of the image whose longer side a single network sees."""
    height, width = costs.image_size
    share = candidate.sides[0] / costs.side
    return round(height * share), round(width * share)


def non_dominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Return the indices of points than which no other is at least as large everywhere and larger somewhere.

    Args:
        points: Of equal length.
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points)
    ]
