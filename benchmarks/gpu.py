"""What is true on this GPU? Results equal to the CPU's, time and memory of inference and training, one epoch.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--sections providers heads ...] [--out out/gpu]

Writes OUT/gpu.json after every section, and the figures of `piip bench` beside it. A section that fails is recorded
with its message, and the others run all the same; the exit code is 1 then. A section that has no time left is recorded
as left out; `piip bench` keeps the models that it measured. benchmarks/gpu.sh makes the environment first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import gpu_checks
from common.progress import save, say

from piip.bench.machine import machine
from piip.bench.subjects import find_subject
from piip.bench.worker import Job, build, peak_resident_bytes
from piip.cost import estimate_cost
from piip.device import pick_device

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "instances" / "nuclei_piip.yaml"
TRAINED = ["piip_tsb_1120_896_448.deit3_coco_mask_rcnn", "single_b_1024.deit3_coco_mask_rcnn"]
FORMS = ("eager", "optimized", "compiled")
Row = dict[str, Any]


@dataclass
class Plan:
    """What to run, and until when.

    Args:
        arguments: The command line.
        ends: When time is up, of `time.monotonic`.
        device: "cpu", "cuda" or "cuda:INDEX".
    """

    arguments: argparse.Namespace
    ends: float
    device: str = field(default="cuda")

    def seconds_left(self, share: float = 1.0) -> float:
        """Return the time left, or a fraction of it."""
        return share * (self.ends - time.monotonic())


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compare without TensorFloat-32, which GPUs use in convolutions by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def providers(plan: Plan) -> list[Row]:
    """Compare the providers of deformable attention with the CPU."""
    with exact_float32():
        return gpu_checks.providers(plan.device, plan.arguments.shapes)


def heads(plan: Plan) -> list[Row]:
    """Compare the forward passes of every head with the CPU."""
    with exact_float32():
        return gpu_checks.heads(plan.device, plan.arguments.heads)


def training_steps(plan: Plan) -> list[Row]:
    """Compare training steps of every head with the CPU."""
    with exact_float32():
        return gpu_checks.training_steps(plan.device, plan.arguments.heads)


def _command(plan: Plan, *words: str, share: float) -> float:
    """Run a command of piip within a fraction of the time left, and return its seconds.

    Raises:
        ValueError: It failed; with the last line that it printed.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "piip", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, plan.seconds_left(share)), check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(lines[-1] if lines else f"exit code {done.returncode}")
    return time.monotonic() - started


def bench(plan: Plan) -> list[Row]:
    """Run `piip bench` in every form; rows of a form that runs out of time are kept."""
    rows: list[Row] = []
    models = plan.arguments.models or ["--preset", "coco"]
    forms = plan.arguments.forms
    for index, form in enumerate(forms):
        out = plan.arguments.out / f"bench-{form}"
        options = ["--form", form, "--device", plan.device, "--repeats", str(plan.arguments.repeats), "--out", str(out)]
        kept: Row = {"check": f"bench {form}", "ok": True}
        try:
            kept["seconds"] = _command(plan, "bench", *models, *options, share=0.6 / (len(forms) - index))
        except subprocess.TimeoutExpired:
            kept["complete"] = False
        except ValueError as error:
            kept |= {"ok": False, "error": str(error)}
        path = out / "bench.json"
        measured = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
        rows.append({**kept, "models": [each for each in measured if each.get("seconds") is not None]})
    return rows


def training(plan: Plan) -> list[Row]:
    """Time forward and backward of backbones, with and without activation checkpointing, and their peak memory."""
    rows = []
    for name in plan.arguments.trained:
        for checkpointing in (False, True):
            if plan.seconds_left() > 0:
                rows.append(_timed_steps(name, checkpointing, plan))
    return rows


