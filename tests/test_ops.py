"""Deformable attention: every provider computes the same, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from piip.ops import PROVIDERS, cell_centres, deformable_attention, grid_extent, levels_deformable_attention, native

GRID = (5, 7)
HERE = [provider for provider in PROVIDERS if provider not in ("triton", "deformops")]  # tested elsewhere
DOUBLE = [provider for provider in HERE if provider != "native"]  # those that take float64
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.5e-2}


def inputs(dtype: torch.dtype, dim: int, points: int, *, heads: int = 3, queries: int = 11):
    generator = torch.Generator().manual_seed(dim + points)
    value = torch.randn(2, GRID[0] * GRID[1], heads, dim, generator=generator, dtype=torch.float64).to(dtype)
    # a third of the points lie outside the map, some far away
    locations = torch.rand(2, queries, heads, points, 2, generator=generator) * 2 - 0.5
    locations[:, 0] *= 50
    weights = torch.randn(2, queries, heads, points, generator=generator, dtype=torch.float64).to(dtype)
    return value, locations, weights


def run(provider: str, value, locations, weights):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    out = deformable_attention(leaves[0], GRID, leaves[1], leaves[2], provider=provider)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def one_by_one(value, locations, weights):
    """The definition, point by point, in float64."""
    batch, queries, heads, points = weights.shape
    height, width = GRID
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=torch.float64)
    maps = value.double().view(batch, height, width, heads, -1)
    for b, q, h, p in torch.cartesian_prod(*(torch.arange(n) for n in (batch, queries, heads, points))).tolist():
        x, y = (locations[b, q, h, p].double() * torch.tensor([width, height]) - 0.5).tolist()
        for row in range(height):
            for column in range(width):
                share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                if share:
                    out[b, q, h] += weights[b, q, h, p].double() * share * maps[b, row, column, h]
    return out.flatten(2)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_levels_are_the_sum_of_their_maps(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    grids, heads, points = [GRID, (2, 3), (1, 1)], 3, 2
    cells = sum(height * width for height, width in grids)
    value = torch.randn(2, cells, heads, 8, generator=generator)
    locations = torch.rand(2, 11, heads, len(grids), points, 2, generator=generator) * 2 - 0.5
    weights = torch.randn(2, 11, heads, len(grids), points, generator=generator)
    exact = [tensor.to(dtype).double().requires_grad_() for tensor in (value, weights)]
    places = locations.double().requires_grad_()
    starts = [0, 35, 41]
    parts = [
        deformable_attention(
            exact[0][:, start : start + grid[0] * grid[1]], grid, places[:, :, :, level], exact[1][:, :, :, level]
        )
        for level, (start, grid) in enumerate(zip(starts, grids, strict=True))
    ]
    want = sum(parts[1:], parts[0])
    slope = torch.linspace(-1, 1, want.numel()).view_as(want)
    want.backward(slope.double())
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value.to(dtype), locations, weights.to(dtype))]
    got = levels_deformable_attention(leaves[0], grids, leaves[1], leaves[2])
    got.backward(slope.to(dtype))
    pairs = zip([got, *(leaf.grad for leaf in leaves)], [want, exact[0].grad, places.grad, exact[1].grad], strict=True)
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() / theirs.norm() < max(TOLERANCE[dtype], TOLERANCE[ours.dtype])


@pytest.mark.parametrize("provider", DOUBLE)
def test_provider_follows_the_definition(provider: str) -> None:
    value, locations, weights = inputs(torch.float64, 6, 3, queries=4)
    got = deformable_attention(value, GRID, locations, weights, provider=provider)
    torch.testing.assert_close(got, one_by_one(value, locations, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("points", [1, 3, 4, 9])
@pytest.mark.parametrize("dim", [6, 12, 24, 100])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_providers_agree_forward_and_backward(dtype: torch.dtype, dim: int, points: int) -> None:
    tensors = inputs(dtype, dim, points)
    reference = run("portable", *(tensor.double() for tensor in tensors))
    for provider in DOUBLE if dtype == torch.float64 else HERE:
        for got, want in zip(run(provider, *tensors), reference, strict=True):
            error = (got.double() - want).norm() / want.norm()
            assert error < max(TOLERANCE[dtype], TOLERANCE[got.dtype])  # locations are float32


@pytest.mark.parametrize("provider", DOUBLE)
def test_gradients_equal_finite_differences(provider: str) -> None:
    value, locations, weights = inputs(torch.float64, 2, 2, heads=2, queries=2)
    leaves = [tensor.double().requires_grad_() for tensor in (value, locations, weights)]
    torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, GRID, p, w, provider=provider), leaves)


@pytest.mark.parametrize("provider", HERE)
def test_points_outside_read_zeros(provider: str) -> None:
    value, locations, weights = inputs(torch.float32, 6, 4)
    outside = torch.where(torch.arange(2) == 0, locations.clamp(max=0) - 1.2, locations)
    got = deformable_attention(value, GRID, outside, weights, provider=provider)
    assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("provider", HERE)
def test_nan_coordinates_do_not_crash(provider: str) -> None:
    value, locations, weights = inputs(torch.float32, 6, 4)
    locations[0, 0, 0, 0, 0] = float("nan")
    got = deformable_attention(value, GRID, locations, weights, provider=provider)
    assert torch.isfinite(got[:, 1:]).all()


def test_cell_centres_read_the_map_itself() -> None:
    value = torch.randn(1, GRID[0] * GRID[1], 2, 5)
    centres = cell_centres(GRID, value.device).view(1, -1, 1, 1, 2).expand(1, -1, 2, 1, 2)
    got = deformable_attention(value, GRID, centres, torch.ones(1, 35, 2, 1))
    torch.testing.assert_close(got, value.flatten(2), rtol=1e-5, atol=1e-6)


def test_sizes_are_built_once_and_serve_training_after_inference() -> None:
    device = torch.device("cpu")
    with torch.inference_mode():
        first = cell_centres((3, 9), device)
    assert cell_centres((3, 9), device) is first
    assert not first.is_inference()
    assert grid_extent((3, 9), device).tolist() == [9.0, 3.0]


@pytest.mark.parametrize("grad", [False, True])
def test_default_provider_equals_the_portable_one(grad: bool) -> None:
    value, locations, weights = inputs(torch.float32, 12, 4)
    value.requires_grad_(grad)
    got = deformable_attention(value, GRID, locations, weights)
    want = deformable_attention(value, GRID, locations, weights, provider="portable")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_several_levels_are_several_calls_added() -> None:
    value, locations, weights = inputs(torch.float64, 6, 4)
    whole = deformable_attention(value, GRID, locations, weights)
    halves = [deformable_attention(value, GRID, locations[..., s, :], weights[..., s]) for s in (slice(2), slice(2, 4))]
    torch.testing.assert_close(whole, halves[0] + halves[1])


def test_wrong_shapes_are_explained() -> None:
    value, locations, weights = inputs(torch.float32, 6, 4)
    with pytest.raises(ValueError, match=r"expected \(B, 36, heads, dim\) for grid \(6, 6\)"):
        deformable_attention(value, (6, 6), locations, weights)
    with pytest.raises(ValueError, match=r"expected \(B, Q, heads, points, 2\)"):
        deformable_attention(value, GRID, locations[..., :1], weights)
    with pytest.raises(ValueError, match="weights is for 1 images"):
        deformable_attention(value, GRID, locations[:1], weights[:1])
    with pytest.raises(ValueError, match="expected one of native, portable, gather, index, triton"):
        deformable_attention(value, GRID, locations, weights, provider="cuda")


def test_native_kernel_says_what_it_takes() -> None:
    for tensors in (inputs(torch.float64, 6, 4), inputs(torch.float32, 200, 4)):
        with pytest.raises(ValueError, match="float32 or bfloat16 values on CPU of at most 128 channels"):
            deformable_attention(tensors[0], GRID, *tensors[1:], provider="native")


@pytest.mark.parametrize("dim", [6, 12, 24, 32, 40])
def test_native_kernel_rounds_as_the_stock_gather(dim: int) -> None:
    """Detectors rank thousands of near ties: another rounding would pick others than the released code."""
    value, locations, weights = inputs(torch.float32, dim, 4, queries=300)
    got = deformable_attention(value, GRID, locations, weights, provider="native")
    want = deformable_attention(value, GRID, locations, weights, provider="gather")
    if "avx512f" in Path("/proc/cpuinfo").read_text():  # both join products and sums there
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_native_kernel_takes_locations_in_float64() -> None:
    value, locations, weights = inputs(torch.float32, 6, 4)
    want = deformable_attention(value, GRID, locations, weights, provider="native")
    assert torch.equal(deformable_attention(value, GRID, locations.double(), weights.double(), provider="native"), want)


def test_native_kernel_reads_nothing_beyond_the_values() -> None:
    """The last rows of a map are shorter than a vector register: what lies behind them must not matter."""
    value, locations, weights = inputs(torch.float32, 6, 4)
    room = torch.full((value.numel() + 64,), torch.nan)
    room[: value.numel()] = value.flatten()
    tight = room[: value.numel()].view_as(value).requires_grad_()
    got = deformable_attention(tight, GRID, locations, weights, provider="native")
    torch.testing.assert_close(got, deformable_attention(value, GRID, locations, weights, provider="portable"))
    got.sum().backward()
    assert tight.grad is not None
    assert torch.isfinite(tight.grad).all()


def test_raw_kernel_equals_softmax_and_locations() -> None:
    heads, points, query_grid = 3, 4, (4, 6)
    value = torch.randn(2, GRID[0] * GRID[1], heads, 10)
    raw = torch.randn(2, 24, 3, heads, points) * 3
    centres = cell_centres(query_grid, value.device).view(1, 24, 1, 1, 2)
    offsets = torch.stack((raw[:, :, 0], raw[:, :, 1]), -1)
    locations = centres + offsets / grid_extent(GRID, value.device)
    want = deformable_attention(value, GRID, locations, raw[:, :, 2].softmax(-1), provider="portable")
    got = native.sample_raw(value, GRID, raw.flatten(2), query_grid[1], points)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the check itself
def test_sampling_compiles_with_the_native_kernel() -> None:
    value, locations, weights = inputs(torch.float32, 6, 4)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    torch.library.opcheck(native.sample, (leaves[0], *GRID, *leaves[1:]))


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_the_stock_operations_serve(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    native.library.cache_clear()
    value, locations, weights = inputs(torch.float32, 6, 4)
    try:
        with pytest.warns(UserWarning, match=f"{compiler} could not compile"):
            got = deformable_attention(value, GRID, locations, weights)
        assert native.library() is None  # and no second warning
        with pytest.raises(ValueError, match="needs a C"):
            deformable_attention(value, GRID, locations, weights, provider="native")
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    torch.testing.assert_close(got, deformable_attention(value, GRID, locations, weights), rtol=1e-5, atol=1e-5)


def test_exported_graph_has_no_grid_sample() -> None:
    class Sampling(torch.nn.Module):
        def forward(self, value, locations, weights):
            return deformable_attention(value, GRID, locations, weights)

    tensors = inputs(torch.float32, 6, 4)
    program = torch.export.export(Sampling(), tensors)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("grid_sampler" in target or "embedding_bag" in target for target in targets)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*tensors), Sampling()(*tensors), rtol=1e-5, atol=1e-5)


def test_kernels_for_other_devices_do_not_take_the_names_of_ours() -> None:
    triton_sampling = pytest.importorskip("piip.ops.triton_sampling")
    assert triton_sampling is not None
    value, locations, weights = inputs(torch.float32, 6, 4)
    got = deformable_attention(value, GRID, locations, weights, provider="native")
    torch.testing.assert_close(got, deformable_attention(value, GRID, locations, weights, provider="gather"))
