"""Which pyramids there are to choose from, and what they cost.

All are counted from few measured models: a branch costs a polynomial of its tokens (products grow with them, attention
with their square), interactions of a pair a share for every token of either side, the parts after them an affine
function of the tokens of the finest branch. What is listed in the end is counted as a whole (`exact`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from piip.build import build_backbone
from piip.config import BranchConfig, InteractionConfig, ModelConfig
from piip.cost import CostReport, estimate_cost
from piip.device import without_values
from piip.plan.tasks import PlanTask
from piip.structures import Size

FRACTIONS = (0.25, 1 / 3, 0.375, 0.5, 0.625, 2 / 3, 0.75, 0.8)  # of the finest resolution, for the coarser branches
MAX_BRANCHES = 3
AFTER = ("merge", "neck", "head")
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """Networks and the sides of their square images in pixels, the largest network first; one is a single network."""

    networks: tuple[str, ...]
    sides: tuple[int, ...]

    @property
    def title(self) -> str:
        """Short text, in the order of the papers: the finest first."""
        pairs = zip(reversed(self.networks), reversed(self.sides), strict=True)
        return " + ".join(f"{name.split('.')[0]} @ {side}" for name, side in pairs)


@dataclass
class Costs:
    """Costs of candidates of one task and image size.

    Args:
        task: Parts after the branches.
        interactions: Number of interactions; None for as many as the networks allow.
        image_size: (H, W) in pixels of the image of the finest branch.
    """

    task: PlanTask
    interactions: int | None
    image_size: Size

    def __post_init__(self) -> None:
        self.side = max(self.image_size)
        self.strides: dict[str, int] = {}  # by network, after `measure`, as the next three
        self.params: dict[str, int] = {}
        self.depths: dict[str, int] = {}
        self.has_one_width: dict[str, bool] = {}
        self._branch = functools.cache(self._fit_branch)
        self._pair = functools.cache(self._fit_pair)
        self._after = functools.cache(self._fit_after)

    def config(self, candidate: Candidate, *, num_classes: int | None = None, pretrained: bool = False) -> ModelConfig:
        """Return the description of a candidate.

        Args:
            candidate: The candidate.
            num_classes: Classes of the head; None for the usual number.
            pretrained: Load timm's weights of every branch.
        """
        branches = [
            BranchConfig(name, side, pretrained=pretrained, prefix_tokens=self.task.prefix_tokens)
            for name, side in zip(candidate.networks, candidate.sides, strict=True)
        ]
        interactions = self.interactions if len(branches) > 1 else None
        return self.task.model(tuple(branches), interactions, num_classes)

    def exact(self, candidate: Candidate) -> CostReport:
        """Count a candidate as a whole, its head included."""
        return estimate_cost(self.config(candidate), image_size=self.image_size)

    def _widths(self, network: str) -> int:
        """Return how many widths a network has at the ends of its stages."""
        pair = ModelConfig((self._one(network, self.side),) * 2, InteractionConfig(num_heads=1), allow_direct=True)
        with without_values():
            return len({stage.channels for stage in build_backbone(pair).branches[0].stages})

    def round(self, network: str, side: float) -> int:
        """Return a side in whole patches of a network, at least two."""
        stride = self.strides[network]
        return max(2, round(side / stride)) * stride

    def measure(self, networks: Sequence[str]) -> None:
        """Find patch sizes and parameters of networks; needed before all else."""
        for name in networks:
            with without_values():
                backbone = build_backbone(ModelConfig((self._one(name, self.side),)))
            (branch,) = backbone.branches
            self.strides[name], self.depths[name] = branch.stride, branch.depth
            self.params[name] = sum(parameter.numel() for parameter in branch.parameters())
            self.has_one_width[name] = branch.depth > 0 and self._widths(name) == 1

    def estimate(self, candidate: Candidate) -> float:
        """Return the multiply-adds of a candidate from those of its parts."""
        tokens = [self._tokens(*branch) for branch in zip(candidate.networks, candidate.sides, strict=True)]
        total = sum(self._branch(name) @ _powers(count) for name, count in zip(candidate.networks, tokens, strict=True))
        count = self._interactions(candidate.networks)
        for place, pair in enumerate(itertools.pairwise(candidate.networks)):
            total += count * self._pair(*pair) @ np.array(tokens[place : place + 2])
        widest, finest = candidate.networks[0], candidate.networks[-1]
        return float(total + self._after(widest, finest) @ np.array([1.0, tokens[-1]]))

    def _tokens(self, network: str, side: int) -> float:
        height, width = (self.round(network, side * edge / self.side) for edge in self.image_size)
        return height * width / self.strides[network] ** 2

    def _interactions(self, networks: Sequence[str]) -> int:
        return self.interactions or min(self.depths[name] for name in networks)

    def _fit_branch(self, network: str) -> Numbers:
        sides = [self.round(network, self.side * share) for share in (0.25, 0.5, 1)]
        rows, macs = [], []
        for side in sides:
            report = estimate_cost(ModelConfig((self._one(network, side),)), image_size=side)
            macs.append(report.parts["branch 0"].macs)
            rows.append(_powers((side / self.strides[network]) ** 2))
        return np.linalg.lstsq(np.array(rows), np.array(macs), rcond=None)[0]

    def _fit_pair(self, coarse: str, fine: str) -> Numbers:
        """Return the multiply-adds of an interaction per token of either side."""
        # all interactions of networks of one width are alike, and one is counted fast
        alike = self.has_one_width[coarse] and self.has_one_width[fine]
        one = dataclasses.replace(self, interactions=1 if alike else self.interactions)
        rows, macs = [], []
        for share in (0.25, 0.5):
            sides = (self.round(coarse, share * 512), self.round(fine, 512))
            report = estimate_cost(one.config(Candidate((coarse, fine), sides)), image_size=sides[1])
            macs.append(report.parts["interactions"].macs / (1 if alike else self._interactions((coarse, fine))))
            rows.append([(side / self.strides[name]) ** 2 for name, side in zip((coarse, fine), sides, strict=True)])
        return np.linalg.solve(np.array(rows), np.array(macs))

    def _fit_after(self, widest: str, finest: str) -> Numbers:
        sides = [self.round(finest, self.side * share) for share in (0.5, 1)]
        rows, macs = [], []
        for side in sides:
            report = estimate_cost(self.config(Candidate((finest,), (side,))), image_size=side)
            macs.append(report.macs - report.without(*AFTER).macs)
            rows.append([1.0, (side / self.strides[finest]) ** 2])
        return np.linalg.solve(np.array(rows), np.array(macs))

    def _one(self, network: str, side: int) -> BranchConfig:
        return BranchConfig(network, side, prefix_tokens=self.task.prefix_tokens)


def _powers(tokens: float) -> Numbers:
    return np.array([1.0, tokens, tokens**2])


def pyramids(networks: Sequence[str], costs: Costs) -> Iterator[Candidate]:
    """Yield all pyramids of two and three networks whose resolutions go up as the networks get smaller.

    Args:
        networks: The largest first.
        costs: After `Costs.measure`.
    """
    for count in range(2, MAX_BRANCHES + 1):
        for chosen in itertools.combinations(networks, count):
            seen = set()
            for shares in itertools.combinations(FRACTIONS, count - 1):
                sides = [
                    costs.round(name, share * costs.side) for name, share in zip(chosen, (*shares, 1), strict=True)
                ]
                if all(low < high for low, high in itertools.pairwise(sides)) and tuple(sides) not in seen:
                    seen.add(tuple(sides))
                    yield Candidate(chosen, tuple(sides))


def singles(networks: Sequence[str], costs: Costs) -> Iterator[Candidate]:
    """Yield every network at every resolution in steps of an eighth of the image's side.

    Args:
        networks: The networks.
        costs: After `Costs.measure`.
    """
    for name in networks:
        for side in sorted({costs.round(name, costs.side * share / 8) for share in range(1, 9)}):
            yield Candidate((name,), (side,))
