"""What `test_triton_sampling.py` runs in a process of its own, where Triton may be imported with its interpreter on.

python triton_sampling_checks.py DEVICE    prints {check: largest error or what was raised} as JSON
python triton_sampling_checks.py compile   compiles both kernels for a GPU that need not be there
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from piip.ops import deformable_attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = {  # (H, W), heads, channels, points, queries
    "odd": ((5, 7), 3, 24, 4, 11),
    "narrow": ((1, 9), 2, 6, 3, 70),
    "one point": ((4, 4), 1, 12, 1, 5),
    "wide": ((3, 2), 2, 256, 2, 6),
}


def inputs(shape: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Values, locations and weights of two images; a third of the points lies outside, some far away."""
    (height, width), heads, dim, points, queries = SHAPES[shape]
    generator = torch.Generator().manual_seed(dim)
    value = torch.randn(2, height * width, heads, dim, generator=generator).to(dtype)
    locations = torch.rand(2, queries, heads, points, 2, generator=generator) * 2 - 0.5
    locations[:, 0] *= 1e10
    weights = torch.randn(2, queries, heads, points, generator=generator).to(dtype)
    return [tensor.to(device) for tensor in (value, locations, weights)]


def sample(shape: str, value: Tensor, locations: Tensor, weights: Tensor, provider: str = "triton") -> Tensor:
    return deformable_attention(value, SHAPES[shape][0], locations, weights, provider=provider)


def run(call: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return the result of a call and the gradients of its tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = call(*leaves)
    ramp = torch.linspace(-1, 1, out.numel(), device=out.device)
    out.backward(ramp.view_as(out).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def largest_error(shape: str, dtype: torch.dtype, device: str) -> float:
    """Compare result and gradients with the portable provider in float64."""
    tensors = inputs(shape, dtype, device)
    made = run(lambda *given: sample(shape, *given), tensors)
    wanted = run(lambda *given: sample(shape, *given, provider="portable"), [tensor.double() for tensor in tensors])
    assert [tensor.dtype for tensor in made] == [dtype, dtype, torch.float32, dtype]
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(made, wanted, strict=True))


def slope_error(device: str) -> float:
    """Compare gradients with finite differences along random directions, points away from the corners of cells."""
    value, _, weights = inputs("odd", torch.float32, device)
    generator = torch.Generator().manual_seed(5)
    cells = torch.randint(0, 5, (*weights.shape, 2), generator=generator) + 0.2
    inner = (cells + 0.6 * torch.rand(cells.shape, generator=generator) + 0.5) / torch.tensor([7, 5])
    tensors, worst = [value, inner.to(device), weights], 0.0
    grads = run(lambda *given: sample("odd", *given), tensors)[1:]
    ramp = torch.linspace(-1, 1, value.shape[0] * weights.shape[1] * 72, device=device)
    for index, step in enumerate((1e-1, 1e-3, 1e-1)):
        way = torch.rand(tensors[index].shape, generator=generator).to(device)
        ends = [
            [part + sign * step * way if i == index else part for i, part in enumerate(tensors)] for sign in (1, -1)
        ]
        sums = [(sample("odd", *end).flatten().double() * ramp).sum() for end in ends]
        slope, wanted = (sums[0] - sums[1]) / (2 * step), (grads[index] * way).double().sum()
        worst = max(worst, float((slope - wanted).abs() / wanted.abs()))
    return worst


def compiled_error(device: str) -> float:
    """Compare a graph of one piece, forward and backward, with eager calls."""
    tensors = inputs("odd", torch.float32, device)
    whole = torch.compile(lambda *given: sample("odd", *given) * 2, fullgraph=True, backend="aot_eager")
    made, wanted = run(whole, tensors), run(lambda *given: sample("odd", *given) * 2, tensors)
    return max(float((a - b).abs().max()) for a, b in zip(made, wanted, strict=True))


def refused(value: Tensor, locations: Tensor, weights: Tensor) -> str:
    try:
        sample("odd", value, locations, weights)
    except ValueError as error:
        return str(error)
    return "nothing"


def checks(device: str) -> dict[str, Any]:
    from piip.ops.triton_sampling import _sample

    found: dict[str, Any] = {
        f"{name} {shape}": largest_error(shape, dtype, device) for name, dtype in DTYPES.items() for shape in SHAPES
    }
    value, locations, weights = inputs("odd", torch.float32, device)
    broken = locations.clone()
    broken[0, 0, 0, 0, 0] = float("nan")
    outside = torch.where(torch.arange(2, device=device) == 0, locations.clamp(max=0) - 1.2, locations)
    turned = value.transpose(2, 3).contiguous().transpose(2, 3)
    parts = ("test_schema", "test_autograd_registration", "test_faketensor")  # the rest is in `compiled_error`
    torch.library.opcheck(_sample, (value.requires_grad_(), locations, weights, 5, 7), test_utils=parts)
    found |= {"slopes": slope_error(device), "compiled": compiled_error(device)}
    with torch.no_grad():
        whole = sample("odd", value, locations, weights)
        return found | {
            "outside": float(sample("odd", value, outside, weights).abs().max()),
            "not contiguous": float((sample("odd", turned, locations, weights) - whole).abs().max()),
            "finite beside NaN": bool(sample("odd", value, broken, weights)[:, 1:].isfinite().all()),
            "double": refused(value.double(), locations, weights.double()),
            "mixed": refused(value.bfloat16(), locations, weights),
            "too wide": refused(value.repeat(1, 1, 1, 11), locations, weights),
        }


def compile_kernels() -> None:
    """Compile for an H100 as far as machine code, by Triton's own compiler; loading it would need the GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from piip.ops import triton_sampling

    sizes = {"num_points": 4, "block_queries": 16, "block_channels": 64}
    for kernel in (triton_sampling._forward, triton_sampling._backward):
        kinds = {name: "constexpr" if name in sizes else "i32" for name in kernel.arg_names}
        kinds |= dict.fromkeys({"value", "weights", "out", "grad", "weight_grad"} & {*kinds}, "*bf16")
        kinds |= dict.fromkeys({"locations", "value_grad", "location_grad"} & {*kinds}, "*fp32")
        made = triton.compile(ASTSource(kernel, kinds, sizes), target=GPUTarget("cuda", 90, 32))
        assert len(made.asm["cubin"]) > 0


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_kernels()
    else:
        print(json.dumps(checks(sys.argv[1])))
