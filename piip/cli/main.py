"""The command `piip`: a dict of functions, exposed with their docstrings as help.

Everything heavy is imported inside the functions, so that help answers at once.
"""

from __future__ import annotations

import json as json_module
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from piip import __version__
from piip.cli.convert import convert
from piip.cli.data import data_landcover, data_nuclei
from piip.cli.evaluate import evaluate, predict
from piip.cli.export import export
from piip.cli.help import conversion_examples, recipe_fields
from piip.cli.parser import Commands, run_command

TRAIN_EXTRA = ("pytorch_lightning", "torchmetrics", "tensorboard", "pycocotools")
DESCRIPTION = "Parameter-inverted image pyramids: large networks see small images, small networks see large ones."


def list_models(pattern: str = "*", *, official: bool = False, json: bool = False) -> None:
    """List the models that have a name, with the main result that the authors published.

    Args:
        pattern: Part of a name, or a shell-style pattern such as "piip_tsb*".
        official: List the names of the authors' records, which build their rules.
        json: Print a JSON list of objects: "name", "record", "task", and what is published: "results", "flops",
            "params", "file" and more.
    """
    from piip.zoo.create import list_models as find
    from piip.zoo.create import published_models

    names = find(pattern if set(pattern) & set("*?[") else f"*{pattern}*", official=official)
    if not names:
        raise ValueError(f"No model name matches {pattern!r}; `piip list` shows all.")
    published = {key: model for model in published_models() for key in (model.name, model.record)}
    if json:
        facts = [{**(published[name].to_dict() if name in published else {}), "name": name} for name in names]
        print(json_module.dumps(facts))
        return
    width = max(len(name) for name in names)
    results = [published[name].main_result if name in published else "" for name in names]
    print("\n".join(f"{name:<{width}}  {result}".rstrip() for name, result in zip(names, results, strict=True)))


def cost(
    model: str,
    *,
    image_size: tuple[int, int] | None = None,
    rule: Literal["total", "paper"] = "total",
    json: bool = False,
) -> None:
    """Count multiply-adds, parameters and activations of a model for one image, part by part.

    Args:
        model: A name from `piip list`, or a recipe file.
        image_size: Height and width in pixels; by default the finest branch's nominal square.
        rule: "total" counts what really runs, "paper" what the authors counted.
        json: Print JSON, with "macs" (multiply-adds), "flops" (twice that), "params" and "parts".
    """
    from piip.cost.estimate import estimate_cost, format_table
    from piip.recipe import load_recipe
    from piip.training.setup import recipe_model_config

    is_recipe = model.endswith((".yaml", ".yml"))
    report = estimate_cost(
        recipe_model_config(load_recipe(model)) if is_recipe else model, image_size=image_size, rule=rule
    )
    print(json_module.dumps(report.to_dict(), indent=2) if json else format_table(report))


def train(
    recipe: str,
    *,
    out: str | None = None,
    resume: str | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: Literal["auto", "bar", "lines", "none"] = "auto",
    json: bool = False,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train a classifier, detector or segmentor, as a recipe says.

    Any field of the recipe can be changed by its dotted name: --optim.lr 1e-3 --schedule.epochs 5
    --data.root DIR --model.branches.0.image_size 64. A run's folder holds its checkpoints, its logs
    (CSV and TensorBoard) and the exported model for `piip evaluate` and `piip predict`.

    Args:
        recipe: YAML file, such as those in recipes/.
        out: Folder of the run, instead of the recipe's run.out.
        resume: A checkpoint, or "auto" for the newest one in the run's folder; the losses from there on are those of
            an uninterrupted run.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        devices: Processes for data-parallel training on each machine; with torchrun, as many as it starts.
        nodes: Machines; start the same command on each by torchrun.
        progress: A bar in a terminal, lines in a log, or none.
        json: Print the result as JSON: "model_dir", "steps" and the validation metrics.
        overrides: Fields of the recipe by dotted name.
    """
    from piip.recipe import load_recipe

    changes = {**(overrides or {}), **({"run.out": out} if out is not None else {})}
    loaded = load_recipe(recipe, changes)  # before PyTorch is imported: a typing error answers at once
    from pytorch_lightning.utilities import rank_zero_only

    from piip.training.train import train as run

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # about in-place operations on what it returns
    result = run(loaded, resume=resume, device=device, devices=devices, nodes=nodes, progress=progress)
    values: dict[str, Any] = {"model_dir": str(result.model_dir), "steps": result.steps, **result.metrics}
    shown = ", ".join(f"{name.removeprefix('val/')} {value:.4f}" for name, value in sorted(result.metrics.items()))
    text = f"The model is in {result.model_dir}: {shown}"
    rank_zero_only(print)(json_module.dumps(values) if json else text)


def demo(
    *,
    task: Literal["instances", "segmentation", "classification"] = "instances",
    out: Path = Path("out/demo.png"),
    image: list[str] | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Find nuclei in microscope pictures with a shipped model, draw and count them, and compare cost and time.

    The other tasks: the land cover of every pixel of satellite tiles (segmentation), or of whole pictures
    (classification).

    Args:
        task: What to show.
        out: Picture to write, PNG.
        image: Your own pictures instead: files, folders, or patterns.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        json: Print JSON: "findings" and "models", of the classifier "top1", "cost", "models" and "pictures".
    """
    from rich.console import Console

    if task != "classification":
        from piip.demo.dense import run_dense_demo
        from piip.demo.terminal import print_dense_demo

        found = run_dense_demo(task, out, images=image or (), device=device)
        if json:
            print(json_module.dumps(found.to_dict()))
        else:
            print_dense_demo(found, Console())
        return
    from piip.demo import run_demo
    from piip.demo.terminal import print_demo

    report = run_demo(out, images=image or (), device=device)
    if json:
        print(json_module.dumps(report.to_dict()))
    else:
        print_demo(report, Console())


COMMANDS: Commands = {
    "list": list_models,
    "cost": cost,
    "data": {"landcover": data_landcover, "nuclei": data_nuclei},
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "convert": convert,
    "export": export,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can help is one line on stderr.

    Exit codes: 2 for wrong arguments, data or files, 1 where training diverged, 130 where it was interrupted.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words == ["--version"]:
        print(f"piip {__version__}")
        return
    try:
        run_command(
            COMMANDS,
            words,
            program="piip",
            description=DESCRIPTION,
            epilogs={"train": recipe_fields, "convert": conversion_examples},
        )
    except ValueError as error:
        _fail(error, 2)
    except FloatingPointError as error:
        _fail(error, 1)
    except BrokenPipeError:  # e.g. `piip list | head`
        sys.stderr.close()
    except OSError as error:
        _fail(error, 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in TRAIN_EXTRA:
            raise
        _fail(f'This needs {package}: pip install "piip[train]".', 2)
    except KeyboardInterrupt:
        advice = (
            " The same command with --resume auto goes on from the last checkpoint."
            if list(words[:1]) == ["train"]
            else ""
        )
        _fail(f"Interrupted.{advice}", 130)


def _fail(error: Exception | str, code: int) -> None:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # an error from a reading process carries that process's whole traceback; its last line is the message
    if any(line.startswith("Traceback") for line in lines):
        lines = [lines[-1].removeprefix("ValueError: ")]
    print(f"piip: error: {' '.join(lines) or 'unknown'}", file=sys.stderr)
    sys.exit(code)
