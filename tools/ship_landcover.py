"""Make the demo's assets from the three land-cover runs: weights, recorded results, pictures and model card.

    for name in piip single equal; do
        piip train recipes/classification/landcover_$name.yaml --out runs/landcover_$name
    done
    python tools/ship_landcover.py --runs runs --data data/landcover

All three models are measured as the first one is shipped: weights rounded to bfloat16, computed in float32, on the
whole test split. Times are medians of rounds in which the models take turns. What was measured is kept in
out/ship_landcover.json, also where the tool is stopped; the next run starts anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from common.progress import Results, say

import piip
from piip.data.sources.landcover_samples import export_demo_subset
from piip.demo import ASSETS
from piip.evaluation.classification import evaluate
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.save import save_model
from piip.training.run_folder import checkpoint_step, find_checkpoint

NAMES = ("piip", "single", "equal")
ROUNDS, BATCH = 15, 16
CARD = """# Model card: land cover, inverted pyramid

Three small ViTs (192, 96 and 48 channels wide) that see a 128-pixel satellite picture at 64, 96 and 128 pixels and name
the land cover of its centre:
{classes}.

- **Made by** `piip train recipes/classification/landcover_piip.yaml` (seed {seed}, {steps} steps from scratch, weights
  averaged), then `python tools/ship_landcover.py`. Weights are stored in bfloat16.
- **Data**: `piip data landcover`, NASA Blue Marble photograph with MODIS MCD12C1 land cover of 2019; held-out bands of
  longitude. Both are free to use; see docs/data.md.
- **Measured** on the whole test split of {images} pictures, on {machine}, {threads} thread(s), {date}:

| model | recipe | top-1 | mean over classes | MACs | parameters | time for one of {batch} images |
|---|---|---:|---:|---:|---:|---:|
{rows}

The three runs share one schedule and one seed; how much another seed changes was not measured. Eight epochs
from scratch on 7,000 pictures are far from the papers' setting (pretrained networks, high resolution): the
table is a record of these three runs, not evidence for or against inverted pyramids. At 16 to 64 tokens a
branch, time goes into starting many small operations and does not follow the multiply-adds.

The pictures in `images/` are from the test split: an even choice of each class, so accuracy on them is not the
accuracy on the whole split.

**For**: showing that the parts of this library work together. **Not for**: mapping. Classes follow a coarse global map,
the photograph shows one northern winter, and test pictures overlap each other.
"""


def measure(model_dir: Path, data: Path) -> dict[str, Any]:
    """Evaluate a saved model on the test split and count it."""
    report = evaluate(model_dir, data / "classification", split="test", device="cpu")
    cost = piip.estimate_cost(load_model(model_dir))
    return {
        "scores": {"top1": round(report.top1, 4), "mean_class": round(report.mean_class, 4)},
        "test_images": report.images,
        "per_class": {name: round(share, 4) for name, share in report.per_class.items() if share is not None},
        "macs": cost.macs,
        "params": cost.params,
        "activation_bytes": cost.activation_bytes,
    }


def times(model_dirs: dict[str, Path]) -> dict[str, float]:
    """Return seconds for one image of a batch, medians of rounds in which the models take turns."""
    models = {name: load_model(path).eval() for name, path in model_dirs.items()}
    images = torch.randn(BATCH, 3, 128, 128)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for round_ in range(ROUNDS + 2):
            say(f"round {round_ + 1} of {ROUNDS + 2}")
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                seconds[name].append((time.perf_counter() - start) / BATCH)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def row(entry: dict[str, Any]) -> str:
    """Return one line of the card's table."""
    return (
        f"| {entry['name']} | `{Path(entry['recipe']).name}` | {entry['scores']['top1']:.1%} | "
        f"{entry['scores']['mean_class']:.1%} | {entry['macs'] / 1e6:.0f} M | {entry['params'] / 1e6:.2f} M | "
        f"{entry['seconds_per_image'] * 1e3:.2f} ms |"
    )


def main() -> None:
    """Write the assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder with landcover_piip, _single, _equal")
    parser.add_argument("--data", type=Path, default=Path("data/landcover"), help="folder of `piip data landcover`")
    parser.add_argument("--per-class", type=int, default=20, help="pictures of each class to ship")
    args = parser.parse_args()
    results = Results(Path("out/ship_landcover.json"), {"per_class": args.per_class})
    entries = results.by_key
    with tempfile.TemporaryDirectory() as scratch:
        dirs = {}
        for name in NAMES:
            run = args.runs / f"landcover_{name}" / "model"
            about = read_description(run)
            kept = {key: about[key] for key in ("classes", "transform", "recipe", "metrics") if key in about}
            kept["recipe"]["run"]["out"] = f"runs/landcover_{name}"  # not the folders of the machine it ran on
            kept["recipe"]["data"]["root"] = "data/landcover/classification"
            dirs[name] = Path(scratch) / name
            save_model(load_model(run), dirs[name], kept, dtype="bf16")
            recipe = f"recipes/classification/landcover_{name}.yaml"
            facts = {"name": name, "folder": "model" if name == "piip" else None, "recipe": recipe}
            facts["seed"] = about["recipe"]["run"]["seed"]
            facts |= {} if name == "piip" else {"model": about["model"]}
            results.put(name, {**facts, **measure(dirs[name], args.data)})
            say(json.dumps(entries[name]))
        for name, seconds in times(dirs).items():
            results.put(name, {**entries[name], "seconds_per_image": round(seconds, 6)})
        results.write()
        shutil.rmtree(ASSETS, ignore_errors=True)
        shutil.copytree(dirs["piip"], ASSETS / "model")
    for path in (ASSETS / "model").iterdir():
        path.chmod(0o644)
    about = read_description(args.runs / "landcover_piip" / "model")
    newest = find_checkpoint(args.runs / "landcover_piip", "auto")
    export_demo_subset(args.data, ASSETS / "images", args.per_class)
    labels = json.loads((ASSETS / "images" / "labels.json").read_text(encoding="utf-8"))
    known = {entry["file"]: {"class": entry["class"]} for entry in labels}
    (ASSETS / "truth.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (ASSETS / "results.json").write_text(json.dumps(list(entries.values()), indent=1) + "\n", encoding="utf-8")
    card = CARD.format(
        classes=", ".join(name.replace("_", " ") for name in about["classes"]),
        seed=entries["piip"]["seed"],
        steps=checkpoint_step(newest) if newest else "an unknown number of",
        images=entries["piip"]["test_images"],
        machine=f"{platform.machine()}, PyTorch {torch.__version__}",
        threads=torch.get_num_threads(),
        date=datetime.date.today().isoformat(),
        batch=BATCH,
        rows="\n".join(row(entry) for entry in entries.values()),
    )
    (ASSETS / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
