"""The command `piip compare`."""

from __future__ import annotations

from pathlib import Path

from piip.output import to_json


def compare(
    config: str,
    *,
    out: Path | None = None,
    only: list[str] | None = None,
    max_minutes: float | None = None,
    bench_only: bool = False,
    device: str = "auto",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Train and evaluate several models under one budget, over several seeds, and report accuracy beside cost.

    Work the comparison off in pieces: the same command continues where the last one ended, also within a run. All
    models are trained with the first seed before the second. To do several runs at the same time, start the command
    several times with the same folder: each takes the next run that is free. A failing run is recorded, and the others
    go on.

    Write OUT/results.json, OUT/report.md, OUT/accuracy.png and OUT/recipes after every run. docs/compare.md explains
    the file.

    Args:
        config: YAML file, such as those in recipes/compare/.
        out: Folder of the comparison. Default: runs/compare/NAME, with the name of the file.
        only: Labels of the models to train now.
        max_minutes: Stop after this time; a run in progress saves its step.
        bench_only: Train nothing; time the models as the section bench says. Other programs falsify times.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        threads: Threads of each run on the CPU. Default: PyTorch's.
        json: Print the contents of results.json.

    Raises:
        SystemExit: A run failed.
    """
    from piip.compare.command import compare_models

    done = compare_models(
        config,
        out=out,
        only=only or (),
        max_minutes=max_minutes,
        bench_only=bench_only,
        device=device,
        threads=threads,
    )
    print(to_json(done.content) if json else done.summary)
    if done.failed:
        raise SystemExit(1)
