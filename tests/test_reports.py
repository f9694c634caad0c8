"""Reports: numbers equal an independent count, files are complete, plots are readable for one class and for many."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from PIL import Image
from test_views import write_model
from tiny_run import write_images
from tiny_run import write_model as write_classifier

from piip.cli import main
from piip.data.coco import CocoInstances
from piip.evaluation.classification import evaluate
from piip.evaluation.dense import evaluate_dense
from piip.evaluation.metrics.coco import score_results, to_results
from piip.evaluation.metrics.matching import box_agreement
from piip.evaluation.metrics.precision_tables import NAMES, count_objects, count_results
from piip.evaluation.metrics.semantic import SemanticMetric
from piip.evaluation.report import plots
from piip.evaluation.report.drawing import class_colour, draw_map, draw_objects
from piip.evaluation.report.page import Page, write_page
from piip.evaluation.report.sheet import SheetRow, Worst, write_sheet

pytestmark = pytest.mark.usefixtures("one_thread")
LIMITS = (1, 10, 100)


def noisy_results(root: Path, content: dict[str, Any], *, copies: int = 1) -> list[dict[str, Any]]:
    """Return the truth, shifted a little and with invented scores, some of it wrong."""
    data = CocoInstances(root / "val.json", root / "val")
    generator = torch.Generator().manual_seed(0)
    results = []
    for index, image_id in enumerate(data.image_ids):
        truth = data.read_target(index, data.shapes[index])
        for shift in range(copies):
            count = len(truth["labels"])
            found = {
                "boxes": truth["boxes"] + torch.randn(count, 4, generator=generator) * (1 + shift),
                "masks": truth["masks"].roll(1 + shift, -1),
                "labels": torch.where(torch.rand(count, generator=generator) < 0.8, truth["labels"], 0),
                "scores": torch.rand(count, generator=generator),
            }
            results += to_results(found, image_id, data.category_ids)
    return results


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("truth")
    return root, shapes.write_coco(root, "val", 5)


def by_pycocotools(file: Path, results: list[dict[str, Any]], kind: str, **params: Any) -> list[float]:
    """Count as a user of pycocotools would, without this library."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        counting = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), kind)
        for name, value in params.items():
            setattr(counting.params, name, value)
        counting.evaluate()
        counting.accumulate()
        counting.summarize()
    return [float(value) for value in counting.stats]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_twelve_numbers_equal_pycocotools_own_summary(truth, kind: str) -> None:
    root, content = truth
    results = noisy_results(root, content, copies=3)
    rows = results if kind == "box" else [{k: v for k, v in row.items() if k != "bbox"} for row in results]
    wanted = by_pycocotools(root / "val.json", rows, {"box": "bbox", "mask": "segm"}[kind])
    for backend in ("faster-coco-eval", "pycocotools"):
        scores = count_results(content, results, kind, max_detections=LIMITS, backend=backend).scores()
        assert list(scores.values()) == pytest.approx(wanted, abs=1e-9)
    assert 0 < wanted[0] < 1


def test_the_official_rule_takes_ap_at_100_and_the_rest_at_1000(truth) -> None:
    root, content = truth
    results = noisy_results(root, content, copies=60)  # more than 100 an image
    assert max(sum(row["image_id"] == image["id"] for row in results) for image in content["images"]) > 100
    wanted = by_pycocotools(root / "val.json", results, "bbox", maxDets=[100, 300, 1000])
    tables = count_results(content, results, "box", max_detections=(100, 300, 1000), backend="pycocotools")
    assert list(tables.scores(headline=0).values()) == pytest.approx(wanted, abs=1e-9)
    fast = score_results(content, results, iou_types=["box"], max_detections=(100, 300, 1000), headline=0)
    assert list(fast.values()) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_a_class_scores_what_both_backends_give_it_alone(truth, kind: str) -> None:
    root, content = truth
    content = {**content, "categories": [*content["categories"], {"id": 30, "name": "absent"}]}
    results = noisy_results(root, content, copies=2)
    tables = count_results(content, results, kind, max_detections=LIMITS)
    for place, category in enumerate((10, 20, 30)):
        scores = tables.scores(of=slice(place, place + 1))
        for backend in ("faster-coco-eval", "pycocotools"):
            alone = count_results(
                content, results, kind, max_detections=LIMITS, backend=backend, category_ids=[category]
            ).scores()
            assert scores == pytest.approx(alone, abs=1e-9)
    assert set(tables.scores(of=slice(2, 3)).values()) == {-1.0}
    assert count_objects(content, [10, 20, 30], [1, 2]) == [
        sum(row["category_id"] == category and row["image_id"] < 3 for row in content["annotations"])
        for category in (10, 20, 30)
    ]


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
def test_no_instances_at_all_score_nothing_and_missing_sizes_have_no_score(truth, backend: str) -> None:
    _, content = truth
    for kind in ("box", "mask"):
        scores = count_results(content, [], kind, max_detections=LIMITS, backend=backend).scores()
        assert (scores["ap"], scores["ap_large"], scores["ar_large"]) == (0, -1, -1)


