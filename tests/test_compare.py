"""`piip compare`: runs, resuming, rates, budgets, and what the report says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import shapes
import yaml
from PIL import Image
from processes import outcome, run, start
from safetensors.torch import load_file
from tiny_run import branch, recipe_values, write_images

import piip
from piip.cli import main
from piip.compare import command
from piip.compare.command import Comparison, compare_models
from piip.compare.config import load_comparison
from piip.compare.plan import Plan, make_plan
from piip.compare.report import write_report
from piip.compare.results import chosen_rate, failed_runs, needed_runs
from piip.compare.session import claimed
from piip.compare.worker import Job, Outcome, do_run
from piip.evaluation.classification import evaluate
from piip.recipe import Recipe, load_recipe
from piip.training.callbacks import StopAtStep
from piip.training.run_folder import read_history

ROOT = Path(__file__).resolve().parents[1]
STEPS, SEEDS, RATES = 5, (0, 3), (1e-3, 4e-3)
MODELS: dict[str, Any] = {
    "one": {"family": "single", "branches": [branch(32, 16)]},
    "two": {"family": "pyramid", "branches": [branch(24, 32), branch(32, 16)], "interaction": {"count": 1}},
}


def write_comparison(path: Path, data: Path, **changes: Any) -> Path:
    """Write the comparison of two tiny classifiers, measured on the training images to tell the splits apart."""
    base = recipe_values(data, path.parent / "unused", run={"log_every": 1, "checkpoint_every": 2, "loggers": ["csv"]})
    del base["model"]["branches"]
    values = {
        "recipe": base,
        "models": MODELS,
        "budget": {"steps": STEPS},
        "rates": [*RATES],
        "seeds": [*SEEDS],
        "test": {"split": "train"},
        "metrics": ["top1", "mean_class"],
        **changes,
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def in_this_process(job: Job, deadline: float | None) -> Outcome:
    job.folder.mkdir(parents=True, exist_ok=True)
    return do_run(job)


def never(job: Job, deadline: float | None) -> Outcome:
    raise AssertionError(f"{job.folder} is trained again")


def compare(path: Path, out: Path, launch: Any = in_this_process, **options: Any) -> Comparison:
    return compare_models(path, out=out, device="cpu", threads=1, launch=launch, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=4, val=4)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A finished comparison: its file, its folder and the contents of results.json."""
    folder = tmp_path_factory.mktemp("comparison")
    path = write_comparison(folder / "tiny.yaml", data)
    done = compare(path, folder / "out")
    assert done.is_complete
    assert not done.failed
    return path, folder / "out", done.content


def plan_of(path: Path, out: Path) -> Plan:
    return make_plan(load_comparison(path), out)


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model" / "model.safetensors")


def width_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.size[0]


