"""Reading images, sampling points and features during a forward pass, by hooks on the public modules of a pyramid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from piip.explain.components import component_colours, relative_change
from piip.explain.explanation import Features, Gate, SamplingPoints
from piip.layers.attention import DeformableCrossAttention
from piip.layers.interaction import Injector
from piip.ops.positions import cell_centres
from piip.serialization.base import PyramidModel
from piip.structures import BranchFeatures, Grid, Size

Position = tuple[float, float]  # (x, y) relative to the image, in [0, 1]
Direction = tuple[int, int, int]  # interaction, branch that is read, branch that is updated
# Kinds of attention that sample points, others read all positions: attention, query tokens (B, Q, C), their positions
# (Q, 2) and the grid of the source -> locations (B, Q, heads, points, 2) and weights (B, Q, heads, points).
SAMPLING: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, Grid], tuple[Tensor, Tensor]]] = {
    DeformableCrossAttention: DeformableCrossAttention.sampling_points
}


class Recording:
    """What a pyramid computes for the first image of its first pass.

    Args:
        model: The model.
        queries: Positions whose sampling points are recorded.

    Attributes:
        image: The model's input (1, 3, H, W); None before a pass.
        points: Recorded sampling points.
        features: Recorded features.
        passes: Number of passes, of which only the first one is recorded.
    """

    def __init__(self, model: PyramidModel, queries: Sequence[Position]) -> None:
        self.model = model
        self.queries = queries
        self.image: Tensor | None = None
        self.points: list[SamplingPoints] = []
        self.features: list[Features] = []
        self.passes = 0

    @property
    def image_size(self) -> Size:
        """(H, W) of the model's input in pixels."""
        assert self.image is not None  # the model ran
        return (self.image.shape[2], self.image.shape[3])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record while the model runs inside this context."""
        backbone = self.model.get_backbone()
        with ExitStack() as stack:

            def hold(handle: RemovableHandle) -> None:
                stack.callback(handle.remove)

            for module in dict.fromkeys((self.model, backbone)):
                hold(module.register_forward_pre_hook(self._note_image))
            for index, interaction in enumerate(backbone.interactions):
                hold(interaction.register_forward_pre_hook(partial(self._count_pass, index)))
                hold(interaction.register_forward_hook(partial(self._note_features, index)))
            for direction, injector in injectors(self.model):
                if type(injector.attention) in SAMPLING:
                    hold(injector.attention.register_forward_pre_hook(partial(self._note_points, direction)))
            yield

    def _note_image(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.image is None:
            self.image = args[0][:1].detach().float().cpu()

    def _count_pass(self, index: int, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        self.passes += index == 0

    def _note_features(
        self, index: int, _module: nn.Module, args: tuple[list[BranchFeatures]], output: list[BranchFeatures]
    ) -> None:
        if self.passes > 1:
            return
        for branch, (before, after) in enumerate(zip(args[0], output, strict=True)):
            first, second, explained = component_colours(before, after)
            change = relative_change(before, after)
            self.features.append(Features(index, branch, first, second, change, explained))

    def _note_points(self, direction: Direction, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.passes > 1:
            return
        query, _, query_grid, source_grid = args
        centres = cell_centres(query_grid, query.device)
        wanted = torch.tensor(self.queries, device=query.device).view(-1, 2)
        nearest = torch.cdist(wanted, centres).argmin(1)
        locations, weights = SAMPLING[type(module)](module, query[:1, nearest], centres[nearest], source_grid)
        self.points.append(
            SamplingPoints(
                *direction,
                queries=_array(centres[nearest]),
                locations=_array(locations[0].flatten(1, 2)),
                weights=_array(weights[0].flatten(1)) / weights.shape[2],
                image_size=self.image_size,
            )
        )


def injectors(model: PyramidModel) -> Iterator[tuple[Direction, Injector]]:
    """Yield all injectors with the interaction and the branches that they connect.

    Args:
        model: The model.
    """
    for index, interaction in enumerate(model.get_backbone().interactions):
        for pair, unit in enumerate(interaction.units):
            for (source, target), injector in unit.injectors(pair).items():
                yield (index, source, target), injector


def read_gates(model: PyramidModel) -> list[Gate]:
    """Return the sizes of all gates.

    Args:
        model: The model.
    """
    return [
        Gate(*direction, kind, float(gate.detach().float().abs().mean()))
        for direction, injector in injectors(model)
        for kind, gate in injector.gates().items()
    ]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
