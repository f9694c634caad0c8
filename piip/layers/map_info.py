"""Description of returned maps in timm's words, and selection of maps as timm's `forward_intermediates` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import FeatureInfo
from torch import Tensor

from piip.structures import BranchFeatures

OUTPUT_FORMATS = ("NCHW", "NLC")


class MapInfo(FeatureInfo, Sequence[dict[str, Any]]):
    """timm's `FeatureInfo`: `channels()`, `reduction()`, `module_name()`, `out_indices`; also a sequence of dicts.

    Args:
        maps: "num_chs" (channels) and "reduction" (stride in image pixels) of every map; more keys are kept.
    """

    def __init__(self, maps: Sequence[dict[str, Any]]) -> None:
        super().__init__([], ())  # timm's constructor refuses falling strides, which a pyramid without a merge has
        self.info = [
            {"module": f"map{index}", "index": index, **info, "reduction": _whole(info["reduction"])}
            for index, info in enumerate(maps)
        ]
        self.out_indices = tuple(range(len(self.info)))

    def from_other(self, out_indices: int | Sequence[int]) -> MapInfo:
        """Return a copy for other output indices.

        Args:
            out_indices: Indices of maps, or how many of the last ones.
        """
        copied = MapInfo([dict(info) for info in self.info])
        copied.out_indices = tuple(taken_indices(len(self.info), out_indices))
        return copied


def _whole(stride: float) -> float:
    """Return a stride as timm has it: an int, unless it is a fraction."""
    return int(stride) if float(stride).is_integer() else stride


def taken_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return the indices that timm's argument `indices` selects.

    Args:
        count: Number of things to select from.
        indices: Indices, where negative ones count from the end; a number selects the last ones, None all.

    Raises:
        ValueError: There are fewer, or none is selected.
    """
    wanted = range(-indices, 0) if isinstance(indices, int) else range(count) if indices is None else indices
    if not wanted or not all(-count <= index < count for index in wanted):
        raise ValueError(f"indices is {indices}, expected some of [-{count}, {count}), or a number up to {count}.")
    return [index % count for index in wanted]


def check_format(output_fmt: str) -> None:
    """Raise a ValueError unless the format of maps is one of `OUTPUT_FORMATS`."""
    if output_fmt not in OUTPUT_FORMATS:
        raise ValueError(f"output_fmt is {output_fmt!r}, expected one of {', '.join(OUTPUT_FORMATS)}.")


def formatted(feature_map: Tensor, output_fmt: str) -> Tensor:
    """Return a map (B, C, H, W) in one of `OUTPUT_FORMATS`: as it is, or as tokens (B, H * W, C)."""
    return feature_map if output_fmt == "NCHW" else BranchFeatures.map_to_tokens(feature_map)
