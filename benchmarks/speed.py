"""Does time follow the multiply-adds? Pyramids, single networks and others, in turn, beside their floors.

    python benchmarks/speed.py [--models tsb vit_b ...] [--dtypes f32 bf16] [--batch 1] [--repeats 3] [--out out/speed]

Backbone, merge and simple feature pyramid; of "dino" the whole detector, in float32 only. Each row is one model in one
form: "optimized" is what `piip.optimize_for_inference` returns, "eager" the model as it is, "as released" the way the
authors' code runs it (plain sampling, windows cut in every block). The floor is the model's products, convolutions and
attention alone, each at the fastest stock kernel; sampling is not part of it. Writes OUT.json.

`piip bench` measures time and memory of any model, without parts and floors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common.command import command_line, parse, results, title
from common.competitors import WindowedViT, convnext, equal_pyramid, like_the_authors, open_gates
from common.floors import floor_seconds
from common.measuring import DTYPES, PartClock, in_turn, summary
from common.progress import Results, say
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import piip
from piip.cost.total import naming_parts
from piip.optimize.optimized_model import OptimizedModel
from piip.serialization.base import PyramidModel

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Case:
    """A model and the image it gets.

    Attributes:
        make: Builds the model.
        image_size: (H, W) in pixels.
        beside: The case whose time and multiply-adds it is compared with.
    """

    make: Callable[[], nn.Module]
    image_size: tuple[int, int]
    beside: str = "vit_b"


def _named(name: str, **overrides: Any) -> Callable[[], nn.Module]:
    return lambda: piip.create_model(f"{name}_coco_mask_rcnn", features_only=True, **overrides)


def small_dino() -> nn.Module:
    """Return a DINO detector that is mostly head: its backbone is a ViT-T of four blocks."""
    config = piip.ModelConfig(
        (piip.BranchConfig("vit_tiny_patch16_224", 800, timm_args={"depth": 4}),),
        merge=piip.MergeConfig("none"),
        neck=piip.NeckConfig("simple", scales=(2, 1, 0.5)),
        head=piip.HeadConfig("dino", 80),
    )
    return piip.build_model(config)


SLIM = piip.MergeConfig(kind="slim")
CASES = {
    "vit_b": Case(_named("single_b_1024.deit3"), (1024, 1024)),
    "tsb": Case(_named("piip_tsb_1120_896_448.deit3"), (1120, 1120)),
    "tsb_slim": Case(_named("piip_tsb_1120_896_448.deit3", merge=SLIM), (1120, 1120)),
    "tsb_wide": Case(_named("piip_tsb_1120_896_448.deit3"), (800, 1344)),
    "tsb_1568": Case(_named("piip_tsb_1568_1120_672.deit3"), (1568, 1568)),
    "vit_l": Case(_named("single_l_1024.deit3"), (1024, 1024)),
    "sbl": Case(_named("piip_sbl_1120_672_448.deit3"), (1120, 1120), beside="vit_l"),
    "timm_vit_b_global": Case(lambda: WindowedViT("deit3_base_patch16_224", 1024, window=0), (1024, 1024)),
    "timm_vit_b_windowed": Case(lambda: WindowedViT("deit3_base_patch16_224", 1024, window=16), (1024, 1024)),
    "timm_vit_l_windowed": Case(lambda: WindowedViT("deit3_large_patch16_224", 1024, window=16), (1024, 1024), "vit_l"),
    "equal_bbb": Case(lambda: equal_pyramid("deit3_base_patch16_224", (448, 896, 1120)), (1120, 1120)),
    "convnext_b": Case(convnext, (1024, 1024)),
    "dino": Case(small_dino, (800, 1344)),
}
DEFAULT = "vit_b tsb tsb_slim timm_vit_b_windowed equal_bbb convnext_b".split()


def forms(model: nn.Module, image: Tensor) -> dict[str, Run]:
    """Return the ways to run a model, by name."""
    if not isinstance(model, PyramidModel):
        return {"eager": model}

    def as_released(image: Tensor) -> Any:
        with like_the_authors():
            return model(image)

    ways: dict[str, Run] = {"optimized": piip.optimize_for_inference(model, image), "eager": model}
    return {**ways, "as released": as_released} if len(model.get_backbone().branches) > 1 else ways


def build(name: str, dtype: str, batch: int) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights, and its images."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore", piip.PyramidWarning)
    model = CASES[name].make().eval().to(DTYPES[dtype]).requires_grad_(False)
    open_gates(model)
    return model, torch.randn(batch, 3, *CASES[name].image_size, dtype=DTYPES[dtype])


def part_seconds(run: Run, image: Tensor) -> dict[str, float]:
    """Return the seconds of every part of a pyramid."""
    model = run.model if isinstance(run, OptimizedModel) else run
    if not isinstance(model, PyramidModel):
        return {}
    clock = PartClock()
    with naming_parts(model.parts(), clock):
        run(image)
    return dict(clock.seconds)


def describe(name: str, model: nn.Module, dtype: str, batch: int) -> dict[str, Any]:
    """Return what a row says of a model besides its times, the floor among it."""
    size = CASES[name].image_size
    cost = piip.estimate_cost(model, image_size=size)
    floors = floor_seconds(model, size, DTYPES[dtype]) if batch == 1 else {}
    say(f"{name}, {dtype}: floor {sum(floors.values()):.3f} s")
    return {
        "model": name,
        "dtype": dtype,
        "batch": batch,
        "image_size": size,
        "macs": batch * cost.macs,
        "macs_by_part": {part: batch * item.macs for part, item in cost.parts.items()},
        "floor_by_part": floors,
        "floor": sum(floors.values()) or None,
    }


def measure(found: Results, names: list[str], dtype: str, batch: int, repeats: int) -> None:
    """Measure models in one dtype, all in turn; one row a model and form."""
    runs: dict[str, tuple[Run, Tensor]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        model, image = build(name, dtype, batch)
        facts = describe(name, model, dtype, batch)
        for form, run in forms(model, image).items():
            runs[f"{name}, {form}, {dtype}"] = run, image
            rows[f"{name}, {form}, {dtype}"] = {**facts, "form": form, "seconds_by_part": {}}
    with torch.inference_mode():
        timed = {key: (lambda r=run, i=image: r(i)) for key, (run, image) in runs.items()}
        in_turn(timed, repeats, lambda key, seconds: found.put(key, {**rows[key], "seconds": summary(seconds)}))
        for key, run in runs.items():
            if rows[key]["form"] != "as released":
                found.put(key, {**found.by_key[key], "seconds_by_part": part_seconds(*run)})


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Compare each row with the best form of the model it stands beside, by multiply-adds and by time."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["model"], row["dtype"])
        if key not in best or row["seconds"]["min"] < best[key]["seconds"]["min"]:
            best[key] = row
    for row in rows:
        other = best.get((CASES[row["model"]].beside, row["dtype"]))
        row["over_floor"] = row["seconds"]["min"] / row["floor"] if row["floor"] else None
        row["macs_ratio"] = row["macs"] / other["macs"] if other else None
        row["time_ratio"] = row["seconds"]["min"] / other["seconds"]["min"] if other else None


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """Lay the rows out for reading."""
    shown = Table(title=title)
    for column in ("model", "form", "dtype"):
        shown.add_column(column, no_wrap=True)
    for column in ("GMACs", "s min", "median", "/floor", "MACs/single", "time/single"):
        shown.add_column(column, justify="right")
    for row in rows:
        ratios = [row["over_floor"], row["macs_ratio"], row["time_ratio"]]
        shown.add_row(
            *(row[key] for key in ("model", "form", "dtype")),
            f"{row['macs'] / 1e9:.0f}",
            *(f"{row['seconds'][key]:.3f}" for key in ("min", "median")),
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    return shown


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__, repeats=3, out="out/speed")
    parser.add_argument("--models", nargs="+", choices=CASES, default=DEFAULT)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parse(parser)
    found = results(arguments.out.with_suffix(".json"))
    for dtype in arguments.dtypes:
        measure(found, arguments.models, dtype, arguments.batch, arguments.repeats)
        add_ratios(found.rows)
        found.write(complete=dtype == arguments.dtypes[-1])
    Console(width=120).print(table(found.rows, title(found)))


if __name__ == "__main__":
    main()
