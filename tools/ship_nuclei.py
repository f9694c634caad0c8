"""Make the assets of the demo of the detector: weights, recorded scores, images and model card.

    piip train recipes/instances/nuclei_piip.yaml
    pip download --no-deps --dest wheels scikit-image==0.26.0
    python tools/ship_nuclei.py --runs runs --nuclei data/nuclei --wheels wheels

A run `runs/nuclei_single` (`recipes/instances/nuclei_single.yaml`) is measured beside it where it is there; otherwise
that model is only counted and timed. The weights that did best in validation are rounded to bfloat16, and measured so,
in float32, on the whole test split. What was measured is kept in out/ship_nuclei.json, also where the tool is stopped;
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

from piip.demo.run import ComparedModel, compare
from piip.demo.tasks import TASKS
from piip.evaluation.dense import evaluate_dense
from piip.recipe import load_recipe
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.save import save_model

PICTURES = 5
SAMPLE = "skimage/data/ihc.png"
SCORES = ("mask_ap", "mask_ap50", "mask_ap75", "box_ap", "box_ap50")
RECIPE = "recipes/instances/nuclei_piip.yaml"
TASK = TASKS["instances"]
CARD = """# Model card: nuclei in microscope images

A Mask R-CNN over two small ConvNeXt branches, the larger one at half the resolution, that finds and outlines nuclei in
microscope images.

- **Made by** `piip train {recipe}` (seed {seed}, {steps} steps from scratch, weights averaged), then
  `python tools/ship_nuclei.py`. These are the weights that did best in validation, stored in bfloat16.
- **Data**: `piip data nuclei`, the 2018 Data Science Bowl's stage-1 training images with corrected masks (CC0).
  Images that look alike lie in one split. `ihc.png` is scikit-image 0.26.0's sample of immunohistochemistry (Center for
  Microscopy and Molecular Imaging, no known copyright restrictions), which no split contains.
- **Measured** on the {images} images of the test split, at most 500 instances an image, on {machine},
  {threads} thread(s), {date}; multiply-adds and time are those of backbone and neck at {side} x {side}, one image, the
  models taking turns:

| model | {metrics} | MACs | parameters | time |
|---|{rules}---:|---:|---:|
{rows}

{single}
The pyramid takes {macs} times its multiply-adds and {time} times its time: at these widths time goes into many small
operations. No claim of the papers is tested here.

**For**: showing that the parts of this library work together. **Not for**: diagnosis or counting that matters.
"""
TRAINED = (
    "`single` is its larger network alone at full resolution with the same head, trained by the same schedule, once."
)
UNTRAINED = (
    "`single`, its larger network alone at full resolution with the same head, was not trained: it is there for cost\n"
    "and time."
)


def save_shipped(run: Path, target: Path) -> dict[str, Any]:
    """Write the best model of a run in bfloat16, without the folders of this machine; return its description."""
    about = read_description(run / "best")
    kept = {key: about[key] for key in ("classes", "dense", "detections", "recipe", "metrics", "steps") if key in about}
    kept["recipe"]["run"]["out"] = f"runs/{run.name}"
    kept["recipe"]["data"]["root"] = "data/nuclei"
    save_model(load_model(run / "best"), target, kept, dtype="bf16")
    for path in target.iterdir():
        path.chmod(0o644)
    return about


def measure(model: Path, data: Path, results: Results) -> tuple[dict[str, float], int]:
    """Return the scores on the test split, and its number of images."""
    say(f"measuring {model}")
    report = evaluate_dense(model, data, split="test.json", images="images", device="cpu")
    scores = {name: round(report.scores[name], 4) for name in SCORES}
    results.put(str(model), {"model": str(model), "scores": scores, "images": report.images})
    say(str(scores))
    return scores, report.images


def write_images(data: Path, target: Path, wheels: Path) -> None:
    """Write test images, one of each size, and scikit-image's sample, with the number of nuclei where it is known."""
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


def row(model: ComparedModel) -> str:
    """Return one line of the card's table."""
    scores = " | ".join(f"{model.scores[name]:.1%}" if name in model.scores else "-" for name in SCORES)
    numbers = f"{model.macs / 1e9:.2f} G | {model.params / 1e6:.2f} M | {model.seconds * 1000:.0f} ms"
    return f"| {model.name} | {scores} | {numbers} |"


def card_text(about: dict[str, Any], images: int, models: Sequence[ComparedModel]) -> str:
    """Return the model card.

    Args:
        about: The description of the run's best model.
        images: Number of images of the test split.
        models: The shipped model, then the one beside it.
    """
    return CARD.format(
        recipe=RECIPE,
        seed=about["recipe"]["run"]["seed"],
        steps=about["steps"],
        images=images,
        machine=f"{platform.machine()}, PyTorch {torch.__version__}",
        threads=torch.get_num_threads(),
        date=datetime.datetime.now(tz=datetime.timezone.utc).date(),
        side=TASK.side,
        metrics=" | ".join(name.replace("_", " ") for name in SCORES),
        rules="---:|" * len(SCORES),
        rows="\n".join(map(row, models)),
        single=TRAINED if models[1].scores else UNTRAINED,
        macs=f"{models[0].macs / models[1].macs:.2f}",
        time=f"{models[0].seconds / models[1].seconds:.2f}",
    )


def main() -> None:
    """Write the assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with the runs")
    parser.add_argument("--nuclei", type=Path, default=Path("data/nuclei"), help="folder of `piip data nuclei`")
    parser.add_argument("--wheels", type=Path, default=Path("wheels"), help="folder with scikit-image's wheel")
    args = parser.parse_args()
    results = Results(Path("out/ship_nuclei.json"), {"date": str(datetime.date.today())})
    folder = TASK.assets
    shutil.rmtree(folder, ignore_errors=True)
    about = save_shipped(args.runs / Path(RECIPE).stem, folder / "model")
    scores, images = measure(folder / "model", args.nuclei, results)
    single = load_recipe("recipes/instances/nuclei_single.yaml").model_config(num_classes=1)
    other: dict[str, Any] = {"name": "single", "folder": None, "model": single.to_dict(), "scores": {}}
    if (args.runs / "nuclei_single" / "best").is_dir():
        other["scores"] = measure(args.runs / "nuclei_single" / "best", args.nuclei, results)[0]
    recorded = [{"name": "piip", "folder": "model", "recipe": RECIPE, "scores": scores}, other]
    (folder / "results.json").write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    (folder / "images").mkdir()
    write_images(args.nuclei, folder / "images", args.wheels)
    card = card_text(about, images, compare(TASK, {"piip": load_model(folder / "model")}, recorded))
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)
    results.write()


if __name__ == "__main__":
    main()
