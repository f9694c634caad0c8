"""Costs of detection and segmentation heads: closed forms, PyTorch's counter on real runs, and heads of others."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pyramids import image, tiny_vit
from test_operations import macs as macs_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import piip
from piip.config import HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.cost import CostReport, format_table, list_operations
from piip.device import without_values
from piip.heads.base import DenseHead, LossesAndMetrics
from piip.models import PIIPDenseModel
from piip.serialization.model_card import model_card

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, WIDTH, LEVEL_WIDTH, SIDE = 5, 32, 24, 128
SCALES = {"mask_rcnn": (4, 2, 1, 0.5), "upernet": (4, 2, 1, 0.5), "dino": (2, 1, 0.5)}
POOLED = 16  # multiply-adds per value that RoIAlign reads


def config(kind: str) -> ModelConfig:
    """Two small ViTs, the finer with a grid of 8 x 8, and a head."""
    return ModelConfig(
        (tiny_vit(64, 2, 64), tiny_vit(32, 2, SIDE)),
        InteractionConfig(count=2, num_heads=4),
        MergeConfig("slim", LEVEL_WIDTH),
        NeckConfig("simple", scales=SCALES[kind]),
        HeadConfig(kind, CLASSES, width=WIDTH),
    )


def build(kind: str) -> PIIPDenseModel:
    torch.manual_seed(0)
    model = piip.build_model(config(kind)).eval()
    assert isinstance(model, PIIPDenseModel)
    return model


def of_head(report: CostReport) -> dict[str, int]:
    """Return the multiply-adds of a head's parts."""
    return {name.removeprefix("head: "): part.macs for name, part in report.parts.items() if name.startswith("head: ")}


def cells(*sides: int) -> int:
    return sum(side * side for side in sides)


def box_macs(regions: int, width: int, hidden: int, classes: int) -> int:
    layers = width * 7 * 7 * hidden + hidden * hidden + hidden * (classes + 1) + hidden * 4 * classes
    return regions * (layers + POOLED * 7 * 7 * width)


def mask_macs(regions: int, width: int, classes: int) -> int:
    layers = 4 * 14 * 14 * 9 * width * width + 14 * 14 * 4 * width * width + 28 * 28 * width * classes
    return regions * (layers + POOLED * 14 * 14 * width)


def test_mask_rcnn_equals_closed_forms() -> None:
    report = piip.estimate_cost(config("mask_rcnn"))
    sides = (32, 16, 8, 4)
    assert of_head(report) == {
        "fpn": cells(*sides) * (LEVEL_WIDTH * WIDTH + 9 * WIDTH * WIDTH),
        "rpn": cells(*sides, 2) * (9 * WIDTH * WIDTH + WIDTH * 3 * 5),
        "box": box_macs(1000, WIDTH, 4 * WIDTH, CLASSES),
        "mask": mask_macs(100, WIDTH, CLASSES),
    }
    assert report.meaning == "what runs; 1,000 proposals and 100 detections"


def test_a_released_mask_rcnn_is_counted_whole() -> None:
    report = piip.estimate_cost("piip_tsb_1120_896_448.deit3_coco_mask_rcnn")
    sides = (280, 140, 70, 35)
    wanted = {
        "fpn": cells(*sides) * (768 * 256 + 9 * 256 * 256),
        "rpn": cells(*sides, 18) * (9 * 256 * 256 + 256 * 15),
        "box": box_macs(1000, 256, 1024, 80),
        "mask": mask_macs(100, 256, 80),
    }
    assert of_head(report) == wanted
    assert report.macs - report.without_head.macs == sum(wanted.values())
    # products and convolutions of the backbone listed one by one, plus 0.38 G of sampling
    assert report.without_head.macs / 1e9 == pytest.approx(375.22 + 0.38, abs=0.01)


def test_an_image_with_few_anchors_has_few_proposals() -> None:
    report = piip.estimate_cost(config("mask_rcnn"), image_size=(32, 64))
    anchors = 3 * (8 * 16 + 4 * 8 + 2 * 4 + 1 * 2 + 1)
    assert anchors < 1000
    assert of_head(report)["box"] == box_macs(anchors, WIDTH, 4 * WIDTH, CLASSES)
    assert report.meaning == f"what runs; {anchors} proposals and 100 detections"


def test_limits_of_the_training_are_used() -> None:
    model = build("mask_rcnn")
    model.metadata["detections"] = [1, 10, 500]
    report = piip.estimate_cost(model)
    assert of_head(report)["mask"] == mask_macs(500, WIDTH, CLASSES)
    assert "1,000 proposals and 500 detections" in str(report)


