"""Mask R-CNN and UperNet: the released heads' numbers, and the situations that those cases leave out."""

from __future__ import annotations

import golden_heads
import numpy as np
import pytest
import torch
from pyramids import image, tiny_vit

import piip
from piip.checkpoints import build_official_head, load_official, official_shapes
from piip.config import HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.heads import boxes as box_rules
from piip.heads.boxes import BoxCoder, class_offset_nms, pairwise_iou
from piip.heads.mask_rcnn import assign
from piip.heads.mask_rcnn.anchors import grid_anchors
from piip.heads.mask_rcnn.assign import RegionSample, assign_by_overlap, draw_samples
from piip.heads.mask_rcnn.masks import mask_targets, paste_masks
from piip.heads.upernet import UperNetHead
from piip.structures import ImageInfo

DETECTORS = ("mrcnn_s1", "mrcnn_s2")
SEGMENTORS = ("upernet_s1", "upernet_odd")


def official(name: str):
    case, arrays = golden_heads.load_head_case(name)
    head = build_official_head(case["family"], case["arch"], test_cfg=case.get("test_cfg")).eval()
    assert official_shapes(head) == {key: tuple(shape) for key, shape in case["state_dict_shapes"].items()}
    load_official(head, golden_heads.head_state(case))
    return head, case, arrays


def truths(case, arrays):
    targets, samples = [], {"rpn": [], "rcnn": []}
    for index in range(len(case["img_metas"])):
        masks = golden_heads.unpacked(arrays, f"gt.masks_packed.{index}", f"gt.mask_shape.{index}")
        targets.append(
            {
                "boxes": torch.from_numpy(arrays[f"gt.boxes.{index}"]),
                "labels": torch.from_numpy(arrays[f"gt.labels.{index}"]).long(),
                "masks": torch.from_numpy(masks),
            }
        )
        for stage, drawn in samples.items():
            names = (f"sample.{stage}.{index}.{part}_inds" for part in ("pos", "neg", "pos_assigned_gt"))
            drawn.append(RegionSample(*(torch.from_numpy(arrays[part]).long() for part in names)))
    return targets, samples


@pytest.mark.parametrize("name", DETECTORS)
def test_mask_rcnn_finds_what_the_released_head_finds(name: str) -> None:
    head, case, arrays = official(name)
    maps = golden_heads.head_maps(case)
    with torch.inference_mode():
        levels = head.model(maps)
        for index, level in enumerate(levels):
            np.testing.assert_allclose(level, arrays[f"fpn.{index}"], rtol=1e-4, atol=1e-4)
        found = head.predict(maps, case["img_metas"])
    for index, result in enumerate(found):
        want = arrays[f"det.rescaled.boxes.{index}"]
        np.testing.assert_allclose(result["boxes"], want[:, :4], atol=1e-2)
        np.testing.assert_allclose(result["scores"], want[:, 4], atol=1e-4)
        assert result["labels"].tolist() == arrays[f"det.rescaled.labels.{index}"].tolist()
        names = (f"det.rescaled.masks_packed.{index}", f"det.rescaled.mask_shape.{index}")
        assert int((result["masks"].numpy() != golden_heads.unpacked(arrays, *names)).sum()) <= 20


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("own_draws", [False, True])
def test_mask_rcnn_has_the_losses_of_the_released_head(name: str, own_draws: bool) -> None:
    head, case, arrays = official(name)
    targets, samples = truths(case, arrays)
    maps = [feature_map.requires_grad_() for feature_map in golden_heads.head_maps(case)]
    head.train()
    torch.manual_seed(case["train"]["torch_seed"])
    losses = head.losses(maps, targets, case["img_metas"], None if own_draws else samples)
    for key, value in losses.items():
        assert value.item() == pytest.approx(float(arrays[f"loss.{key}"]), rel=1e-4)
    sum(value for key, value in losses.items() if "loss" in key).backward()
    for feature_map, want in zip(maps, arrays["grad.input_norms"], strict=True):
        assert float(feature_map.grad.norm()) == pytest.approx(float(want), rel=1e-3)
    names = {head.names.origin(key, ()).reads[0]: value for key, value in head.model.named_parameters()}
    for key, want in case["grad_norms"].items():
        assert float(names[key].grad.norm()) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_upernet_equals_the_released_head(name: str) -> None:
    head, case, arrays = official(name)
    maps = golden_heads.head_maps(case)
    with torch.inference_mode():
        np.testing.assert_allclose(head.model(maps), arrays["decode_logits"], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(head.model.forward_auxiliary(maps), arrays["aux_logits"], rtol=1e-4, atol=2e-5)
        found = head.predict(maps, case["img_metas"])
    for index, result in enumerate(found):
        assert int((result["labels"].numpy() != arrays["pred_rescaled"][index]).sum()) <= 20
    labels = torch.from_numpy(arrays["gt.labels"][:, 0]).long()
    modes = [mode for mode in ("bn_eval", "bn_train") if f"loss.{mode}.loss" in arrays]
    for mode in modes:
        head.train(mode == "bn_train")
        head.model.dropout.p = 0.0
        losses = head.losses(maps, {"labels": labels}, case["img_metas"])
        for key, value in losses.items():
            assert value.item() == pytest.approx(float(arrays[f"loss.{mode}.{key}"]), rel=1e-4)


def test_unknown_families_and_missing_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of mask_rcnn"):
        build_official_head("yolo", {})
    with pytest.raises(ValueError, match="lack the field 'num_classes'"):
        build_official_head("mask_rcnn", {"in_channels": [4, 4, 4, 4]})


def test_boxes_come_back_from_their_deltas() -> None:
    coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
    sources = torch.tensor([[10.0, 10, 50, 40], [0, 0, 8, 8]])
    targets = torch.tensor([[12.0, 5, 60, 44], [1, 1, 4, 9]])
    torch.testing.assert_close(coder.decode(sources, coder.encode(sources, targets), (100, 100)), targets)
    wild = coder.decode(sources, torch.full((2, 4), 100.0), (100, 80))
    assert wild.max() <= 100
    assert torch.isfinite(wild).all()


def test_suppression_keeps_classes_apart_also_with_many_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 100
    boxes = torch.cat((corners, corners + 20), 1)
    scores, classes = torch.rand(300, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    few = class_offset_nms(boxes, scores, classes, 0.5)
    monkeypatch.setattr(box_rules, "MAX_OFFSET_CANDIDATES", 10)
    many = class_offset_nms(boxes, scores, classes, 0.5)
    assert few.tolist() == many.tolist()
    assert scores[few].tolist() == sorted(scores[few].tolist(), reverse=True)
    for value in range(3):
        kept = few[classes[few] == value]
        overlaps = pairwise_iou(boxes[kept], boxes[kept]).fill_diagonal_(0)
        assert overlaps.max() <= 0.51
    assert class_offset_nms(boxes[:0], scores[:0], classes[:0], 0.5).tolist() == []


def test_every_true_box_gets_its_best_candidates_and_later_ones_win() -> None:
    candidates = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 4, 10]])
    truth = torch.tensor([[0.0, 0, 10, 20], [0, 0, 9, 20]])
    assigned = assign_by_overlap(candidates, truth, positive=0.7, negative=0.3, min_iou=0.3)
    assert assigned.tolist() == [1, 1, -1, -1]  # equal overlaps all count; 0.2 is background
    both = assign_by_overlap(candidates[:1], truth.flip(0), positive=0.7, negative=0.3, min_iou=0.3)
    assert both.tolist() == [1]  # the order decides, not the overlap
    assert assign_by_overlap(candidates, truth[:0], positive=0.7, negative=0.3, min_iou=0.3).tolist() == [-1] * 4


