"""Our C++ kernels for tokens: norms and activations, and that threads change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops import native

WIDTHS = [1, 5, 16, 17, 48, 100, 384]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bf16_rounding(numbers: Tensor) -> Tensor:
    """Return how far rounding to bfloat16 may move numbers: half a step."""
    return numbers.abs() * 2**-8


def exact_norm(tokens: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    weight, bias = (None if item is None else item.double() for item in (weight, bias))
    return F.layer_norm(tokens.double(), tokens.shape[-1:], weight, bias, epsilon)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("dtype", native.SUFFIXES)
def test_layer_norm_equals_pytorchs(dtype: torch.dtype, dim: int, with_weight: bool, with_bias: bool) -> None:
    tokens = (random(2, 7, dim) * 3 + 5).to(dtype)
    weight = (1 + random(dim, seed=1)).to(dtype) if with_weight else None
    bias = random(dim, seed=2).to(dtype) if with_bias else None
    got = native.layer_norm(tokens, weight, bias, 1e-6)
    want = exact_norm(tokens, weight, bias, 1e-6)
    assert got.dtype == dtype
    assert got.shape == tokens.shape
    bound = 2e-5 + (bf16_rounding(want) if dtype == torch.bfloat16 else 0)
    assert ((got.double() - want).abs() <= bound).all()


def test_layer_norm_takes_strided_tokens_far_from_zero() -> None:
    tokens = (random(3, 40, 20) + 1000).transpose(1, 2)[:, 2:]
    got = native.layer_norm(tokens, None, None, 1e-5)
    torch.testing.assert_close(got.double(), exact_norm(tokens, None, None, 1e-5), rtol=0, atol=2e-4)
    assert native.layer_norm(random(0, 20), None, None, 1e-5).shape == (0, 20)


def test_layer_norm_of_equal_numbers_is_the_bias_and_nan_stays() -> None:
    tokens = torch.full((3, 21), 2.0)
    tokens[1, 20] = torch.nan
    got = native.layer_norm(tokens, None, torch.arange(21.0), 1e-6)
    assert torch.equal(got[::2], torch.arange(21.0).expand(2, -1))
    assert got[1].isnan().all()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_gelu_is_exact_to_one_rounding(count: int) -> None:
    numbers = (random(count) * 3).bfloat16()
    want = F.gelu(numbers.double())
    got = native.gelu_(numbers)
    assert got is numbers
    assert ((got.double() - want).abs() <= bf16_rounding(want) + 1e-4).all()


def test_gelu_of_every_finite_number() -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    numbers = bits.view(torch.bfloat16)
    numbers = numbers[numbers.isfinite()]
    want = F.gelu(numbers.double())
    got = native.gelu_(numbers.clone()).double()
    assert ((got - want).abs() <= bf16_rounding(want) + 1e-4).all()


def test_gelu_of_what_is_no_number() -> None:
    numbers = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], dtype=torch.bfloat16)
    got = native.gelu_(numbers)
    assert got[0].isnan()
    assert got[1] == torch.inf
    assert got[2] == 0  # the limit; PyTorch multiplies infinity by zero
    assert got[3] == F.gelu(torch.tensor(1.0)).bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_of_other_dtypes_is_pytorchs(dtype: torch.dtype) -> None:
    numbers = random(40).to(dtype)
    want = F.gelu(numbers)
    assert native.gelu_(numbers) is numbers
    assert torch.equal(numbers, want)


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Return random maps (B, C, H, W), channels last in memory."""
    return random(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dim", [1, 16, 21])
@pytest.mark.parametrize("sides", [((4, 5), (9, 13)), ((7, 3), (7, 3)), ((9, 8), (4, 3)), ((1, 1), (2, 5))])
@pytest.mark.parametrize("dtype", native.SUFFIXES)
def test_maps_are_resized_as_pytorch_does(dtype: torch.dtype, sides: tuple[tuple[int, int], ...], dim: int) -> None:
    small, large = maps(2, dim, *sides[0]).to(dtype), maps(2, dim, *sides[1], seed=1).to(dtype)
    resized = F.interpolate(small.double(), size=sides[1], mode="bilinear", align_corners=False)
    want = 0.5 * large.double() - 2 * resized
    got = native.add_resized_(large, small, large_scale=0.5, small_scale=-2.0)
    assert got is large
    bound = 1e-5 + (bf16_rounding(want) if dtype == torch.bfloat16 else 0)
    assert ((got.double() - want).abs() <= bound).all()


GRID = (5, 7)


def sample(dtype: torch.dtype) -> Tensor:
    value = random(2, 35, 3, 20).to(dtype)
    return native.sample(value, *GRID, random(2, 24, 3, 4, 2, seed=1), random(2, 24, 3, 4, seed=2).to(dtype))


def sample_gradients(dtype: torch.dtype) -> Tensor:
    leaves = [random(2, 35, 3, 20), random(2, 24, 3, 4, 2, seed=1), random(2, 24, 3, 4, seed=2)]
    given = (leaf.to(dtype) if index != 1 else leaf for index, leaf in enumerate(leaves))
    value, locations, weights = (tensor.requires_grad_() for tensor in given)
    native.sample(value, *GRID, locations, weights).float().square().sum().backward()
    return torch.cat([tensor.grad.flatten().float() for tensor in (value, locations, weights)])


KERNELS: dict[str, Callable[[torch.dtype], Tensor]] = {
    "sample": sample,
    "sample_backward": sample_gradients,
    "sample_raw": lambda dtype: native.sample_raw(
        random(2, 35, 3, 20).to(dtype), GRID, random(2, 24, 36, seed=1).to(dtype), 6, 4
    ),
    "sample_levels": lambda dtype: native.sample_levels(
        random(2, 45, 3, 20).to(dtype),
        [5, 7, 2, 5],
        random(2, 24, 48, seed=1).to(dtype),
        random(2, 24, 24, seed=2).to(dtype),
        random(2, 24, 2, 2, seed=3).sigmoid(),
    ),
    "layer_norm": lambda dtype: native.layer_norm(random(9, 50).to(dtype), None, None, 1e-6),
    "gelu": lambda dtype: native.gelu_(random(1003).to(dtype)),
    "add_resized": lambda dtype: native.add_resized_(maps(2, 20, 9, 6).to(dtype), maps(2, 20, 4, 5, seed=1).to(dtype)),
}


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", native.SUFFIXES)
def test_threads_change_nothing(dtype: torch.dtype, name: str) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(KERNELS[name](dtype))
    assert all(torch.equal(result, results[0]) for result in results)
