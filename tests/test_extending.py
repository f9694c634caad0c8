"""The examples of docs/extending.md: one of each extension point, added from outside the package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from shapes import write_semantic_masks
from tiny_run import branch

import piip
from piip import BranchConfig, ModelConfig
from piip.branches import registry
from piip.build import ATTENTIONS, HEADS, MERGES, NECKS
from piip.cli import COMMANDS, main
from piip.cost.estimate import COST_RULES
from piip.data.formats import DATA_FORMATS
from piip.export.formats import EXPORT_FORMATS
from piip.plan.families import find_networks
from piip.recipe import Recipe
from piip.tables import Table
from piip.training.train import train
from piip.zoo.families import NETWORK_FAMILIES
from piip.zoo.registry import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S | re.M))
TABLES: list[Table[Any, Any]] = [
    *(ATTENTIONS, MERGES, NECKS, HEADS, DATA_FORMATS, COST_RULES, EXPORT_FORMATS, COMMANDS, NETWORK_FAMILIES)
]


@pytest.fixture(autouse=True)
def tables_as_before() -> Iterator[None]:
    """Take out again what an example registers."""
    before = [(table, dict(table), dict(table.facts)) for table in TABLES]
    families, names = list(registry.FAMILIES), dict(MODELS)
    yield
    registry.FAMILIES[:] = families
    MODELS.clear()
    MODELS.update(names)
    for table, entries, facts in before:
        table.clear()
        table.update(entries)
        table.facts.clear()
        table.facts.update(facts)


def run_example(name: str) -> dict[str, Any]:
    values: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLES[name], f"{PAGE.name}: {name}", "exec"), values)
    return values


def config(**fields: Any) -> ModelConfig:
    return ModelConfig.from_dict({"branches": [branch(24, 32), branch(32, 16)], **fields})


def maps_of(description: ModelConfig, side: int = 32) -> list[torch.Tensor]:
    with torch.no_grad():
        return piip.build_backbone(description).eval()(torch.randn(2, 3, side, side))


def test_the_page_shows_every_table_in_at_most_thirty_lines() -> None:
    assert len(EXAMPLES) == 10
    for name, code in EXAMPLES.items():
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= (45 if name in ("Head", "Branch family") else 30), f"{name}: {len(lines)} lines"


def test_branch_family() -> None:
    mixer = BranchConfig("mixer_s16_224", 64)
    with pytest.raises(ValueError, match="neither a plain ViT"):
        maps_of(ModelConfig((mixer,)), side=64)
    run_example("Branch family")
    other = BranchConfig("vit_tiny_patch16_224", 64, timm_args={"embed_dim": 16, "depth": 2, "num_heads": 2})
    (merged,) = maps_of(ModelConfig((mixer, other), allow_direct=True), side=64)
    assert merged.shape == (2, 512, 4, 4)


def test_merge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MergeConfig\.kind is 'sum', expected one of"):
        config(merge={"kind": "sum"})
    run_example("Merge")
    (merged,) = maps_of(config(merge={"kind": "sum", "width": 8}))
    assert merged.shape == (2, 8, 4, 4)
    model = piip.build_model(config(merge={"kind": "sum"}, head={"kind": "pooled", "num_classes": 3}))
    model.save_pretrained(tmp_path)
    assert piip.from_pretrained(tmp_path)(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_attention() -> None:
    run_example("Attention")
    (merged,) = maps_of(config(interaction={"attention": "mean", "count": 1}))
    assert merged.isfinite().all()


def test_neck() -> None:
    run_example("Neck")
    made = piip.build_backbone(config(neck={"kind": "pooled", "scales": [4, 2]}))
    assert [info["reduction"] for info in made.feature_info] == [8, 16]
    assert [tuple(each.shape[2:]) for each in made(torch.randn(1, 3, 64, 64))] == [(8, 8), (4, 4)]


def test_head_is_trained_evaluated_predicted_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("Head")
    for split in ("train", "val"):
        write_semantic_masks(tmp_path, split, 2)
    values = {
        "model": {
            "branches": [branch(24, 32), branch(32, 16)],
            "neck": {"kind": "simple", "scales": [2, 1]},
            "head": {"kind": "linear_segmentation"},
        },
        "data": {
            "kind": "semantic_masks",
            "root": str(tmp_path),
            "train": "annotations/train",
            "val": "annotations/val",
            "train_images": "images/train",
            "val_images": "images/val",
            "batch_size": 2,
            "workers": 0,
            "dense": {"crop": 32, "reduce_zero_label": True},
        },
        "optim": {"lr": 1e-3},
        "schedule": {"epochs": 1, "warmup_epochs": 0, "min_lr": 1e-5},
        "run": {"out": str(tmp_path / "run")},
    }
    result = train(Recipe.from_dict(values), device="cpu", progress="none")
    assert 0 <= result.metrics["val/miou"] <= 1
    model_dir = str(result.model_dir)
    options = ["--split", "annotations/val", "--images", "images/val", "--workers", "0", "--device", "cpu"]
    main(["evaluate", model_dir, "--data", str(tmp_path), *options])
    assert "miou" in capsys.readouterr().out
    main(["predict", model_dir, str(tmp_path / "images" / "val"), "--device", "cpu"])
    assert "disc" in capsys.readouterr().out
    report = piip.export_model(model_dir, tmp_path / "model.pt2", format="torch", image_size=(32, 32))
    assert all(each.is_small for each in report.differences)
    model = piip.from_pretrained(model_dir)
    cost, classifier = piip.estimate_cost(model), model.get_parameter("head.classifier.weight")
    assert (cost.parts["head"].macs, cost.meaning) == (8 * 8 * classifier.numel(), "what runs")


def test_data_format(tmp_path: Path) -> None:
    run_example("Data format")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name, colour in (("red_1", (200, 0, 0)), ("blue_1", (0, 0, 200))):
            Image.new("RGB", (32, 32), colour).save(tmp_path / split / f"{name}.png")
    values = {
        "model": {"branches": [branch(24, 32), branch(32, 16)], "head": {"kind": "pooled"}},
        "data": {"kind": "flat", "root": str(tmp_path), "batch_size": 2, "workers": 0},
        "optim": {"lr": 1e-3},
        "schedule": {"epochs": 1, "warmup_epochs": 0, "min_lr": 1e-5},
        "run": {"out": str(tmp_path / "run")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    main(["train", str(path), "--device", "cpu", "--progress", "none"])
    assert piip.Predictor(tmp_path / "run" / "model").classes == ["blue", "red"]


def test_cost_rule() -> None:
    run_example("Cost rule")
    described = config(neck={"kind": "simple", "scales": [2, 1]})
    whole, part = piip.estimate_cost(described), piip.estimate_cost(described, rule="without_neck")
    assert part.macs == whole.macs - whole.parts["neck"].macs
    assert "what runs, but for the neck" in str(part)


def test_export_format(tmp_path: Path) -> None:
    run_example("Export format")
    model = piip.build_model(config(head={"kind": "pooled", "num_classes": 3})).eval()
    report = piip.export_model(model, tmp_path / "model.state", format="state")
    assert report.differences[0].is_small
    with pytest.raises(ValueError, match="The format state has fixed sizes"):
        piip.export_model(model, tmp_path / "other.state", format="state", dynamic_size=True)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    run_example("Command")
    main(["params", "piip_tsb_368_192_128.deit1_in1k", "--millions"])
    assert capsys.readouterr().out == "144.0 M\n"
    with pytest.raises(SystemExit) as info:
        main(["params", "no_such_model"])
    assert info.value.code == 2


def test_family_of_networks(capsys: pytest.CaptureFixture[str]) -> None:
    run_example("Family of networks")
    main(["list", "*.clip"])
    assert capsys.readouterr().out.split() == ["piip_bl_896_448.clip", "branches:", "apache-2.0"]
    assert find_networks("clip", None)[0] == "vit_large_patch14_clip_224.openai"
    with torch.device("meta"):
        model = piip.create_model("piip_bl_896_448.clip", num_classes=3)
    assert [branch.stride for branch in model.get_backbone().branches] == [14, 16]
    with pytest.raises(ValueError, match="There is a family 'clip' already"):
        run_example("Family of networks")


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="There is a merge 'conv' already"):
        MERGES.register("conv", MERGES["conv"])


def test_kinds_of_tables_descriptions_and_options_agree() -> None:
    import typing

    from piip import kinds
    from piip.cli import cost, export

    assert MERGES.keys() == kinds.MERGE_KINDS.keys()
    assert NECKS.keys() == kinds.NECK_KINDS.keys()
    assert HEADS.keys() == kinds.HEAD_KINDS.keys()
    assert ATTENTIONS.keys() == kinds.ATTENTION_KINDS.keys()
    assert DATA_FORMATS.keys() == kinds.DATA_KINDS.keys()
    assert typing.get_args(typing.get_type_hints(cost.cost)["rule"]) == tuple(COST_RULES)
    assert typing.get_args(typing.get_type_hints(export.export)["format"]) == tuple(EXPORT_FORMATS)
    for table in TABLES:
        with pytest.raises(ValueError, match="expected one of"):
            table["no such kind"]
