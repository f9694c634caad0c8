"""Models of segmentation_models_pytorch train over pyramids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from pyramids import image, tiny_pyramid
from torch import nn

smp = pytest.importorskip("segmentation_models_pytorch", minversion="0.5")

from piip.integrations.smp import PiipDPT, PiipEncoder, register_encoder  # noqa: E402 - after the check

OLD = pytest.mark.skipif(Version(smp.__version__) < Version("0.6"), reason="smp before 0.6 takes no maps of 0 channels")
SMALL: dict[str, Any] = {"encoder_weights": None, "classes": 3}
# as few channels as each allows
LEVELS: dict[str, Callable[[str], nn.Module]] = {
    "Unet": lambda name: smp.Unet(name, decoder_channels=(8,) * 5, **SMALL),
    "FPN": lambda name: smp.FPN(name, decoder_pyramid_channels=32, decoder_segmentation_channels=32, **SMALL),
    "UPerNet": lambda name: smp.UPerNet(name, decoder_channels=8, **SMALL),
    "Segformer": lambda name: smp.Segformer(name, decoder_segmentation_channels=8, **SMALL),
    "MAnet": lambda name: smp.MAnet(name, decoder_channels=(8,) * 5, **SMALL),
    "DPT": lambda name: PiipDPT(name, (8,) * 4, 8, classes=3),
}
MORE_LEVELS: dict[str, Callable[[str], nn.Module]] = {
    "UnetPlusPlus": lambda name: smp.UnetPlusPlus(name, decoder_channels=(8,) * 5, **SMALL),
    "Linknet": lambda name: smp.Linknet(name, **SMALL),
}
ONE_MAP: dict[str, Callable[[str], nn.Module]] = {
    "Unet": lambda name: smp.Unet(name, encoder_depth=4, decoder_channels=(8,) * 4, **SMALL),
    "Segformer": lambda name: smp.Segformer(name, encoder_depth=4, decoder_segmentation_channels=8, **SMALL),
    "PSPNet": lambda name: smp.PSPNet(name, encoder_depth=4, psp_out_channels=8, upsampling=16, **SMALL),
    "DPT": lambda name: PiipDPT(name, (8,), 8, classes=3),
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """These models are tiny."""


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    before = dict(smp.encoders.encoders)
    register_encoder("levels", tiny_pyramid())
    register_encoder("patch14", tiny_pyramid(patch=14))
    register_encoder("map", tiny_pyramid(neck="none"))
    register_encoder("single", tiny_pyramid(1, neck="none"))
    register_encoder("three", tiny_pyramid(3))
    yield
    smp.encoders.encoders.clear()
    smp.encoders.encoders.update(before)


def check(model: nn.Module, height: int = 64, width: int = 96) -> None:
    """Train one step."""
    logits = model(image(height, width))
    assert logits.shape == (2, 3, height, width)
    logits.square().mean().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", LEVELS)
def test_models_train_over_levels(name: str) -> None:
    check(LEVELS[name]("levels"))


@OLD
@pytest.mark.parametrize("name", MORE_LEVELS)
def test_models_that_fill_a_missing_level_train(name: str) -> None:
    check(MORE_LEVELS[name]("levels"))


def test_pan_trains_without_dilation() -> None:
    check(smp.PAN("levels", encoder_output_stride=32, decoder_channels=8, **SMALL), 256, 256)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
@pytest.mark.parametrize("name", ONE_MAP)
@pytest.mark.parametrize("encoder", ["map", "single"])
def test_models_train_over_one_map(name: str, encoder: str) -> None:
    check(ONE_MAP[name](encoder))


@pytest.mark.parametrize("encoder", ["patch14", "three"])
@pytest.mark.parametrize("name", ["Unet", "DPT"])
def test_any_patches_and_number_of_branches(encoder: str, name: str) -> None:
    check(LEVELS[name](encoder))


def test_unet_takes_images_of_any_size() -> None:
    check(LEVELS["Unet"]("levels"), 61, 83)


@pytest.mark.parametrize("name", ["Unet", "DPT"])
def test_saved_models_load_again(name: str, tmp_path: Path) -> None:
    model = LEVELS[name]("levels").eval()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(image(64, 64)), model(image(64, 64)))


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
@pytest.mark.parametrize("patch", [16, 14])
def test_encoder_returns_what_it_declares(size: tuple[int, int], patch: int) -> None:
    encoder = PiipEncoder(tiny_pyramid(patch=patch))
    assert encoder.out_channels == [3, 0, 32, 32, 32, 32]
    assert encoder.output_stride == 32
    features = encoder(image(*size))
    assert [feature.shape[1] for feature in features] == encoder.out_channels
    for power, feature in enumerate(features):
        assert feature.shape[2:] == (-(-size[0] // 2**power), -(-size[1] // 2**power))
    shallow = PiipEncoder(tiny_pyramid(), depth=3)
    assert [feature.shape[1] for feature in shallow(image(64, 64))] == shallow.out_channels == [3, 0, 32, 32]
    assert shallow.output_stride == 8
    assert len(encoder.mean) == len(encoder.std) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smp.DeepLabV3("levels", **SMALL), "encoder_output_stride is 8, expected 32"),
        (lambda: smp.DeepLabV3Plus("levels", **SMALL), "cannot be dilated"),
        (lambda: smp.Unet("levels", in_channels=4, **SMALL), "in_channels is 4, expected 3"),
        (lambda: smp.Unet("map", **SMALL), "encoder_depth is 5, expected 4 to 4"),
        (lambda: PiipDPT("resnet18"), r"register_encoder\('resnet18', config\)"),
        (lambda: register_encoder("resnet18", tiny_pyramid()), "choose another name, such as 'piip-resnet18'"),
        (lambda: register_encoder("tu-piip", tiny_pyramid()), "choose another name"),
        (lambda: PiipEncoder(tiny_pyramid(neck="none", merge="none")), "expected one map, or strides that double"),
    ],
)
def test_what_does_not_work_is_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_name_can_be_registered_again() -> None:
    register_encoder("levels", tiny_pyramid(neck="none"))
    check(ONE_MAP["Unet"]("levels"))
