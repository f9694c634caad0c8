"""The list of a model's heavy operations: as listed from the released code, and as many multiply-adds as counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pyramids import tiny_vit

import piip
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.cost import list_operations
from piip.device import without_values
from piip.layers.attention import DeformableCrossAttention

RELEASED = sorted((Path(__file__).parent / "data" / "operations").glob("*.json"))


def as_listed_there(operation: dict[str, Any]) -> str:
    """Return the fields of an operation, without its count, as the released code's were written down."""
    fields = {name: value for name, value in operation.items() if name not in ("count", "keys")}
    for name in ("stride", "padding"):
        if isinstance(fields.get(name), tuple):
            assert len({*fields[name]}) == 1
            fields[name] = fields[name][0]
    return json.dumps(fields, sort_keys=True)


def counted(operations: list[dict[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for operation in operations:
        found[as_listed_there(operation)] += operation["count"]
    return found


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_released_detectors_run_the_operations_of_the_released_code(path: Path) -> None:
    record = json.loads(path.read_text())
    with without_values():
        model = piip.create_model(record["model"], features_only=True)
    operations = list_operations(model, tuple(record["image"][2:]))
    assert counted(operations) == counted(record["operations"])
    for operation in operations:
        if operation["kind"] == "attention":
            assert operation["keys"] == operation["shape"][2]


def test_there_are_released_lists() -> None:
    assert len(RELEASED) == 2


def macs(operation: dict[str, Any]) -> int:
    """Return the multiply-adds of all runs of an operation."""
    if operation["kind"] == "linear":
        once = operation["m"] * operation["k"] * operation["n"]
    elif operation["kind"] == "attention":
        once = 2 * math.prod(operation["shape"]) * operation["keys"]
    else:
        batch, _, *grid = operation["x"]
        steps = zip(grid, operation["padding"], operation["w"][2:], operation["stride"], strict=True)
        cells = grid if operation["transposed"] else [(n + 2 * pad - k) // s + 1 for n, pad, k, s in steps]
        once = batch * math.prod(cells) * math.prod(operation["w"])
    return once * operation["count"]


def vits(**fields: Any) -> ModelConfig:
    parts = (tiny_vit(32, 2, 64, 2, window_size=3, prefix_tokens=False), tiny_vit(16, 2, 128, 2))
    interaction = InteractionConfig(num_heads=4, attention=fields.pop("attention", "deformable"))
    return ModelConfig(parts, interaction, **fields)


MODELS = {
    "detector": vits(merge=MergeConfig("slim", 24), neck=NeckConfig("simple")),
    "classifier": vits(head=HeadConfig("pooled", 5)),
    "dense attention": vits(attention="dense"),
    "staged": ModelConfig((BranchConfig("test_resnet", 64), BranchConfig("test_convnext", 128)), allow_direct=True),
}


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
@pytest.mark.parametrize("name", MODELS)
def test_operations_add_up_to_the_cost(name: str, size: tuple[int, int]) -> None:
    model = piip.build_model(MODELS[name])
    read: Counter[str] = Counter()

    def note(module: DeformableCrossAttention, args: tuple[Any, ...]) -> None:
        read["interactions"] += 4 * args[0].shape[1] * module.num_points * module.value_dim

    for module in model.modules():
        if isinstance(module, DeformableCrossAttention):
            module.register_forward_pre_hook(note)
    operations = list_operations(model, size)
    listed: Counter[str] = Counter(read)
    for operation in operations:
        listed[operation["part"]] += macs(operation)
    report = piip.estimate_cost(model, image_size=size)
    assert bool(read) == (name != "dense attention")
    assert listed == {part: cost.macs for part, cost in report.parts.items() if cost.macs}


def test_any_module_can_be_listed() -> None:
    layer = torch.nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(1, 0), bias=False)
    model = torch.nn.Sequential(layer, torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Linear(4, 2))).train()
    model[2].eval()
    got = list_operations(model, (10, 11))
    assert got == [
        {
            "part": "model",
            "kind": "conv",
            "x": (1, 3, 10, 11),
            "w": (8, 3, 3, 5),
            "stride": (1, 2),
            "padding": (1, 0),
            "groups": 1,
            "transposed": False,
            "count": 1,
        },
        {"part": "model", "kind": "linear", "m": 80, "k": 4, "n": 2, "count": 1},
    ]
    assert [module.training for module in model] == [True, True, False]
    assert all(not parameter.is_meta for parameter in model.parameters())


def test_equal_operations_are_counted_and_products_of_results_listed() -> None:
    class Products(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            rows = image.flatten(1, 2)
            for _ in range(3):
                torch.matmul(rows, rows.transpose(1, 2))
            return torch.nn.functional.scaled_dot_product_attention(rows[None], rows[None], rows[None])

    got = list_operations(Products(), (4, 6))
    assert got == [
        {"part": "model", "kind": "linear", "m": 12, "k": 6, "n": 12, "count": 3},
        {"part": "model", "kind": "attention", "shape": (1, 1, 12, 6), "keys": 12, "count": 1},
    ]