def test_curves_have_the_area_of_the_precision(truth) -> None:
    root, content = truth
    tables = count_results(content, noisy_results(root, content), "box", max_detections=LIMITS)
    scores = tables.scores()
    for overlap, name in ((0.5, "ap50"), (0.75, "ap75"), (None, "ap")):
        assert np.mean(tables.curve(overlap)) == pytest.approx(scores[name])


def read_report(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]], str]:
    with (folder / "per_class.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for picture in folder.glob("*.png"):
        with Image.open(picture) as opened:
            opened.load()
            assert min(opened.size) > 50
    page = (folder / "report.md").read_text(encoding="utf-8")
    named = [line[2:].split("]")[0] for line in page.splitlines() if line.startswith("![")]
    assert sorted(named) == sorted(path.name for path in folder.glob("*.png"))
    return json.loads((folder / "report.json").read_text()), rows, page


def test_a_report_of_instances_equals_a_count_of_its_own_results(truth, tmp_path: Path, capsys) -> None:
    root, _ = truth
    model = write_model(tmp_path / "model", "mask_rcnn")
    command = ["evaluate", str(model), "--data", str(root), "--split", "val.json", "--images", "val"]
    main([*command, "--workers", "0", "--device", "cpu", "--out", str(tmp_path / "report"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    numbers, rows, page = read_report(tmp_path / "report")
    assert printed == {name: value for name, value in numbers.items() if name not in ("curves", "confusion")}
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        kept = results if kind == "bbox" else [{k: v for k, v in row.items() if k != "bbox"} for row in results]
        wanted = by_pycocotools(root / "val.json", kept, kind)
        assert [numbers[f"{name}_{part}"] for part in NAMES] == pytest.approx(wanted[:6], abs=1e-9)
        assert len(numbers["curves"][name]["means"]["IoU 0.50"]) == 101
    assert [row["class"] for row in rows] == ["box", "disc"]
    assert float(rows[0]["mask_ap"]) == numbers["per_class"]["box"]["mask_ap"]
    assert rows[0]["mask_ap_large"] == ""  # no object is that large
    assert (numbers["scales"], numbers["flip"], numbers["backend"]) == ([1.0], False, "faster-coco-eval")
    assert f"| ap at 100 | {numbers['box_ap']:.4f} | {numbers['mask_ap']:.4f} |" in page
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "precision_recall_box.png",
        "precision_recall_mask.png",
        "per_class_box_ap.png",
        "per_class_mask_ap.png",
        "worst.png",
    }


def test_official_takes_the_heads_own_limit_and_one_view(truth, tmp_path: Path, capsys) -> None:
    root, _ = truth
    model = write_model(tmp_path / "model", "dino", flip_test=True)
    command = ["evaluate", str(model), "--data", str(root), "--split", "val.json", "--images", "val"]
    command += ["--workers", "0", "--device", "cpu", "--official"]
    main([*command, "--out", str(tmp_path / "report"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["max_detections"], report["headline"]) == ([100, 300, 1000], 100)
    assert (report["backend"], report["official"], report["flip"]) == ("pycocotools", True, False)
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    counts = {image: sum(row["image_id"] == image for row in results) for image in range(1, 6)}
    assert 100 < max(counts.values()) <= 300
    wanted = by_pycocotools(root / "val.json", results, "bbox", maxDets=[100, 300, 1000])
    assert [report[f"box_{name}"] for name in NAMES] == pytest.approx(wanted[:6], abs=1e-9)
    main(command)
    assert "box_ap and mask_ap at 100" in capsys.readouterr().out
    for extra in (["--flip"], ["--scales", "1", "2"], ["--max-detections", "1", "2", "3"]):
        with pytest.raises(SystemExit):
            main([*command, *extra])
        assert "official sets limits and test-time augmentation" in capsys.readouterr().err


def test_official_changes_nothing_but_the_recalls_names_where_a_head_keeps_100(truth, tmp_path: Path) -> None:
    root, _ = truth
    model = write_model(tmp_path, "mask_rcnn")
    where = {"split": "val.json", "images": "val", "workers": 0, "device": "cpu"}
    plain, official = (evaluate_dense(model, root, **where, official=flag) for flag in (False, True))
    for name in ("mask_ap", "mask_ap50", "box_ap75", "box_ap_small"):
        assert official.scores[name] == pytest.approx(plain.scores[name], abs=1e-9)
    assert official.scores["box_ar_100"] == pytest.approx(plain.scores["box_ar_100"], abs=1e-9)


def test_views_are_options_of_the_command(truth, tmp_path: Path, capsys) -> None:
    root, _ = truth
    model = write_model(tmp_path, "dino")
    command = ["evaluate", str(model), "--data", str(root), "--split", "val.json", "--images", "val"]
    command += ["--workers", "0", "--device", "cpu", "--json", "--scales", "0.75", "1", "--flip"]
    main([*command, "--max-detections", "1", "5", "20"])
    report = json.loads(capsys.readouterr().out)
    assert (report["scales"], report["flip"], report["max_detections"]) == ([0.75, 1.0], True, [1, 5, 20])
    asking = write_model(tmp_path / "asking", "dino", flip_test=True)
    where = ["--data", str(root), "--split", "val.json", "--images", "val", "--workers", "0", "--device", "cpu"]
    for option, flips in (([], True), (["--no-flip"], False)):
        main(["evaluate", str(asking), *where, *option, "--json"])
        assert json.loads(capsys.readouterr().out)["flip"] is flips


def test_a_report_of_classes_of_pixels(tmp_path: Path, capsys) -> None:
    shapes.write_semantic_masks(tmp_path, "val", 3)
    model = write_model(tmp_path / "model", "upernet", reduce_zero_label=True)
    out = tmp_path / "report"
    where = {"split": "annotations/val", "images": "images/val", "workers": 0, "device": "cpu"}
    report = evaluate_dense(model, tmp_path, **where, out=out, scales=(0.5, 1), flip=True)
    numbers, rows, page = read_report(out)
    table = np.asarray(numbers["confusion"])
    assert table.sum() == sum(int(row["pixels"]) for row in rows)
    assert report.scores["aacc"] == pytest.approx(table.trace() / table.sum())
    for place, row in enumerate(rows):
        assert float(row["accuracy"]) == pytest.approx(table[place, place] / table[place].sum())
    assert "miou" in page
    assert {path.name for path in out.glob("*.png")} == {"per_class_iou.png", "confusion.png", "worst.png"}


def test_a_split_without_a_labelled_pixel_is_refused(tmp_path: Path) -> None:
    shapes.write_semantic_masks(tmp_path, "val", 1)
    Image.new("L", (64, 64)).save(tmp_path / "annotations" / "val" / "1.png")
    model = write_model(tmp_path / "model", "upernet", reduce_zero_label=True)
    with pytest.raises(ValueError, match=r"only ignored pixels .* reduce_zero_label is on"):
        evaluate_dense(model, tmp_path, split="annotations/val", images="images/val", workers=0, device="cpu")


def test_a_report_of_a_classifier(tmp_path: Path, capsys) -> None:
    data = write_images(tmp_path / "data", train=1, val=3, classes=tuple("abcdefg"))
    model = write_classifier(tmp_path / "model", classes=tuple("abcdefg"))
    main(["evaluate", str(model), "--data", str(data), "--workers", "0", "--out", str(tmp_path / "report"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    numbers, rows, _ = read_report(tmp_path / "report")
    assert numbers["top5"] == printed["top5"]
    assert np.mean([float(row["top5"]) for row in rows]) == pytest.approx(printed["top5"])
    assert np.mean([float(row["top1"]) for row in rows]) == pytest.approx(printed["top1"])
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "per_class_top1.png",
        "confusion.png",
        "worst.png",
    }
    again = evaluate(model, data, workers=0, device="cpu")
    assert again.per_class_top5 == printed["per_class_top5"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(model), "--data", str(data), "--flip", "--official"])
    assert "--official, --flip are for detectors and segmentors" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 3, 80])
@pytest.mark.parametrize("found", ["all", "some", "none"])
def test_plots_of_any_number_of_classes(tmp_path: Path, count: int, found: str) -> None:
    names = [f"class {number} of $things$ with a name that is far too long" for number in range(count)]
    share = {"all": 1, "some": 2, "none": count + 1}[found]
    names[0] = "草原"  # a script that the font lacks
    values = {name: place / count if place % share == share - 1 else None for place, name in enumerate(names)}
    curve = np.linspace(1, 0, 101).tolist()
    curves = {name: curve for name, value in values.items() if value is not None}
    plots.class_bars(tmp_path / "bars.png", values, label="AP")
    plots.precision_recall(
        tmp_path / "curves.png", means={"IoU 0.50": curve} if curves else {}, classes=curves, title="box"
    )
    table = np.random.default_rng(0).integers(0, 9, (count, count)) * (found != "none")
    plots.confusion(tmp_path / "confusion.png", table.tolist(), names, unit="pixels")
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert max(picture.size) < 3000


def test_the_worst_images_are_kept(tmp_path: Path) -> None:
    worst = Worst(3)
    for number, score in enumerate([0.5, 0.9, 0.1, 0.5, 0.7, 0.5]):
        picture = Image.new("RGB", (10 + 500 * number, 20))
        worst.add(score, number, lambda n=number, p=picture: SheetRow(str(n), [p]))
    rows = worst.rows()
    assert [row.caption for row in rows] == ["2", "0", "3"]
    write_sheet(tmp_path / "sheet.png", rows, heads=("picture",))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width < 500


def test_classes_have_one_colour_each_and_ignored_pixels_none() -> None:
    picture = Image.new("RGB", (8, 6), (100, 100, 100))
    labels, ignored = np.zeros((6, 8), np.uint8), np.zeros((6, 8), bool)
    labels[:3], ignored[:, 6:] = 1, True
    drawn = np.asarray(draw_map(picture, labels, ignored))
    assert len(np.unique(drawn[:3, :6].reshape(-1, 3), axis=0)) == 1
    assert (drawn[0, 0] != drawn[5, 0]).any()
    assert (drawn[:, 6:] == 100).all()
    boxes = [[0.0, 0.0, 2.0, 2.0], [4.0, 3.0, 6.0, 5.0]]
    outlined = np.asarray(draw_objects(picture, boxes, [1, 1], np.zeros((2, 6, 8), bool)))
    assert tuple(outlined[0, 0]) == tuple(outlined[3, 4]) == class_colour(1)
    assert tuple(outlined[5, 0]) == (100, 100, 100)
    assert draw_objects(picture, [], [], None).tobytes() == picture.tobytes()


def test_agreement_of_boxes() -> None:
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([0, 1])}
    assert box_agreement(truth, truth) == 1
    doubled = {name: value.repeat_interleave(2, 0) for name, value in truth.items()}
    assert box_agreement(doubled, truth) == pytest.approx(2 / 3)
    assert box_agreement({**truth, "labels": torch.tensor([1, 1])}, truth) == 0.5
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert box_agreement(nothing, truth) == box_agreement(truth, nothing) == 0
    assert box_agreement(nothing, nothing) == 1


def test_pages_escape_names_and_show_gaps(tmp_path: Path) -> None:
    page = Page(
        "Title",
        {"model": "a|b"},
        [{"score": "ap", "value": None}],
        [{"class": "x", "ap": 0.25}, {"class": "y", "ap": None}],
        {},
    )
    text = write_page(page, tmp_path / "new" / "folder").read_text()
    assert "| model | a\\|b |" in text
    assert "| ap | - |" in text
    assert "| x | 0.2500 |" in text
    assert (tmp_path / "new" / "folder" / "per_class.csv").read_text() == "class,ap\nx,0.25\ny,\n"


def test_class_numbers_of_an_overlap() -> None:
    overlap = SemanticMetric(3)
    overlap.add(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
    assert overlap.class_scores() == [
        {"iou": 0.5, "accuracy": 1.0, "precision": 0.5, "pixels": 1},
        {"iou": 0.5, "accuracy": 0.5, "precision": 1.0, "pixels": 2},
        {"iou": None, "accuracy": None, "precision": None, "pixels": 0},
    ]


def test_a_split_without_a_class_and_a_model_without_instances(truth, tmp_path: Path) -> None:
    """A detector that finds nothing in a split that lacks a class still gets its report."""
    from safetensors.torch import load_file, save_file

    root, content = truth
    shutil.copytree(root / "val", tmp_path / "val")
    rows = [row for row in content["annotations"] if row["category_id"] == 10]
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": rows}))
    model = write_model(tmp_path / "model", "mask_rcnn")
    weights = load_file(model / "model.safetensors")
    weights["head.boxes.scores.bias"] = torch.tensor([-100.0, -100.0, 100.0])
    save_file(weights, model / "model.safetensors")
    report = evaluate_dense(
        model, tmp_path, split="val.json", images="val", workers=0, device="cpu", out=tmp_path / "out"
    )
    assert report.scores["mask_ap"] == 0
    assert report.per_class["disc"]["mask_ap"] is None
    _, csv_rows, _ = read_report(tmp_path / "out")
    assert [row["mask_ap"] for row in csv_rows] == ["0.0", ""]