def _timed_steps(name: str, checkpointing: bool, plan: Plan) -> Row:
    subject = find_subject(name)
    size = estimate_cost(subject.config).image_size
    model = build(Job(subject, size, "f32", "eager", 1, plan.device, torch.get_num_threads()))
    model.train().requires_grad_(True)
    model.set_grad_checkpointing(checkpointing)
    image = torch.randn(1, 3, *size, device=plan.device)
    is_cuda = image.is_cuda
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(plan.device)
    seconds = []
    for _ in range(plan.arguments.repeats + 1):  # the first one warms up
        started = time.perf_counter()
        with torch.autocast(image.device.type, torch.bfloat16):
            maps = model(image)
        torch.autograd.backward([values.float().mean() for values in maps])
        model.zero_grad(set_to_none=True)
        if is_cuda:
            torch.cuda.synchronize(plan.device)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(plan.device) if is_cuda else peak_resident_bytes()
    row = {"check": f"training {name}", "dtype": "bf16 autocast", "checkpointing": checkpointing, "ok": True}
    return {**row, "image_size": list(size), "seconds": min(seconds[1:]), "peak_bytes": peak}


def epoch(plan: Plan) -> list[Row]:
    """Train one epoch of the nuclei recipe; its data set is downloaded where it is missing."""
    data, recipe = plan.arguments.data, plan.arguments.recipe
    if not data.exists():
        _command(plan, "data", "nuclei", "--download", "--out", str(data), share=0.5)
    out = plan.arguments.out / "epoch"
    changes = ["--data.root", str(data.resolve()), "--schedule.epochs", "1", "--schedule.warmup_epochs", "0"]
    options = ["--device", plan.device, "--progress", "none", "--out", str(out.resolve()), *changes]
    return [{"check": "one epoch", "ok": True, "seconds": _command(plan, "train", str(recipe), *options, share=1.0)}]


# What cannot be had elsewhere comes first; `bench` takes at most 0.6 of the time that is left to it.
SECTIONS: dict[str, Callable[[Plan], list[Row]]] = {
    "providers": providers,
    "heads": heads,
    "training_steps": training_steps,
    "training": training,
    "bench": bench,
    "epoch": epoch,
}


def run_section(name: str, plan: Plan) -> Row:
    """Run a section; what it raises is recorded, whatever it is, since the other sections must run."""
    if plan.seconds_left() <= 0:
        return {"name": name, "left_out": "no time left", "rows": []}
    started, section = time.monotonic(), {"name": name}
    try:
        rows = SECTIONS[name](plan)
        section |= {"rows": rows, "failed": [row for row in rows if not row["ok"]]}
    except Exception as error:
        section |= {"rows": [], "error": f"{type(error).__name__}: {error}"}
    return {**section, "seconds": time.monotonic() - started}


def parse() -> argparse.Namespace:
    """Read the command line."""
    text = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--device", default="cuda", help="cpu runs the same, to try the program")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--shapes", nargs="+", choices=gpu_checks.SHAPES, default=list(gpu_checks.SHAPES))
    parser.add_argument("--heads", nargs="+", choices=gpu_checks.MODELS, default=list(gpu_checks.MODELS))
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="for piip bench; default: the preset coco")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="for piip bench")
    parser.add_argument("--trained", nargs="+", metavar="MODEL", default=TRAINED, help="for training steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="for one epoch")
    parser.add_argument("--data", type=Path, default=Path("data/nuclei"), help="its data; downloaded if missing")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    return parser.parse_args()


def main() -> int:
    """Run the sections, and return the exit code."""
    arguments = parse()
    try:
        device = str(pick_device(arguments.device))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    plan = Plan(arguments, time.monotonic() + 60 * arguments.minutes, device)
    facts: Row = {"machine": machine(device), "minutes": arguments.minutes, "complete": False, "sections": []}
    for name in arguments.sections:
        section = run_section(name, plan)
        facts["sections"].append(section)
        save(facts, arguments.out / "gpu.json")
        failed = len(section.get("failed", []))
        result = section.get("error") or section.get("left_out") or f"{len(section['rows'])} rows, {failed} failed"
        say(f"{name}: {result}")
        for row in section.get("failed", []):
            say(f"  {row['check']}, {row.get('dtype', '')}: {row.get('error', row.get('difference'))}")
    facts["complete"] = not any("left_out" in section for section in facts["sections"])
    save(facts, arguments.out / "gpu.json")
    say(f"Results are in {arguments.out / 'gpu.json'}")
    return int(any("error" in section or section.get("failed") for section in facts["sections"]))


if __name__ == "__main__":
    sys.exit(main())
