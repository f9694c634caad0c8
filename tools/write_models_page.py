"""Write docs/models.md: the authors' 50 models with published figures, other named models, and the total costs.

    python tools/write_models_page.py            # counts all models, some with six billion parameters; takes minutes
    python tools/write_models_page.py --keep     # keeps the costs in the page, for changes to the text

Counts are saved in out/models_page.json, even if the tool is interrupted; the next run starts anew.

A test compares the page with the output of this file for the page's own costs, and recounts a few models.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path += [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "benchmarks")]

from common.progress import Results, say
from today_section import names as names_of_today
from today_section import write_section

from piip.cost import estimate_cost
from piip.zoo import PublishedModel, list_models, model_config, published_models

COUNTED = Path("out/models_page.json")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HUB = "https://huggingface.co/OpenGVLab"
HEAD = """\
<!-- written by tools/write_models_page.py: change the words there -->
# Models by name

`piip list` prints all names: the authors' 50 models and [pyramids of today's networks](#networks-of-today).

## The authors' models

The 50 models of the authors' public release ([OpenGVLab/PIIP](https://github.com/OpenGVLab/PIIP), code state of
2025-08-05), with our names and the names of their official records. `piip list --json` also prints all published data
below.

- **Results, published G and M** are the authors' figures as printed: results, billions of multiply-adds by
  [their rule](cost.md#the-rule-paper), millions of backbone parameters; "-" if not published.
- **Total G and M** are the counts of `piip cost NAME`: all operations of the whole model, with merge, neck and head (or
  projector), but without language models.
- **Head G and M** are the share of the head in the total: of Mask R-CNN with 1,000 proposals and 100 detections, of
  DINO with 900 queries, of UperNet for one window of the nominal size ([cost.md](cost.md#heads)).
- **Weights** links to the authors' file; "-" if they link none.

**None of these files was available during development.** Outputs equal those of the authors' code on synthetic weights
([official.md](official.md)); none of the authors' results was reproduced.

## Downloading and converting a file

The weights of classifiers, detectors and segmentors are PyTorch files in one repository,
[OpenGVLab/PIIP]({hub}/PIIP) (154 GB in total), in folders named after the tasks. Each multimodal model has its own
repository. The authors' licence is MIT; they state that parts come from other sources with their own licences.
Download the file you need, convert it with the name of its record, and load the result:

```sh
record=piip_3branch_tsb_368-192-128_cls_token_deit1
wget {hub}/PIIP/resolve/main/classification/$record.pth
piip convert $record.pth out/tsb --model $record
```

```python
model = piip.from_pretrained("out/tsb")
```

The record's name builds the model with the authors' rules, which their figures refer to. Our name builds it with the
rules of [architecture.md](architecture.md) and accepts the same file.
"""

ENDS = {
    "classification": """\
Results are the top-1 accuracy on the 50,000 validation images of ImageNet-1K. With the images in `imagenet/val/CLASS/`
(one folder per WordNet id, as for torchvision's `ImageFolder`):

```sh
piip evaluate out/tsb --data imagenet --split val
```

These classifiers were trained to classify from the top-left patch. Converted with our name they use the mean of all
patches, and their accuracy differs.
""",
    "detection": """\
Results are box and mask mAP on COCO val2017. The files contain whole detectors, and so does the converted model:
backbone, head, COCO's class names, and the authors' resizing. **COCO and the files were not available, so no mAP was
measured**; heads, losses and detections equal those of the authors' code on synthetic weights.

```sh
record=mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16
wget {hub}/PIIP/resolve/main/detection/$record.pth
piip convert $record.pth out/detector --model $record
```

```sh
piip evaluate out/detector --data coco --split annotations/instances_val2017.json --images val2017 --official
piip predict out/detector my/images --out out/found
```

To use your own head, take the backbone. It returns levels of strides 4 to 32 (DINO: 8 to 32).

```python
backbone = piip.from_pretrained("out/detector").backbone
levels = backbone(images)  # (B, 3, H, W), normalised by the model's pretrained_cfg["mean"] and ["std"]
```
""",
    "segmentation": """\
Results are the mIoU on ADE20K's validation images. The files are converted to whole segmentors that predict by sliding
windows of 512 pixels with a stride of 341. As with detection, **no mIoU was measured**.

```sh
record=upernet_internvit_h6b_512_512_80k_ade20k_bs16_lr4e-5
wget {hub}/PIIP/resolve/main/segmentation/$record.pth
piip convert $record.pth out/segmentor --model $record
piip evaluate out/segmentor --data ADEChallengeData2016 --split annotations/validation --images images/validation
```
""",
    "multimodal": """\
Each repository contains a whole vision-language model. `piip convert` extracts the vision tower and the projector,
which turn an image into tokens of the language model's width. **The language model is not part of this library**, so
the benchmarks cannot be run with it alone.

```sh
hf download OpenGVLab/PIIP-LLaVA_CLIP-BL_512-256_7B --local-dir llava
piip convert llava out/tower --model piip-llava_clip-bl_512-256_7B
```
""",
}


class Cost(NamedTuple):
    """Total cost of a model, as printed in the page.

    Args:
        macs: Billions of multiply-adds.
        params: Millions of parameters.
        head_macs: Those of the detection or segmentation head; "-" for other models.
        head_params: Its parameters; "-" for other models.
    """

    macs: str
    params: str
    head_macs: str = "-"
    head_params: str = "-"


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
DENSE_RIGHT: list[Column] = [
    *RIGHT[:3],
    ("head G", lambda _, cost: cost.head_macs),
    *RIGHT[3:4],
    ("head M", lambda _, cost: cost.head_params),
    *RIGHT[4:],
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
            *DENSE_RIGHT,
            *SETTINGS,
        ],
    ),
    "segmentation": ("Semantic segmentation: ADE20K, UperNet", [*LEFT, result("mIoU"), *DENSE_RIGHT, *SETTINGS]),
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
        costs: By official record for the authors' models, by name for the others.
    """
    parts = [HEAD.format(hub=HUB)]
    for task, (title, columns) in TASKS.items():
        models = [model for model in published_models() if model.task == task]
        parts += [f"## {title}\n", table(models, columns, costs), ENDS[task].format(hub=HUB)]
        parts += notes(models)
    return "\n".join([*parts, write_section(costs)])


def table(models: Sequence[PublishedModel], columns: Sequence[Column], costs: Mapping[str, Cost]) -> str:
    """Return the table of one task."""
    rows = [[title for title, _ in columns], ["---"] * len(columns)]
    rows += [[cell(model, costs[model.record]) for _, cell in columns] for model in models]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def notes(models: Sequence[PublishedModel]) -> list[str]:
    """Return the notes on comparability, each with its models."""
    texts: dict[str, list[str]] = {model.note: [] for model in models if model.note}
    for model in models:
        if model.note:
            texts[model.note].append(f"`{model.name}`")
    return [f"{text} ({', '.join(names)})\n" for text, names in texts.items()]


def read_costs(page: str) -> dict[str, Cost]:
    """Return the costs in a page, by official record; by name for models without one."""
    found: dict[str, Cost] = {}
    header: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if cells[:1] == ["name"]:
            header = cells
        elif len(cells) > 2 and len(cells) == len(header) and re.fullmatch(r"`.+`", cells[0]):
            row = dict(zip(header, cells, strict=True))
            of_head = (row.get("head G", "-"), row.get("head M", "-"))
            key = row.get("record", row["name"]).strip("`")
            found[key] = Cost(row["total G"], row["total M"], *of_head)
    return found


def count(name: str) -> Cost:
    """Count one model by its name, on PyTorch's meta device."""
    report = estimate_cost(name)
    total = (f"{report.macs / 1e9:.1f}", f"{report.params / 1e6:.1f}")
    if not model_config(name).head.is_dense:
        return Cost(*total)
    head = (report.macs - report.without_head.macs, report.params - report.without_head.params)
    return Cost(*total, f"{head[0] / 1e9:.1f}", f"{head[1] / 1e6:.1f}")


def count_all() -> dict[str, Cost]:
    """Count all models, report progress and save the counts to `COUNTED`."""
    known = {*list_models()}
    missing = [model.name for model in published_models() if model.name not in known]
    if missing:
        sys.exit(f"{len(missing)} of the 50 models have no name in this library: {', '.join(missing)}")
    costs: dict[str, Cost] = {}
    results = Results(COUNTED, {"unit": "G multiply-adds, M parameters"})
    keys = {model.record: model.name for model in published_models()} | {name: name for name in names_of_today()}
    for key, name in keys.items():
        costs[key] = count(name)
        results.put(key, {"record": key, **costs[key]._asdict()})
        say(f"{len(costs)} of {len(keys)}: {name}: {costs[key].macs} G")
    results.write()
    return costs


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the costs in the page")
    costs = read_costs(PAGE.read_text(encoding="utf-8")) if parser.parse_args().keep else count_all()
    PAGE.write_text(write_page(costs), encoding="utf-8")
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
