"""From the raw image to the released heads' final answers, and how images get there."""

from __future__ import annotations

import zlib
from typing import Any

import golden_heads
import numpy as np
import pytest
import torch
from PIL import Image

from piip.checkpoints import build_official_head, load_official, official_shapes
from piip.checkpoints.heads import image_info_of
from piip.data.collate import DenseTransform, PadTogether
from piip.data.transforms.dense import DenseTransformConfig
from piip.inference.sliding_window import flip_image, sliding_probabilities, window_corners


def prepared(case: dict[str, Any], raw: np.ndarray):
    """Run the official test pipeline on a BGR picture."""
    crop = case.get("crop_size")
    config = DenseTransformConfig(
        short_side=crop[0] if crop else min(case["img_scale"]),
        long_side=None if crop else max(case["img_scale"]),
        resize="official",
        pad_divisor=case.get("pad_divisor", 1),
        mean=tuple(value / 255 for value in case["mean"]),
        std=tuple(value / 255 for value in case["std"]),
    )
    sample = DenseTransform(config, train=False)(Image.fromarray(raw[..., ::-1].copy()), {}, 0)
    return PadTogether(config.pad_divisor)([sample])


def stub_maps(case: dict[str, Any], image: torch.Tensor) -> list[torch.Tensor]:
    """Return the maps of the reference's stand-in for a backbone."""
    stub, maps = case["stub"], []
    for index, (channels, stride) in enumerate(zip(stub["channels"], stub["strides"], strict=True)):
        rng = np.random.default_rng(zlib.crc32((stub["salt"] + f"stub.{index}.weight").encode()))
        weight = rng.standard_normal((channels, 3)).astype(np.float32) * np.float32(stub["gain"])
        pooled = torch.nn.functional.avg_pool2d(image, stride, stride)
        maps.append(torch.tanh(torch.einsum("ck,bkhw->bchw", torch.from_numpy(weight), pooled)))
    return maps


def filled_head(case: dict[str, Any], family: str):
    head = build_official_head(family, case["arch"]).eval()
    case["state_dict_shapes"] = {key: list(shape) for key, shape in official_shapes(head).items()}
    load_official(head, golden_heads.head_state(case))
    return head


@pytest.mark.parametrize("name", ["preproc_det_tsb1120", "preproc_seg"])
def test_images_are_prepared_as_for_the_released_models(name: str) -> None:
    case, arrays = golden_heads.load_head_case(name)
    batch = prepared(case, arrays["image_bgr_uint8"])
    assert tuple(batch.image.shape[1:]) == tuple(arrays["tensor_shape"])
    assert batch.image_infos[0].size == tuple(arrays["img_shape"][:2])
    assert batch.image_infos[0].scale == pytest.approx(arrays["scale_factor"][:2].tolist(), rel=1e-6)
    got = batch.image[0].numpy()[arrays["sample_c"], arrays["sample_y"], arrays["sample_x"]]
    far = np.abs(got - arrays["sample_v"]) > 1e-5
    assert far.mean() < 0.005
    assert np.abs(got - arrays["sample_v"]).max() * max(case["std"]) < 1.05  # one grey level


def test_mask_rcnn_from_the_raw_image() -> None:
    case, arrays = golden_heads.load_head_case("e2e_mrcnn")
    batch = prepared(case, arrays["image_bgr_uint8"])
    assert np.abs(batch.image[0].numpy() - arrays["net_input"]).max() * 127.5 < 1.05
    image = torch.from_numpy(arrays["net_input"])[None]
    shapes = {key: case[key][:2] for key in ("img_shape", "pad_shape", "ori_shape")}
    assert batch.image_infos[0].size == image_info_of(shapes).size
    found = filled_head(case, "mask_rcnn").predict(stub_maps(case, image), [shapes])[0]
    order = np.argsort(-arrays["boxes"][:, 4], kind="stable")
    np.testing.assert_allclose(found["boxes"], arrays["boxes"][order, :4], atol=1e-2)
    assert found["labels"].tolist() == arrays["labels"][order].tolist()
    masks = golden_heads.unpacked(arrays, "masks_packed", "mask_shape")[order]
    assert int((found["masks"].numpy() != masks).sum()) <= 20


@torch.no_grad()
def test_upernet_by_windows_from_the_raw_image() -> None:
    case, arrays = golden_heads.load_head_case("e2e_upernet")
    batch = prepared(case, arrays["image_bgr_uint8"])
    np.testing.assert_allclose(batch.image[0], arrays["net_input"], atol=0.02)
    head = filled_head(case, "upernet")

    def segment(window: torch.Tensor) -> torch.Tensor:
        return head.model(stub_maps(case, window))

    answer = sliding_probabilities(segment, batch.image, batch.image_infos[0], crop=64, stride=43)[0]
    assert int((answer.argmax(0).numpy() != arrays["pred"]).sum()) <= 20
    np.testing.assert_allclose(answer.max(0).values, arrays["prob_max"], atol=1e-3)


def test_windows_cover_the_image_and_stay_inside() -> None:
    assert window_corners(150, 64, 43) == [0, 43, 86]
    assert window_corners(64, 64, 43) == [0]
    assert window_corners(40, 64, 43) == [0]
    assert window_corners(65, 64, 43) == [0, 1]
    image_info = image_info_of({"img_shape": (40, 100)})
    image = torch.randn(1, 3, 40, 100)
    constant = sliding_probabilities(lambda window: torch.ones(1, 2, 4, 4), image, image_info, crop=32, stride=20)
    torch.testing.assert_close(constant, torch.full((1, 2, 40, 100), 0.5))
    with pytest.raises(ValueError, match="expected a stride from 1 to the crop"):
        sliding_probabilities(lambda window: window, image, image_info, crop=32, stride=40)


def test_flipping_keeps_the_padding_at_the_right() -> None:
    image = torch.zeros(1, 3, 4, 8)
    image[..., :5] = torch.arange(1.0, 6.0)
    flipped = flip_image(image, image_info_of({"img_shape": (4, 5), "pad_shape": (4, 8)}))
    assert flipped[0, 0, 0].tolist() == [5, 4, 3, 2, 1, 0, 0, 0]
