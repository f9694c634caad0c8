"""Taking a branch away: its interactions do nothing, and its share of the merged map or of the logits is zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from piip.layers.merge import CombinesBranches
from piip.serialization.base import PyramidModel


def parts_with_shares(model: PyramidModel) -> list[CombinesBranches]:
    """Return the parts that add or average shares of the branches; empty if a branch cannot be taken away.

    Args:
        model: The model.
    """
    return [part for part in model.combining_parts() if part.shares()]


@contextmanager
def without_branch(model: PyramidModel, branch: int) -> Iterator[None]:
    """Run the model without a branch inside this context.

    The units that connect it with its neighbours return their inputs, so that it neither gives nor receives. Of a
    middle branch, that also ends what its neighbours learn about each other through it. Where a merge adds shares, its
    share is zero; where a head averages logits, it averages those of the other branches.

    Args:
        model: The model, with at least two branches.
        branch: Index of the branch.
    """
    backbone = model.get_backbone()
    with ExitStack() as stack:
        for interaction in backbone.interactions:
            for pair, unit in enumerate(interaction.units):
                if branch in (pair, pair + 1):
                    stack.callback(unit.register_forward_hook(_unchanged).remove)
        for part in parts_with_shares(model):
            shares = part.shares()
            others = len(shares) / (len(shares) - 1) if part.takes_mean else 1.0
            for index, share in enumerate(shares):
                factor = 0.0 if index == branch else others
                stack.callback(share.register_forward_hook(_Scaled(factor)).remove)
        yield


def _unchanged(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> tuple[Any, ...]:
    return args


class _Scaled:
    """A hook that multiplies a module's output by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * self.factor
