"""Make the assets of the demo of pixels of nuclei from a comparison: a pyramid and single networks.

    piip compare recipes/compare/nuclei_resolution.yaml --threads 1
    python tools/ship_nuclei_maps.py runs/compare/nuclei_resolution --pyramid LABEL --single LABEL LABEL

Of the seeds of each, the one that did best in validation is shipped. Its weights are rounded to bfloat16, and measured
so, in float32, on the whole test split. The images are those of the detector's demo that are in the test split.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from piip.demo.run import ComparedModel, compare
from piip.demo.tasks import TASKS
from piip.evaluation.dense import evaluate_dense
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.save import save_model

TASK = TASKS["segmentation"]
SCORES = ("miou", "aacc", "macc")
PALETTE = ((32, 36, 60), (60, 160, 255), (255, 205, 60))  # background, interior, border
CARD = """# Model card: pixels of nuclei, by a pyramid and by single networks

Segmentors that say of every pixel of a microscope image whether it is background, the interior of a nucleus or its
border: `model`, an inverted pyramid ({pyramid}), and single networks of the comparison it was trained
in. The networks are plain ViTs of six blocks from scratch; the head is the same for all.

- **Made by** `piip compare recipes/compare/nuclei_resolution.yaml --threads 1` ({steps} steps a run), then
  `python tools/ship_nuclei_maps.py {arguments}`.
  Of the seeds of each, the one that did best in validation is shipped, in bfloat16.
- **Data**: `piip data nuclei --semantic`, the 2018 Data Science Bowl's stage-1 training images with corrected masks
  (CC0). Images that look alike lie in one split.
- **Measured** on the {images} images of the test split, on {machine}, {threads} thread(s), {date}; multiply-adds and
  time are those of the whole model, head included, at {side} x {side}, one image, the models taking turns, optimized
  for inference:

| folder | model | mIoU over seeds | mIoU | pixels right | mean of classes | multiply-adds | parameters | time | seed |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

| IoU of a class | {classes} |
|---|{rules}
{class_rows}

All miss many of the borders, which are two pixels wide. "mIoU over seeds" is of the unrounded weights, mean and
standard deviation; the others are of what is shipped. What the comparison says, and what not: docs/evidence.md.

