"""Do time and memory follow the multiply-adds? An inverted pyramid beside one network at full resolution.

    python benchmarks/pyramid_against_single.py [--image-size 368] [--repeats 5] [--dtype bf16] [--threads 1]
        [--out out/pyramid_against_single.json]

Every model runs in its own process, on the CPU, one image at a time; the median of the repeats counts. Memory is the
growth of the process's peak resident size during the forward passes. Run it on an idle machine: threads that wait for
a busy core make models of many small operations look worst.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch
from common.command import KEPT, results
from common.measuring import DTYPES, in_own_process, peak_bytes
from common.progress import say
from rich.console import Console
from rich.table import Table

import piip

NETWORKS = ("vit_base_patch16_224", "vit_small_patch16_224", "vit_tiny_patch16_224")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one model took: multiply-adds, seconds and bytes, for one image."""

    macs: int
    seconds: float
    peak_bytes: int


def single(image_size: int) -> piip.ModelConfig:
    """One ViT-B at full resolution."""
    return piip.ModelConfig((piip.BranchConfig(NETWORKS[0], image_size),))


def equal(image_size: int) -> piip.ModelConfig:
    """ViT-B at all three resolutions."""
    return pyramid(image_size, (NETWORKS[0],) * 3)


def pyramid(image_size: int, networks: tuple[str, ...] = NETWORKS) -> piip.ModelConfig:
    """Networks at a third, a half and the whole of the resolution, in whole patches."""
    sizes = [max(1, round(image_size * ratio / 16)) * 16 for ratio in (0.35, 0.52, 1)]
    branches = tuple(piip.BranchConfig(name, size) for name, size in zip(networks, sizes, strict=True))
    return piip.ModelConfig(branches, allow_direct=True)


MODELS = {"single ViT-B": single, "piip ViT-B/S/T": pyramid, "equal 3 x ViT-B": equal}


def measure(name: str, image_size: int, repeats: int, dtype: str, threads: int) -> Measurement:
    """Build one model and time it; runs in a process of its own."""
    torch.set_num_threads(threads)
    model = piip.build_backbone(MODELS[name](image_size)).eval().to(DTYPES[dtype])
    image = torch.randn(1, 3, image_size, image_size, dtype=DTYPES[dtype])
    before = peak_bytes()
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first pass warms up
            start = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - start)
    more = peak_bytes() - before
    macs = piip.estimate_cost(model, image_size=image_size).macs
    return Measurement(macs, statistics.median(seconds[1:]), more)


def main() -> None:
    """Measure all models and print them relative to the single network."""
    parser = argparse.ArgumentParser(description=f"{(__doc__ or '').splitlines()[0]} {KEPT}")
    parser.add_argument("--image-size", type=int, default=368)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/pyramid_against_single.json"))
    arguments = parser.parse_args()
    table = Table("model", title=f"{arguments.image_size} pixels, {arguments.dtype}, {arguments.threads} threads")
    for column in ("GMACs", "of single", "ms", "of single", "peak MB", "of single"):
        table.add_column(column, justify="right")
    job = (arguments.image_size, arguments.repeats, arguments.dtype, arguments.threads)
    kept, found = results(arguments.out), []
    for name in MODELS:
        found.append(in_own_process(measure, name, *job))
        facts = {"image_size": arguments.image_size, "dtype": arguments.dtype, "threads": arguments.threads}
        kept.put(name, {"model": name, **facts, **dataclasses.asdict(found[-1])})
        say(f"{len(found)} of {len(MODELS)}: {name}: {1e3 * found[-1].seconds:.0f} ms an image")
        now, first = found[-1], found[0]
        table.add_row(
            name,
            f"{now.macs / 1e9:.1f}",
            f"{now.macs / first.macs:.2f}",
            f"{1e3 * now.seconds:.0f}",
            f"{now.seconds / first.seconds:.2f}",
            f"{now.peak_bytes / 1e6:.0f}",
            f"{now.peak_bytes / max(first.peak_bytes, 1):.2f}",
        )
    kept.write()
    Console().print(table)


if __name__ == "__main__":
    main()