def test_every_run_is_done_once_the_first_seed_first(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, content = finished
    assert content == json.loads((out / "results.json").read_text())
    runs = sorted(content["runs"], key=lambda row: row["ended"])
    done = [(row["label"], row["rate"], row["seed"]) for row in runs]
    tried = [(label, rate, SEEDS[0]) for label in MODELS for rate in RATES]
    chosen = {model["label"]: model["rate"] for model in content["models"]}
    assert done == tried + [(label, chosen[label], SEEDS[1]) for label in MODELS]
    for row in runs:
        history = [line for line in read_history(out / row["folder"]) if "train/loss" in line]
        assert [line["step"] for line in history] == [*range(STEPS)]
        assert row["steps"] == STEPS
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 2**20
        assert row["machine"]["torch"]


def test_the_rate_is_the_one_with_the_best_validation(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, content = finished
    for model in content["models"]:
        first = [row for row in content["runs"] if (row["label"], row["seed"]) == (model["label"], SEEDS[0])]
        best = max(first, key=lambda row: (row["validation"]["top1"], -row["rate"]))
        assert model["rate"] == best["rate"]


def test_scores_are_those_of_the_best_checkpoint(finished: tuple[Path, Path, dict[str, Any]], data: Path) -> None:
    _, out, content = finished
    row = content["runs"][0]
    history = read_history(out / row["folder"])
    assert row["validation"]["top1"] == max(line["val/top1"] for line in history if "val/top1" in line)
    report = evaluate(out / row["folder"] / "best", data, split="train", workers=0, device="cpu")
    assert row["scores"] == {"top1": report.top1, "top5": report.top5, "mean_class": report.mean_class}
    assert report.images == 12


def test_the_report_has_means_deviations_and_costs(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, content = finished
    page = (out / "report.md").read_text()
    for model in content["models"]:
        rows = [row for row in content["runs"] if (row["label"], row["rate"]) == (model["label"], model["rate"])]
        values = [row["scores"]["top1"] for row in rows]
        assert len(values) == len(SEEDS) == len(model["seeds"])
        assert model["means"]["top1"] == pytest.approx(sum(values) / len(values))
        assert model["deviations"]["top1"] == pytest.approx(statistics.stdev(values))
        assert (
            f"| {model['label']} | {100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} |" in page
        )
        recipe = load_recipe(out / "recipes" / f"{model['label']}.yaml")
        cost = piip.estimate_cost(recipe.model_config())
        assert (model["macs"], model["macs_without_head"]) == (cost.macs, cost.without_head.macs)
        assert model["params"] == cost.params
        assert recipe.optim.lr == model["rate"]
        assert recipe.schedule.max_steps == STEPS
        assert f"| {cost.macs / 1e9:.3g} | {cost.without_head.macs / 1e9:.3g} |" in page
        assert f"| {3e-12 * cost.macs * 4 * STEPS:.4g} |" in page
    assert "seconds" not in page
    assert width_of(out / "accuracy.png") > 400


def test_times_of_a_benchmark_join_the_table(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    path, out, content = finished
    shutil.copytree(out, tmp_path / "out")
    rows = [
        {"name": label, "seconds": 0.2, "median_seconds": 0.25 + index, "batch_size": 2, "peak_bytes": 3 * 10**6}
        for index, label in enumerate(MODELS)
    ]
    facts = content["runs"][0]["machine"]
    (tmp_path / "out" / "bench.json").write_text(json.dumps({"models": rows, "machine": facts}))
    report, table = write_report(plan_of(path, tmp_path / "out"))
    assert [model["seconds_per_image"] for model in report["models"]] == [0.125, 0.625]
    assert "| s / image | peak MB |" in table
    assert "| 0.125 | 3 |" in table
    assert "Timed on" in (tmp_path / "out" / "report.md").read_text()
    assert width_of(tmp_path / "out" / "accuracy.png") > width_of(out / "accuracy.png")  # another panel


def test_a_finished_comparison_is_not_repeated(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    path, out, content = finished
    assert compare(path, out, launch=never).content == content


def test_an_interrupted_run_continues_exactly(
    finished: tuple[Path, Path, dict[str, Any]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, content = finished
    path = write_comparison(tmp_path / "tiny.yaml", data, rates=[RATES[0]], seeds=[SEEDS[0]])
    before, trained = StopAtStep.on_train_batch_end, []

    def counted(self: StopAtStep, trainer: Any, *others: Any) -> None:
        before(self, trainer, *others)
        trained.append(trainer.global_step)
        if trained == [1]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopAtStep, "on_train_batch_end", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(path, tmp_path / "out", only=["two"])
    assert trained == [1]  # checkpoints are otherwise written every two steps
    done = compare(path, tmp_path / "out", only=["two"])
    assert trained == [*range(1, STEPS + 1)]
    assert done.is_complete
    (row,) = done.content["runs"]
    whole = next(other for other in content["runs"] if other["folder"] == row["folder"])
    assert (row["scores"], row["validation"]) == (whole["scores"], whole["validation"])
    want, got = weights(out / row["folder"]), weights(tmp_path / "out" / row["folder"])
    assert all(got[name].equal(value) for name, value in want.items())


def test_a_changed_recipe_is_refused(
    finished: tuple[Path, Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = finished
    path = write_comparison(tmp_path / "longer.yaml", data, budget={"steps": STEPS + 1})
    with pytest.raises(SystemExit) as caught:
        main(["compare", str(path), "--out", str(out)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    folder = out / "runs" / "one" / "rate-0.001" / "seed-0"
    assert f"{folder} was started with another recipe: schedule.max_steps {STEPS} -> {STEPS + 1}." in line
    assert f"rm -r '{folder}'" in line


def test_a_model_that_fails_does_not_stop_the_others(
    finished: tuple[Path, Path, dict[str, Any]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = finished
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "runs" / "two" / "rate-0.001" / "seed-0")
    broken = {**MODELS["one"], "family": "broken", "run.start": "nothing/there"}
    path = write_comparison(tmp_path / "tiny.yaml", data, models={"broken": broken, **MODELS})
    done = compare(path, tmp_path / "out")
    assert done.failed == [f"runs/broken/rate-{rate:g}/seed-0" for rate in RATES]
    assert done.is_complete
    assert "broken, rate 0.001, seed 0 failed: " in capsys.readouterr().err
    errors = {row["folder"]: row["error"] for row in done.content["runs"] if "error" in row}
    assert [*errors] == done.failed
    assert all("nothing/there" in error for error in errors.values())
    assert [model["means"]["top1"] is None for model in done.content["models"]] == [True, False, False]
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"- {done.failed[0]}: {errors[done.failed[0]]}" in page
    tried: list[Path] = []

    def record(job: Job, deadline: float | None) -> Outcome:
        tried.append(job.folder.relative_to(tmp_path / "out"))
        return Outcome(error="again")

    assert compare(path, tmp_path / "out", launch=record).failed == [*map(str, tried)] == done.failed


def test_a_failed_run_is_exit_code_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = Comparison({"runs": []}, True, ["runs/one"], "the table")
    monkeypatch.setattr(command, "compare_models", lambda *_, **options: done)
    with pytest.raises(SystemExit) as caught:
        main(["compare", "any.yaml"])
    assert caught.value.code == 1
    assert capsys.readouterr().out == "the table\n"


def test_a_budget_of_multiply_adds_is_so_many_steps(data: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "tiny.yaml", data)
    costs = {
        label: piip.estimate_cost(contender.recipe.model_config()).macs
        for label, contender in plan_of(path, tmp_path).contenders.items()
    }
    assert costs["one"] < costs["two"]
    budget = 10.5 * 3 * costs["two"] * 4  # four images in a step
    path = write_comparison(tmp_path / "macs.yaml", data, budget={"macs": budget})
    plan = plan_of(path, tmp_path)
    steps = {label: contender.steps for label, contender in plan.contenders.items()}
    assert steps == {"one": int(budget / (12 * costs["one"])), "two": 10}
    assert {label: plan.recipe(plan.run(label, 1e-3, 0)).schedule.max_steps for label in MODELS} == steps
    path = write_comparison(tmp_path / "small.yaml", data, budget={"macs": 10})
    with pytest.raises(ValueError, match=r"models.one: budget.macs is 10, but one step takes"):
        plan_of(path, tmp_path)


def test_a_budget_of_epochs_and_shorter_runs_for_rates(data: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "tiny.yaml", data, budget={"epochs": 6}, tuning={"fraction": 0.5})
    plan = plan_of(path, tmp_path)
    (first, _), whole = plan.tuning_runs("pyramid"), plan.run("two", RATES[0], SEEDS[0])
    assert first.folder == "runs/two/rate-0.001/tuning-seed-0"
    assert [plan.recipe(each).schedule.epochs for each in (first, whole)] == [3, 6]
    assert plan.recipe(whole).schedule.max_steps is None
    assert plan.num_runs == 2 * 2 + 2 * 2


def test_rates_are_chosen_when_all_were_tried(data: Path, tmp_path: Path) -> None:
    models = {**MODELS, "three": {**MODELS["two"], "interaction.direction": "none"}}
    path = write_comparison(
        tmp_path / "tiny.yaml", data, rates=[1e-3, 2e-3, 4e-3], models=models, tuning={"models": {"pyramid": "three"}}
    )
    plan = plan_of(path, tmp_path)
    assert plan.num_runs == 2 * 3 - 2 + 3 * 2
    tried = plan.tuning_runs("pyramid")
    assert {each.label for each in tried} == {"three"}
    rows: dict[str, Any] = {each.folder: {"validation": {"top1": 0.5}} for each in tried[:2]}
    assert chosen_rate(plan, "two", rows) is None
    assert [each.folder for each in needed_runs(plan, rows, only=["two"])] == [tried[2].folder]
    assert chosen_rate(plan, "two", rows, failed=[tried[2].folder]) == 1e-3  # the lower of two equal ones
    rows[tried[2].folder] = {"error": "NaN", "diverged": True}
    assert chosen_rate(plan, "two", rows) == 1e-3
    assert failed_runs(plan, rows) == []
    rows[tried[2].folder] = {"error": "disk full", "diverged": False}
    assert chosen_rate(plan, "two", rows) is None  # it is tried again
    assert failed_runs(plan, rows) == [tried[2].folder]
    rows[tried[2].folder] = {"validation": {"top1": 0.75}}
    assert chosen_rate(plan, "two", rows) == 4e-3
    needed = [(each.label, each.rate, each.seed) for each in needed_runs(plan, rows)]
    assert needed == [
        *(("one", rate, 0) for rate in (1e-3, 2e-3, 4e-3)),
        ("two", 4e-3, 0),  # that of "three" was done to try the rate
        ("two", 4e-3, 3),
        ("three", 4e-3, 3),
    ]
    nothing = {each.folder: {"error": "NaN", "diverged": True} for each in tried}
    assert chosen_rate(plan, "two", nothing) is None
    assert needed_runs(plan, nothing, only=["two"]) == []


def test_a_run_is_taken_once(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _, _ = finished
    plan = plan_of(path, tmp_path)
    mine, other = (each.folder for each in plan.tuning_runs("single"))
    with claimed(tmp_path, mine) as is_ours, claimed(tmp_path, mine) as again, claimed(tmp_path, other) as free:
        assert (is_ours, again, free) == (True, False, True)
    with claimed(tmp_path, mine) as is_ours:
        assert is_ours


def test_models_change_the_base(data: Path, tmp_path: Path) -> None:
    path = write_comparison(
        tmp_path / "tiny.yaml",
        data,
        models={
            **MODELS,
            "other": {
                **MODELS["two"],
                "interaction": {"direction": "none"},  # of the section, only this changes
                "branches.1.image_size": 40,
                "data.batch_size": 2,
                "regularize": {"label_smoothing": 0.1},
            },
            "named": {"name": "piip_tsb_368_192_128.deit1_in1k", "num_classes": 3},
        },
    )
    config = load_comparison(path)
    recipes = {label: Recipe.from_dict(config.recipe_values(label)) for label in config.models}
    other, two = (recipes[label].model_config() for label in ("other", "two"))
    assert (other.interaction.direction, other.interaction.num_heads) == ("none", 4)
    assert two.interaction.direction == "both"
    assert [each.image_size for each in other.branches] == [24, 40]
    assert recipes["other"].data.batch_size == 2
    assert recipes["other"].regularize.label_smoothing == 0.1
    assert recipes["two"].data.batch_size == 4
    assert len(recipes["named"].model_config().branches) == 3


def test_a_base_recipe_is_beside_the_file(data: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "tiny.yaml", data)
    inline = load_comparison(path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(yaml.safe_load(path.read_text())["recipe"]))
    named = load_comparison(write_comparison(path, data, recipe="base.yaml"))
    assert named.recipe_values("two") == inline.recipe_values("two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": {}}, "comparison has no field 'budgets'. Did you mean: budget?"),
        ({"budget": {"steps": 3, "epochs": 1}}, "budget has steps and epochs, expected one of steps, epochs or macs"),
        ({"budget": {}}, "budget has no field"),
        ({"models": {}}, "models is empty"),
        ({"models": {"a/b": {}}}, "models has 'a/b', expected letters"),
        ({"models": {"one": [1]}}, r"models.one is \(1,\), expected the fields"),
        ({"models": {"one": {"branch": []}}}, "models.one: ModelConfig has no field 'branch'. Did you mean: branches"),
        ({"models": {"one": {**MODELS["one"], "data.roots": "x"}}}, "models.one: recipe.data has no field 'roots'"),
        ({"models": {"one": {**MODELS["one"], "optim.lr": 1.0}}}, "models.one: optim.lr is set, but rates are given"),
        ({"models": {"one": {**MODELS["one"], "data.val": None}}}, "models.one: data.val is null"),
        (
            {"models": {"one": {**MODELS["one"], "data.root": "no"}}},
            "models.one: The image folder no/train does not exist",
        ),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\], expected different values"),
        ({"seeds": []}, "seeds is empty"),
        ({"rates": [0.0]}, "rates is"),
        ({"tuning": {"fraction": 2}}, "tuning.fraction is 2.0"),
        ({"tuning": {"models": {"singles": "one"}}}, "tuning.models has no family 'singles'. Did you mean: single"),
        ({"tuning": {"models": {"single": "two"}}}, "expected a model of the family: one"),
        ({"metrics": ["miou"]}, "metrics has 'miou', which is not measured here"),
        ({"metrics": ["mean_class"]}, "metrics starts with 'mean_class', but training validates top1, top5 only"),
        ({"test": {"split": "val", "images": "x"}}, "test has images, which classifiers do not take"),
        ({"bench": {"form": "fast"}}, "bench.form is 'fast'"),
        ({"recipe": "nothing.yaml"}, "There is no recipe"),
        ({"recipe": {"models": {}}}, "comparison.recipe has no section 'models'. Did you mean: model"),
    ],
)
def test_wrong_files_are_explained(changes: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "tiny.yaml", data, **changes)
    with pytest.raises(ValueError, match=message):
        compare(path, tmp_path / "out", launch=never)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["ones"]}, "There is no model 'ones'. Did you mean: one"),
        ({"bench_only": True}, "has no section bench"),
        ({"max_minutes": 0.0}, "max_minutes is 0.0, expected a time above 0"),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "tiny.yaml", data)
    with pytest.raises(ValueError, match=message):
        compare(path, tmp_path / "out", launch=never, **options)


@pytest.mark.slow
def test_segmentors_are_compared(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        shapes.write_semantic_masks(tmp_path, split, count, seed=count)
    base = shapes.dense_recipe(tmp_path, tmp_path / "unused", "semantic_masks")
    base["model"]["head"]["num_classes"] = None  # the data set defines it
    values = {
        "recipe": base,
        "models": {"pyramid": {}},
        "budget": {"steps": 2},
        "test": {"split": "annotations/test", "images": "images/test"},
    }
    path = tmp_path / "maps.yaml"
    path.write_text(yaml.safe_dump(values))
    done = compare(path, tmp_path / "out")
    (row,) = done.content["runs"]
    assert row["scores"].keys() == {"miou", "aacc", "macc"}
    assert done.content["metrics"] == ["miou"]
    (model,) = done.content["models"]
    assert model["means"]["miou"] == row["scores"]["miou"]
    assert model["deviations"]["miou"] is None
    assert model["image_size"] == [64, 64]
    plan = plan_of(path, tmp_path / "out")
    assert plan.contenders["pyramid"].config.head.num_classes == 2
    assert row["rate"] == base["optim"]["lr"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_comparisons_parse(path: Path) -> None:
    config = load_comparison(path)
    recipes = [Recipe.from_dict(config.recipe_values(label)).to_dict() for label in config.models]
    assert all(recipes.count(recipe) == 1 for recipe in recipes), "a model is compared with itself"
    assert str(path.relative_to(ROOT)) in path.read_text()


def test_the_file_in_the_documentation_parses(data: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "compare.md").read_text()
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(shapes.dense_recipe(data, tmp_path, "semantic_masks")))
    (tmp_path / "file.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    config = load_comparison(tmp_path / "file.yaml")
    recipes = {label: Recipe.from_dict(config.recipe_values(label)) for label in config.models}
    assert [len(recipe.model_config().branches) for recipe in recipes.values()] == [1, 2, 2]
    assert recipes["ViT"].data.dense.crop == 256
    assert recipes["PIIP-apart"].model_config().interaction.direction == "none"


@pytest.mark.slow
def test_processes_are_terminated_and_share_the_work(
    finished: tuple[Path, Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    _, whole, content = finished
    path = write_comparison(tmp_path / "tiny.yaml", data, rates=[RATES[0]], seeds=[SEEDS[0]], bench={"repeats": 1})
    words = [sys.executable, "-m", "piip", "compare", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    process = start(*words, "--threads", "1")
    log = tmp_path / "out" / "runs" / "one" / "rate-0.001" / "seed-0" / "log.txt"
    while not log.is_file() or "step 2/" not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stopped = outcome(process)
    assert stopped.returncode == 130
    assert stopped.stderr.endswith("Interrupted. The same command continues.\n")
    assert "Traceback" not in stopped.stderr + log.read_text()
    late = run(*words, "--threads", "1", "--max-minutes", "0.001")
    assert late.returncode == 0, late.stderr
    assert "is not complete, continue with: piip compare" in late.stdout
    both = [start(*words, "--threads", "1", "--json") for _ in range(2)]
    for done in [outcome(each) for each in both]:
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    results = [{row["folder"]: row["scores"] for row in each["runs"]} for each in (report, content)]
    assert len(results[0]) == len(MODELS)
    assert results[0].items() <= results[1].items()
    for row in report["runs"]:
        losses = [
            [line.get("train/loss") for line in read_history(out / row["folder"])] for out in (tmp_path / "out", whole)
        ]
        assert losses[0] == losses[1]
    assert all(model["seconds_per_image"] > 0 for model in report["models"])


@pytest.mark.slow
def test_a_killed_process_is_a_failed_run(data: Path, tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "tiny.yaml", data, rates=[], seeds=[0], budget={"steps": 100_000})
    words = [sys.executable, "-m", "piip", "compare", str(path), "--out", str(tmp_path / "out"), "--only", "one"]
    process = start(*words, "--device", "cpu", "--threads", "1")
    log = tmp_path / "out" / "runs" / "one" / "rate-0.001" / "seed-0" / "log.txt"
    while not log.is_file() or "step 2/" not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    trainers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(trainers[0]), signal.SIGKILL)
    done = outcome(process)
    assert done.returncode == 1
    assert "failed: the system ended its process, most likely for lack of memory" in done.stderr
