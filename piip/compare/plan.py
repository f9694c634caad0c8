"""From the file of a comparison to its models, their costs and recipes, and the runs in the order of their worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from piip.compare.config import CompareConfig, SplitConfig
from piip.compare.measure import MEASURES, check_metrics, measured_split
from piip.config import ModelConfig
from piip.cost import CostReport, estimate_cost
from piip.fields import get_dotted
from piip.kinds import DATA_KINDS
from piip.recipe import Recipe, load_recipe
from piip.structures import Size
from piip.training.run_folder import recipe_changes
from piip.training.setup import open_images

RUNS = "runs"
RECIPE = "recipe.yaml"
BACKWARD = 2  # multiply-adds of the backward pass, relative to the forward pass


@dataclass(frozen=True)
class Contender:
    """A model of a comparison.

    Args:
        label: Its label.
        family: Models of one family share a learning rate.
        recipe: Its recipe, with the budget's length and without rate, seed and folder.
        config: Its full description.
        cost: Of one image as evaluated, head included.
        training_macs: Multiply-adds of the forward pass of one image as trained.
        steps: Optimiser steps of a run; None where the budget is in epochs.
    """

    label: str
    family: str
    recipe: Recipe
    config: ModelConfig
    cost: CostReport
    training_macs: int
    steps: int | None

    @property
    def images_per_step(self) -> int:
        """Images of an optimiser step."""
        return self.recipe.data.batch_size * self.recipe.run.accumulate


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        label: The model.
        rate: Peak learning rate.
        seed: Seed.
        fraction: Length relative to the budget; below 1 for runs that only try a rate.
        folder: Its folder, relative to that of the comparison.
    """

    label: str
    rate: float
    seed: int
    fraction: float
    folder: str


