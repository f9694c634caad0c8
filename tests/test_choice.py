"""The choice of a provider on GPUs, with the CPU in the place of the GPU, and clocks and providers that are made up."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from piip.ops import PROVIDERS, choice, deform_attn, deformable_attention, deformops, levels_deformable_attention

GRIDS = [(5, 7), (2, 3)]
PORTABLE = PROVIDERS["portable"]
SECONDS = {"portable": 3.0, "triton": 2.0, "deformops": 1.0}


class Machine:
    """A GPU that is the CPU: which providers are called, and how long each seems to take."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.timed: list[str] = []
        self.seconds = dict(SECONDS)

    def provider(self, name: str) -> Callable[..., Tensor]:
        def run(*given: Any) -> Tensor:
            self.called.append(name)
            return PORTABLE(*given)

        return run

    def clock(self, call: Callable[[], Any], device: torch.device) -> float:
        self.called.clear()
        call()
        self.timed.append(self.called[-1])
        return self.seconds[self.called[-1]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "GPU", "cpu")
    monkeypatch.setattr(choice, "_device_name", lambda device: f"GPU {device}")
    monkeypatch.setattr(choice, "timed", made.clock)
    monkeypatch.setattr(deform_attn, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(deformops, "is_installed", lambda: True)
    for name in SECONDS:
        monkeypatch.setitem(PROVIDERS, name, made.provider(name))
    choice._choices.cache_clear()
    yield made
    choice._choices.cache_clear()


def inputs(queries: int = 11, dtype: torch.dtype = torch.float32, levels: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in GRIDS[: levels or 1])
    shape = (2, queries, 3, levels, 4) if levels else (2, queries, 3, 4)
    value = torch.randn(2, cells, 3, 8, generator=generator).to(dtype)
    return value, torch.rand(*shape, 2, generator=generator) * 2 - 0.5, torch.rand(shape, generator=generator).to(dtype)


def call(*given: Tensor) -> Tensor:
    return deformable_attention(given[0], GRIDS[0], *given[1:])


def test_the_fastest_is_measured_once_and_kept(machine: Machine, tmp_path: Path) -> None:
    call(*inputs())
    assert machine.timed == ["portable", "triton", "deformops"]
    assert machine.called[-1] == "deformops"
    (row,) = json.loads((tmp_path / "piip" / "providers.json").read_text()).values()
    assert row == {"provider": "deformops", "seconds": SECONDS}
    choice._choices.cache_clear()  # as in another process
    machine.seconds["portable"] = 0.1
    call(*inputs(queries=13))  # 16 queries, rounded up, like 11
    assert len(machine.timed) == 3
    assert machine.called[-1] == "deformops"


@pytest.mark.parametrize(
    "changed",
    [
        lambda: inputs(queries=17),
        lambda: inputs(dtype=torch.bfloat16),
        lambda: tuple(each.requires_grad_() for each in inputs()),
    ],
    ids=["queries", "dtype", "gradients"],
)
def test_other_kinds_of_calls_are_measured_apart(machine: Machine, changed: Callable[[], Any]) -> None:
    call(*inputs())
    machine.seconds["portable"] = 0.1
    call(*changed())
    assert len(machine.timed) == 6
    assert machine.called[-1] == "portable"
    call(*inputs())
    assert machine.called[-1] == "deformops"


def test_gradients_reach_the_given_tensors_only_once(machine: Machine) -> None:
    leaves = [each.requires_grad_() for each in inputs()]
    call(*leaves).sum().backward()
    wanted = [each.detach().clone().requires_grad_() for each in leaves]
    PORTABLE(wanted[0], GRIDS[0], *wanted[1:]).sum().backward()
    for leaf, want in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, want.grad)


