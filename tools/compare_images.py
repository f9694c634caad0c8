"""Compare the shipped segmentors of nuclei image by image: how sure the differences are, and where each wins.

    piip data nuclei --download --semantic --out data/nuclei
    python tools/compare_images.py data/nuclei/semantic

Writes docs/images/evidence_images.jpg, the images of the test split where the pyramid gains and loses most against the
best single network, and prints differences of mIoU with a bootstrap interval over images, which says nothing about
other seeds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from piip.data.image_reading import read_rgb
from piip.demo.sheet import Bar, Tile, draw_sheet
from piip.demo.tasks import TASKS, Sample, read_labels
from piip.evaluation.metrics.semantic import SemanticMetric
from piip.inference.predictor import Predictor

TASK = TASKS["segmentation"]
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "evidence_images.jpg"
SHOWN, RESAMPLED = 3, 2000


@dataclass(frozen=True)
class Compared:
    """One image of the test split.

    Args:
        tile: The image, its target and what the models find.
        counts: Confusion matrices (M, K, K) of the models, the pyramid's first.
    """

    tile: Tile
    counts: Tensor


def miou(counts: Tensor) -> float:
    """Return the mIoU of a confusion matrix."""
    metric = SemanticMetric(len(counts))
    metric.counts = counts
    return metric.scores()["miou"]


def gain(counts: Tensor, model: int) -> float:
    """Return how much higher the first model's mIoU is, from confusion matrices (M, K, K)."""
    return miou(counts[0]) - miou(counts[model])


def compare_image(predictors: dict[str, Predictor], path: Path, labels: Path) -> Compared:
    """Predict one image with all models.

    Args:
        predictors: The models, the pyramid first.
        path: The image.
        labels: Its classes of pixels.
    """
    sample = Sample(path.stem[:8], read_rgb(path, upright=True), {"map": labels.name}, labels.parent)
    predictions = {name: predictor.predict([sample.image])[0] for name, predictor in predictors.items()}
    results = {name: TASK.result(prediction, sample) for name, prediction in predictions.items()}
    counts, target = [], read_labels(labels)
    for prediction in predictions.values():
        metric = SemanticMetric(len(prediction.classes))
        metric.add(prediction.labels, target)
        counts.append(metric.counts)
    return Compared(TASK.tile(sample, predictions, results), torch.stack(counts))


def interval(counts: Tensor, model: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % quantiles of the pyramid's gain over resampled images.

    Args:
        counts: Confusion matrices (N, M, K, K) of all images.
        model: Index of the other model.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(counts), (RESAMPLED, len(counts)), generator=generator)
    gains = torch.tensor([gain(counts[rows].sum(0), model) for rows in drawn])
    low, high = gains.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def main() -> None:
    """Compare, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder `semantic` of `piip data nuclei --semantic`")
    data = parser.parse_args().data
    rows = json.loads((TASK.assets / "results.json").read_text(encoding="utf-8"))
    predictors = {row["name"]: Predictor(TASK.assets / row["folder"], device="cpu") for row in rows}
    maps = sorted((data / "annotations" / "test").iterdir())
    found = [compare_image(predictors, data / "images" / "test" / path.name, path) for path in track(maps)]
    counts = torch.stack([image.counts for image in found])
    bars: dict[str, list[Bar]] = {"mIoU of the test split": [], "images where the pyramid is better": []}
    scores, better = bars.values()
    for model, name in enumerate(predictors):
        score = miou(counts.sum(0)[model])
        scores.append(Bar(name, score, f"{score:.1%}"))
        if model:
            low, high = interval(counts, model)
            won = sum(gain(each, model) > 0 for each in counts)
            better.append(Bar(name, won, f"{won} of {len(found)}"))
            found_gain = 100 * gain(counts.sum(0), model)
            print(
                f"piip - {name}: {found_gain:.1f} points of mIoU, 95 % interval {100 * low:.1f} to {100 * high:.1f}; "
                f"better in {won} of {len(found)} images"
            )
    best = max(rows[1:], key=lambda row: row["scores"]["miou"])["name"]
    ordered = sorted(found, key=lambda image: -gain(image.counts, [*predictors].index(best)))
    tiles = [image.tile for pair in zip(ordered[:SHOWN], ordered[: -SHOWN - 1 : -1], strict=True) for image in pair]
    subtitle = (
        f"Left: the images of the test split where the pyramid gains most against {best}; right: where it loses most"
    )
    draw_sheet("Pixels of nuclei", subtitle, tiles, bars, TASK.layout).save(FIGURE, quality=85)


if __name__ == "__main__":
    main()
