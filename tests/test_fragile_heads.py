"""Situations that the released heads' golden cases leave out: ties, nothing found, no area, very many candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from piip.evaluation.metrics.coco import score_results, to_results
from piip.heads.boxes import MAX_OFFSET_CANDIDATES, BoxCoder, class_offset_nms
from piip.heads.dino.head import DINOHead
from piip.heads.dino.transformer import LayerSizes
from piip.heads.mask_rcnn import rpn
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.mask_rcnn.masks import paste_masks
from piip.heads.mask_rcnn.roi import pool_regions
from piip.heads.mask_rcnn.rpn import RegionLevel
from piip.heads.upernet import UperNetHead
from piip.structures import ImageInfo, Target

FRAME = ImageInfo.make((96, 128), original=(48, 64))
Head = MaskRCNNHead | DINOHead


def maps(first: int, batch: int = 1, channels: int = 8, image_info: ImageInfo = FRAME) -> list[Tensor]:
    """Return maps of strides from `first` to 32."""
    torch.manual_seed(0)
    strides = [stride for stride in (4, 8, 16, 32) if stride >= first]
    return [
        torch.randn(batch, channels, max(1, image_info.size[0] // stride), max(1, image_info.size[1] // stride))
        for stride in strides
    ]


def mask_rcnn() -> MaskRCNNHead:
    torch.manual_seed(1)
    sizes = {"channels": 8, "proposal_channels": 8, "box_features": 16, "mask_channels": 8}
    return MaskRCNNHead([8] * 4, 3, **sizes).eval()


def dino(queries: int = 20) -> DINOHead:
    torch.manual_seed(1)
    sizes = LayerSizes(embed_dim=64, hidden_dim=48)
    head = DINOHead([8] * 3, 3, sizes=sizes, encoder_depth=1, decoder_depth=2, num_queries=queries)
    return head.eval()


def truth(*boxes: tuple[float, float, float, float], size: tuple[int, int] = FRAME.size) -> Target:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    labels = torch.arange(len(boxes)) % 3
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": labels, "masks": masks}


def fill(layer: nn.Module, name: str, value: float) -> None:
    nn.init.constant_(layer.get_parameter(name), value)


def assert_trains(head: nn.Module, losses: dict[str, Tensor]) -> None:
    """Finite losses, and a finite gradient for every parameter: distributed training waits for all of them."""
    torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()
    assert all(value.isfinite() for name, value in losses.items() if "loss" in name)
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def reference_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> list[int]:
    """Suppress class by class, in plain float64 and without any shift."""
    corners = boxes.double().numpy()
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    gone = np.zeros(len(corners), bool)
    kept = []
    for index in np.argsort(-scores.numpy(), kind="stable"):
        if gone[index]:
            continue
        kept.append(int(index))
        low = np.maximum(corners[index, :2], corners[:, :2])
        high = np.minimum(corners[index, 2:], corners[:, 2:])
        overlap = (high - low).clip(min=0).prod(1)
        gone |= (overlap > threshold * (area[index] + area - overlap)) & (classes.numpy() == int(classes[index]))
    return kept


@pytest.mark.parametrize("count", [MAX_OFFSET_CANDIDATES - 1, MAX_OFFSET_CANDIDATES, 12_000])
def test_suppression_of_very_many_candidates(count: int) -> None:
    """Whole pixels and powers of two: overlaps are exact, so that no rounding decides. Every score stands often."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.randint(0, 512, (count, 2), generator=generator).float()
    boxes = torch.cat((corners, corners + 32), 1)
    scores = torch.randint(0, 50, (count,), generator=generator) / 64
    classes = torch.randint(0, 5, (count,), generator=generator)
    kept = class_offset_nms(boxes, scores, classes, 0.5).tolist()
    assert kept == reference_nms(boxes, scores, classes, 0.5)


