"""Cards say what a model is, their code runs, and what people wrote into them stays."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyramids import tiny_vit
from torch import nn

import piip
from piip.config import HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.serialization.base import PyramidModel
from piip.serialization.model_card import is_generated, model_card, write_card
from piip.zoo import published_facts

pytestmark = pytest.mark.usefixtures("one_thread")
BRANCHES = (tiny_vit(48, 3, 48), tiny_vit(24, 3, 64))
CONFIG = ModelConfig(
    BRANCHES,
    InteractionConfig(count=2, num_heads=4),
    head=HeadConfig("pooled", num_classes=7),
    mean=(0.5, 0.25, 0.125),
    std=(0.5, 0.5, 0.5),
)
BACKBONE = dataclasses.replace(CONFIG, merge=MergeConfig("slim", 32), neck=NeckConfig("simple"), head=HeadConfig())
SINGLE = ModelConfig((tiny_vit(24, 3, 64),), head=HeadConfig("per_branch", num_classes=2), merge=MergeConfig("none"))
TOWER = dataclasses.replace(CONFIG, head=HeadConfig("projector", width=64), merge=MergeConfig("none"))


def build(config: ModelConfig) -> PyramidModel:
    return piip.build_model(config)


def test_a_card_says_what_the_model_is() -> None:
    model = build(CONFIG)
    model.metadata = {"license": "mit", "metrics": {"val/top1": 0.51234}}
    card = model_card(model, hub_id="me/my_model")
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["license"], front["pipeline_tag"]) == ("piip", "mit", "image-classification")
    assert "# my_model\n\nA parameter-inverted image pyramid of 2 networks" in card
    assert "`vit_tiny_patch16_224 48 wide, 4 deep` at 48 pixels" in card
    assert "After each of 2 stages" in card
    assert "merged (`linear`) into one map of 48 channels. A linear layer on the pooled map gives logits for 7" in card
    assert "minus mean (0.5, 0.25, 0.125), divided by deviation (0.5, 0.5, 0.5); nominally 64x64 pixels" in card
    assert "| val/top1 | 0.5123 |" in card
    assert "2406.04330" in card
    assert "2501.07783" in card


def test_a_card_names_the_files_that_were_converted() -> None:
    model = build(CONFIG)
    record = "piip_3branch_tsb_368-192-128_cls_token_deit1"

    def converted(name: str, *files: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": name, "converted": list(files)}
        return metadata | {"published": published_facts(metadata)}  # as `piip convert` writes it

    model.metadata = converted(record, {"file": "theirs.pth", "branch": None})
    card = model_card(model)
    assert f"# {record}\n" in card
    assert "## Converted from\n\n- `theirs.pth`\n" in card
    assert "They report Top-1 Acc 82.1; these files have not been evaluated." in card
    model.metadata = converted("piip_tsb_368_192_128.deit1_in1k", {"file": "theirs.pth", "branch": None})
    assert "They report" not in model_card(model)
    model.metadata = converted("mine", {"file": "vit.pth", "branch": 0}, {"file": "s.npz", "branch": 1})
    card = model_card(model)
    assert "- `vit.pth`, into branch 0\n- `s.npz`, into branch 1\n" in card
    assert "They report" not in card


def test_a_card_names_what_training_started_from() -> None:
    model = build(
        dataclasses.replace(CONFIG, branches=(dataclasses.replace(BRANCHES[0], weights="a.pth"), BRANCHES[1]))
    )
    assert "- branch 0: `a.pth`\n" in model_card(model)
    model = build(CONFIG)
    model.metadata = {"recipe": {"run": {"start": "me/first"}}}
    assert "- all branches: those of the model `me/first`; its card names their origin\n" in model_card(model)
    model.metadata = {"recipe": {"run": {"start": None}}}
    assert "Initial weights" not in model_card(model)


def test_costs_are_those_of_the_library() -> None:
    card = model_card(build(CONFIG))
    report = piip.estimate_cost(CONFIG)
    assert f"| **total** | | | {report.params / 1e6:.2f} M | {report.macs / 1e9:.3f} |" in card
    for name, part in report.parts.items():
        assert re.search(rf"^\| {name} \| .* \| {part.params / 1e6:.2f} M \| {part.macs / 1e9:.3f} \|$", card, re.M)


@pytest.mark.parametrize("config", [CONFIG, BACKBONE, SINGLE, TOWER], ids=["classifier", "backbone", "single", "tower"])
def test_the_code_of_a_card_runs(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(config).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    code = card.split("```python\n")[1].split("```")[0]
    exec(code, {})
    printed = capsys.readouterr().out
    if config is BACKBONE:
        assert printed.splitlines() == ["(1, 32, 16, 16)", "(1, 32, 8, 8)", "(1, 32, 4, 4)", "(1, 32, 2, 2)"]
        assert "pipeline_tag: image-feature-extraction" in card
        assert "from which a neck makes 4 levels. There is no head" in card
    elif config is TOWER:
        assert printed == "torch.Size([1, 16, 64])\n"
        assert "A projector makes tokens of 64 channels for a language model." in card
    else:
        assert printed == f"torch.Size([1, {config.head.num_classes}])\n"
        assert f"# (1, {config.head.num_classes})" in code


def test_weights_are_not_touched() -> None:
    """Weights without storage could not be read."""
    with torch.device("meta"):
        model = build(CONFIG)
    assert model_card(model) == model_card(build(CONFIG))


def test_only_generated_cards_are_replaced(tmp_path: Path) -> None:
    model = build(CONFIG)
    assert write_card(model, tmp_path)
    path = tmp_path / "README.md"
    model.metadata["license"] = "mit"
    assert write_card(model, tmp_path)
    card = path.read_text()
    assert "license" in card
    assert is_generated(card)
    path.write_text(card + "\nMeasured on a sunny day.\n")
    assert not write_card(model, tmp_path)
    assert path.read_text().endswith("sunny day.\n")
    path.write_text("# Mine\n")
    assert not write_card(model, tmp_path)
    assert path.read_text() == "# Mine\n"


def test_other_pyramids_are_not_called_inverted() -> None:
    with pytest.warns(piip.PyramidWarning):
        model = build(dataclasses.replace(CONFIG, branches=(tiny_vit(24, 3, 48), tiny_vit(48, 3, 64))))
    assert "\nAn image pyramid of 2 networks" in model_card(model)
    assert isinstance(model, nn.Module)
