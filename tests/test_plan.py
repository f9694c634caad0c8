"""Plans: everything listed fits the budget, is counted as a whole, and beaten by nothing that was left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm

import piip
from piip.cli import main
from piip.device import without_values
from piip.plan import command, search
from piip.plan.candidates import Candidate, Costs, pyramids
from piip.plan.evidence import nearest, shape
from piip.plan.families import find_networks
from piip.plan.search import Budget, Machine, choose, non_dominated
from piip.plan.tasks import TASKS
from piip.recipe import load_recipe
from piip.zoo.families import NETWORK_FAMILIES

NETWORKS = ("test_vit3", "test_vit2", "test_vit")  # the largest first
SIZE = 128
pytestmark = pytest.mark.usefixtures("one_thread")


def refusal(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *map(str, options)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def costs() -> Costs:
    made = Costs(TASKS["classification"], None, (SIZE, SIZE))
    made.measure(NETWORKS)
    return made


def test_every_family_exists_in_timm() -> None:
    known = set(timm.list_models(pretrained=True))
    assert {name for family in NETWORK_FAMILIES for name in find_networks(family, None)} <= known


def test_a_renamed_family_is_found(caplog: pytest.LogCaptureFixture) -> None:
    assert find_networks("dinov2", None) == find_networks("dinov2_reg", None)
    assert caplog.messages == ["--family dinov2 is deprecated, use --family dinov2_reg."]


def test_composed_costs_are_those_of_whole_models(costs: Costs) -> None:
    found = list(pyramids(NETWORKS, costs))
    assert len(found) == len(set(found))
    for candidate in found[:: len(found) // 3]:
        assert list(candidate.sides) == sorted(set(candidate.sides))
        assert costs.estimate(candidate) == pytest.approx(costs.exact(candidate).macs, rel=0.03)


@pytest.mark.parametrize(
    ("budget", "measured"),
    [
        (Budget(macs=0.06e9), lambda option: option.cost.macs),
        pytest.param(Budget(params=1.5e6), lambda option: option.cost.params, marks=pytest.mark.slow),
        pytest.param(
            Budget(bytes=0.835e9),
            lambda option: Machine().memory(option.cost.params, option.image_size),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["macs", "params", "bytes"],
)
def test_what_is_listed_fits_and_nothing_better_is_left_out(
    budget: Budget, measured: Any, costs: Costs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LISTED", 2)
    (limit,) = (value for value in vars(budget).values() if value is not None)
    listed, singles = choose(NETWORKS, costs, budget, Machine(), lambda text: None)
    assert listed
    assert all(measured(option) <= limit for option in [*listed, *singles])
    for option in listed[:1]:
        config = costs.config(option.candidate)
        assert option.cost.macs == piip.estimate_cost(config, image_size=SIZE).macs
    rows = []  # brute force
    for candidate in pyramids(NETWORKS, costs):
        params = [costs.params[name] for name in candidate.networks]
        macs, support = costs.estimate(candidate), nearest(shape(candidate.sides, params)).support
        if Machine().fits(budget, macs, sum(params), (SIZE, SIZE)):
            rows.append((candidate, -macs, sum(params), support))

    def beats(one: Any, other: Any) -> bool:
        return one[1:] != other[1:] and all(a >= b for a, b in zip(one[1:], other[1:], strict=True))

    kept = [row for row in rows if not any(beats(other, row) for other in rows)]
    kept.sort(key=lambda row: (-row[3], -row[1]))
    candidates = [row[0] for row in kept]
    if budget.macs is not None:
        assert [option.candidate for option in listed] == candidates[:2]
    # whole models have more parameters than their networks: some of these are left out when counted as a whole
    places = [candidates.index(option.candidate) for option in listed]
    assert places == sorted(places)


def test_points_that_others_beat_are_left_out() -> None:
    assert non_dominated([(1, 1), (2, 0), (0, 0), (1, 1), (2, -1)]) == [0, 1, 3]


def test_evidence_is_the_saving_of_the_published_pyramid() -> None:
    found = nearest(shape([448, 672, 1120], [304, 86, 22]))
    assert found.name == "piip_sbl_1120_672_448.deit3_coco_mask_rcnn"
    # 46.5 AP lies between ViT-B (43.7, 463 G) and ViT-L (46.7, 1542 G); the pyramid takes 727 G
    single = 463 * (1542 / 463) ** ((46.5 - 43.7) / (46.7 - 43.7))
    assert found.saving == pytest.approx(single / 727)
    assert found.distance == pytest.approx(0)
    assert found.support == pytest.approx(found.saving)
    other = nearest(shape([100, 400], [304, 22]))
    assert other.support == pytest.approx(other.saving * math.exp(-other.distance))


@pytest.mark.parametrize(
    "task",
    ["classification", *(pytest.param(task, marks=pytest.mark.slow) for task in ("detection", "instance", "semantic"))],
)
def test_recipes_build(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LISTED", 1)
    costs = Costs(TASKS[task], 1, (96, SIZE))
    request = command.Request(task, (96, SIZE), "", NETWORKS[::2], Budget(params=1e9), 1, 5, 0, "cpu", 1)
    plan = command.plan(request, tmp_path, quiet=True)
    assert plan["task"] == task
    recipe = load_recipe(tmp_path / "recipe.yaml")
    config = recipe.model_config()
    assert [branch.network for branch in config.branches] == plan["pyramids"][0]["networks"]
    assert all(branch.pretrained for branch in config.branches)
    assert config.head == TASKS[task].model((config.branches[0],), None, 5).head
    with without_values():
        piip.build_model(costs.config(Candidate(NETWORKS[:2], (64, SIZE))))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "plan.json").read_text())["pyramids"] == json.loads(json.dumps(plan["pyramids"]))


@pytest.mark.slow
def test_measured_times_decide_over_expected_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[str] = []

    def bench(subjects: Any, image_size: Any, request: Any, say: Any) -> list[dict[str, Any]]:
        names.append(subjects[0].name)
        seconds = 0.001 if len(names) == 1 else 9.0 if len(names) == 2 else 0.01  # first the calibration
        return [{"seconds": seconds, "peak_bytes": 1e9, "macs": 1e9}]

    monkeypatch.setattr(command, "_bench", bench)
    options = ("--task", "classification", "--fps", 2, "--image-size", SIZE, "--networks", *NETWORKS, "--json")
    main(["plan", *map(str, options)])
    plan = json.loads(capsys.readouterr().out)
    rows, over = plan["pyramids"], plan["over_budget_when_measured"]
    assert [row["title"] for row in over] == names[1:2]
    assert over[0]["seconds"] == 9.0
    assert [row["title"] for row in rows[:2]] == names[2:4]  # three are measured by default
    assert all(row["seconds"] == 0.01 and row["peak_bytes"] == 1e9 for row in rows[:2])
    assert all(row["seconds"] is None for row in rows[2:])
    assert all(row["expected_seconds"] == pytest.approx(row["macs"] * 1e-12) for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget-macs", 1], "required: image_size"),
        (["--image-size", 64], "There is no budget"),
        (["--image-size", 64, "--budget-macs", 1, "--family", "dinov4"], "family is 'dinov4', expected one of deit3"),
        (["--image-size", 64, "--budget-macs", 1, "--networks", "vit_bsae_patch16_224"], "vit_base_patch16_224"),
        (["--image-size", 64, "--budget-macs", -1], "budget_macs is -1"),
        (["--image-size", 64, "--fps", 3, "--budget-seconds", 1], "give one of them"),
        (["--image-size", 8, "--budget-macs", 1], "image_size is"),
        (["--image-size", 128, "--budget-macs", 1e-6, "--networks", *NETWORKS], "The cheapest is"),
        (["--image-size", 128, "--budget-macs", 1, "--networks", NETWORKS[0]], "There is no pyramid of"),
    ],
)
def test_requests_that_cannot_be_met_say_so(
    options: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "--task", "classification", *options)
