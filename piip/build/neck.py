"""Necks and the merges that they read, by the table of neck kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from piip.branches import Branch
from piip.config import ModelConfig
from piip.kinds import NECK_KINDS, NeckFacts
from piip.layers.merge import BranchMerge, LastMap, Merge, short_projection
from piip.layers.necks import InteractionPyramid, Neck, SimpleFeaturePyramid
from piip.tables import Table


def _short_merge(branches: Sequence[Branch], stage: int) -> BranchMerge:
    widths = [branch.stages[stage].channels for branch in branches]
    parts = [short_projection(channels, widths[0], is_first=i == 0) for i, channels in enumerate(widths)]
    return BranchMerge(parts, widths[0])


def _last_map(branches: Sequence[Branch], stage: int) -> LastMap:
    return LastMap(branches[-1].stages[stage].channels)


def _named_interactions(config: ModelConfig, groups: int) -> tuple[int, ...]:
    outside = [stage for stage in config.neck.interactions if not 0 <= stage < groups]
    if outside:
        raise ValueError(f"NeckConfig.interactions names {outside}, but there are interactions 0 to {groups - 1} only.")
    return config.neck.interactions


def _simple_pyramid(config: ModelConfig, branches: Sequence[Branch], widths: Sequence[int]) -> Neck:
    return SimpleFeaturePyramid(widths[-1], scales=config.neck.scales, norm=config.neck.norm)


def _interaction_pyramid(config: ModelConfig, branches: Sequence[Branch], widths: Sequence[int]) -> Neck:
    # a network with stages already brings maps of different sizes
    uniform = len({stage.stride for stage in branches[-1].stages}) == 1
    return InteractionPyramid(widths, scales=config.neck.scales if uniform else (1,) * len(widths))


@dataclass(frozen=True)
class NeckBuilder:
    """How a kind of neck is built.

    Args:
        build: Description, branches and widths of the maps (those of the stage merges, then the final one) -> the neck;
            None where the maps are the levels.
        stages: Description and number of stages -> the stages after which the branches are merged as well.
        stage_merge: Branches and stage -> the merge after that stage.
        final_merge: The same for the last stage, instead of the description's merge.
    """

    build: Callable[[ModelConfig, Sequence[Branch], Sequence[int]], Neck] | None
    stages: Callable[[ModelConfig, int], Sequence[int]] = lambda config, groups: ()
    stage_merge: Callable[[Sequence[Branch], int], Merge] = _short_merge
    final_merge: Callable[[Sequence[Branch], int], Merge] | None = None


NECKS: Table[NeckBuilder, NeckFacts] = Table(
    "neck",
    NECK_KINDS,
    {
        "simple": NeckBuilder(_simple_pyramid),
        "interaction": NeckBuilder(_interaction_pyramid, _named_interactions, final_merge=_short_merge),
        "stages": NeckBuilder(None, lambda config, groups: range(groups - 1), stage_merge=_last_map),
        "none": NeckBuilder(None),
    },
)