def test_what_fails_or_is_wrong_is_passed_over_in_words(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Tensor:
        raise RuntimeError("no\nkernel image")

    monkeypatch.setitem(PROVIDERS, "triton", fails)
    monkeypatch.setitem(PROVIDERS, "deformops", lambda *given: 1.01 * PORTABLE(*given))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call(*inputs())
    assert [str(each.message) for each in caught] == [
        "Deformable attention does not use the provider 'triton', because no kernel image.",
        "Deformable attention does not use the provider 'deformops', because its result differs from grid_sample's by "
        "1.0e-02, accepted 1e-03.",
    ]
    assert torch.equal(found, PORTABLE(inputs()[0], GRIDS[0], *inputs()[1:]))


def test_doubles_have_one_provider_and_are_not_measured(machine: Machine) -> None:
    call(*inputs(dtype=torch.float64))
    assert machine.timed == []
    assert machine.called == ["portable"]


def test_nothing_is_measured_while_a_graph_is_compiled_or_captured(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    compiled(*inputs())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    call(*inputs())
    assert machine.timed == []
    assert {*machine.called} == {"portable"}


def test_compiled_graphs_take_the_cached_choice(machine: Machine) -> None:
    want = call(*inputs())
    machine.called.clear()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(call, backend="eager", fullgraph=True)(*inputs()), want)
    assert {*machine.called} == {"deformops"}


def test_a_folder_that_cannot_be_written_does_not_matter(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    call(*inputs())
    call(*inputs())
    assert len(machine.timed) == 3


# As the operator of deformops 3.0.1: `deformops.registry.msda(value, spatial_shapes, level_start_index,
# sampling_locations, attention_weights, /, *, method=None, ...)`, weights (B, Q, G, L * K) or (B, Q, G, L, K).
def stub(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, /) -> Tensor:
    assert shapes.dtype == starts.dtype == torch.int64
    weights = weights.unflatten(3, locations.shape[3:5])
    total: Any = 0
    for level, (grid, start) in enumerate(zip(shapes.tolist(), starts.tolist(), strict=True)):
        part = value[:, start : start + grid[0] * grid[1]]
        total = total + PORTABLE(part, tuple(grid), locations[:, :, :, level], weights[:, :, :, level])
    return total


def levels(given: Sequence[Tensor]) -> Tensor:
    return levels_deformable_attention(given[0], GRIDS, *given[1:])


def one_by_one(given: Sequence[Tensor]) -> Tensor:
    return deform_attn._sum_of_levels(*given, grids=GRIDS, provider="index")


def test_deformops_gets_all_levels_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(levels=2)
    calls = []
    monkeypatch.setattr(deformops, "_operator", lambda: lambda *args: calls.append(args) or stub(*args))
    monkeypatch.setattr(choice, "timed", lambda run, device: (run(), -len(calls))[1])
    found = levels(given)
    assert len(calls) == 3  # compared, timed, and used
    (row,) = choice._choices().values()
    assert row["provider"] == "deformops"
    torch.testing.assert_close(found, one_by_one(given))


def test_far_points_stay_outside_in_deformops(monkeypatch: pytest.MonkeyPatch) -> None:
    value, locations, weights = inputs(levels=2)
    locations = locations.clone()
    locations[:, ::2] *= 1e12
    seen = []
    monkeypatch.setattr(deformops, "_operator", lambda: lambda *args: seen.append(args[3].abs().max()) or stub(*args))
    found = deformops.sample(value, GRIDS, locations, weights)
    assert max(seen) <= 2
    torch.testing.assert_close(found, one_by_one((value, locations, weights)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_itself_on_the_cpu(dtype: torch.dtype) -> None:
    pytest.importorskip("deformops")
    given = [each.requires_grad_() for each in inputs(dtype=dtype)]
    others = [each.detach().double().requires_grad_() for each in given]
    found = deformable_attention(given[0], GRIDS[0], *given[1:], provider="deformops")
    want = PORTABLE(others[0], GRIDS[0], *others[1:])
    for out in (found, want):
        out.sum().backward()
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(
        [found, *(each.grad for each in given)], [want, *(each.grad for each in others)], strict=True
    ):
        assert (one.double() - other).norm() <= limit * other.norm()


def test_without_the_library() -> None:
    if deformops.importlib.util.find_spec("deformops") is not None:
        pytest.skip("it is installed")
    with pytest.raises(ValueError, match=r"Provider 'deformops' needs the library.*Python 3.12 or 3.13"):
        deformable_attention(inputs()[0], GRIDS[0], *inputs()[1:], provider="deformops")
