"""The whole of `piip plan`: options within a budget, some of them measured, shown and written."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from piip.bench.run import BenchOptions, run_bench
from piip.bench.subjects import Subject
from piip.config import BranchConfig, ModelConfig
from piip.device import pick_device
from piip.fields import one_of
from piip.output import writable_folder, write_json
from piip.plan.candidates import Costs
from piip.plan.families import find_networks
from piip.plan.report import LIMITS, draw, recipe_text, table
from piip.plan.search import Budget, Machine, Option, Say, choose
from piip.plan.tasks import TASKS
from piip.structures import Size

CALIBRATION = (
    "vit_small_patch16_224"  # takes a fraction of a second; others are expected to take as long per multiply-add
)
MEASURED = 3  # by default, where the budget is a time


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        task: Name in `TASKS`.
        image_size: (H, W) in pixels.
        family: Name in `FAMILIES`.
        networks: Names of timm instead of a family.
        budget: Limits for one image.
        interactions: Number of interactions; None for as many as the networks allow.
        num_classes: Classes of the recipe's head; None lets `piip train` count them.
        measure: Pyramids to measure.
        device: Device of measurements.
        threads: Threads of measurements; None for PyTorch's own choice.
    """

    task: str
    image_size: Size
    family: str
    networks: Sequence[str] | None
    budget: Budget
    interactions: int | None
    num_classes: int | None
    measure: int
    device: str
    threads: int | None


def plan(request: Request, out: Path | None, *, quiet: bool, command: str = "piip plan") -> dict[str, Any]:
    """Find pyramids within a budget and the single networks of equal cost.

    Args:
        request: What is asked for.
        out: Folder for plan.json, plan.png and recipe.yaml; None writes nothing.
        quiet: Print nothing.
        command: Command that made the plan, for the recipe.

    Returns:
        JSON values: "task", "image_size", "budget", "pyramids" (the best supported first), "singles" and "limits".

    Raises:
        ValueError: An unknown task, family or network, no limit, or nothing fits.
    """
    one_of("task", request.task, TASKS)
    if not any(value is not None for value in vars(request.budget).values()):
        raise ValueError("There is no budget, expected one of --budget-macs, -seconds, -bytes, -params or --fps.")
    networks = find_networks(request.family, request.networks)
    costs = Costs(TASKS[request.task], request.interactions, request.image_size)
    with _progress(quiet) as say:
        machine = _machine(request, say)
        options, singles = choose(networks, costs, request.budget, machine, say)
        rows = [_row(option, machine) for option in options]
        single_rows = [_row(option, machine) for option in singles]
        if request.measure:
            _measure([*zip(options, rows, strict=True)][: request.measure], costs, request, say)
            _measure([*zip(singles, single_rows, strict=True)], costs, request, say)
    rows, over = _within(rows, request.budget)
    plan = {
        "task": request.task,
        "image_size": list(request.image_size),
        "networks": list(networks),
        "budget": vars(request.budget),
        "pyramids": rows,
        "over_budget_when_measured": over,
        "singles": single_rows,
        "limits": LIMITS,
    }
    if not quiet:
        _print(plan)
    if out is not None:
        best = (
            next(option for option in options if rows and option.candidate.title == rows[0]["title"]) if rows else None
        )
        _write(plan, best, costs, request, writable_folder(out), command, quiet=quiet)
    return plan


def _machine(request: Request, say: Say) -> Machine:
    """Return what is expected of the machine: its time per multiply-add, if a time is asked for."""
    if request.budget.seconds is None:
        return Machine()
    say(f"time per multiply-add of {CALIBRATION}")
    subject = Subject(CALIBRATION, ModelConfig((BranchConfig(CALIBRATION, 448),)))
    row = _bench([subject], (448, 448), request, say)[0]
    return Machine(seconds_per_mac=row["seconds"] / row["macs"])


