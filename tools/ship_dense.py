"""Make the assets of the demos of detectors and segmentors: weights, recorded scores, pictures and model card.

    piip train recipes/instances/nuclei_piip.yaml
    piip train recipes/segmentation/landcover_piip.yaml
    pip download --no-deps --dest wheels scikit-image==0.26.0
    python tools/ship_dense.py --runs runs --nuclei data/nuclei --landcover data/landcover --wheels wheels

A run `runs/nuclei_single` (`recipes/instances/nuclei_single.yaml`) is measured beside them where it is there; otherwise
that model is only counted and timed. The weights that did best in validation are rounded to bfloat16, and measured so,
in float32, on the whole test split. What was measured is kept in out/ship_dense.json, also where the tool is stopped;
the next run starts anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from common.progress import Results, say

from piip.config import ModelConfig
from piip.data.sources.landcover_map import CLASSES
from piip.demo.run import ComparedModel, compare
from piip.demo.tasks import TASKS
from piip.evaluation.dense import evaluate_dense
from piip.recipe import load_recipe
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.save import save_model

PICTURES = 5
SAMPLE = "skimage/data/ihc.png"
SCORES = {
    "instances": ("mask_ap", "mask_ap50", "mask_ap75", "box_ap", "box_ap50"),
    "segmentation": ("miou", "aacc", "macc"),
}
CARD = """# Model card: {title}

{about}

- **Made by** `piip train {recipe}` (seed {seed}, {steps} steps from scratch, weights averaged), then
  `python tools/ship_dense.py`. These are the weights that did best in validation, stored in bfloat16.
- **Data**: {data}
- **Measured** on the {images} pictures of the test split{limits}, on {machine},
  {threads} thread(s), {date}; multiply-adds and time are those of backbone and neck at {side} x {side}, one image, the
  models taking turns:

| model | {metrics} | MACs | parameters | time |
|---|{rules}---:|---:|---:|
{rows}

{single}
The pyramid takes {macs} times its multiply-adds and {time} times its time: at these widths time goes into many small
operations. No claim of the papers is tested here.

