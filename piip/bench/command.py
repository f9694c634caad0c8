"""What `piip bench` does: check the request, measure with progress, print the table, draw the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from piip.bench.figure import draw, main_metric
from piip.bench.machine import describe_machine
from piip.bench.presets import PRESETS, Preset
from piip.bench.run import BenchOptions, BenchReport, Say, run_bench
from piip.bench.subjects import find_subject
from piip.bench.table import label, markdown, table
from piip.device import pick_device
from piip.export.runtime import RUNTIMES
from piip.fields import at_least, one_of
from piip.serialization.save import DTYPES
from piip.structures import Size


def bench_models(
    names: Sequence[str],
    *,
    preset: str | None,
    dtypes: Sequence[str] | None,
    form: str | None,
    repeats: int | None,
    image_size: Size | None,
    batch_size: int,
    with_head: bool,
    device: str,
    threads: int | None,
    out: Path,
    quiet: bool = False,
) -> BenchReport:
    """Measure models and write the results; see `piip bench --help` for the arguments.

    Raises:
        ValueError: There are no models or both models and a preset, one of them does not exist, or a number is below 1.
    """
    if bool(names) == (preset is not None):
        raise ValueError(f"Name models or a --preset, one of {', '.join(PRESETS)}; see `piip bench --help`.")
    chosen = PRESETS[preset] if preset is not None else Preset(lambda: tuple(names), dtypes=("f32",))
    subjects = [find_subject(name, with_head=with_head) for name in dict.fromkeys(chosen.names())]
    options = BenchOptions(
        dtypes=tuple(dtypes or chosen.dtypes),
        form=form or chosen.form,
        repeats=chosen.repeats if repeats is None else repeats,
        image_size=image_size,
        batch_size=batch_size,
        device=str(pick_device(device)),
        threads=torch.get_num_threads() if threads is None else threads,
    )
    for dtype in options.dtypes:
        one_of("dtype", dtype, DTYPES)
    if options.form in RUNTIMES and set(options.dtypes) != {"f32"}:
        raise ValueError(f"form {options.form!r} runs in float32 only, but dtype is {', '.join(options.dtypes)}.")
    at_least("repeats", options.repeats, 1)
    at_least("batch_size", batch_size, 1)
    at_least("threads", options.threads, 1)
    with _progress() as say:
        report = run_bench(subjects, options, out / "bench.json", say)
    rows = [*report.rows.values()]
    (out / "bench.md").write_text(
        "\n".join([describe_machine(report.machine), *_sources(report), "", markdown(rows)]), encoding="utf-8"
    )
    figures = _draw(report, options, out)
    if not quiet:
        _print(report, [out / "bench.md", *figures])
    return report


@contextlib.contextmanager
def _progress() -> Iterator[Say]:
    """Show a bar on a terminal, or one line per pass elsewhere, on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text, done, total: console.print(f"{done + 1} of {total}: {text}", highlight=False, soft_wrap=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)


def _draw(report: BenchReport, options: BenchOptions, out: Path) -> list[Path]:
    """Draw one figure per dtype, of the models that have a time."""
    figures = []
    for dtype in options.dtypes:
        rows = [row for row in report.rows.values() if row["dtype"] == dtype and row["seconds"] is not None]
        if rows:
            title = f"{dtype}, {options.form}, batch {options.batch_size}. {describe_machine(report.machine)}"
            figures.append(out / f"bench-{dtype}.png")
            draw(rows, figures[-1], title=title)
    return figures


def _left_out(report: BenchReport) -> list[str]:
    """Return sentences about models that table or figures lack."""
    rows = [*report.rows.values()]
    sentences = [f"Not measured: {row['error']}" for row in rows if "error" in row]
    metric = main_metric([row for row in rows if row["seconds"] is not None])
    others = sorted({label(row["name"]) for row in rows if row["seconds"] is not None and row["metric"] != metric})
    if others:
        sentences.append(f"Not in the figures, which show {metric}: {', '.join(others)}.")
    return sentences


def _sources(report: BenchReport) -> list[str]:
    """Say whose the accuracies are."""
    known = [row for row in report.rows.values() if row["accuracy_source"]]
    return [f"{metric}: {source}." for metric, source in sorted({(r["metric"], r["accuracy_source"]) for r in known})]


def _print(report: BenchReport, written: Sequence[Path]) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table([*report.rows.values()], describe_machine(report.machine)))
    for sentence in _left_out(report):
        console.print(sentence, highlight=False, soft_wrap=True)
    for sentence in _sources(report):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"Results are in {report.path}" + "".join(f", {path}" for path in written), soft_wrap=True)
