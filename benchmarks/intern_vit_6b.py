"""Six billion parameters on one machine: a released pyramid with InternViT-6B beside InternViT-6B alone.

    python benchmarks/intern_vit_6b.py [--repeats 3] [--depth 4] [--threads 2] [--json PATH]
        [--weights DIR]
    python benchmarks/intern_vit_6b.py --depth 4 --write DIR --processes 2

Both models are the authors' backbones at 1024 x 1024 pixels, one image: branches, interactions, merge (the pyramid's)
and neck, without the detector's head. Each runs in a process of its own, in bfloat16 on the CPU. Weights are random and
made in bfloat16, one tensor after the other, or read from DIR/pyramid and DIR/single: model directories, in one file
or several. `--write DIR` makes such directories of random weights first, without holding a model.

Memory is the process's peak resident size. The first forward pass is a warm-up. `--depth` keeps the first so many of
the 48 blocks, with the interactions and the ViT-H blocks up to there; `--smoke` makes everything tiny. `--processes`
then spreads each model over so many processes (FSDP2, gloo, a share of the threads each), which read their own rows of
the files and all compute the same image, and compares their outputs with those of the whole model.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.command import KEPT
from common.measuring import in_own_process
from common.progress import save, say
from common.spread import Outputs, Place, difference
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from torch.distributed.tensor import DTensor

import piip
from piip.backbone import PIIPBackbone
from piip.bench.machine import machine
from piip.bench.weights import random_weights
from piip.bench.worker import peak_resident_bytes
from piip.device import without_values
from piip.serialization.description import write_description
from piip.serialization.load import BACKBONE, load_weights
from piip.serialization.weights import StoredTensor, open_weights, write_weights
from piip.zoo import model_config, published_results

RECORDS = {
    "pyramid": "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms",
    "single": "mask_rcnn_internvit_6b_fpn_1x_coco_bs16_ms",
}
BLOCKS = 48  # of InternViT-6B
BETWEEN = 4  # of them before every interaction
SMOKE = ({"embed_dim": 48, "num_heads": 3}, {"embed_dim": 32, "num_heads": 2})  # of InternViT-6B and ViT-H
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one model took, for one image; sizes in bytes, times in seconds."""

    params: int
    macs: int
    paper_macs: int
    weight_bytes: int
    start_bytes: int
    build_bytes: int
    peak_bytes: int
    build_seconds: float
    forward_seconds: list[float]


def describe(name: str, depth: int, smoke: bool) -> piip.ModelConfig:
    """Return the released backbone, or one cut after some blocks of InternViT-6B."""
    config = model_config(RECORDS[name])
    interactions, branches = depth // BETWEEN, []
    for branch, tiny in zip(config.branches, SMOKE, strict=False):
        groups: Any = branch.block_groups and branch.block_groups[:interactions]
        args = {**branch.timm_args, "depth": sum(groups) if groups else depth, **(tiny if smoke else {})}
        size = branch.image_size // (16 if smoke else 1)
        branches.append(dataclasses.replace(branch, timm_args=args, block_groups=groups, image_size=size))
    interaction = dataclasses.replace(config.interaction, count=interactions)
    return dataclasses.replace(config, branches=tuple(branches), interaction=interaction, head=piip.config.HeadConfig())


def build_without_values(config: piip.ModelConfig) -> PIIPBackbone:
    """Build a backbone of shapes only."""
    with without_values():
        return piip.build_backbone(config)


def read_weights(directory: Path) -> dict[str, StoredTensor]:
    """Return a backbone's weights from the directory of a whole model or of a backbone."""
    stored = open_weights(directory)
    if not stored:
        raise ValueError(f"{directory} has no model.safetensors and no index of several; write some with --write.")
    return {name.removeprefix(BACKBONE): tensor for name, tensor in stored.items() if not name.startswith("head.")}


def show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    """Move a bar to some of all bytes."""
    progress.update(task, completed=done, total=total)


def write_random(config: piip.ModelConfig, directory: Path) -> None:
    """Write random weights as a sharded checkpoint, tensor by tensor."""
    directory.mkdir(parents=True, exist_ok=True)
    model = build_without_values(config)
    write_description(directory, config, model.pretrained_cfg)
    stored = random_weights(model.state_dict(), torch.bfloat16)
    facts = {name: tensor.facts for name, tensor in stored.items()}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"write {directory}", total=None)
        write_weights(
            directory,
            facts,
            ((name, tensor.read()) for name, tensor in stored.items()),
            progress=functools.partial(show, progress, task),
        )


