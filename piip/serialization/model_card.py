"""The README.md beside a saved model, written from its description."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piip.backbone import PIIPBackbone
from piip.config import DENSE_HEADS, HeadConfig, ModelConfig
from piip.cost.estimate import CostReport, estimate_cost
from piip.cost.total import find_backbone
from piip.serialization.base import DescribedModel
from piip.zoo.create import published_models

CARD_NAME = "README.md"
MARK = "<!-- written by piip, {digest}: remove this line or change the text, and it stays as it is -->\n"
SEAL = re.compile(re.escape(MARK).replace(re.escape("{digest}"), "([0-9a-f]{16})"))

AUTHORS = "https://github.com/OpenGVLab/PIIP"
EXCHANGES = {"both": "in both directions", "to_coarse": "towards the larger one", "to_fine": "towards the smaller one"}
KINDS = {
    "none": "Backbone",
    "projector": "Vision tower",
    "mask_rcnn": "Instance segmentation",
    "dino": "Detector",
    "upernet": "Semantic segmentation",
}  # others are classifiers
HUB_TASKS = {
    "none": "image-feature-extraction",
    "projector": "image-feature-extraction",
    "mask_rcnn": "image-segmentation",
    "dino": "object-detection",
    "upernet": "image-segmentation",
}
SOURCES = """\
Built with `piip`, an independent implementation of