def _row(option: Option, machine: Machine) -> dict[str, Any]:
    expected = {
        "expected_seconds": machine.seconds(option.cost.macs),
        "expected_bytes": machine.memory(option.cost.params, option.image_size),
    }
    return option.to_dict() | {"seconds": None, "peak_bytes": None} | expected


def _measure(pairs: list[tuple[Option, dict[str, Any]]], costs: Costs, request: Request, say: Say) -> None:
    """Measure options one after the other, in alternation with nothing; write time and memory into their rows."""
    for option, row in pairs:
        say(f"measure {option.candidate.title}")
        subject = Subject(option.candidate.title, costs.config(option.candidate))
        measured = _bench([subject], option.image_size, request, say)[0]
        row |= {"seconds": measured["seconds"], "peak_bytes": measured["peak_bytes"]}


def _bench(subjects: list[Subject], image_size: Size, request: Request, say: Say) -> list[dict[str, Any]]:
    options = BenchOptions(
        dtypes=("f32",),
        form="optimized",
        repeats=2,
        image_size=image_size,
        batch_size=1,
        device=str(pick_device(request.device)),
        threads=request.threads or torch.get_num_threads(),
    )
    with tempfile.TemporaryDirectory() as folder:
        report = run_bench(subjects, options, Path(folder) / "bench.json", lambda text, *_: say(text))
    return [*report.rows.values()]


def _within(rows: list[dict[str, Any]], budget: Budget) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows that fit a budget by what was measured, and the others."""
    limits = (("seconds", budget.seconds), ("peak_bytes", budget.bytes))

    def fits(row: dict[str, Any]) -> bool:
        return all(limit is None or row[name] is None or row[name] <= limit for name, limit in limits)

    return [row for row in rows if fits(row)], [row for row in rows if not fits(row)]


def _print(plan: dict[str, Any]) -> None:
    console = Console(width=None)
    height, width = plan["image_size"]
    console.print(table(plan["pyramids"], f"Pyramids for {plan['task']} at {height} x {width}, best supported first"))
    console.print(table(plan["singles"], "Single networks at the highest resolution within the budget"))
    if plan["over_budget_when_measured"]:
        console.print(table(plan["over_budget_when_measured"], "Over the budget when measured"))
    console.print(plan["limits"])


def _write(
    plan: dict[str, Any],
    best: Option | None,
    costs: Costs,
    request: Request,
    out: Path,
    command: str,
    *,
    quiet: bool,
) -> None:
    write_json(plan, out / "plan.json")
    height, width = request.image_size
    title = f"{request.task} at {height} x {width}: pyramids, then single networks of equal cost"
    draw([*plan["pyramids"], *plan["singles"]], out / "plan.png", title=title, budget_macs=request.budget.macs)
    written = ["plan.json", "plan.png"]
    if best is not None:
        config = costs.config(best.candidate, pretrained=True)
        values = _differing(config.to_dict(), ModelConfig((config.branches[0],)).to_dict())
        values["head"]["num_classes"] = request.num_classes
        (out / "recipe.yaml").write_text(recipe_text(best, values, costs.task, command), encoding="utf-8")
        written.append("recipe.yaml")
    if not quiet:
        print(f"Written: {', '.join(str(out / name) for name in written)}")


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a description that are not the defaults."""
    branch = dataclasses.asdict(BranchConfig("x", 1))
    branches = [
        {name: value for name, value in row.items() if name in ("network", "image_size") or value != branch[name]}
        for row in values["branches"]
    ]
    found: dict[str, Any] = {"branches": branches}
    for section in ("interaction", "merge", "neck", "head"):
        own = {name: value for name, value in values[section].items() if value != defaults[section][name]}
        if own or section == "head":
            found[section] = own
    return found


@contextmanager
def _progress(quiet: bool) -> Iterator[Say]:
    if quiet:
        yield lambda text: None
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), transient=True, console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("")
        yield lambda text: bar.update(task, description=text)


def command_text(arguments: Sequence[str]) -> str:
    """Return a command line as one would type it."""
    return shlex.join(["piip", *arguments])
