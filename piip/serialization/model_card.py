"""The model card README.md of a saved model, written from its description."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.branches.published_weights import weights_license
from piip.config import ModelConfig
from piip.cost.counting import Countable
from piip.cost.report import CostReport, name_branches
from piip.cost.total import total_cost
from piip.serialization.description import pretrained_branches

if TYPE_CHECKING:
    from piip.backbone import PIIPBackbone
    from piip.serialization.base import PyramidModel

CARD_NAME = "README.md"
MARK = "<!-- written by piip, {digest}: remove this line or change the text, and it stays as it is -->\n"
SEAL = re.compile(re.escape(MARK).replace(re.escape("{digest}"), "([0-9a-f]{16})"))

AUTHORS = "https://github.com/OpenGVLab/PIIP"
EXCHANGES = {
    "both": "neighbours exchange features by {attention} cross-attention in both directions",
    "to_coarse": "features reach the larger neighbour by {attention} cross-attention",
    "to_fine": "features reach the smaller neighbour by {attention} cross-attention",
    "none": "neighbours exchange nothing",
}
SOURCES = """\
Built with `piip`, an independent implementation of

- X. Zhu et al.: *Parameter-Inverted Image Pyramid Networks*, NeurIPS 2024,
  [arXiv 2406.04330](https://arxiv.org/abs/2406.04330)
- Z. Wang et al.: *Parameter-Inverted Image Pyramid Networks for Visual Perception and Multimodal Understanding*,
  [arXiv 2501.07783](https://arxiv.org/abs/2501.07783)
"""


def write_card(model: PyramidModel, directory: str | Path, *, hub_id: str | None = None) -> bool:
    """Write the card of a model, unless there is a card that was edited by hand.

    Args:
        model: A model with description and metadata.
        directory: Directory of README.md.
        hub_id: "owner/name" of the model; None uses the directory itself.

    Returns:
        Whether the card was written.
    """
    path = Path(directory) / CARD_NAME
    if path.is_file() and not is_generated(path.read_text(encoding="utf-8")):
        return False
    path.write_text(model_card(model, hub_id=hub_id), encoding="utf-8")
    return True


def is_generated(card: str) -> bool:
    """Return whether a card is unchanged since `model_card` wrote it."""
    found = SEAL.search(card)
    return found is not None and found.group(1) == _digest(SEAL.sub("", card))


def model_card(model: PyramidModel, *, hub_id: str | None = None) -> str:
    """Return a model's card: description, cost, input and usage.

    Args:
        model: A model with a description. From its metadata the card shows "name", "license", "metrics",
            "pretrained_branches" and "converted" (the files of `piip convert`).
        hub_id: "owner/name" of the model; None uses the card's own directory.

    Raises:
        ValueError: The model has no description.
    """
    config = require_config(model)
    side = model.pretrained_cfg["input_size"][-1]
    # counted on the meta device: weights are neither read nor copied
    report = name_branches(total_cost(Countable(model, model.parts(), model.dry_run), (side, side)), config)
    title = hub_id.split("/")[-1] if hub_id else model.metadata.get("name") or _short_name(model, config)
    sections = [
        _front_matter(model),
        f"# {title}\n\n{_summary(model, config, report)}\n",
        f"## Branches\n\n{_branch_table(config, report)}\n",
        f"## Input\n\n{_input(config, model.pretrained_cfg)}\n",
        f"## Use\n\n{_usage(model, hub_id or '.')}\n",
        _metrics(model.metadata),
        _initial_weights(config, model.metadata),
        _origin(model.metadata),
        f"## Sources\n\n{SOURCES}",
    ]
    card = "\n".join(section for section in sections if section)
    front, body = card.split("\n---\n", 1)
    return f"{front}\n---\n{MARK.format(digest=_digest(card))}{body}"


def require_config(model: PyramidModel) -> ModelConfig:
    """Return the description of a model.

    Raises:
        ValueError: The model was built from modules and has no description.
    """
    if model.config is None:
        raise ValueError(
            "This model was built from modules and has no description to save: build it with "
            "piip.build_model(config) or piip.create_model(name)."
        )
    return model.config


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]


def _front_matter(model: PyramidModel) -> str:
    lines = ["library_name: piip"]
    if "license" in model.metadata:
        lines.append(f"license: {json.dumps(model.metadata['license'])}")
    lines.append(f"pipeline_tag: {model.hub_task}")
    lines += ["tags:", "- piip", "- image-pyramid", "- arxiv:2406.04330", "- arxiv:2501.07783"]
    return "\n".join(["---", *lines, "---", ""])


def _short_name(model: PyramidModel, config: ModelConfig) -> str:
    sizes = " / ".join(str(branch.image_size) for branch in config.branches)
    return f"{model.title} at {sizes} pixels"


def _summary(model: PyramidModel, config: ModelConfig, report: CostReport) -> str:
    """Return a few sentences about the model."""
    backbone = model.get_backbone()
    end = f"{_merging(config, backbone)}{model.summary()}"
    parts = [f"{_network(report, i)} at {branch.image_size} pixels" for i, branch in enumerate(config.branches)]
    if len(parts) == 1:
        return f"A single network, {parts[0]}. {end}"
    sizes = [branch.image_size for branch in config.branches]
    params = [report.parts[f"branch {i}"].params for i in range(len(parts))]
    inverted = sizes == sorted(sizes) and params == sorted(params, reverse=True)
    interaction = config.interaction
    exchange = EXCHANGES[interaction.direction].format(attention=interaction.attention)
    return (
        f"{'A parameter-inverted image pyramid' if inverted else 'An image pyramid'} of {len(parts)} networks that see "
        f"the same image at different resolutions: {', '.join(parts[:-1])} and {parts[-1]}. After each of "
        f"{len(backbone.interactions)} stages {exchange}. {end}"
    )


def _merging(config: ModelConfig, backbone: PIIPBackbone) -> str:
    """Return a sentence on branch merging and neck."""
    if backbone.merge is None:
        return ""
    levels = f", from which a neck makes {len(config.neck.scales)} levels" if config.neck.makes_levels else ""
    return f"They are merged (`{config.merge.kind}`) into one map of {backbone.merge.out_channels} channels{levels}. "


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
    totals = {"without head": report.without_head} if config.head.is_dense else {}
    for name, total in {**totals, "total": report}.items():
        rows.append(f"| **{name}** | | | {total.params / 1e6:.2f} M | {total.macs / 1e9:.3f} |")
    height, width = report.image_size
    return (
        "\n".join(rows)
        + f"\n\nOne image of {height}x{width} pixels; a MAC is one multiply-add of everything that runs "
        "in matrix products, convolutions, attention and sampling "
        f"(rule `{report.rule}` of `piip cost`: {report.meaning})."
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


def _usage(model: PyramidModel, source: str) -> str:
    _, height, width = model.pretrained_cfg["input_size"]
    return f"""\
```python
import piip
import torch

model = piip.from_pretrained("{source}")
image = torch.rand(1, 3, {height}, {width})  # RGB in [0, 1]
mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
{model.usage()}
```"""


def _metrics(metadata: Mapping[str, Any]) -> str:
    metrics = metadata.get("metrics")
    if not metrics:
        return ""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in metrics.items()}
    rows = [f"| {name} | {value} |" for name, value in shown.items()]
    return "## Metrics\n\n| metric | value |\n|---|---:|\n" + "\n".join(rows) + "\n"


def _initial_weights(config: ModelConfig, metadata: Mapping[str, Any]) -> str:
    """Return the weights that the branches started from, with their licences."""
    pretrained = pretrained_branches(config, metadata)
    start = _run_start(metadata)
    lines = [] if start is None else [f"- all branches: those of the model `{start}`; its card names their origin"]
    for index, branch in enumerate(config.branches):
        if index in pretrained:
            stated = weights_license(branch.network)
            license_text = f"licence `{stated}`" if stated else "no licence stated"
            lines.append(f"- branch {index}: `{branch.network}`, {license_text}")
        elif branch.weights is not None:
            lines.append(f"- branch {index}: `{branch.weights}`")
    if not lines:
        return ""
    return (
        "## Initial weights\n\nThe branches started from pretrained weights. Licences are those that timm states; read "
        "their terms before you use or share this model.\n\n" + "\n".join(lines) + "\n"
    )


def _run_start(metadata: Mapping[str, Any]) -> str | None:
    """Return the model that the training run started from."""
    run = metadata.get("recipe", {}).get("run")
    return run.get("start") if isinstance(run, Mapping) else None


def _origin(metadata: Mapping[str, Any]) -> str:
    """Return the files that the weights were converted from, and the results of their authors."""
    files = metadata.get("converted", ())
    if not files:
        return ""
    lines = ["## Converted from", ""]
    for item in files:
        part = "" if item.get("branch") is None else f", into branch {item['branch']}"
        lines.append(f"- `{item['file']}`{part}")
    published = metadata.get("published")
    if published:
        lines += ["", f"The model is the authors' `{published['record']}` ([their repository]({AUTHORS}))."]
    if published and published["results"]:
        results = ", ".join(f"{metric} {value}" for metric, value in published["results"].items())
        lines.append(f"They report {results}; these files have not been evaluated.")
    return "\n".join(lines) + "\n"
