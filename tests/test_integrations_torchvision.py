"""torchvision's detectors train and predict over pyramids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyramids import image, tiny_pyramid
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import piip
from piip.config import NeckConfig
from piip.integrations.torchvision import DetectionBackbone, detection_backbone

SIZES = {"min_size": 64, "max_size": 96}
FEW = {**SIZES, "box_detections_per_img": 3, "rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20}
IMAGES = [(61, 95), (83, 50)]  # no multiples of anything


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """These models are tiny."""


def backbone(*args: Any, out: dict[str, Any] | None = None, **fields: Any) -> DetectionBackbone:
    return detection_backbone(piip.build_backbone(tiny_pyramid(*args, **fields)), out_channels=32, **(out or {}))


def targets(classes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[5.0, 5, 40, 45], [10, 20, 35, 48]])
    masks = [torch.ones(2, *size, dtype=torch.uint8) for size in IMAGES]
    points = torch.tensor([[[20.0, 30, 1]] * 5] * 2)
    return [{"boxes": boxes, "labels": torch.tensor(classes), "masks": mask, "keypoints": points} for mask in masks]


def check(detector: nn.Module, *, classes: tuple[int, ...] = (1, 2)) -> None:
    """Train one step and predict."""
    torch.manual_seed(0)
    images = [torch.rand(3, *size) for size in IMAGES]
    losses = detector.train()(images, targets(classes))
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not [name for name in without if name.startswith("backbone.")]
    for prediction, (height, width) in zip(detector.eval()(images), IMAGES, strict=True):
        assert prediction["boxes"].shape == (len(prediction["scores"]), 4)
        assert (prediction["boxes"] <= torch.tensor([width, height, width, height])).all()


DETECTORS: dict[str, Callable[[DetectionBackbone], nn.Module]] = {
    "FasterRCNN": lambda over: FasterRCNN(over, 3, **FEW),
    "MaskRCNN": lambda over: MaskRCNN(over, 3, **FEW),
    "RetinaNet": lambda over: RetinaNet(over, 3, **SIZES),
    "FCOS": lambda over: FCOS(over, 3, **SIZES),
}


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("patch", [16, 14])
def test_detectors_train_and_predict(name: str, patch: int) -> None:
    check(DETECTORS[name](backbone(patch=patch)))


def test_keypoint_rcnn_trains_and_predicts() -> None:
    head, predictor = KeypointRCNNHeads(32, (8,)), KeypointRCNNPredictor(8, 5)
    check(
        KeypointRCNN(backbone(), 2, keypoint_head=head, keypoint_predictor=predictor, num_keypoints=None, **FEW),
        classes=(1, 1),
    )


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_branches(count: int) -> None:
    check(FasterRCNN(backbone(count), 3, **FEW))


def test_one_map_without_a_neck() -> None:
    over = backbone(neck="none")
    assert [*over(image(96, 64))] == ["0", "pool"]
    anchors = AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2)
    check(FasterRCNN(over, 3, rpn_anchor_generator=anchors, **FEW))


def test_levels_of_retinanet_and_fcos() -> None:
    config = tiny_pyramid()
    config = piip.ModelConfig(config.branches, config.interaction, neck=NeckConfig("simple", scales=(2, 1, 0.5)))
    over = detection_backbone(piip.build_backbone(config), out_channels=32, extra_blocks=LastLevelP6P7(32, 32))
    assert [feature_map.shape[2] for feature_map in over(image(256, 128)).values()] == [32, 16, 8, 4, 2]
    check(FCOS(over, 3, **SIZES))


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("size", [(96, 64), (352, 32)])
def test_maps_have_the_sizes_that_detectors_assume(patch: int, size: tuple[int, int]) -> None:
    over = backbone(patch=patch)
    maps = over(image(*size))
    strides = over.levels.strides
    assert strides == ([2, 4, 8, 16] if patch == 8 else [4, 8, 16, 32])
    assert over.out_channels == 32
    for feature_map, stride in zip(maps.values(), strides, strict=False):
        assert feature_map.shape == (2, 32, size[0] // stride, size[1] // stride)
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)  # guesses the strides from the sizes
    pooler(maps, [torch.tensor([[0.0, 0, 20, 20]])] * 2, [size] * 2)
    assert pooler.scales == [1 / stride for stride in strides]


def test_chosen_levels_and_a_model_with_a_head() -> None:
    config = tiny_pyramid()
    classifier = piip.build_model(
        piip.ModelConfig(config.branches, config.interaction, head=piip.HeadConfig("pooled", 2))
    )
    assert detection_backbone(classifier, out_channels=8).levels.backbone is classifier.backbone
    over = backbone(out={"out_indices": (1, 2)})
    assert over.levels.strides == [8, 16]
    assert [*over(image(96, 64))] == ["0", "1", "pool"]
    assert over.image_mean == list(over.levels.backbone.pretrained_cfg["mean"])


def test_ssd_reads_channels_from_a_backbone_inside_another_module() -> None:
    boxes = DefaultBoxGenerator([[2]] * 5)
    with pytest.raises(TypeError):  # it takes `out_channels` for a list
        SSD(backbone(), boxes, (64, 64), 3)
    check(SSD(nn.Sequential(backbone()), boxes, (64, 64), 3, detections_per_img=3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Identity(), "Expected a model of piip, got Identity"),
        (lambda: piip.build_backbone(tiny_pyramid(neck="none", merge="none")), "strides 32, 16, expected one map"),
    ],
)
def test_what_detectors_cannot_read_is_refused(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detection_backbone(model())