@dataclass(frozen=True)
class Plan:
    """A checked comparison.

    Args:
        config: The file.
        contenders: By label, in the order of the file.
        task: Task of their heads, a key of `measure.MEASURES`.
        metrics: Metrics to report, the headline first.
        test: The split that is measured.
        out: Folder of the comparison.
    """

    config: CompareConfig
    contenders: dict[str, Contender]
    task: str
    metrics: tuple[str, ...]
    test: SplitConfig
    out: Path

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Labels by family."""
        return self.config.families()

    @property
    def is_tuned(self) -> bool:
        """Whether there are rates to choose from."""
        return len(self.config.rates) > 1

    def run(self, label: str, rate: float, seed: int, fraction: float = 1.0) -> Run:
        """Return a run; a shorter one has a folder of its own.

        Args:
            label: The model.
            rate: Peak learning rate.
            seed: Seed.
            fraction: Length relative to the budget.
        """
        name = f"seed-{seed}" if fraction == 1 else f"tuning-seed-{seed}"
        return Run(label, rate, seed, fraction, f"{RUNS}/{label}/rate-{rate:g}/{name}")

    def tuning_runs(self, family: str) -> list[Run]:
        """Return the runs that try the rates of a family; none where there is nothing to choose."""
        label = str(self.config.tuning.models.get(family, self.families[family][0]))
        seed, fraction = self.config.seeds[0], self.config.tuning.fraction
        return [self.run(label, rate, seed, fraction) for rate in self.config.rates] if self.is_tuned else []

    def fixed_rate(self, label: str) -> float | None:
        """Return the rate of a model that needs no choice, None for others."""
        if self.is_tuned:
            return None
        return self.config.rates[0] if self.config.rates else self.contenders[label].recipe.optim.lr

    def slots(self, only: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
        """Yield label and seed of every run of the comparison, all models with the first seed before the second.

        Args:
            only: Labels; empty for all.
        """
        for seed in self.config.seeds:
            yield from ((label, seed) for label in self.contenders if not only or label in only)

    def recipe(self, run: Run) -> Recipe:
        """Return the recipe of a run."""
        recipe = self.contenders[run.label].recipe
        schedule = recipe.schedule
        if run.fraction != 1:
            schedule = dataclasses.replace(
                schedule,
                max_steps=None if schedule.max_steps is None else max(1, round(run.fraction * schedule.max_steps)),
                epochs=max(1, round(run.fraction * schedule.epochs)),
            )
        return dataclasses.replace(
            recipe,
            optim=dataclasses.replace(recipe.optim, lr=run.rate),
            schedule=schedule,
            run=dataclasses.replace(recipe.run, seed=run.seed, out=str(self.out / run.folder)),
        )

    @property
    def num_runs(self) -> int:
        """Number of runs of the whole comparison, whatever rates are chosen."""
        tuning = sum(len(self.tuning_runs(family)) for family in self.families)
        shared = len(self.families) if tuning and self.config.tuning.fraction == 1 else 0  # that is a run of its model
        return tuning - shared + len(self.contenders) * len(self.config.seeds)

    def possible_runs(self) -> Iterator[Run]:
        """Yield every run that the comparison may need, whatever rates are chosen."""
        for family in self.families:
            yield from self.tuning_runs(family)
        for label, seed in self.slots():
            rate = self.fixed_rate(label)
            yield from (self.run(label, each, seed) for each in (self.config.rates if rate is None else (rate,)))


def make_plan(config: CompareConfig, out: Path) -> Plan:
    """Build and check every recipe, and count every model; nothing is written.

    Args:
        config: The file.
        out: Folder of the comparison.

    Raises:
        ValueError: A recipe is wrong, the data are missing, the budget is too small, or models have different tasks.
    """
    contenders: dict[str, Contender] = {}
    classes: dict[tuple[str, ...], int] = {}
    for family, labels in config.families().items():
        for label in labels:
            try:
                contenders[label] = _contender(config, label, family, classes)
            except ValueError as error:
                raise ValueError(f"models.{label}: {error}") from error
    contenders = {label: contenders[label] for label in config.models}
    recipes = [contender.recipe for contender in contenders.values()]
    heads = {label: contender.config.head for label, contender in contenders.items()}
    tasks = {head.task: label for label, head in heads.items()}
    if len(tasks) > 1:
        raise ValueError(f"The models have different tasks: {', '.join(f'{v} {k}' for k, v in tasks.items())}.")
    task = next(iter(tasks))
    measure = MEASURES[task]
    metrics = config.metrics or measure.validated[:1]
    check_metrics(metrics, measure, recipes[0], is_tuned=len(config.rates) > 1)
    test = measured_split(recipes[0], config.test, is_dense=next(iter(heads.values())).is_dense)
    plan = Plan(config, contenders, task, metrics, test, out)
    for run in plan.possible_runs():
        plan.recipe(run)  # raises ValueError for rates that do not fit into the schedule
    return plan


def _contender(config: CompareConfig, label: str, family: str, classes: dict[tuple[str, ...], int]) -> Contender:
    """Return a model with its costs; `classes` holds the number of classes of data sets that were opened before."""
    values = config.recipe_values(label)
    if config.rates and get_dotted(values, "optim.lr") != get_dotted(config.recipe, "optim.lr"):
        raise ValueError("optim.lr is set, but rates are given for all models: remove one of them.")
    recipe = Recipe.from_dict(values)
    if recipe.data.val is None and not recipe.data.val_fraction:
        raise ValueError("data.val is null, expected a validation split: it chooses checkpoints and rates.")
    data = recipe.data
    key = (data.kind, data.root, data.train, data.train_images)
    if key not in classes:
        classes[key] = len(open_images(recipe)[0].classes)
    described = recipe.model_config(num_classes=classes[key])
    training_size, size = image_sizes(recipe)
    cost = estimate_cost(described, image_size=size)
    training = cost if training_size == size else estimate_cost(described, image_size=training_size)
    contender = Contender(label, family, recipe, described, cost, training.macs, None)
    steps = _steps(config, contender)
    epochs = config.budget.epochs or recipe.schedule.epochs
    schedule = dataclasses.replace(recipe.schedule, max_steps=steps, epochs=epochs)
    return dataclasses.replace(contender, recipe=dataclasses.replace(recipe, schedule=schedule), steps=steps)


def _steps(config: CompareConfig, contender: Contender) -> int | None:
    """Return the steps that the budget allows, None if it is in epochs."""
    budget = config.budget
    if budget.macs is None:
        return budget.steps
    each = (1 + BACKWARD) * contender.training_macs * contender.images_per_step
    steps = int(budget.macs // each)
    if steps < 1:
        raise ValueError(f"budget.macs is {budget.macs:g}, but one step takes {each:g}: expected a larger budget.")
    return steps


def image_sizes(recipe: Recipe) -> tuple[Size, Size]:
    """Return the sizes (H, W) at which a model is counted: of a training image, and of a square one in evaluation.

    Args:
        recipe: Its recipe.
    """
    data, nominal = recipe.data, recipe.model_config().branches[-1].image_size
    sides = (data.transform.input_size,) * 2
    if DATA_KINDS[data.kind].is_padded:
        sides = (data.dense.crop or data.dense.short_side, data.dense.short_side or data.dense.crop)
    training, evaluated = ((side or nominal,) * 2 for side in sides)
    return training, evaluated


def check_unchanged(plan: Plan) -> None:
    """Raise an error if a run that was started has another recipe now.

    Args:
        plan: The comparison.

    Raises:
        ValueError: The recipes differ; with the fields.
    """
    for run in plan.possible_runs():
        folder = plan.out / run.folder
        if not (folder / RECIPE).is_file():
            continue
        changed = recipe_changes(load_recipe(folder / RECIPE), plan.recipe(run))
        if changed:
            raise ValueError(
                f"{folder} was started with another recipe: {'; '.join(changed)}. Restore the file of the comparison, "
                f"choose another --out, or delete the folder to train this run again: rm -r '{folder}'"
            )