def levels_attention(queries: int, tokens: int, *, heads: int = 8, points: int = 4, levels: int = 4) -> int:
    per_query = 3 * WIDTH * heads * levels * points + WIDTH * WIDTH + 4 * points * levels * WIDTH
    return queries * per_query + tokens * WIDTH * WIDTH


@pytest.mark.parametrize("size", [SIDE, 256])
def test_dino_equals_closed_forms(size: int) -> None:
    report = piip.estimate_cost(config("dino"), image_size=size)
    sides = [size // stride for stride in (8, 16, 32, 64)]
    tokens = cells(*sides)
    queries, feed_forward, box = min(900, tokens), 2 * 8 * WIDTH * WIDTH, 2 * WIDTH * WIDTH + 4 * WIDTH
    decoder_layer = queries * (4 * WIDTH * WIDTH + 2 * queries * WIDTH + feed_forward + 3 * WIDTH * WIDTH)
    assert of_head(report) == {
        "mapper": cells(*sides[:3]) * LEVEL_WIDTH * WIDTH + cells(sides[3]) * 9 * LEVEL_WIDTH * WIDTH,
        "encoder": 6 * (levels_attention(tokens, tokens) + tokens * feed_forward),
        "selection": tokens * (WIDTH * WIDTH + WIDTH * CLASSES) + queries * box,
        "decoder": 6 * (decoder_layer + levels_attention(queries, tokens) + queries * (2 * box + WIDTH * CLASSES)),
        "other": 0,
    }
    assert report.meaning == "what runs; up to 900 queries"
    assert report.parts["head: other"].elementwise > tokens * WIDTH  # position embeddings


def flops_of(model: nn.Module, pixels: Tensor) -> int:
    """Return PyTorch's count of a real run; attention is counted in the products that it consists of."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.requires_grad_(False)(pixels)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["upernet", "dino"])
def test_real_runs_are_counted_alike_by_pytorch(kind: str) -> None:
    model, pixels = build(kind), image(batch=1)
    flops = flops_of(model, pixels) - flops_of(model.backbone, pixels)
    report = piip.estimate_cost(model)
    tokens, queries = cells(16, 8, 4, 2), min(900, cells(16, 8, 4, 2))
    sampling = 6 * 4 * 4 * 4 * WIDTH * (tokens + queries) if kind == "dino" else 0
    assert 2 * (report.macs - report.without_head.macs - sampling) == flops > 0


def test_a_real_detector_runs_what_is_counted_for_what_it_finds() -> None:
    model, pixels = build("mask_rcnn"), image(batch=1)
    nn.init.normal_(model.head.get_parameter("boxes.scores.weight"), std=0.5)  # or nothing would be found
    found: list[int] = []
    for part in (model.head.get_submodule("boxes"), model.head.get_submodule("masks")):
        part.register_forward_pre_hook(lambda _module, args: found.append(len(args[1])))
    flops = flops_of(model, pixels) - flops_of(model.backbone, pixels)
    proposals, detections = found
    assert 0 < proposals <= 1000
    assert 0 < detections <= 100
    counted = of_head(piip.estimate_cost(model))
    unsampled = {  # PyTorch counts no sampling
        "box": box_macs(proposals, WIDTH, 4 * WIDTH, CLASSES) - POOLED * proposals * 49 * WIDTH,
        "mask": mask_macs(detections, WIDTH, CLASSES) - POOLED * detections * 196 * WIDTH,
    }
    assert 2 * sum({**counted, **unsampled}.values()) == flops


@pytest.mark.parametrize("kind", SCALES)
def test_totals_without_the_head_are_those_of_the_backbone(kind: str) -> None:
    model = build(kind)
    report = piip.estimate_cost(model)
    assert report.without_head.parts == piip.estimate_cost(model.backbone).parts
    assert report.without_head.parts == piip.estimate_cost(dataclasses.replace(config(kind), head=HeadConfig())).parts
    assert report.activation_bytes == report.without_head.activation_bytes > 0
    assert report.params == sum(parameter.numel() for parameter in model.parameters())
    assert report.params - report.without_head.params == sum(parameter.numel() for parameter in model.head.parameters())
    values = json.loads(json.dumps(report.to_dict()))
    assert values["macs"] == report.macs > values["without_head"]["macs"] > values["without_neck_and_head"]["macs"]
    assert values["meaning"] == report.meaning
    rows = [line.split("  ")[0] for line in format_table(report).splitlines()]
    assert rows[-3:] == ["without head", "without neck and head", "total"]


@pytest.mark.parametrize("kind", SCALES)
def test_models_without_values_and_in_any_precision_are_counted_alike(kind: str) -> None:
    model = build(kind)
    report = piip.estimate_cost(model)
    with without_values():
        assert piip.estimate_cost(piip.build_model(config(kind))) == report
    assert piip.estimate_cost(model.train().bfloat16()).macs == report.macs
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", SCALES)
def test_operations_of_heads_are_listed(kind: str) -> None:
    model = build(kind)
    listed: dict[str, int] = {}
    for operation in list_operations(model, (SIDE, SIDE)):
        listed[operation["part"]] = listed.get(operation["part"], 0) + macs_of(operation)
    tokens, queries = cells(16, 8, 4, 2), cells(16, 8, 4, 2)
    sampling = {
        "head: box": POOLED * 1000 * 49 * WIDTH,
        "head: mask": POOLED * 100 * 196 * WIDTH,
        "head: encoder": 6 * 4 * 4 * 4 * WIDTH * tokens,
        "head: decoder": 6 * 4 * 4 * 4 * WIDTH * queries,
    }
    for name, part in piip.estimate_cost(model).parts.items():
        if name.startswith("head") and part.macs:
            assert listed[name] == part.macs - sampling.get(name, 0), name


@pytest.mark.parametrize("kind", SCALES)
def test_cards_show_the_whole_model(kind: str) -> None:
    model = build(kind)
    report, card = piip.estimate_cost(model), model_card(model)
    for name, total in (("total", report), ("without head", report.without_head)):
        assert f"| **{name}** | | | {total.params / 1e6:.2f} M | {total.macs / 1e9:.3f} |" in card
    assert f"(rule `total` of `piip cost`: {report.meaning})" in card
    for name, part in report.parts.items():
        assert f"| {name} | " in card
        assert f" | {part.params / 1e6:.2f} M | {part.macs / 1e9:.3f} |" in card


class PixelHead(DenseHead):
    """A head as others write it: it names no parts and has no dry run."""

    task, title, hub_task = "semantic", "Pixels", "image-segmentation"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_classes, self.classifier = 2, nn.Conv2d(channels, 2, 1)

    def predict(self, maps: Sequence[Tensor], image_infos: Any, **_options: Any) -> list[dict[str, Tensor]]:
        return [{"labels": logits.argmax(0)} for logits in self.classifier(maps[0])]

    def losses(self, maps: Any, targets: Any, image_infos: Any, samples: Any = None) -> LossesAndMetrics:
        raise NotImplementedError

    def export_wrapper(self, model: Any) -> Any:
        raise NotImplementedError

    def summary(self) -> str:
        return "Pixels."


class CountingHead(PixelHead):
    """One whose further work depends on values."""

    def predict(self, maps: Sequence[Tensor], image_infos: Any, **_options: Any) -> list[dict[str, Tensor]]:
        found = super().predict(maps, image_infos)
        objects = int(found[0]["labels"].sum())
        return [{"labels": self.classifier(maps[0].expand(objects, -1, -1, -1)).argmax(1)[0]}]


def with_head(head: DenseHead) -> PIIPDenseModel:
    return PIIPDenseModel(build("upernet").backbone, head, config=config("upernet"))


def test_heads_of_others_are_counted_by_their_prediction() -> None:
    report = piip.estimate_cost(with_head(PixelHead(LEVEL_WIDTH)))
    assert report.parts["head"].macs == 32 * 32 * LEVEL_WIDTH * 2
    assert report.parts["head"].params == 2 * LEVEL_WIDTH + 2
    assert report.macs == report.without_head.macs + report.parts["head"].macs
    assert report.meaning == "what runs"


def test_heads_that_need_values_are_not_left_out_in_silence() -> None:
    model = with_head(CountingHead(LEVEL_WIDTH))
    report = piip.estimate_cost(model)
    assert "the head is counted up to where CountingHead.predict needs values" in report.meaning
    assert report.parts["head"].macs == 32 * 32 * LEVEL_WIDTH * 2
    assert report.meaning in str(report)
    assert report.meaning in model_card(model)


def test_the_rule_of_the_paper_leaves_the_head_out() -> None:
    both = [piip.estimate_cost(each, rule="paper") for each in (config("mask_rcnn"), config("dino"))]
    assert both[0].macs == both[1].macs
    assert not any(name.startswith("head: ") for name in both[0].parts)
    assert math.isclose(both[0].params, both[1].params)