- X. Zhu et al.: *Parameter-Inverted Image Pyramid Networks*, NeurIPS 2024,
  [arXiv 2406.04330](https://arxiv.org/abs/2406.04330)
- Z. Wang et al.: *Parameter-Inverted Image Pyramid Networks for Visual Perception and Multimodal Understanding*,
  [arXiv 2501.07783](https://arxiv.org/abs/2501.07783)
"""


def write_card(model: DescribedModel, directory: str | Path, *, hub_id: str | None = None) -> bool:
    """Write the card of a model, unless somebody wrote or changed the one that is there.

    Args:
        model: With a description; its metadata is read as well.
        directory: Where README.md belongs.
        hub_id: "owner/name" where the model will be found; None names the directory itself.

    Returns:
        Whether the card was written.
    """
    path = Path(directory) / CARD_NAME
    if path.is_file() and not is_generated(path.read_text(encoding="utf-8")):
        return False
    path.write_text(model_card(model, hub_id=hub_id), encoding="utf-8")
    return True


def is_generated(card: str) -> bool:
    """Return whether a card is as `model_card` wrote it."""
    found = SEAL.search(card)
    return found is not None and found.group(1) == _digest(SEAL.sub("", card))


def model_card(model: DescribedModel, *, hub_id: str | None = None) -> str:
    """Return a model's card: what it is, what it costs, what it takes and how it is used.

    Args:
        model: With a description. Of its metadata the card shows "name", "license", "metrics" and "converted" (what
            `piip convert` read).
        hub_id: "owner/name" where the model is found; None names the card's own directory.

    Raises:
        ValueError: A model without description.
    """
    config = described(model)
    report = estimate_cost(config)  # on the meta device: weights are neither read nor copied
    backbone = find_backbone(model)
    assert backbone is not None  # whatever has a description is a pyramid
    title = hub_id.split("/")[-1] if hub_id else model.metadata.get("name") or _short_name(config)
    sections = [
        _front_matter(config, model.metadata),
        f"# {title}\n\n{_summary(config, report, backbone)}\n",
        f"## Branches\n\n{_branch_table(config, report)}\n",
        f"## Input\n\n{_input(config, model.pretrained_cfg)}\n",
        f"## Use\n\n{_usage(config, model.pretrained_cfg, hub_id or '.')}\n",
        _metrics(model.metadata),
        _origin(model.metadata),
        f"## Sources\n\n{SOURCES}",
    ]
    card = "\n".join(section for section in sections if section)
    front, body = card.split("\n---\n", 1)
    return f"{front}\n---\n{MARK.format(digest=_digest(card))}{body}"


def described(model: DescribedModel) -> ModelConfig:
    """Return the description of a model.

    Raises:
        ValueError: A model that was put together by hand.
    """
    if model.config is None:
        raise ValueError(
            "This model was put together by hand and has no description to save: build it with "
            "piip.build_model(config) or piip.create_model(name)."
        )
    return model.config


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]


def _front_matter(config: ModelConfig, metadata: Mapping[str, Any]) -> str:
    lines = ["library_name: piip"]
    if "license" in metadata:
        lines.append(f"license: {json.dumps(metadata['license'])}")
    lines.append(f"pipeline_tag: {HUB_TASKS.get(config.head.kind, 'image-classification')}")
    lines += ["tags:", "- piip", "- image-pyramid", "- arxiv:2406.04330", "- arxiv:2501.07783"]
    return "\n".join(["---", *lines, "---", ""])


def _short_name(config: ModelConfig) -> str:
    sizes = " / ".join(str(branch.image_size) for branch in config.branches)
    return f"{KINDS.get(config.head.kind, 'Classifier')} at {sizes} pixels"


def _is_classifier(config: ModelConfig) -> bool:
    return config.head.kind in ("pooled", "per_branch")


def _summary(config: ModelConfig, report: CostReport, backbone: PIIPBackbone) -> str:
    """Say in a few sentences what the model is."""
    parts = [f"{_network(report, i)} at {branch.image_size} pixels" for i, branch in enumerate(config.branches)]
    if len(parts) == 1:
        return f"A single network, {parts[0]}. {_joined(config, backbone)}{_head(config.head)}"
    sizes = [branch.image_size for branch in config.branches]
    params = [report.parts[f"branch {i}"].params for i in range(len(parts))]
    inverted = sizes == sorted(sizes) and params == sorted(params, reverse=True)
    exchange = config.interaction
    return (
        f"{'A parameter-inverted image pyramid' if inverted else 'An image pyramid'} of {len(parts)} networks that see "
        f"the same image at different resolutions: {', '.join(parts[:-1])} and {parts[-1]}. After each of "
        f"{len(backbone.interactions)} stages neighbours exchange features by {exchange.attention} cross-attention "
        f"{EXCHANGES[exchange.direction]}. {_joined(config, backbone)}{_head(config.head)}"
    )


def _joined(config: ModelConfig, backbone: PIIPBackbone) -> str:
    """Say what becomes of the branches."""
    if backbone.merge is None:
        return ""
    levels = f", from which a neck makes {len(config.neck.scales)} levels" if config.neck.kind != "none" else ""
    return f"They are merged (`{config.merge.kind}`) into one map of {backbone.merge.out_channels} channels{levels}. "


def _head(head: HeadConfig) -> str:
    what = {
        "none": "There is no head: the model returns a list of feature maps.",
        "pooled": f"A linear layer on the pooled map gives logits for {head.num_classes} classes.",
        "per_branch": f"Logits of one linear layer a branch are averaged, for {head.num_classes} classes.",
        "projector": f"A projector makes tokens of {head.width} channels for a language model.",
        "mask_rcnn": f"A Mask R-CNN head finds boxes and masks of {head.num_classes} classes.",
        "dino": f"A DINO head finds boxes of {head.num_classes} classes.",
        "upernet": f"An UperNet head gives one of {head.num_classes} classes to every pixel.",
    }
    return what[head.kind]


def _network(report: CostReport, index: int) -> str:
    return f"`{report.names[f'branch {index}'].rsplit(' @ ', 1)[0]}`"


def _branch_table(config: ModelConfig, report: CostReport) -> str:
    rows = ["| part | network | resolution | parameters | GMACs |", "|---|---|---:|---:|---:|"]
    for name, part in report.parts.items():
        network, size = "-", "-"
        if name.startswith("branch "):
            index = int(name.split()[1])
            network, size = _network(report, index), str(config.branches[index].image_size)
        rows.append(f"| {name} | {network} | {size} | {part.params / 1e6:.2f} M | {part.macs / 1e9:.3f} |")
    rows.append(f"| **total** | | | {report.params / 1e6:.2f} M | {report.macs / 1e9:.3f} |")
    height, width = report.image_size
    is_dense = config.head.kind in DENSE_HEADS
    return (
        "\n".join(rows)
        + f"\n\nOne image of {height}x{width} pixels; a MAC is one multiply-add of everything that runs "
        "in matrix products, convolutions, attention and sampling (rule `total` of `piip cost`)."
        + (" The head is not in the table: what it costs depends on what it finds." if is_dense else "")
    )


def _input(config: ModelConfig, facts: Mapping[str, Any]) -> str:
    _, height, width = facts["input_size"]
    own = " (and then as each network was trained with)" if config.normalize == "per_branch" else ""
    return (
        f"RGB images (B, 3, H, W), values in [0, 1] minus mean {_numbers(facts['mean'])}, divided by deviation "
        f"{_numbers(facts['std'])}{own}; nominally {height}x{width} pixels. The model makes the smaller images itself."
    )


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _usage(config: ModelConfig, facts: Mapping[str, Any], place: str) -> str:
    _, height, width = facts["input_size"]
    if config.head.kind in DENSE_HEADS:
        use = "for name, values in model((image - mean) / std)[0].items():\n    print(name, tuple(values.shape))"
    elif config.head.kind != "none":
        what = f"(1, {config.head.num_classes})" if _is_classifier(config) else f"(1, N, {config.head.width})"
        use = f"print(model((image - mean) / std).shape)  # {what}"
    else:
        use = "for feature_map in model((image - mean) / std):\n    print(tuple(feature_map.shape))"
    return f"""\
```python
import piip
import torch

model = piip.from_pretrained("{place}")
image = torch.rand(1, 3, {height}, {width})  # RGB in [0, 1]
mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
{use}
```"""


def _metrics(metadata: Mapping[str, Any]) -> str:
    metrics = metadata.get("metrics")
    if not metrics:
        return ""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in metrics.items()}
    rows = [f"| {name} | {value} |" for name, value in shown.items()]
    return "## Metrics\n\n| metric | value |\n|---|---:|\n" + "\n".join(rows) + "\n"


def _origin(metadata: Mapping[str, Any]) -> str:
    """Say which files the weights were converted from, and what their authors report."""
    files = metadata.get("converted", ())
    if not files:
        return ""
    lines = ["## Converted from", ""]
    for item in files:
        part = "" if item.get("branch") is None else f", into branch {item['branch']}"
        lines.append(f"- `{item['file']}`{part}")
    name = metadata.get("name", "")
    model = next((model for model in published_models() if name in (model.name, model.record)), None)
    if model is not None:
        lines += ["", f"The model is the authors' `{model.record}` ([their repository]({AUTHORS}))."]
        is_whole = all(item.get("branch") is None for item in files)
        is_theirs = model.task != "classification" or name == model.record  # by our names classifiers read otherwise
        if model.results and is_whole and is_theirs:
            results = ", ".join(f"{metric} {value}" for metric, value in model.results.items())
            lines.append(f"They report {results}; nothing of it was measured with these files.")
    return "\n".join(lines) + "\n"