def load(name: str, config: piip.ModelConfig, weights: Path | None) -> PIIPBackbone:
    """Build a whole model, with random weights or those of a directory."""
    model = build_without_values(config)
    stored = random_weights(model.state_dict(), torch.bfloat16) if weights is None else read_weights(weights)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{name}: weights", total=None)
        tell = functools.partial(show, progress, task)
        load_weights(model, stored, source=str(weights), dtype="bf16", progress=tell)
    return model


def measure(
    name: str, config: piip.ModelConfig, repeats: int, threads: int, weights: Path | None, place: Place | None = None
) -> tuple[Measurement, Outputs]:
    """Build one model, or a process's share of it, and time it; runs in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    start_bytes, started = peak_resident_bytes(), time.perf_counter()
    model = load(name, config, weights) if place is None or weights is None else place.load(weights)
    model.eval()
    build_seconds, build_bytes = time.perf_counter() - started, peak_resident_bytes()
    held = [value.to_local() if isinstance(value, DTensor) else value for value in model.parameters()]
    weight_bytes = sum(value.numel() * value.itemsize for value in held)
    params = sum(parameter.numel() for parameter in model.parameters())
    seconds, outputs = time_forward(name, model, repeats)
    memory = (weight_bytes, start_bytes, build_bytes, peak_resident_bytes())
    cost = {rule: piip.estimate_cost(config, rule=rule).macs for rule in ("total", "paper")}
    return Measurement(params, cost["total"], cost["paper"], *memory, build_seconds, seconds), outputs


def measure_spread(
    name: str, config: piip.ModelConfig, repeats: int, threads: int, weights: Path, processes: int
) -> list[tuple[Measurement, Outputs]]:
    """Measure the processes that share a model."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(processes) as pool:
        places = [Place(rank, processes, f"{folder}/meeting") for rank in range(processes)]
        job = (name, config, repeats, max(1, threads // processes), weights)
        return pool.starmap(measure, [(*job, place) for place in places], chunksize=1)


def compare_spread(name: str, whole: tuple[Measurement, Outputs], shares: list[tuple[Measurement, Outputs]]) -> str:
    """Return what every process held, and how far its outputs are from the whole model's."""
    places = {"one process": whole[0], **{f"process {rank}": share for rank, (share, _) in enumerate(shares)}}
    memory = "weights {:.2f} GiB, peak once built {:.2f} GiB, peak {:.2f} GiB"
    lines = [
        f"{name}, {place}: {memory.format(*(size / GIB for size in (m.weight_bytes, m.build_bytes, m.peak_bytes)))}"
        for place, m in places.items()
    ]
    apart = ", ".join(f"{difference(outputs, whole[1]):.1e}" for _, outputs in shares)
    return "\n".join([*lines, f"{name}: outputs of the processes, relative difference: {apart}"])


def time_forward(name: str, model: PIIPBackbone, repeats: int) -> tuple[list[float], Outputs]:
    """Return the seconds of forward passes of one image after one warm-up, and the maps."""
    side = model.image_sizes[-1]
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).bfloat16()
    blocks = [block for branch in model.branches for block in branch.vit.blocks]  # type: ignore[union-attr,operator]
    seconds = []
    with Progress(console=Console(stderr=True)) as progress, torch.inference_mode():
        task = progress.add_task(f"{name}: blocks of {repeats + 1} passes", total=(repeats + 1) * len(blocks))
        for block in blocks:
            block.register_forward_hook(lambda *_: progress.advance(task))
        for index in range(repeats + 1):
            start = time.perf_counter()
            maps = model(image)
            seconds.append(time.perf_counter() - start)
            say(f"{name}: pass {index} of {repeats} took {seconds[-1]:.1f} s")
            if not all(bool(level.isfinite().all()) for level in maps):
                raise ValueError(f"{name} computed numbers that are not finite; check the weights.")
    return seconds[1:], [level.float().numpy() for level in maps]


def compare(pyramid: Measurement, single: Measurement) -> str:
    """Return the pyramid's time, multiply-adds and published cost as shares of the single network's."""
    seconds = min(pyramid.forward_seconds) / min(single.forward_seconds)
    macs, paper = pyramid.macs / single.macs, pyramid.paper_macs / single.paper_macs
    return f"pyramid / single: time {seconds:.3f}, MACs that run {macs:.3f}, MACs by the paper's rule {paper:.3f}"


def check_memory(config: piip.ModelConfig) -> None:
    """Refuse a model that this machine cannot hold, instead of being killed half-way."""
    described = Path("/proc/meminfo")  # Linux
    if not described.exists():
        return
    lines = dict(line.split(":") for line in described.read_text(encoding="utf-8").splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    needed = 2 * sum(parameter.numel() for parameter in build_without_values(config).parameters()) + 4 * GIB
    if needed > available:
        raise SystemExit(
            f"The models need about {needed / GIB:.0f} GiB, {available / GIB:.0f} GiB are free: pass --depth 4 or so."
        )


def report(found: dict[str, Measurement], facts: dict[str, Any]) -> Table:
    """Return the measured models beside each other, and their ratio beside the published one."""
    table = Table("", *found, "ratio", title=", ".join(f"{key} {value}" for key, value in facts.items()))
    rows: dict[str, tuple[str, Callable[[Measurement], float]]] = {
        "parameters (M)": ("{:.0f}", lambda m: m.params / 1e6),
        "weights (GiB)": ("{:.2f}", lambda m: m.weight_bytes / GIB),
        "peak memory at start (GiB)": ("{:.2f}", lambda m: m.start_bytes / GIB),
        "peak memory once built (GiB)": ("{:.2f}", lambda m: m.build_bytes / GIB),
        "peak memory (GiB)": ("{:.2f}", lambda m: m.peak_bytes / GIB),
        "build (s)": ("{:.1f}", lambda m: m.build_seconds),
        "forward, fastest (s)": ("{:.2f}", lambda m: min(m.forward_seconds)),
        "forward, median (s)": ("{:.2f}", lambda m: statistics.median(m.forward_seconds)),
        "GMACs, rule total": ("{:.1f}", lambda m: m.macs / 1e9),
        "GMACs, rule paper": ("{:.1f}", lambda m: m.paper_macs / 1e9),
    }
    for label, (text, value) in rows.items():
        values = [value(measurement) for measurement in found.values()]
        ratio = [f"{values[0] / values[1]:.3f}"] if len(values) == 2 else []
        table.add_row(label, *(text.format(number) for number in values), *ratio)
    if len(found) == len(RECORDS):
        table.caption = compare(*found.values())
    flops = [published_results(RECORDS[name]).flops for name in found]
    numbers = [float(printed.removesuffix("G")) for printed in flops]
    table.add_row("published", *flops, *([f"{numbers[0] / numbers[1]:.3f}"] if len(numbers) == 2 else []))
    return table


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=f"{(__doc__ or '').splitlines()[0]} {KEPT}")
    parser.add_argument("--models", nargs="+", choices=RECORDS, default=list(RECORDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=BLOCKS, help="blocks of InternViT-6B: 4, 8, ... 48")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weights", type=Path, help="read weights from DIR/pyramid and DIR/single")
    parser.add_argument("--write", type=Path, help="write random weights there, and measure with them")
    parser.add_argument("--processes", type=int, default=1, help="spread each model over so many, too")
    parser.add_argument("--json", type=Path, default=Path("out/intern_vit_6b.json"), help="where to write the numbers")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and images, to see that it runs")
    arguments = parser.parse_args()
    if arguments.depth not in range(BETWEEN, BLOCKS + 1, BETWEEN):
        parser.error(f"--depth is {arguments.depth}, expected a multiple of {BETWEEN} up to {BLOCKS}.")
    if arguments.repeats < 1:
        parser.error(f"--repeats is {arguments.repeats}, expected at least 1.")
    if arguments.processes > 1 and not (arguments.write or arguments.weights):
        parser.error("--processes needs files to read: pass --write DIR, or --weights with what that wrote.")
    return arguments


def write(
    found: dict[str, Measurement], spread: dict[str, list[Measurement]], facts: dict[str, Any], path: Path
) -> None:
    """Write what was measured so far as JSON."""
    values = {name: dataclasses.asdict(measurement) for name, measurement in found.items()}
    shares = {name: [dataclasses.asdict(share) for share in shares] for name, shares in spread.items()}
    save({**facts, "models": values, "processes": shares}, path)


def main() -> None:
    """Measure both models and print them side by side."""
    arguments = parse()
    found: dict[str, Measurement] = {}
    spread: dict[str, list[Measurement]] = {}
    console = Console(width=120)
    facts = {
        "depth": arguments.depth,
        "threads": arguments.threads,
        "machine": f"{os.cpu_count()} x {machine()['processor']}",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    for name in arguments.models:
        config = describe(name, arguments.depth, arguments.smoke)
        check_memory(config)
        if arguments.write is not None:
            write_random(config, arguments.write / name)
        directory = arguments.write or arguments.weights
        job = (name, config, arguments.repeats, arguments.threads, directory and directory / name)
        whole = in_own_process(measure, *job)
        found[name] = whole[0]
        write(found, spread, facts, arguments.json)
        if arguments.processes > 1:
            shares = measure_spread(*job, arguments.processes)
            console.print(compare_spread(name, whole, shares), soft_wrap=True)
            spread[name] = [share for share, _ in shares]
            write(found, spread, facts, arguments.json)
    console.print(report(found, facts))


if __name__ == "__main__":
    main()
