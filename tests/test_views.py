"""Several views of one picture: mapped back and merged as a person would expect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from PIL import Image

from piip.build import build_model
from piip.config import ModelConfig
from piip.data.collate import Batch
from piip.data.transforms.dense import DenseTransformConfig
from piip.heads.base import View, mirror
from piip.heads.mask_rcnn import tta as augmented
from piip.inference.dense_predictor import DensePredictor, load_dense_predictor
from piip.inference.predictions import InstancePrediction
from piip.inference.predictor import Predictor
from piip.inference.tta import mean_probabilities, scaled_config, with_flips
from piip.serialization.save import save_model
from piip.structures import ImageInfo

pytestmark = pytest.mark.usefixtures("one_thread")
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def write_model(directory: Path, head: str, **dense: Any) -> Path:
    """Export an untrained model that finds something everywhere."""
    torch.manual_seed(0)
    kind = "semantic_masks" if head == "upernet" else "coco"
    values = shapes.dense_recipe(directory, directory, kind)["model"]
    values["head"] = {"kind": head, "num_classes": 2, "width": 64}
    model: Any = build_model(ModelConfig.from_dict(values)).eval()
    if head == "mask_rcnn":
        torch.nn.init.normal_(model.head.boxes.scores.weight, std=0.5)
        torch.nn.init.normal_(model.head.boxes.deltas.weight, std=0.5)
        torch.nn.init.normal_(model.head.proposals.scores.weight, std=1.0)
        torch.nn.init.normal_(model.head.masks.logits.weight, std=1.0)
    config = DenseTransformConfig(**{**NORMAL, **dense})
    save_model(model, directory, {"classes": ["box", "disc"], "dense": dataclasses.asdict(config)})
    return directory


def picture(seed: int = 0, shape: tuple[int, int] = (64, 96)) -> Image.Image:
    return Image.fromarray(shapes.draw_shapes(seed, shape)[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {head: write_model(tmp_path_factory.mktemp(head), head) for head in ("mask_rcnn", "dino", "upernet")}


def answer(model: Path, image: Image.Image, **views: Any) -> dict[str, torch.Tensor]:
    return values_of(load_dense_predictor(model, device="cpu", **views), image)


def values_of(predictor: DensePredictor, image: Image.Image) -> dict[str, torch.Tensor]:
    return predictor.run(predictor.tta(image, {}, 0))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.shape == second[name].shape, name
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, second[name], atol=2e-3, rtol=1e-4)
        else:
            assert float((value != second[name]).float().mean()) < 1e-3, name


def mirrored(values: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    turned = {name: value.flip(-1) if value.dim() > 1 else value for name, value in values.items()}
    return turned | ({"boxes": mirror(values["boxes"], width)} if "boxes" in values else {})


@pytest.mark.parametrize("head", ["mask_rcnn", "dino", "upernet"])
def test_a_mirrored_picture_gives_the_mirrored_answer(models: dict[str, Path], head: str) -> None:
    image = picture()
    values = answer(models[head], image, flip=True)
    turned = answer(models[head], image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), flip=True)
    assert head == "upernet" or len(values["scores"])
    assert_same(mirrored(turned, image.width), values)


@pytest.mark.parametrize("head", ["mask_rcnn", "dino", "upernet"])
def test_the_same_view_twice_is_as_good_as_once(models: dict[str, Path], head: str) -> None:
    image = picture(1)
    for scales in ((1.0,), (1.25, 0.75)):
        few = answer(models[head], image, scales=scales, flip=True)
        assert_same(answer(models[head], image, scales=scales * 2, flip=True), few)


def test_a_symmetric_picture_has_a_symmetric_answer(models: dict[str, Path]) -> None:
    half = np.asarray(picture(2, (64, 32)))
    image = Image.fromarray(np.concatenate((half, half[:, ::-1]), 1))
    values = answer(models["upernet"], image, flip=True)
    assert_same(mirrored(values, image.width), values)


def test_flipping_changes_nothing_where_model_and_picture_are_symmetric() -> None:
    half = torch.rand(1, 3, 8, 6)
    image_info = ImageInfo.make((8, 12), padded=(8, 16))
    image = torch.cat((half, half.flip(-1), torch.zeros(1, 3, 8, 4)), -1)
    batch = Batch(image, [image_info], [], [0])

    def by_colour(values: torch.Tensor, image_info: ImageInfo) -> torch.Tensor:
        return values[..., : image_info.size[0], : image_info.size[1]].softmax(1)

    mean = mean_probabilities(by_colour, with_flips([batch], flip=True))
    torch.testing.assert_close(mean, by_colour(image, image_info))


@torch.no_grad()
@pytest.mark.parametrize("windows", [{}, {"slide_crop": 48, "slide_stride": 32}])
def test_classes_of_pixels_are_those_of_the_mean_probability(tmp_path: Path, windows: dict[str, int]) -> None:
    image = picture(3)
    model = write_model(tmp_path, "upernet", short_side=64, **windows)
    total = torch.zeros(2, 64, 96)
    for side, scale in ((48, 0.75), (64, 1.0), (80, 1.25)):
        alone = load_dense_predictor(model, device="cpu", scales=[scale])
        [batch] = alone.tta(image, {}, 0)
        assert batch.image_infos[0].size[0] == side
        for flipped in (False, True):
            seen = with_flips([batch], flip=True)[flipped]
            logits = alone._probabilities(seen[0], seen[1])[0]
            total += logits.flip(-1) if flipped else logits
    wanted = (total / 6).argmax(0)
    values = answer(model, image, scales=(0.75, 1, 1.25), flip=True)
    assert (values["labels"] != wanted).float().mean() < 1e-3
    torch.testing.assert_close((total / 6).sum(0), torch.ones(64, 96))


@pytest.mark.parametrize("head", ["mask_rcnn", "dino", "upernet"])
def test_the_description_of_a_model_may_ask_for_views(tmp_path: Path, head: str) -> None:
    image = picture(4)
    asking = write_model(tmp_path / "asking", head, test_scales=(1.0, 1.5), flip_test=True)
    plain = write_model(tmp_path / "plain", head)
    assert_same(answer(asking, image), answer(plain, image, scales=(1, 1.5), flip=True))
    assert_same(answer(asking, image, scales=(1,), flip=False), answer(plain, image))


def test_a_picture_without_instances_has_none_in_any_view(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "mask_rcnn")
    predictor = load_dense_predictor(directory, device="cpu", scales=(0.5, 1), flip=True)
    head: Any = predictor.model.head
    with torch.no_grad():
        head.boxes.scores.bias.copy_(torch.tensor([-100.0, -100.0, 100.0]))
    values = values_of(predictor, picture())
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "masks": (0, 64, 96),
    }


@torch.no_grad()
def test_one_view_is_refined_and_masked_as_without_views(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the second suppression of proposals, which is left out here, views go through the same rules."""
    monkeypatch.setattr(augmented, "OVERLAP", 1.0)
    predictor = load_dense_predictor(models["mask_rcnn"], device="cpu", scales=[1.5], flip=False)
    image = picture(5)
    [batch] = predictor.tta(image, {}, 0)
    alone = predictor.run([batch])
    seen = predictor.model.predict_views([batch.image], batch.image_infos, [False], max_detections=100)
    assert len(alone["scores"]) == 100
    assert_same(seen, alone)
    [mirrored_batch] = predictor.tta(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {}, 0)
    turned = predictor.model.predict_views(
        [mirrored_batch.image], mirrored_batch.image_infos, [True], max_detections=100
    )
    assert_same(mirrored(predictor.run([mirrored_batch]), image.width), turned)