def test_proposals_in_training_reach_the_many_candidates() -> None:
    """Five levels of 2000 candidates are 10,000, the number where suppression goes on class by class."""
    generator = torch.Generator().manual_seed(0)
    levels = []
    for _ in range(5):
        corners = torch.randint(0, 60, (2500, 2), generator=generator).float()
        anchors = torch.cat((corners, corners + 20), 1)
        scores = torch.randn(1, 2500, generator=generator)
        levels.append(RegionLevel(scores, torch.zeros(1, 2500, 4), anchors, (1, 2500)))
    proposals = rpn.RegionProposals(8, 8).train()
    ((boxes, scores),) = proposals.proposals(levels, [FRAME])
    assert 0 < len(boxes) <= rpn.KEPT
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    ranked = [level.scores[0].sigmoid().sort(descending=True) for level in levels]
    every = torch.cat([level.anchors[order.indices[:2000]] for level, order in zip(levels, ranked, strict=True)])
    number = torch.arange(5).repeat_interleave(2000)
    want = reference_nms(every, torch.cat([order.values[:2000] for order in ranked]), number, rpn.OVERLAP)
    assert torch.equal(boxes, every[want[: rpn.KEPT]])


def test_equal_scores_keep_their_order() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 0, 50, 10], [0, 0, 10, 10], [20, 0, 30, 10]])
    kept = class_offset_nms(boxes, torch.full((4,), 0.5), torch.tensor([1, 0, 1, 0]), 0.5)
    assert kept.tolist() == [0, 1, 3]


@pytest.mark.parametrize("make", [mask_rcnn, dino])
def test_a_head_that_says_one_thing_everywhere(make) -> None:
    """All scores tie: the answer is ordered, in range, inside the picture, and the same twice."""
    head: Head = make()
    layers = [head.boxes.scores, head.proposals.scores] if isinstance(head, MaskRCNNHead) else list(head.scores)
    for layer in layers:
        fill(layer, "weight", 0.0)
        fill(layer, "bias", 0.0)
    given = maps(4 if isinstance(head, MaskRCNNHead) else 8)
    first, second = (head.predict(given, [FRAME])[0] for _ in range(2))
    assert len(first["scores"]) > 0
    assert len(set(first["scores"].tolist())) == 1
    for name, values in first.items():
        assert torch.equal(values, second[name])
    assert set(first["labels"].tolist()) <= {0, 1, 2}
    assert first["boxes"].min() >= 0
    assert (first["boxes"] <= torch.tensor([64.0, 48, 64, 48]) + 1e-4).all()