**For**: showing that the parts of this library work together. **Not for**: {warning}
"""
ABOUT = {
    "instances": "A Mask R-CNN over two small ConvNeXt branches, the larger one at half the resolution, that finds "
    "and outlines nuclei in\nmicroscope pictures.",
    "segmentation": "An UperNet over two small ConvNeXt branches, the larger one at half the resolution, that names "
    "the land cover of every\npixel of 512-px satellite tiles.",
}
DATA = {
    "instances": "`piip data nuclei`, the 2018 Data Science Bowl's stage-1 training images with corrected masks "
    "(CC0).\n  Pictures that look alike lie in one split. `ihc.png` is scikit-image 0.26.0's sample of "
    "immunohistochemistry (Center for\n  Microscopy and Molecular Imaging, no known copyright restrictions), which no "
    "split contains.",
    "segmentation": "`piip data landcover`, NASA Blue Marble photograph with MODIS MCD12C1 land cover of 2019; "
    "held-out bands\n  of longitude. Both are free to use; see docs/data.md.",
}
TRAINED = (
    "`single` is its larger network alone at full resolution with the same head, trained by the same schedule, once."
)
UNTRAINED = (
    "`single`, its larger network alone at full resolution with the same head, was not trained: it is there for cost\n"
    "and time."
)
WARNING = {"instances": "diagnosis or counting that matters.", "segmentation": "mapping."}


def save_shipped(run: Path, target: Path, task: str) -> dict[str, Any]:
    """Write the best model of a run in bfloat16, without the folders of this machine; return its description."""
    about = read_description(run / "best")
    kept = {key: about[key] for key in ("classes", "dense", "detections", "recipe", "metrics", "steps") if key in about}
    if task == "segmentation":
        kept["palette"] = [list(land_class.colour) for land_class in CLASSES]
    kept["recipe"]["run"]["out"] = f"runs/{run.name}"
    kept["recipe"]["data"]["root"] = f"data/{'nuclei' if task == 'instances' else 'landcover/segmentation'}"
    save_model(load_model(run / "best"), target, kept, dtype="bf16")
    for path in target.iterdir():
        path.chmod(0o644)
    return about


def measure(task: str, model: Path, data: Path, results: Results) -> tuple[dict[str, float], int]:
    """Return the scores on the test split, and its number of images."""
    say(f"{task}: measuring {model}")
    if task == "instances":
        report = evaluate_dense(model, data, split="test.json", images="images", device="cpu")
    else:
        root = data / "segmentation"
        report = evaluate_dense(model, root, split="test/labels", images="test/images", device="cpu")
    scores = {name: round(report.scores[name], 4) for name in SCORES[task]}
    results.put((task, str(model)), {"task": task, "model": str(model), "scores": scores, "images": report.images})
    say(f"{task}: {scores}")
    return scores, report.images


def write_nuclei(data: Path, target: Path, wheels: Path) -> None:
    """Write test pictures, one of each size, and scikit-image's sample, with the number of nuclei where it is known."""
    content = json.loads((data / "test.json").read_text(encoding="utf-8"))
    counts = {image["id"]: 0 for image in content["images"]}
    for row in content["annotations"]:
        counts[row["image_id"]] += 1
    truth: dict[str, Any] = {}
    with zipfile.ZipFile(next(wheels.glob("scikit_image-*.whl"))) as wheel, wheel.open(SAMPLE) as file:
        Image.open(file).convert("RGB").save(target / "ihc.png", optimize=True)
    by_size: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for image in content["images"]:
        by_size.setdefault((image["height"], image["width"]), []).append(image)
    for images in sorted(by_size.values(), key=len, reverse=True)[:PICTURES]:
        middle = sorted(images, key=lambda image: counts[image["id"]])[len(images) // 2]
        name = f"nuclei_{middle['file_name'][:8]}.png"
        Image.open(data / "images" / middle["file_name"]).convert("RGB").save(target / name, optimize=True)
        truth[name] = {"count": counts[middle["id"]], "file": middle["file_name"]}
    truth["ihc.png"] = {"count": None, "file": SAMPLE}
    (target.parent / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def write_tiles(data: Path, target: Path) -> None:
    """Write test tiles with their maps."""
    truth: dict[str, Any] = {}
    for path in sorted((data / "segmentation" / "test" / "images").iterdir())[::2][: PICTURES - 1]:
        shutil.copy(path, target / path.name)
        labels = data / "segmentation" / "test" / "labels" / f"{path.stem}.png"
        shutil.copy(labels, target / f"{path.stem}_map.png")
        truth[path.name] = {"map": f"{path.stem}_map.png"}
    (target.parent / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def row(model: ComparedModel, names: tuple[str, ...]) -> str:
    """Return one line of the card's table."""
    scores = " | ".join(f"{model.scores[name]:.1%}" if name in model.scores else "-" for name in names)
    numbers = f"{model.macs / 1e9:.2f} G | {model.params / 1e6:.2f} M | {model.seconds * 1000:.0f} ms"
    return f"| {model.name} | {scores} | {numbers} |"


def ship(task: str, recipe: str, single: ModelConfig, args: argparse.Namespace, results: Results) -> None:
    """Write the assets of one task."""
    data = args.nuclei if task == "instances" else args.landcover
    folder, run = TASKS[task].assets, args.runs / Path(recipe).stem
    shutil.rmtree(folder, ignore_errors=True)
    about = save_shipped(run, folder / "model", task)
    scores, images = measure(task, folder / "model", data, results)
    other: dict[str, Any] = {"name": "single", "model": single.to_dict(), "scores": {}}
    if task == "instances" and (args.runs / "nuclei_single" / "best").is_dir():
        other["scores"] = measure(task, args.runs / "nuclei_single" / "best", data, results)[0]
    recorded = [{"name": "piip", "recipe": recipe, "scores": scores}, other]
    (folder / "results.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    (folder / "images").mkdir()
    if task == "instances":
        write_nuclei(data, folder / "images", args.wheels)
    else:
        write_tiles(data, folder / "images")
    card = card_text(task, about, images, compare(load_model(folder / "model"), recorded, side=TASKS[task].side))
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)


def card_text(task: str, about: dict[str, Any], images: int, models: Sequence[ComparedModel]) -> str:
    """Return the model card.

    Args:
        task: Of `TASKS`.
        about: The description of the run's best model.
        images: Number of images of the test split.
        models: The shipped model, then the one beside it.
    """
    recipe = f"recipes/{'instances/nuclei' if task == 'instances' else 'segmentation/landcover'}_piip.yaml"
    ratios = [models[0].macs / models[1].macs, models[0].seconds / models[1].seconds]
    return CARD.format(
        title=TASKS[task].title.split(", by")[0].lower(),
        about=ABOUT[task],
        recipe=recipe,
        seed=about["recipe"]["run"]["seed"],
        steps=about["steps"],
        data=DATA[task],
        images=images,
        limits=", at most 500 instances a picture" if task == "instances" else "",
        machine=f"{platform.machine()}, PyTorch {torch.__version__}",
        threads=torch.get_num_threads(),
        date=datetime.datetime.now(tz=datetime.timezone.utc).date(),
        side=TASKS[task].side,
        metrics=" | ".join(name.replace("_", " ") for name in SCORES[task]),
        rules="---:|" * len(SCORES[task]),
        rows="\n".join(row(model, SCORES[task]) for model in models),
        single=TRAINED if models[1].scores else UNTRAINED,
        macs=f"{ratios[0]:.2f}",
        time=f"{ratios[1]:.2f}",
        warning=WARNING[task],
    )


def main() -> None:
    """Write the assets of both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--nuclei", type=Path, default=Path("data/nuclei"), help="folder of `piip data nuclei`")
    parser.add_argument("--landcover", type=Path, default=Path("data/landcover"), help="of `piip data landcover`")
    parser.add_argument("--wheels", type=Path, default=Path("wheels"), help="folder with scikit-image's wheel")
    parser.add_argument("--task", choices=["instances", "segmentation"], help="one task only")
    args = parser.parse_args()
    results = Results(Path("out/ship_dense.json"), {"date": str(datetime.date.today())})
    single = load_recipe("recipes/instances/nuclei_single.yaml")
    recipes = {
        "instances": ("recipes/instances/nuclei_piip.yaml", "mask_rcnn"),
        "segmentation": ("recipes/segmentation/landcover_piip.yaml", "upernet"),
    }
    for task, (recipe, head) in recipes.items():
        if args.task in (None, task):
            values = single.model_config(num_classes=1).to_dict()
            widths = load_recipe(recipe).model.to_dict()["head"]
            values["head"] = {**values["head"], "kind": head, "width": widths["width"]}
            if task == "segmentation":
                values["head"]["num_classes"] = 10
            ship(task, recipe, ModelConfig.from_dict(values), args, results)
    results.write()


if __name__ == "__main__":
    main()
