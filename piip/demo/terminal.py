"""The demo's report as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from piip.demo.run import DemoImage, DemoReport
from piip.demo.tasks import TASKS, score_name

MAX_SCORES = 3
MAX_ROWS = 12


def print_demo(report: DemoReport, console: Console) -> None:
    """Print the predictions, and cost, time and recorded scores of the models.

    Args:
        report: From `run_demo`.
        console: Where to print.
    """
    task = TASKS[report.task]
    accuracy = ", ".join(f"{name} {value:.1%}" for name, value in report.accuracy.items())
    if accuracy:
        console.print(f"[bold]Mean {task.accuracy_name} of the included images: {accuracy}[/] (not used in training)")
    console.print(_images_table(report))
    console.print(_models_table(report))
    console.print(task.note)
    console.print(f"The figure is in {report.figure}", highlight=False)


def _images_table(report: DemoReport) -> Table:
    """Return the images that the pyramid is least accurate on first."""
    images = sorted(report.images, key=_accuracy)
    more = f" (the first {MAX_ROWS} of {len(images)})" if len(images) > MAX_ROWS else ""
    has_targets = any(answer.result.target is not None for image in images for answer in image.answers.values())
    table = Table("image", "size", "model", "prediction", title=f"Images{more}")
    for column in [*(["target"] if has_targets else []), TASKS[report.task].accuracy_name, "seconds"]:
        table.add_column(column, justify="right")
    for image in images[:MAX_ROWS]:
        height, width = image.size
        place = [image.path.rsplit("/", 1)[-1], f"{width}x{height}"]
        for name, answer in image.answers.items():
            result = answer.result
            target = ["-" if result.target is None else str(result.target).replace("_", " ")] if has_targets else []
            accuracy = "-" if result.accuracy is None else f"{result.accuracy:.0%}"
            table.add_row(*place, name, result.text, *target, accuracy, f"{answer.seconds:.2f}")
            place = ["", ""]
    return table


def _accuracy(image: DemoImage) -> float:
    accuracy = next(iter(image.answers.values())).result.accuracy
    return 1.0 if accuracy is None else accuracy


def _models_table(report: DemoReport) -> Table:
    """Return cost, time and recorded scores; cells of models that were not trained stay empty."""
    task = TASKS[report.task]
    title = f"Models at {task.side}x{task.side}, {task.part}, timed in turn; scores recorded on the test split"
    table = Table("model", title=title)
    scores = list(report.models[0].scores)[:MAX_SCORES]
    for column in ("GMACs", "ms", "M params", *map(score_name, scores)):
        table.add_column(column, justify="right")
    for index, model in enumerate(report.models):
        shown = [f"{model.scores[name]:.1%}" if name in model.scores else "-" for name in scores]
        numbers = [f"{model.macs / 1e9:.3f}", f"{model.seconds * 1000:.1f}", f"{model.params / 1e6:.2f}"]
        table.add_row(model.name, *numbers, *shown, style="bold" if index == 0 else None)
    return table
