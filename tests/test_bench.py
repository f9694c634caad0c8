"""`piip bench`: what it measures, what it keeps, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import outcome, run, start, succeed
from pyramids import tiny_vit

import piip
from piip.bench.command import bench_models
from piip.bench.figure import draw, main_metric, pareto_front
from piip.bench.presets import PRESETS
from piip.bench.run import group_jobs
from piip.bench.subjects import Subject, find_subject
from piip.bench.table import cells, label, markdown
from piip.bench.weights import build_random
from piip.bench.worker import FORMS, Job, Worker
from piip.cli import COMMANDS, main
from piip.config import HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.export.runtime import INT8, RUNTIMES

ASSETS = Path(piip.__file__).parent / "assets"
CONTRACT = {
    *("name", "dtype", "image_size", "macs", "params", "seconds", "median_seconds", "first_seconds", "peak_bytes"),
    *("launches", "syncs", "accuracy", "accuracy_source", "time_per_mac_ratio", "macs_by_part", "form", "batch_size"),
}


def config(head: HeadConfig | None = None) -> ModelConfig:
    parts = (tiny_vit(32, 2, 64, depth=2), tiny_vit(16, 2, 96, depth=2))
    return ModelConfig(parts, InteractionConfig(count=1, num_heads=2), head=head or HeadConfig("pooled", num_classes=3))


def save(directory: Path, metrics: dict[str, float]) -> str:
    model = piip.build_model(config())
    model.save_pretrained(directory, metadata={"metrics": metrics, "classes": ["a", "b", "c"]})
    return str(directory)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def job(name: str = "tiny", size: tuple[int, int] = (96, 96), form: str = "eager", dtype: str = "f32") -> Job:
    return Job(Subject(name, config()), size, dtype, form, 1, "cpu", 1)


def bench(*arguments: str) -> Any:
    command = [sys.executable, "-m", "piip", "bench", *arguments, "--threads", "1", "--repeats", "2"]
    return json.loads(succeed(*command, "--json"))


def test_a_run_leaves_rows_and_a_figure(tmp_path: Path) -> None:
    names = [save(tmp_path / "good", {"val/top1": 0.75}), save(tmp_path / "better", {"val/top1": 0.8, "val/top5": 1.0})]
    report = bench(*names, "--dtype", "f32", "bf16", "--out", str(tmp_path / "out"), "--batch-size", "2")
    assert report == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert report["complete"]
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == 1
    rows = report["models"]
    assert [(row["dtype"], row["name"]) for row in rows] == [*itertools.product(["f32", "bf16"], names)]
    want = piip.estimate_cost(config(), image_size=(96, 96))
    for row in rows:
        assert row.keys() >= CONTRACT
        assert "error" not in row
        assert 0 < row["seconds"] <= row["median_seconds"] <= max(row["rounds"])
        assert len(row["rounds"]) == 2
        assert row["first_seconds"] > 0
        assert 100 * 2**20 < row["peak_bytes"] < 8 * 2**30
        assert row["macs"] == 2 * want.macs == sum(row["macs_by_part"].values())
        assert row["params"] == want.params
        assert row["image_size"] == [96, 96]
        assert row["launches"] > 50
        assert row["metric"] == "Top-1 Acc"
    assert [row["accuracy"] for row in rows] == [75, 80, 75, 80]
    assert [row["time_per_mac_ratio"] for row in rows[::2]] == [1, 1]
    assert rows[1]["time_per_mac_ratio"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"])
    lines = (tmp_path / "out" / "bench.md").read_text().splitlines()
    assert lines[1] == "Top-1 Acc: recorded in training, validation split."
    assert [line.split(" | ")[1] for line in lines[5:]] == ["f32", "f32", "bf16", "bf16"]
    for dtype in ("f32", "bf16"):
        assert size_of(tmp_path / "out" / f"bench-{dtype}.png")[0] > 1000


def test_a_stopped_run_keeps_its_rows(tmp_path: Path) -> None:
    name = save(tmp_path / "model", {})
    options = ["--threads", "1", "--repeats", "10000", "--out", str(tmp_path / "out")]
    process = start(sys.executable, "-m", "piip", "bench", name, *options)
    assert process.stderr is not None
    for line in process.stderr:
        if "round 3" in line:
            break
    process.send_signal(signal.SIGINT)
    done = outcome(process)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert not report["complete"]
    assert len(report["models"][0]["rounds"]) >= 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bench.json"]


@pytest.mark.slow
def test_a_model_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    good, bad = save(tmp_path / "good", {}), save(tmp_path / "bad", {})
    (tmp_path / "bad" / "model.safetensors").write_bytes(b"damaged")
    command = [sys.executable, "-m", "piip", "bench", good, bad, "--threads", "1", "--repeats", "1"]
    done = run(*command, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert f"Not measured: {bad}: " in done.stdout
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["models"]
    assert rows[0]["seconds"] > 0
    assert rows[1]["seconds"] is None
    assert "model.safetensors" in rows[1]["error"]
    done = run(*command[:4], bad, "--out", str(tmp_path / "none"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2  # the pass that was tried, and the error
    assert "Traceback" not in done.stderr


def test_a_killed_process_is_an_error_of_its_model() -> None:
    worker = Worker(job())
    assert worker.run() > 0
    assert worker.launches().launches > 50
    assert worker._process.pid is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"tiny: the system ended its process, most likely for lack of memory"):
        worker.run()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name models or a --preset, one of quick, coco-short, coco, coco-6b"),
        (["single_b_1024.deit3_coco_mask_rcnn", "--preset", "quick"], "Name models or a --preset"),
        (["--preset", "fast"], "There is no preset 'fast', expected one of quick, coco-short"),
        (["piip_tsb_1120"], "Did you mean: "),
        (["no/such"], "no/such"),
        (["single_b_1024.deit3_coco_mask_rcnn", "--dtype", "f16"], "dtype is 'f16', expected one of f32, bf16"),
        (["single_b_1024.deit3_coco_mask_rcnn", "--form", "onnx", "--dtype", "bf16"], "runs in float32 only"),
        (["single_b_1024.deit3_coco_mask_rcnn", "--threads", "0"], "threads is 0, expected at least 1"),
        (["single_b_1024.deit3_coco_mask_rcnn", "--repeats", "0"], "repeats is 0, expected at least 1"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert not (tmp_path / "out").exists()


def test_names_recipes_and_directories_are_found() -> None:
    named = find_subject("piip_tsb_1120_896_448.deit3_coco_mask_rcnn")
    assert (named.accuracy and named.accuracy.metric, named.accuracy and named.accuracy.value) == ("Box mAP", 43.6)
    assert named.accuracy
    assert "published by the authors" in named.accuracy.source
    assert named.config.head.kind == "none"
    assert named.image_size == (672, 1120)
    assert find_subject("single_b_1024.deit3_coco_mask_rcnn").image_size == (640, 1024)
    assert find_subject("piip_ct_vs_vb_1024_672_448.convnext_deit3_coco_mask_rcnn").image_size == (800, 1344)
    assert find_subject("piip_tsb_368_192_128.deit1_in1k").image_size is None
    assert find_subject(named.name, with_head=True).config.head.kind == "mask_rcnn"
    record = piip.zoo.official_record(named.name)
    assert find_subject(record).accuracy == named.accuracy
    nuclei = find_subject(str(ASSETS / "nuclei" / "model"))
    assert nuclei.accuracy is not None
    assert (nuclei.accuracy.metric, round(nuclei.accuracy.value, 1)) == ("Box mAP", 44.5)
    assert nuclei.accuracy.source == "recorded in training, validation split"
    recipe = find_subject(str(ASSETS.parents[1] / "recipes" / "instances" / "nuclei_piip.yaml"))
    assert recipe.accuracy is None
    assert recipe.config == nuclei.config


def test_presets_hold_what_they_say() -> None:
    coco, more = PRESETS["coco"].names(), PRESETS["coco-6b"].names()
    published = {model.name: model for model in piip.zoo.published_models()}
    assert coco[0] == more[0] == "single_b_1024.deit3_coco_mask_rcnn"
    assert len({*coco}) == len(coco)
    assert {*PRESETS["quick"].names()} < {*PRESETS["coco-short"].names()} < {*coco} < {*more}
    assert {*more} - {*coco} == {name for name in more if "6b_" in name}
    for name in more:
        assert published[name].head == "Mask R-CNN"
        assert "Box mAP" in published[name].results
    left_out = [m for m in published.values() if m.head == "Mask R-CNN" and m.results and m.name not in more]
    assert not left_out


def test_groups_fit_into_memory_beside_the_first_job() -> None:
    needs = [3, 4, 2, 9, 5, 1, 6]
    jobs = [(job(str(index)), need) for index, need in enumerate(needs)]
    groups = [[int(item.subject.name) for item in group] for group in group_jobs(jobs, 10)]
    assert sorted(index for group in groups for index in group if index) == [1, 2, 3, 4, 5, 6]
    assert [3] in groups
    assert all(group[0] == 0 and sum(needs[i] for i in group) <= 10 for group in groups if group != [3])
    assert group_jobs(jobs[:1], 1) == [[jobs[0][0]]]


def test_the_front_is_what_nothing_beats() -> None:
    generator = torch.Generator().manual_seed(0)
    points = [tuple(point) for point in torch.randint(0, 12, (40, 2), generator=generator).tolist()]
    front = {points[index] for index in pareto_front(points)}
    beaten = {
        point
        for point in points
        for other in points
        if other != point and other[0] <= point[0] and other[1] >= point[1]
    }
    assert front == {*points} - beaten
    assert pareto_front([]) == []


def row(name: str, seconds: float | None, **fields: Any) -> dict[str, Any]:
    facts = {"dtype": "f32", "macs": 2e9, "peak_bytes": 10**9, "branches": 2, "metric": None, "accuracy": None}
    counts = {
        "median_seconds": seconds,
        "first_seconds": seconds,
        "launches": 3,
        "syncs": 0,
        "time_per_mac_ratio": None,
        "image_size": (96, 128),
    }
    return {"name": name, "seconds": seconds, **facts, **counts, **fields}


def test_figures_of_any_rows(tmp_path: Path) -> None:
    scored = [row(str(i), 1 + i, metric="mIoU", accuracy=30 + i, branches=1 + i % 2) for i in range(20)]
    other = row("other", 2, metric="Top-1 Acc", accuracy=70)
    assert main_metric([*scored, other]) == "mIoU"
    assert main_metric([row("a", 1)]) is None
    for index, rows in enumerate(([*scored, other, row("none", None)], [row("a", 1)], scored[:1])):
        draw(rows, tmp_path / f"{index}.png", title="any")
        assert size_of(tmp_path / f"{index}.png")[1] > 300


def test_labels_and_tables_are_short() -> None:
    assert label("piip_tsb_1120_896_448.deit3_coco_mask_rcnn") == "PIIP-TSB 1120/896/448"
    assert label("piip_ct_vs_vb_1024_672_448.convnext_deit3_coco_mask_rcnn") == (
        "PIIP ConvNeXt-T, ViT-S, ViT-B 1024/672/448"
    )
    assert label("piip_sbl_1568_1120_672.dinov2_coco_mask_rcnn") == "PIIP-SBL 1568/1120/672 (dinov2)"
    assert label("piip_sbl_1568_1120_672.augreg_coco_mask_rcnn_speedup") == ("PIIP-SBL 1568/1120/672 (augreg, speedup)")
    assert label("single_6b_1024.internvl_coco_mask_rcnn") == "InternViT-6B 1024"
    assert label("/home/me/runs/nuclei/best") == "nuclei/best"
    assert len({label(name) for name in PRESETS["coco-6b"].names()}) == len(PRESETS["coco-6b"].names())
    assert cells(row("a", None)) == ["96x128", "2.00", "", "", "", "1.00", "3", "0", "", ""]
    assert markdown([row("a", 0.5)]).splitlines()[2].startswith("| a | f32 | 96x128 | 2.00 | 0.5 | 0.5 |")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_random_weights_give_finite_outputs(dtype: str) -> None:
    dense = dataclasses.replace(config(), head=HeadConfig(), merge=MergeConfig("conv"), neck=NeckConfig("simple"))
    torch.manual_seed(0)
    model = build_random(dense, dtype=dtype)
    assert not model.training
    parameter = next(model.parameters())
    assert parameter.dtype == {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    with torch.no_grad():
        for level in model(torch.randn(1, 3, 96, 96, dtype=parameter.dtype)):
            assert 1e-3 < level.float().std() < 1e3


@pytest.mark.slow
def test_forms_agree_on_what_they_run() -> None:
    seen = {}
    for form in ("eager", "optimized"):
        worker = Worker(job(form=form))
        worker.run()  # later passes find positions in a cache
        seen[form] = worker.launches()
        assert worker.peak_bytes() > 2**20
        worker.close()
    assert seen["eager"] == seen["optimized"]


def test_options_reach_the_models(tmp_path: Path) -> None:
    name = save(tmp_path / "model", {"val/top1": 0.5})
    common: dict[str, Any] = {"preset": None, "dtypes": None, "form": "eager", "repeats": 1, "with_head": False}
    report = bench_models(
        [name, name], image_size=(64, 96), batch_size=3, device="cpu", threads=1, out=tmp_path, quiet=True, **common
    )
    (measured,) = report.rows.values()
    assert measured["image_size"] == [64, 96]
    assert measured["batch_size"] == 3
    assert measured["form"] == "eager"
    assert measured["accuracy"] is None  # of another size
    assert measured["macs"] == 3 * piip.estimate_cost(config(), image_size=(64, 96)).macs


def test_commands_offer_what_there_is() -> None:
    def choices(command: Any, name: str) -> set[str]:
        kind = typing.get_type_hints(command)[name]
        inner = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is typing.Literal]
        return {*typing.get_args(inner[0])}

    assert choices(COMMANDS["bench"], "form") == {*FORMS}
    assert choices(COMMANDS["predict"], "runtime") == {*RUNTIMES}
    assert {*RUNTIMES} - {"torch", INT8} <= {*FORMS}  # int8 needs images to calibrate on
    assert all(name in (COMMANDS["bench"].__doc__ or "") for name in PRESETS)
