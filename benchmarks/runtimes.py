"""How long does one image take in each runtime? PyTorch as it is beside exported files, on the CPU.

    python benchmarks/runtimes.py [MODEL ...] [--image-size 320 320] [--repeats 15] [--threads 2]
        [--calibrate FOLDER] [--json out/runtimes.json]

With --calibrate, OpenVINO in int8 is a further runtime, calibrated on images of that folder; `piip evaluate --runtime
openvino-int8` says what it costs in accuracy.

Every model is exported to each format whose packages are installed, and checked against PyTorch. Then all run on the
same image in turns, so that what else the machine does meets them alike; the median of the repeats counts. Run it on an
idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.command import KEPT
from common.progress import save, say
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import piip
from piip.bench.machine import machine
from piip.export.exporter import load_for_export, wrap_model
from piip.export.formats import EXPORT_FORMATS, find_format
from piip.export.runtime import FORMAT_OF, INT8

ASSETS = Path(piip.__file__).parent / "assets"
DEFAULTS = [str(ASSETS / name / "model") for name in ("landcover", "nuclei_maps", "nuclei")]
Run = Callable[[NDArray[np.float32]], Any]


def ready(
    model: str, size: tuple[int, int] | None, threads: int, folder: Path, calibrate: str | None
) -> tuple[dict[str, Run], list[int]]:
    """Return what runs a model in every runtime, and the shape of its images."""
    loaded, _ = load_for_export(model)
    target = wrap_model(loaded).eval()

    def eager(image: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return target(torch.from_numpy(image))

    runs: dict[str, Run] = {"eager": eager}
    shape = [1, 3, *(size or loaded.pretrained_cfg["input_size"][1:])]
    for name in columns(calibrate)[1:]:
        format = FORMAT_OF.get(name, name)
        form = EXPORT_FORMATS[format]
        try:
            find_format(format)
        except ValueError as error:
            say(f"{name} is left out: {error}")
            continue
        path = folder / f"{name}{form.suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters, about themselves
            piip.export_model(
                loaded, path, format=format, image_size=size, calibrate=calibrate if name == INT8 else None
            )
        say(f"{model}: exported to {name}")
        runs[name] = form.load(path, threads)
    return runs, shape


def columns(calibrate: str | None) -> list[str]:
    """Return the names of the runtimes."""
    return ["eager", *EXPORT_FORMATS, *([INT8] if calibrate else [])]


def measure(runs: Mapping[str, Run], shape: list[int], repeats: int) -> dict[str, float]:
    """Return the median seconds of every runtime, which take turns."""
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 2):  # the first two warm up
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def main() -> None:
    """Measure all models and print a table."""
    parser = argparse.ArgumentParser(description=f"{(__doc__ or '').splitlines()[0]} {KEPT}")
    parser.add_argument("models", nargs="*", default=DEFAULTS, metavar="MODEL", help="directories, or names of the zoo")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="default: each model's own")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", metavar="FOLDER", help="images for OpenVINO in int8; default: no int8")
    parser.add_argument("--json", type=Path, default=Path("out/runtimes.json"), help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = tuple(arguments.image_size) if arguments.image_size else None
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine()["processor"],
    }
    facts |= {"threads": arguments.threads, "repeats": arguments.repeats, "complete": False, "models": {}}
    table = Table(
        "model", "image", title=f"{facts['machine']}, {arguments.threads} threads, {facts['date']}; median ms"
    )
    names = columns(arguments.calibrate)
    for name in names:
        table.add_column(name, justify="right")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            runs, shape = ready(model, size, arguments.threads, Path(folder), arguments.calibrate)
            seconds = measure(runs, shape, arguments.repeats)
        facts["models"][model] = {"shape": shape, "seconds": seconds}
        facts["complete"] = len(facts["models"]) == len({*arguments.models})
        save(facts, arguments.json)
        label = model.replace(str(ASSETS), "assets").removesuffix("/model")
        shown = [f"{1e3 * seconds[name]:.1f}" if name in seconds else "-" for name in names]
        table.add_row(label, " x ".join(str(side) for side in shape[2:]), *shown)
        say(f"{label}: {', '.join(f'{name} {1e3 * median:.1f} ms' for name, median in seconds.items())}")
    Console().print(table)


if __name__ == "__main__":
    main()
