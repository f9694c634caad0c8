"""Kernel launches and host synchronisations: what is counted, and the figures that models hold to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch

from piip.cost import Launches, count_launches
from piip.cost.launches import LaunchCounter

VALUES = torch.arange(6.0).view(2, 3)
COUNTED: dict[str, tuple[Callable[[], object], Launches]] = {
    "views": (lambda: VALUES.t()[0].unsqueeze(0).expand(4, -1), Launches(0, 0)),
    "memory": (lambda: torch.empty(3), Launches(0, 0)),
    "elementwise": (lambda: (VALUES + 1).exp_(), Launches(2, 0)),
    "a copy": (lambda: VALUES.t().reshape(6), Launches(1, 0)),
    "a product": (lambda: torch.nn.functional.linear(VALUES, VALUES, VALUES[:, 0]), Launches(1, 0)),
    "item": (lambda: VALUES.sum().item(), Launches(1, 1)),
    "a condition": (lambda: bool(VALUES.isfinite().all()), Launches(5, 1)),
    "nonzero": (lambda: VALUES.nonzero(), Launches(1, 1)),
    "a mask": (lambda: VALUES[VALUES > 2], Launches(2, 1)),
    "an index": (lambda: VALUES[torch.zeros_like(VALUES, dtype=torch.long)[0]], Launches(2, 0)),
}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", COUNTED)
def test_launches_and_syncs_are_counted(name: str, mode: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    run, expected = COUNTED[name]
    with mode():
        assert count_launches(run) == expected


def test_backward_passes_are_counted() -> None:
    leaf = VALUES.clone().requires_grad_()
    counter = LaunchCounter()
    with counter:
        leaf[VALUES > 2].exp().sum().backward()
    assert counter.launched["exp"] == 1
    assert counter.launched["mul"] == 1  # backward of exp
    assert counter.synced == {"index": 1, "index_put": 1}