def plainly_assigned(candidates, truth, allowed, positive, negative, min_iou) -> torch.Tensor:
    """Return the assignment object by object, from the IoU of all pairs."""
    low = torch.maximum(truth[:, None, :2], candidates[:, :2])
    shared = (torch.minimum(truth[:, None, 2:], candidates[:, 2:]) - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (truth, candidates)]
    overlaps = shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-6)
    overlaps[:, ~allowed] = -1
    best, owner = overlaps.max(0)
    assigned = torch.full_like(owner, -2)
    assigned[best < negative] = -1
    assigned[best >= positive] = owner[best >= positive]
    for index, row in enumerate(overlaps):
        if row.max() >= min_iou:
            assigned[row == row.max()] = index
    assigned[~allowed] = -2
    return assigned


@pytest.mark.parametrize("limit", [1, 3_000, 10**9])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3, 0.3), (0.5, 0.5, 0.5), (0.6, 0.2, 0.01)])
def test_assignment_in_chunks_is_that_of_all_pairs(limit: int, thresholds: tuple, monkeypatch) -> None:
    monkeypatch.setattr(assign, "MAX_PAIRS", limit)
    monkeypatch.setattr(assign, "CHUNK", 100)
    grids = [grid_anchors(stride, (16 * 8 // stride, 20 * 8 // stride), torch.device("cpu")) for stride in (8, 16)]
    candidates = torch.cat(grids)
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(40, 2, generator=generator) * 120).round()  # whole numbers: many equal overlaps
    truth = torch.cat((corners, corners + 8 * torch.randint(0, 12, (40, 2), generator=generator)), 1)  # some empty
    truth = torch.cat((truth, truth[:3], candidates[5:9], truth.new_tensor([[500, 500, 510, 510]])))
    allowed = torch.rand(len(candidates), generator=generator) > 0.1
    positive, negative, min_iou = thresholds
    for permitted in (allowed, torch.ones_like(allowed), torch.zeros_like(allowed)):
        found = assign_by_overlap(
            candidates, truth, positive=positive, negative=negative, min_iou=min_iou, allowed=permitted
        )
        assert torch.equal(found, plainly_assigned(candidates, truth, permitted, *thresholds))
    assert len(found.unique()) == 1


def test_samples_hold_at_most_their_share_of_positives() -> None:
    assigned = torch.tensor([0] * 50 + [-1] * 100 + [-2] * 20)
    (sample,) = draw_samples([assigned], 40, 0.25)
    assert (len(sample.positives), len(sample.negatives)) == (10, 30)
    assert sample.positives.tolist() == sorted(sample.positives.tolist())
    (few,) = draw_samples([torch.tensor([3, -1, -1])], 40, 0.25)
    assert (few.positives.tolist(), few.negatives.tolist(), few.matched.tolist()) == ([0], [1, 2], [3])


def test_masks_of_boxes_outside_or_without_area_are_empty() -> None:
    boxes = torch.tensor([[2.0, 2, 2, 8], [-30, -30, -10, -10], [4, 4, 12, 10]])
    pasted = paste_masks(torch.ones(3, 28, 28), boxes, (16, 20))
    assert pasted.flatten(1).sum(1).tolist() == [0, 0, 48]
    masks = torch.zeros(1, 16, 20, dtype=torch.bool)
    masks[0, 4:10, 4:12] = True
    assert mask_targets(masks, torch.tensor([[4.0, 4, 12, 10]])).mean() > 0.99
    assert mask_targets(masks[:0], torch.zeros(0, 4)).shape == (0, 28, 28)


def model(kind: str, classes: int = 3):
    branches = (tiny_vit(32, 2, 64, depth=2), tiny_vit(16, 2, 128, depth=2))
    config = ModelConfig(
        branches,
        InteractionConfig(num_heads=4),
        MergeConfig("slim", 32),
        NeckConfig("simple"),
        HeadConfig(kind, classes, width=16),
    )
    torch.manual_seed(0)
    return piip.build_model(config)


def test_a_whole_detector_predicts_and_trains_with_images_without_objects() -> None:
    detector = model("mask_rcnn").eval()
    with torch.inference_mode():
        found = detector(image(96, 160))
    assert len(found) == 2
    assert found[0]["masks"].shape[1:] == (96, 160)
    detector.train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, 96, 160).bool()}
    one = {
        "boxes": torch.tensor([[10.0, 12, 70, 60]]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 96, 160).bool(),
    }
    image_infos = [ImageInfo.make((96, 160)), ImageInfo.make((90, 130), padded=(96, 160))]
    for targets in ([one, empty], [empty, empty]):
        losses = detector(image(96, 160), image_infos, targets)
        total = sum(value for key, value in losses.items() if "loss" in key)
        assert torch.isfinite(total)
        total.backward()
    assert all(value.grad is not None for value in detector.parameters())


