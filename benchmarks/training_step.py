"""Does a training step follow the multiply-adds, and what memory does it need? A pyramid beside a single network.

    python benchmarks/training_step.py [--models tsb vit_b] [--dtypes f32 bf16] [--repeats 2] [--out out/training.json]

Forward and backward of backbone, merge and simple feature pyramid, one image, with and without activation
checkpointing; bf16 is autocast with float32 weights. Peak memory is that of a process that does one such step.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from common.command import command_line, parse, results, title
from common.competitors import like_the_authors
from common.measuring import DTYPES, in_own_process, in_turn, summary
from common.progress import Results, say
from rich.console import Console
from rich.table import Table
from speed import CASES, build
from torch import Tensor

import piip
from piip.bench.worker import peak_resident_bytes


def prepare(name: str, checkpointing: bool) -> tuple[piip.PIIPBackbone, Tensor]:
    """Return a model in training mode, and its image."""
    model, image = build(name, "f32", 1)
    assert isinstance(model, piip.PIIPBackbone)
    model.train().requires_grad_(True)
    model.set_grad_checkpointing(checkpointing)
    return model, image


def step(model: torch.nn.Module, image: Tensor, dtype: str, *, plain: bool = False) -> None:
    """Run forward and backward once."""
    with like_the_authors() if plain else contextlib.nullcontext():
        with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "f32"):
            maps = model(image)
        torch.autograd.backward([item.float().mean() for item in maps])
    model.zero_grad(set_to_none=True)


def peak_memory(name: str, checkpointing: bool, dtype: str, threads: int) -> int:
    """Run one step and return the peak resident bytes; for a process of its own."""
    torch.set_num_threads(threads)
    step(*prepare(name, checkpointing), dtype)
    return peak_resident_bytes()


def measure(found: Results, names: list[str], dtype: str, repeats: int) -> None:
    """Measure models in one dtype, all in turn; one row a model, with and without checkpointing."""
    rows, runs = {}, {}
    for name in names:
        for checkpointing in (False, True):
            model, image = prepare(name, checkpointing)
            macs = piip.estimate_cost(model, image_size=CASES[name].image_size).macs
            for form in ("piip", "as released") if len(model.branches) > 1 else ("piip",):
                key = f"{name}, {form}, {dtype}{', checkpointing' if checkpointing else ''}"
                rows[key] = {"model": name, "dtype": dtype, "checkpointing": checkpointing, "form": form, "macs": macs}
                runs[key] = lambda m=model, i=image, f=form: step(m, i, dtype, plain=f != "piip")
    in_turn(runs, repeats, lambda key, seconds: found.put(key, {**rows[key], "seconds": summary(seconds)}))


def measure_memory(found: Results, threads: int) -> None:
    """Add the peak memory of every row whose form is ours."""
    for key, row in [*found.by_key.items()]:
        if row["form"] == "piip":
            peak = in_own_process(peak_memory, row["model"], row["checkpointing"], row["dtype"], threads)
            found.put(key, {**row, "peak_bytes": peak})
            say(f"{key}: peak memory {peak / 1e9:.2f} GB")


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Compare each row with the single network of the same dtype and checkpointing."""
    singles = {(row["model"], row["dtype"], row["checkpointing"]): row for row in rows if row["form"] == "piip"}
    for row in rows:
        single = singles.get((CASES[row["model"]].beside, row["dtype"], row["checkpointing"]))
        if single:
            row["macs_ratio"] = row["macs"] / single["macs"]
            row["time_ratio"] = row["seconds"]["min"] / single["seconds"]["min"]


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__, repeats=2, out="out/training.json")
    parser.add_argument("--models", nargs="+", choices=CASES, default=["tsb", "vit_b"])
    arguments = parse(parser)
    found = results(arguments.out)
    for dtype in arguments.dtypes:
        measure(found, arguments.models, dtype, arguments.repeats)
    measure_memory(found, arguments.threads)
    add_ratios(found.rows)
    found.write()
    shown = Table("model", "form", "dtype", "checkpointing", title=title(found))
    for column in ("s min", "median", "MACs/single", "time/single", "peak GB"):
        shown.add_column(column, justify="right")
    for row in found.rows:
        shown.add_row(
            row["model"],
            row["form"],
            row["dtype"],
            "on" if row["checkpointing"] else "off",
            *(f"{row['seconds'][key]:.2f}" for key in ("min", "median")),
            *(f"{row[key]:.2f}" if key in row else "" for key in ("macs_ratio", "time_ratio")),
            f"{row['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in row else "",
        )
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
