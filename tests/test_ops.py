"""Deformable attention: every provider computes the same, forward and backward."""

from __future__ import annotations

import pytest
import torch

from piip.ops import PROVIDERS, cell_centres, deformable_attention, grid_extent

GRID = (5, 7)
STOCK = [name for name in PROVIDERS if name != "triton"]  # has tests of its own, in another process
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


@pytest.mark.parametrize("provider", STOCK)
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
    for provider in STOCK:
        for got, want in zip(run(provider, *tensors), reference, strict=True):
            error = (got.double() - want).norm() / want.norm()
            assert error < max(TOLERANCE[dtype], TOLERANCE[got.dtype])  # locations are float32


@pytest.mark.parametrize("provider", STOCK)
def test_gradients_equal_finite_differences(provider: str) -> None:
    value, locations, weights = inputs(torch.float64, 2, 2, heads=2, queries=2)
    leaves = [tensor.double().requires_grad_() for tensor in (value, locations, weights)]
    torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, GRID, p, w, provider=provider), leaves)


@pytest.mark.parametrize("provider", STOCK)
def test_points_outside_read_zeros(provider: str) -> None:
    value, locations, weights = inputs(torch.float32, 6, 4)
    outside = torch.where(torch.arange(2) == 0, locations.clamp(max=0) - 1.2, locations)
    got = deformable_attention(value, GRID, outside, weights, provider=provider)
    assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("provider", STOCK)
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
    with pytest.raises(ValueError, match="expected one of portable, gather, index"):
        deformable_attention(value, GRID, locations, weights, provider="cuda")


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
