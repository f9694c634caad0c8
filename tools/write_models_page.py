"""Write docs/models.md: the authors' 50 models with published figures and the total cost that this library counts.

    python tools/write_models_page.py            # counts all models, some of six billion parameters: minutes, no memory
    python tools/write_models_page.py --keep     # takes the costs that the page has, for changes of words

A test compares the page with what this file would write from the page's own costs, and counts a few models again.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from piip.cost.estimate import estimate_cost
from piip.zoo.create import PublishedModel, list_models, published_models

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HUB = "https://huggingface.co/OpenGVLab"
HEAD = """\
<!-- written by tools/write_models_page.py: change the words there -->
# The authors' models

The 50 models of the authors' public release ([OpenGVLab/PIIP](https://github.com/OpenGVLab/PIIP), code state of
2025-08-05), by our names and by the names of their official records. `piip list` prints the names, `piip list --json`
everything below that is published.

- **Results, published G and M** are the authors' figures as printed: what they measured, billions of multiply-adds by
  [their rule](cost.md#the-rule-paper), millions of backbone parameters; "-" where none is printed.
- **Total G and M** are what `piip cost NAME` counts: all that runs, with merge and neck (or projector) but without the
  heads of detectors and segmenters and without language models.
- **Weights** leads to where the authors link them; "-" where they link none.

**None of these files was ever opened where this library was made**: outputs equal those of the authors' code on
synthetic weights ([official.md](official.md)), and no figure of theirs was measured again.

## Getting and converting a file

The weights of classifiers, detectors and segmenters are PyTorch files in one repository,
[OpenGVLab/PIIP]({hub}/PIIP) (154 GB in all), in folders named after the tasks; each multimodal model is a repository of
its own. The authors give the MIT licence, and say that parts come from other sources with licences of their own. Take
the one file you need, convert it by the name of its record, and load the result:

```sh
record=piip_3branch_tsb_368-192-128_cls_token_deit1
wget {hub}/PIIP/resolve/main/classification/$record.pth
piip convert $record.pth out/tsb --model $record
```

```python
model = piip.from_pretrained("out/tsb")
```

The record's name builds the authors' rules, with which their figures belong; our name builds the rules of
[architecture.md](architecture.md) and takes the same file.
"""

ENDS = {
    "classification": """\
Results are the top-1 accuracy on the 50,000 validation images of ImageNet-1K. With the images in `imagenet/val/CLASS/`
(a folder for each WordNet id, as torchvision's `ImageFolder` wants them):

```sh
piip evaluate out/tsb --data imagenet --split val
```

These classifiers were trained to read the top-left patch: converted by our name they read the mean of all patches, and
their accuracy is another one.
""",
    "detection": """\
Box and mask mAP are those of COCO val2017. The files hold whole detectors, and so does what `piip convert` makes of
them: backbone, head, the names of COCO's classes, and the authors' way of resizing. **COCO and the files were never
here, so no mAP was measured**; heads, losses and detections equal those of the authors' code on synthetic weights.

```sh
record=mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16
wget {hub}/PIIP/resolve/main/detection/$record.pth
piip convert $record.pth out/detector --model $record
```

```sh
piip evaluate out/detector --data coco --split annotations/instances_val2017.json --images val2017 --official
piip predict out/detector my/images --out out/found
```

For a head of your own take the backbone: levels of strides 4 to 32 (DINO: 8 to 32).

```python
backbone = piip.from_pretrained("out/detector").backbone
levels = backbone(images)  # (B, 3, H, W), normalised by the model's pretrained_cfg["mean"] and ["std"]
```
""",
    "segmentation": """\
Results are the mIoU on ADE20K's validation images. Files convert to whole segmentors that work by windows of 512 pixels
every 341. As with detection, **no mIoU was measured**.

```sh
record=upernet_internvit_h6b_512_512_80k_ade20k_bs16_lr4e-5
wget {hub}/PIIP/resolve/main/segmentation/$record.pth
piip convert $record.pth out/segmenter --model $record
piip evaluate out/segmenter --data ADEChallengeData2016 --split annotations/validation --images images/validation
```
""",
    "multimodal": """\
Each repository holds a whole language-and-vision model. `piip convert` takes the vision tower and the projector out of
it, which turn an image into tokens of the language model's width; **the language model is not part of this library**,
so the benchmarks cannot be run here alone.

```sh
hf download OpenGVLab/PIIP-LLaVA_CLIP-BL_512-256_7B --local-dir llava
piip convert llava out/tower --model piip-llava_clip-bl_512-256_7B
```
""",
}


class Cost(NamedTuple):
    """What the page says of a model's total cost, as printed.

    Args:
        macs: Billions of multiply-adds.
        params: Millions of parameters.
    """

    macs: str
    params: str


Column = tuple[str, Callable[[PublishedModel, Cost], str]]


def result(name: str, title: str | None = None) -> Column:
    """Return a column of the published results."""
    return title or name, lambda model, _: model.results.get(name, "-")


LEFT: list[Column] = [
    ("name", lambda model, _: f"`{model.name}`"),
    ("record", lambda model, _: f"`{model.record}`"),
]
RIGHT: list[Column] = [
    ("published G", lambda model, _: model.flops.removesuffix("G") or "-"),
    ("published M", lambda model, _: model.params.removesuffix("M") or "-"),
    ("total G", lambda _, cost: cost.macs),
    ("total M", lambda _, cost: cost.params),
    ("weights", lambda model, _: f"[link]({model.file})" if model.file else "-"),
]
SETTINGS: list[Column] = [
    ("images at test", lambda model, _: model.evaluation["images"]),
    ("training", lambda model, _: model.training),
]
BENCHMARKS = ("MMB<sup>EN</sup>", "MMVet", "TextVQA", "SQA<sup>I</sup>", "GQA", "VQAv2", "SEED<sup>I</sup>", "POPE")
TASKS: dict[str, tuple[str, list[Column]]] = {
    "classification": ("Classification: ImageNet-1K", [*LEFT, result("Top-1 Acc", "top-1 %"), *RIGHT, *SETTINGS]),
    "detection": (
        "Detection and instance segmentation: COCO",
        [
            *LEFT,
            ("head", lambda model, _: model.head),
            result("Box mAP", "box mAP"),
            result("Mask mAP", "mask mAP"),
            *RIGHT,
            *SETTINGS,
        ],
    ),
    "segmentation": ("Semantic segmentation: ADE20K, UperNet", [*LEFT, result("mIoU"), *RIGHT, *SETTINGS]),
    "multimodal": (
        "Multimodal models: vision tower and projector",
        [
            *LEFT,
            ("language model", lambda model, _: model.head),
            *(result(name) for name in BENCHMARKS),
            result("Avg", "average"),
            *(column for column in RIGHT if column[0] != "published M"),
            ("images at test", lambda model, _: model.evaluation["images"]),
        ],
    ),
}


def write_page(costs: Mapping[str, Cost]) -> str:
    """Return the page.

    Args:
        costs: By official record; for all 50 models.
    """
    parts = [HEAD.format(hub=HUB)]
    for task, (title, columns) in TASKS.items():
        models = [model for model in published_models() if model.task == task]
        parts += [f"## {title}\n", table(models, columns, costs), ENDS[task].format(hub=HUB)]
        parts += notes(models)
    return "\n".join(parts)


def table(models: Sequence[PublishedModel], columns: Sequence[Column], costs: Mapping[str, Cost]) -> str:
    """Return the table of one task."""
    rows = [[title for title, _ in columns], ["---"] * len(columns)]
    rows += [[cell(model, costs[model.record]) for _, cell in columns] for model in models]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def notes(models: Sequence[PublishedModel]) -> list[str]:
    """Return what to know before comparing, each note with its models."""
    texts: dict[str, list[str]] = {model.note: [] for model in models if model.note}
    for model in models:
        if model.note:
            texts[model.note].append(f"`{model.name}`")
    return [f"{text} ({', '.join(names)})\n" for text, names in texts.items()]


def read_costs(page: str) -> dict[str, Cost]:
    """Return the costs that a page has, by official record."""
    found: dict[str, Cost] = {}
    header: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if cells[:2] == ["name", "record"]:
            header = cells
        elif len(cells) > 2 and len(cells) == len(header) and re.fullmatch(r"`.+`", cells[1]):
            row = dict(zip(header, cells, strict=True))
            found[row["record"].strip("`")] = Cost(row["total G"], row["total M"])
    return found


def count(model: PublishedModel) -> Cost:
    """Count one model, on PyTorch's meta device."""
    report = estimate_cost(model.name)
    return Cost(f"{report.macs / 1e9:.1f}", f"{report.params / 1e6:.1f}")


def count_all() -> dict[str, Cost]:
    """Count all models, saying what is being counted."""
    known = {*list_models()}
    missing = [model.name for model in published_models() if model.name not in known]
    if missing:
        sys.exit(f"{len(missing)} of the 50 models have no name in this library: {', '.join(missing)}")
    costs = {}
    for model in published_models():
        start = time.perf_counter()
        costs[model.record] = count(model)
        print(f"{model.name}: {costs[model.record].macs} G, {time.perf_counter() - start:.1f} s", flush=True)
    return costs


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="take the costs that the page has")
    costs = read_costs(PAGE.read_text(encoding="utf-8")) if parser.parse_args().keep else count_all()
    PAGE.write_text(write_page(costs), encoding="utf-8")
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
