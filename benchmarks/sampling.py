"""How fast are the providers of deformable attention? Forward, and forward with backward, in turn.

    python benchmarks/sampling.py [--dtypes f32 bf16] [--repeats 15] [--out out/sampling.json]

The shapes are the four directions of the interactions of PIIP-TSB 1120/896/448, and others. Points lie near their
query, as trained offsets do. The last columns say how much faster the chosen provider is than `grid_sample`.
"""

from __future__ import annotations

from typing import Any

import torch
from common.command import command_line, parse, results, title
from common.measuring import DTYPES, in_turn, summary
from common.progress import say
from rich.console import Console
from rich.table import Table
from torch import Tensor

from piip.ops import cell_centres, deformable_attention, native

# queries on a grid, map, heads, channels a head, points
SHAPES = {
    "B from S": ((28, 28), (56, 56), 16, 24, 4),
    "S from B": ((56, 56), (28, 28), 16, 12, 4),
    "S from T": ((56, 56), (70, 70), 16, 12, 4),
    "T from S": ((70, 70), (56, 56), 16, 6, 4),
    "L from B": ((28, 28), (42, 42), 16, 32, 4),
    "H from B, 8 points": ((32, 32), (64, 64), 16, 40, 8),
    "small": ((14, 14), (14, 14), 8, 8, 2),
}
PROVIDERS = ("native", "portable", "gather", "index")


def inputs(shape: str, dtype: torch.dtype) -> tuple[Tensor, tuple[int, int], Tensor, Tensor]:
    """Return value, grid, locations and weights of one image."""
    torch.manual_seed(0)
    query_grid, grid, heads, dim, points = SHAPES[shape]
    queries = query_grid[0] * query_grid[1]
    centres = cell_centres(query_grid, torch.device("cpu")).view(1, queries, 1, 1, 2)
    locations = centres + torch.randn(1, queries, heads, points, 2) * 3 / max(grid)
    value = torch.randn(1, grid[0] * grid[1], heads, dim).to(dtype)
    return value, grid, locations, torch.rand(1, queries, heads, points).softmax(-1).to(dtype)


def measure(shape: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Time every provider that can run here."""
    value, grid, locations, weights = inputs(shape, DTYPES[dtype])
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    gradient = torch.randn(1, locations.shape[1], value.shape[2] * value.shape[3]).to(value.dtype)

    def forward(provider: str) -> None:
        with torch.inference_mode():
            deformable_attention(value, grid, locations, weights, provider=provider)

    def both(provider: str) -> None:
        result = deformable_attention(leaves[0], grid, leaves[1], leaves[2], provider=provider)
        torch.autograd.grad(result, leaves, gradient)

    names = [name for name in PROVIDERS if name != "native" or native.is_available()]
    forward_seconds = in_turn({name: (lambda n=name: forward(n)) for name in names}, repeats)
    both_seconds = in_turn({name: (lambda n=name: both(n)) for name in names if name != "index"}, repeats)
    return {
        "shape": shape,
        "dtype": dtype,
        "forward": {name: summary(seconds) for name, seconds in forward_seconds.items()},
        "forward_backward": {name: summary(seconds) for name, seconds in both_seconds.items()},
    }


def main() -> None:
    """Measure, print, write."""
    arguments = parse(command_line(__doc__, repeats=15, out="out/sampling.json"))
    found = results(arguments.out)
    for dtype in arguments.dtypes:
        for shape in SHAPES:
            row = measure(shape, dtype, arguments.repeats)
            found.put((shape, dtype), row)
            times = ", ".join(f"{name} {1e3 * seconds['min']:.2f} ms" for name, seconds in row["forward"].items())
            say(f"{len(found.rows)} of {len(SHAPES) * len(arguments.dtypes)}: {shape}, {dtype}: {times}")
    found.write()
    shown = Table("shape", "dtype", title=f"ms (min); {title(found)}")
    for column in (*PROVIDERS, "times", "f+b native", "f+b portable", "times"):
        shown.add_column(column, justify="right")
    for row in found.rows:
        forward, both = row["forward"], row["forward_backward"]
        best, best_both = (found.get("native", found["portable"])["min"] for found in (forward, both))
        shown.add_row(
            row["shape"],
            row["dtype"],
            *(f"{1e3 * forward[name]['min']:.2f}" if name in forward else "" for name in PROVIDERS),
            f"{forward['portable']['min'] / best:.1f}",
            f"{1e3 * best_both:.2f}",
            f"{1e3 * both['portable']['min']:.2f}",
            f"{both['portable']['min'] / best_both:.1f}",
        )
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