**For**: comparing the models on your own images. **Not for**: diagnosis or counting that matters.
"""


def best_run(content: dict[str, Any], label: str) -> dict[str, Any]:
    """Return the run of a model that did best in validation, at the rate that was chosen."""
    metric, rate = content["metrics"][0], find(content["models"], label)["rate"]
    runs = [row for row in finished(content, label) if row["rate"] == rate]
    return max(runs, key=lambda row: row["validation"][metric])  # type: ignore[no-any-return]


def finished(content: dict[str, Any], label: str) -> list[dict[str, Any]]:
    """Return the measured runs of a model."""
    return [row for row in content["runs"] if row["label"] == label and row["fraction"] == 1 and row.get("scores")]


def find(models: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    """Return the model of a label."""
    return next(model for model in models if model["label"] == label)


def ship(comparison: Path, content: dict[str, Any], label: str, place: tuple[str, str], nuclei: Path) -> dict[str, Any]:
    """Write one model with a name into a folder of the assets; return its entry in results.json."""
    name, folder = place
    run, target = best_run(content, label), TASK.assets / folder
    best = comparison / run["folder"] / "best"
    about = read_description(best)
    kept = {key: about[key] for key in ("classes", "dense", "recipe", "metrics", "steps") if key in about}
    kept["recipe"]["run"]["out"] = f"runs/{comparison.name}/{run['folder']}"
    kept["recipe"]["data"]["root"] = "data/nuclei/semantic"
    save_model(load_model(best), target, {**kept, "palette": PALETTE}, dtype="bf16")
    for path in target.iterdir():
        path.chmod(0o644)
    report = evaluate_dense(target, nuclei / "semantic", split="annotations/test", images="images/test", device="cpu")
    seeds = [row["scores"]["miou"] for row in finished(content, label) if row["rate"] == run["rate"]]
    return {
        "name": name,
        "folder": folder,
        "label": label,
        "seed": run["seed"],
        "scores": {score: round(report.scores[score], 4) for score in SCORES},
        "class_iou": {name: round(row["iou"], 4) for name, row in report.per_class.items()},
        "seeds": {"miou": [round(value, 4) for value in seeds]},
        "images": report.images,
    }


def write_images(nuclei: Path, target: Path) -> None:
    """Write the labelled images of the detector's demo, with their classes of pixels."""
    target.mkdir()
    detector = TASKS["instances"].assets
    truth = {}
    for name, known in json.loads((detector / "truth.json").read_text(encoding="utf-8")).items():
        labels = nuclei / "semantic" / "annotations" / "test" / f"{Path(known['file']).stem}.png"
        if labels.is_file():
            shutil.copyfile(detector / "images" / name, target / name)
            truth[name] = {"map": f"{Path(name).stem}_map.png", "file": known["file"]}
            Image.open(labels).save(target / truth[name]["map"], optimize=True)
    (target.parent / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def row(model: ComparedModel, entry: dict[str, Any]) -> str:
    """Return one line of the card's table."""
    seeds = entry["seeds"]["miou"]
    spread = f" ± {100 * statistics.stdev(seeds):.1f}" if len(seeds) > 1 else ""
    scores = " | ".join(f"{model.scores[name]:.1%}" for name in SCORES)
    mean = f"{100 * statistics.fmean(seeds):.1f}{spread}% ({len(seeds)})"
    numbers = f"{model.macs / 1e9:.2f} G | {model.params / 1e6:.2f} M | {model.seconds * 1000:.0f} ms"
    return f"| `{entry['folder']}` | {entry['label']} | {mean} | {scores} | {numbers} | {entry['seed']} |"


def class_row(entry: dict[str, Any]) -> str:
    """Return one line of the card's table of classes."""
    return f"| {entry['label']} | {' | '.join(f'{iou:.1%}' for iou in entry['class_iou'].values())} |"


def main() -> None:
    """Write the assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="folder of `piip compare`, with its runs")
    parser.add_argument("--pyramid", required=True, help="label of the pyramid")
    parser.add_argument("--single", required=True, nargs="+", help="labels of single networks, the best first")
    parser.add_argument("--nuclei", type=Path, default=Path("data/nuclei"), help="of `piip data nuclei --semantic`")
    args = parser.parse_args()
    content = json.loads((args.comparison / "results.json").read_text(encoding="utf-8"))
    folder = TASK.assets
    shutil.rmtree(folder, ignore_errors=True)
    shipped = {args.pyramid: ("piip", "model")}
    for label in args.single:
        name = label.partition("@")[0]
        shipped[label] = (name, name.lower().replace("-", "_"))
    entries = [ship(args.comparison, content, label, place, args.nuclei) for label, place in shipped.items()]
    (folder / "results.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    write_images(args.nuclei, folder / "images")
    included = {entry["name"]: load_model(folder / entry["folder"]) for entry in entries}
    models = compare(TASK, included, entries)
    card = CARD.format(
        pyramid=args.pyramid,
        arguments=f"{args.comparison} --pyramid {args.pyramid} --single {' '.join(args.single)}",
        classes=" | ".join(entries[0]["class_iou"]),
        rules="---:|" * len(entries[0]["class_iou"]),
        class_rows="\n".join(map(class_row, entries)),
        steps=best_run(content, args.pyramid)["steps"],
        images=entries[0]["images"],
        machine=f"{platform.machine()}, PyTorch {torch.__version__}",
        threads=torch.get_num_threads(),
        date=datetime.datetime.now(tz=datetime.timezone.utc).date(),
        side=TASK.side,
        rows="\n".join(map(row, models, entries)),
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
