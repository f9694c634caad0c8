"""The command `piip train`."""

from __future__ import annotations

from typing import Any, Literal

from piip.output import to_json


def train(
    recipe: str,
    *,
    out: str | None = None,
    resume: str | None = None,
    resume_inexact: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: Literal["auto", "bar", "lines", "none"] = "auto",
    json: bool = False,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train a classifier, detector or segmentor from a recipe.

    Override any field of the recipe by its dotted name: --optim.lr 1e-3 --schedule.epochs 5 --data.root DIR
    --model.branches.0.image_size 64. The run's folder holds checkpoints, logs (CSV and TensorBoard) and the saved
    model for `piip evaluate` and `piip predict`. Resume an interrupted run with --resume auto.

    Args:
        recipe: YAML file, such as those in recipes/.
        out: Folder of the run, instead of the recipe's run.out.
        resume: A checkpoint, or "auto" for the newest one in the run's folder; losses continue as in an uninterrupted
            run.
        resume_inexact: With --resume: continue by optimiser step, with the weights and the optimiser's state, although
            data, batch size, number of processes or recipe differ.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".
        devices: Processes per machine for data-parallel training; with torchrun, as many as it starts.
        nodes: Number of machines; start the same command on each with torchrun.
        progress: A bar in a terminal, lines in a log file, or none.
        json: Print the result as JSON: "model_dir", "steps" and the validation metrics.
        overrides: Fields of the recipe by dotted name.
    """
    from piip.recipe import load_recipe

    changes = {**(overrides or {}), **({"run.out": out} if out is not None else {})}
    loaded = load_recipe(recipe, changes)  # before PyTorch is imported, so typing errors are reported immediately
    from pytorch_lightning.utilities import rank_zero_only

    from piip.training.loggers import quieten_lightning
    from piip.training.train import train as run

    quieten_lightning()
    result = run(
        loaded,
        resume=resume,
        resume_inexact=resume_inexact,
        device=device,
        devices=devices,
        nodes=nodes,
        progress=progress,
    )
    values: dict[str, Any] = {"model_dir": str(result.model_dir), "steps": result.steps, **result.metrics}
    shown = ", ".join(f"{name.removeprefix('val/')} {value:.4f}" for name, value in sorted(result.metrics.items()))
    text = f"The model is in {result.model_dir}: {shown or 'not validated'}"
    rank_zero_only(print)(to_json(values) if json else text)