def test_a_head_that_finds_nothing() -> None:
    head = mask_rcnn()
    fill(head.boxes.scores, "weight", 0.0)
    nn.init.zeros_(head.boxes.scores.bias)
    with torch.no_grad():
        head.boxes.scores.bias[-1] = 20.0  # background
    found = head.predict(maps(4, 2), [FRAME, FRAME])
    for result in found:
        shapes = {name: tuple(values.shape) for name, values in result.items()}
        assert shapes == {"boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 48, 64)}
        assert result["labels"].dtype == torch.int64
        assert to_results(result, 1, [1, 2, 3]) == []
    assert dino().predict(maps(8), [FRAME], max_detections=0)[0]["boxes"].shape == (0, 4)
    content = {"images": [{"id": 1, "height": 48, "width": 64}], "annotations": [], "categories": [{"id": 1}]}
    assert set(score_results(content, []).values()) == {-1.0}  # nothing to find: no score, as pycocotools says it


def test_no_proposal_has_an_area() -> None:
    """All candidates shrink to nothing at the picture's corner: no regions, no detections, and training goes on."""
    head = mask_rcnn()
    fill(head.proposals.deltas, "weight", 0.0)
    bias = torch.tensor([-1e4, -1e4, 0, 0]).repeat(3)  # far outside, then clipped
    with torch.no_grad():
        head.proposals.deltas.bias.copy_(bias)
    ((boxes, _),) = head.proposals.proposals(head.proposals(head(maps(4))), [FRAME])
    assert len(boxes) == 0
    assert head.predict(maps(4), [FRAME])[0]["masks"].shape == (0, 48, 64)
    head.train()
    for target in (truth(), truth((8, 8, 40, 40))):
        head.zero_grad()
        assert_trains(head, head.losses(maps(4), [target], [FRAME]).losses)


def test_detections_without_area_stay_and_have_empty_masks() -> None:
    """The released heads do not remove them; files and counters must take them."""
    head = mask_rcnn()
    logits = torch.tensor([[9.0, 0, 0, 0], [8.0, 0, 0, 0]])
    deltas = torch.zeros(2, 3, 4)
    deltas[1, :, 0] = 1e4  # far to the right of the picture, then clipped
    boxes, scores, labels = head.boxes.detect(torch.tensor([[8.0, 8, 40, 40]] * 2), logits, deltas, FRAME)
    assert len(boxes) == 2
    assert boxes[1, 0] == boxes[1, 2] == 64
    masks = paste_masks(torch.ones(2, 28, 28), boxes, (48, 64))
    assert masks.flatten(1).any(1).tolist() == [True, False]
    results = to_results({"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}, 1, [1, 2, 3])
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 16, 16]}
    content = {
        "images": [{"id": 1, "height": 48, "width": 64}],
        "annotations": [row],
        "categories": [{"id": 1}, {"id": 2}, {"id": 3}],
    }
    for backend in ("faster-coco-eval", "pycocotools"):
        assert score_results(content, results, backend=backend)["box_ap"] == pytest.approx(1)


def test_regions_without_area_are_pooled() -> None:
    regions = torch.tensor([[0.0, 5, 5, 5, 5], [0, 0, 0, 0, 90], [0, -40, -40, -10, -10], [0, 90, 10, 30, 60]])
    assert pool_regions(maps(4), regions, 7).isfinite().all()
    coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
    assert coder.encode(regions[:, 1:], regions[:, 1:]).isfinite().all()
    assert coder.encode(regions[:2, 1:], torch.tensor([[0.0, 0, 9, 9]] * 2)).isfinite().all()


@pytest.mark.parametrize("make", [mask_rcnn, dino])
@pytest.mark.parametrize(
    "targets",
    [
        [truth(), truth()],
        [truth(), truth((8, 8, 40, 40))],
        [truth((5, 5, 5, 5)), truth((0, 0, 128, 0), (8, 8, 40, 40))],  # no area
        [truth((0, 0, 0.01, 0.01)), truth((127.99, 95.99, 128, 96))],  # hardly any
        [truth(*[(8, 8, 40, 40)] * 3), truth((0, 0, 128, 96))],  # one place, three times; the whole picture
        [truth(*[(x, y, x + 3, y + 3) for x in range(0, 120, 4) for y in range(0, 90, 4)]), truth()],  # 690
    ],
    ids=["nothing", "one empty", "no area", "hardly any area", "equal boxes", "very many"],
)
def test_odd_truths_train(make, targets: list[Target]) -> None:
    head: Head = make().train()
    given = maps(4 if isinstance(head, MaskRCNNHead) else 8, 2)
    assert_trains(head, head.losses(given, targets, [FRAME, FRAME]).losses)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (32, 32), (64, 3)])
@pytest.mark.parametrize("make", [mask_rcnn, dino])
def test_tiny_pictures(make, size: tuple[int, int]) -> None:
    """On the smallest ones all of DINO's first cells are invalid: their boxes are infinite in logits."""
    head: Head = make()
    image_info = ImageInfo.make(size)
    given = maps(4 if isinstance(head, MaskRCNNHead) else 8, image_info=image_info)
    found = head.predict(given, [image_info])[0]
    for values in found.values():
        assert values.float().isfinite().all()
    limit = torch.tensor([size[1], size[0]] * 2)
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= limit + 1e-4).all()
    head.train()
    assert_trains(head, head.losses(given, [truth((0, 0, size[1], size[0]), size=size)], [image_info]).losses)


def test_nothing_known_and_one_class_alone_train_a_segmentor() -> None:
    torch.manual_seed(0)
    head = UperNetHead([8] * 4, 3, channels=8).train()
    given = maps(4, 2)
    for value in (255, 1):
        head.zero_grad()
        labels = torch.full(FRAME.size, value)
        losses = head.losses(given, [{"labels": labels}] * 2, [FRAME, FRAME]).losses
        assert_trains(head, losses)
        total = sum(loss.item() for name, loss in losses.items() if "loss" in name)
        assert (total == 0) == (value == 255)