def test_a_whole_segmentor_maps_pixels_of_the_original_image() -> None:
    segmentor = model("upernet").eval()
    image_info = ImageInfo.make((90, 130), padded=(96, 160), original=(45, 65))
    with torch.inference_mode():
        found = segmentor(image(96, 160), [image_info, image_info])
    assert found[0]["labels"].shape == (45, 65)
    assert int(found[0]["labels"].max()) < 3
    segmentor.train()
    labels = torch.full((96, 160), 255)
    labels[:50] = 1
    losses = segmentor(image(96, 160), [image_info, image_info], [{"labels": labels}] * 2)
    sum(value for key, value in losses.items() if "loss" in key).backward()
    assert all(value.grad is not None for value in segmentor.parameters())


def test_a_segmentor_trains_with_a_single_image() -> None:
    """The 1x1 pooled map has one value per channel: its norm uses the statistics of evaluation, and keeps them."""
    torch.manual_seed(0)
    head = UperNetHead([8] * 4, 3, channels=8, auxiliary_channels=8, dropout=0.0).train()
    maps = [torch.randn(1, 8, side, side) for side in (8, 4, 2, 1)]  # the coarsest map is a single value as well
    labels = [{"labels": torch.zeros(32, 32, dtype=torch.long)}]
    before = [norm.running_mean.clone() for norm in (head.pools[0][1], head.laterals[0][1])]
    losses = head.losses(maps, labels, [ImageInfo.make((32, 32))]).losses
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert torch.equal(head.pools[0][1].running_mean, before[0])
    assert not torch.equal(head.laterals[0][1].running_mean, before[1])
    block, single = head.pools[0], torch.randn(1, 8, 1, 1)
    torch.testing.assert_close(block(single), block.eval()(single))


def test_heads_need_the_maps_of_a_neck() -> None:
    branch = tiny_vit(16, 2, 64, depth=2)
    with pytest.raises(ValueError, match="needs maps of several strides"):
        ModelConfig((branch,), merge=MergeConfig("none"), head=HeadConfig("mask_rcnn"))
    with pytest.raises(ValueError, match="reads four maps, the neck makes 2"):
        piip.build_model(
            ModelConfig(
                (branch,),
                merge=MergeConfig("none"),
                neck=NeckConfig("simple", scales=(2, 1)),
                head=HeadConfig("upernet"),
            )
        )