@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_go_to_a_view_and_back(flipped: bool) -> None:
    view = View([], ImageInfo.make((50, 90), padded=(64, 96), original=(100, 200)), flipped)
    boxes = torch.tensor([[0.0, 0.0, 200.0, 100.0], [20.0, 10.0, 60.0, 40.0]])
    seen = view.from_image(boxes)
    assert seen[0].tolist() == [0, 0, 90, 50]
    assert seen[1].tolist() == pytest.approx([63, 5, 81, 20] if flipped else [9, 5, 27, 20])
    torch.testing.assert_close(view.to_image(seen), boxes)


def test_sizes_of_views() -> None:
    config = DenseTransformConfig(short_side=800, long_side=1333)
    half = scaled_config(config, 0.5, (480, 640))
    assert (half.short_side, half.long_side) == (400, 666)
    assert scaled_config(DenseTransformConfig(), 1.5, (100, 61)).short_side == 91
    assert scaled_config(config, 1, (480, 640)) is config
    windows = DenseTransformConfig(short_side=512, slide_crop=512, slide_stride=341, resize="official")
    assert scaled_config(windows, 0.75, (480, 640)).short_side == 512
    assert scaled_config(windows, 1.25, (480, 640)).short_side == 640


def test_wrong_scales_are_refused(models: dict[str, Path]) -> None:
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"expected factors above 0 such as 0\.75 1 1\.25"):
            load_dense_predictor(models["dino"], device="cpu", scales=scales)
        with pytest.raises(ValueError, match=r"data\.dense\.test_scales is"):
            DenseTransformConfig(test_scales=scales)
    predictor = load_dense_predictor(models["upernet"], device="cpu")
    with pytest.raises(ValueError, match=r"predict_views\(\) is for detectors"):
        predictor.model.predict_views([], [], [], max_detections=1)
    with pytest.raises(ValueError, match="views is empty"):
        mean_probabilities(predictor._probabilities, [])


def test_the_public_predictor_takes_views(models: dict[str, Path]) -> None:
    image = picture()
    (seen,) = Predictor(models["mask_rcnn"], device="cpu", scales=[1.0, 1.5], flip=True).predict([image])
    assert isinstance(seen, InstancePrediction)
    wanted = answer(models["mask_rcnn"], image, scales=[1.0, 1.5], flip=True)
    assert torch.equal(seen.boxes, wanted["boxes"])
    assert len(seen.boxes) != len(answer(models["mask_rcnn"], image)["boxes"]) or not torch.equal(
        seen.boxes, answer(models["mask_rcnn"], image)["boxes"]
    )
