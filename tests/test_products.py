"""Products, networks and attention in bfloat16 equal those in float32 but for rounding, by every kind of unit."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from processes import succeed
from torch import Tensor, nn

from piip.ops import native
from piip.ops.native import gemm
from piip.optimize.packing import PackedDoubling

ROUNDING = 4e-3  # of one bfloat16 result; those of a sum of products are relative to all of them
pytestmark = pytest.mark.skipif(gemm.level() == 0, reason="no compiler, or no products of bfloat16 in this processor")


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def error(got: Tensor, want: Tensor) -> float:
    want = want.detach()
    return float((got.float() - want).norm() / want.norm())


@pytest.fixture(params=[1, 2], ids=["dot products", "matrix products"])
def _units(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels = native.library()
    assert kernels is not None
    if kernels.piip_limit_products(request.param) != request.param:
        pytest.skip("not in this processor")
    yield
    kernels.piip_limit_products(2)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def linear(rows: int, ins: int, outs: int, *, with_bias: bool = True) -> tuple[Tensor, Tensor]:
    """Return the result of the kernel and that in float32."""
    tokens, weight = random(rows, ins), random(outs, ins, seed=1, scale=ins**-0.5)
    bias = random(outs, seed=2) if with_bias else None
    result = torch.full((rows, outs), torch.nan, dtype=torch.bfloat16)
    gemm.linear(tokens, gemm.tiled(weight, bias), result)
    return result, F.linear(tokens.float(), weight.float(), None if bias is None else bias.float())


@pytest.mark.usefixtures("_units")
@pytest.mark.parametrize("rows", [1, 16, 17, 50, 700])
@pytest.mark.parametrize(("ins", "outs"), [(1, 1), (32, 32), (40, 70), (100, 33), (384, 64), (800, 96)])
def test_linear_layers_of_any_shape(rows: int, ins: int, outs: int) -> None:
    got, want = linear(rows, ins, outs)
    assert error(got, want) <= ROUNDING


def test_linear_layers_without_bias() -> None:
    got, want = linear(20, 48, 40, with_bias=False)
    assert error(got, want) <= ROUNDING


def parts(dim: int, hidden: int) -> tuple[nn.LayerNorm, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    norm, first, second = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.bfloat16(), first.bfloat16(), second.bfloat16()


def network(tokens: Tensor, norm: nn.LayerNorm, first: nn.Linear, second: nn.Linear) -> Tensor:
    layers = (gemm.tiled(layer.weight, layer.bias) for layer in (first, second))
    return gemm.network(tokens, gemm.Norm(norm.weight.detach(), norm.bias.detach(), norm.eps), *layers)


@pytest.mark.usefixtures("_units")
@pytest.mark.parametrize(("dim", "hidden"), [(8, 8), (40, 100), (64, 256), (192, 768), (416, 800)])
@pytest.mark.parametrize("rows", [1, 49, 333])
def test_networks_of_any_width(rows: int, dim: int, hidden: int) -> None:
    layers = parts(dim, hidden)
    tokens = random(2, rows, dim) + 3  # a mean that the norm must take away
    got = network(tokens, *layers)
    norm, first, second = (layer.float() for layer in layers)
    want = tokens.float() + second(F.gelu(first(norm(tokens.float()))))
    assert got.shape == tokens.shape
    assert error(got, want) <= ROUNDING


@pytest.mark.usefixtures("_units")
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "dim"),
    [(1, 1, 1, 32), (3, 17, 2, 96), (2, 49, 3, 32), (5, 196, 3, 64), (1, 300, 2, 128), (1, 1100, 1, 64)],
)
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["soft", "hard"])
def test_attention_of_any_length(batch: int, tokens: int, heads: int, dim: int, scale: float) -> None:
    qkv = random(batch, tokens, 3 * heads * dim, scale=scale**0.5)
    assert gemm.can_attend(qkv, heads)
    query, key, value = qkv.float().unflatten(2, (3, heads, dim)).permute(2, 0, 3, 1, 4)
    want = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    assert error(gemm.attend(qkv, heads, dim**-0.5), want) <= ROUNDING


def test_what_attention_cannot_take() -> None:
    assert not gemm.can_attend(random(1, gemm.MAX_TOKENS + 1, 96), 1)
    assert not gemm.can_attend(random(1, 4, 3 * 40), 1)  # heads that are not whole tiles
    assert not gemm.can_attend(random(1, 4, 96).float(), 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stay_in_their_rows(bad: float) -> None:
    layers = parts(64, 96)
    tokens = random(40, 64)
    clean = network(tokens, *layers)
    tokens[17, 3] = bad
    got = network(tokens, *layers)
    assert got[17].isnan().any()
    kept = torch.arange(40) != 17
    assert torch.equal(got[kept], clean[kept])


@pytest.mark.usefixtures("_threads")
def test_threads_change_nothing() -> None:
    layers, qkv = parts(64, 416), random(5, 50, 3 * 64)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((linear(700, 800, 96)[0], network(random(333, 64), *layers), gemm.attend(qkv, 2, 0.2)))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


@pytest.mark.parametrize("size", [(3, 5), (20, 33)])
@pytest.mark.parametrize("bias", [True, False])
def test_doubling_is_a_transposed_convolution(bias: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(40, 24, 2, 2, bias=bias).bfloat16()
    maps = random(2, 40, *size)
    got = PackedDoubling(conv)(maps)
    want = conv.float()(maps.float())
    assert got.shape == want.shape
    assert error(got, want) <= ROUNDING


@pytest.mark.parametrize("bad", ["query", "key", "value"])
def test_attention_does_not_hide_bad_numbers(bad: str) -> None:
    qkv = random(1, 40, 3 * 64)
    qkv[0, 17, ("query", "key", "value").index(bad) * 64 + 5] = float("nan")
    found = gemm.attend(qkv, 1, 0.125).isnan().any(2)[0]
    assert found.tolist() == [bad != "query" or row == 17 for row in range(40)]


def test_large_results_may_begin_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes past the caches need whole cache lines, which rows of 48 numbers in an odd width are not."""
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(40, 24, 2, 2).bfloat16()
    maps = random(1, 40, 5, 33)
    want = PackedDoubling(conv)(maps)
    monkeypatch.setattr(gemm, "LARGE", 0)
    assert torch.equal(PackedDoubling(conv)(maps), want)


def test_results_too_large_for_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    want, _ = linear(100, 64, 96)
    monkeypatch.setattr(gemm, "LARGE", 0)
    assert torch.equal(linear(100, 64, 96)[0], want)


FAULTS = """
import resource, sys, torch
import piip
piip.optimize_for_inference(torch.nn.Linear(4, 4), torch.zeros(1, 4), keep_memory=sys.argv[1] == "True")
def use():
    return torch.ones(2**22), torch.ones(2**24)
for _ in range(10):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
def test_freed_memory_is_kept_on_request() -> None:
    counts = {}
    for keep in (True, False):
        counts[keep] = int(succeed(sys.executable, "-c", FAULTS, str(keep)))
    assert counts[True] < counts[False] / 10
