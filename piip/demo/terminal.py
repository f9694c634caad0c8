"""The demo's findings as tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from piip.demo import DemoReport
    from piip.demo.dense import DenseDemoReport, Finding

MOST_MISTAKES = 8
MOST_SCORES = 3


def print_demo(report: DemoReport, console: Console) -> None:
    """Print accuracy, cost, the comparison and the mistakes, or every prediction for the user's own pictures.

    Args:
        report: From `run_demo`.
        console: Where to print.
    """
    cost = report.cost
    if report.labelled:
        share = report.correct / report.labelled
        console.print(
            f"[bold]Held-out top-1: {share:.1%}[/] ({report.correct} of the {report.labelled} shipped pictures, as "
            "many of each class: compare it with the mean of classes below; training never saw this split)"
        )
    console.print(
        f"[bold]Total cost: {cost.macs / 1e9:.3f} GMACs[/] an image ({cost.flops / 1e9:.3f} GFLOPs), "
        f"{cost.params / 1e6:.2f} M parameters"
    )
    console.print(_parts_table(report))
    console.print(_models_table(report))
    console.print(_mistakes_table(report) if report.labelled else _predictions_table(report))
    console.print(f"The picture is in {report.figure}", highlight=False)


def _parts_table(report: DemoReport) -> Table:
    table = Table("part", title="Cost by part")
    for column in ("M multiply-adds", "share", "M parameters"):
        table.add_column(column, justify="right")
    for name, part in report.cost.parts.items():
        label = f"{name}: {report.cost.names[name]}" if name in report.cost.names else name
        share = part.macs / max(report.cost.macs, 1)
        table.add_row(label, f"{part.macs / 1e6:.1f}", f"{share:.0%}", f"{part.params / 1e6:.2f}")
    return table


def _models_table(report: DemoReport) -> Table:
    table = Table("model", title="Recorded on the whole test split, same recipe")
    for column in ("GMACs", "M parameters", "top-1", "mean of classes"):
        table.add_column(column, justify="right")
    for model in report.models:
        table.add_row(
            model.name,
            f"{model.macs / 1e9:.3f}",
            f"{model.params / 1e6:.2f}",
            f"{model.test_top1:.1%}",
            f"{model.mean_class_top1:.1%}",
            style="bold" if model.name == "piip" else None,
        )
    return table


def _mistakes_table(report: DemoReport) -> Table:
    mistakes = [picture for picture in report.pictures if picture.is_correct is False]
    table = Table("true class", "taken for", title=f"{min(len(mistakes), MOST_MISTAKES)} of {len(mistakes)} mistakes")
    table.add_column("probability", justify="right")
    for picture in sorted(mistakes, key=lambda p: -p.prediction.score)[:MOST_MISTAKES]:
        table.add_row(picture.truth, picture.prediction.label, f"{picture.prediction.score:.0%}")
    return table


def _predictions_table(report: DemoReport) -> Table:
    table = Table("picture", "classes and probabilities", title="Your pictures")
    for picture in report.pictures:
        table.add_row(picture.path, ", ".join(f"{name} {score:.0%}" for name, score in picture.prediction.top))
    return table


def print_dense_demo(report: DenseDemoReport, console: Console) -> None:
    """Print what was found in every picture, and cost and time beside the other model.

    Args:
        report: From `run_dense_demo`.
        console: Where to print.
    """
    table = Table("picture", "size", title="Pictures")
    for column in ("found", "in truth", "seconds"):
        table.add_column(column, justify="right")
    for finding in report.findings:
        height, width = finding.size
        name = finding.path.rsplit("/", 1)[-1]
        table.add_row(name, f"{width}x{height}", _found(finding), _truth(finding), f"{finding.seconds:.2f}")
    console.print(table)
    console.print(_compared_table(report))
    console.print(f"The picture is in {report.figure}", highlight=False)


def _found(finding: Finding) -> str:
    if isinstance(finding.found, int):
        return f"{finding.found} nuclei"
    return ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in finding.found.items())


def _truth(finding: Finding) -> str:
    if finding.truth is None:
        return "-"
    return f"{finding.truth:.0f} nuclei" if isinstance(finding.found, int) else f"{finding.truth:.0%} of pixels right"


def _compared_table(report: DenseDemoReport) -> Table:
    """Return cost, time and recorded scores; what a model was not trained for stays empty."""
    table = Table("model", title="Backbone and neck at 512x512, measured in turn; scores recorded on the test split")
    scores = list(report.models[0].scores)[:MOST_SCORES]
    for column in ("GMACs", "ms", "M params", *(name.replace("_", " ") for name in scores)):
        table.add_column(column, justify="right")
    for index, model in enumerate(report.models):
        shown = [f"{model.scores[name]:.1%}" if name in model.scores else "-" for name in scores]
        numbers = [f"{model.macs / 1e9:.2f}", f"{model.seconds * 1000:.0f}", f"{model.params / 1e6:.2f}"]
        table.add_row(model.name, *numbers, *shown, style="bold" if index == 0 else None)
    return table
