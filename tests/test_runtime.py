"""Models in other runtimes: the same outputs, exported once, cached by content."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from pyramids import image, randomise, tiny_vit
from shapes import dense_recipe

import piip
from piip.config import HeadConfig, InteractionConfig, ModelConfig
from piip.export import runtime as runtimes
from piip.export.formats import find_format
from piip.export.runtime import content_key, in_runtime

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
if Version(torch.__version__).release < (2, 9):
    pytest.skip("ONNX and OpenVINO need PyTorch 2.9", allow_module_level=True)


def build(**fields: Any) -> Any:
    parts = (tiny_vit(32, 2, 64, depth=1), tiny_vit(16, 2, 96, depth=1))
    torch.manual_seed(0)
    return randomise(piip.build_model(ModelConfig(parts, InteractionConfig(count=1, num_heads=2), **fields)))


def close(found: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((found - want).norm() <= 1e-4 * want.norm())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "piip" / "exported"


@pytest.mark.parametrize("runtime", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_classifiers_take_any_batch_and_are_exported_once(
    runtime: str, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(head=HeadConfig("pooled", num_classes=5))
    with caplog.at_level(logging.WARNING):
        fast = piip.optimize_for_inference(model, image(96, 96, 1), runtime=runtime)
    assert [record.message for record in caplog.records] == [
        f"Exporting the model for 96 x 96 pixels to {next(cache.iterdir())}, once."
    ]
    monkeypatch.setattr(runtimes, "export_model", lambda *_, **__: pytest.fail("exported again"))
    again = piip.optimize_for_inference(model, image(96, 96, 1), runtime=runtime)
    for batch in (1, 3):
        with torch.no_grad():
            want = model(image(96, 96, batch))
        assert close(fast(image(96, 96, batch)), want)
        assert close(again(image(96, 96, batch)), want)
    assert model.training is False
    assert len([*cache.iterdir()]) == 1


@pytest.mark.slow
def test_detectors_keep_their_head_in_pytorch(cache: Path) -> None:
    model: Any = piip.build_model(ModelConfig.from_dict(dense_recipe(Path(), Path(), "coco")["model"])).eval()
    fast: Any = in_runtime(model, "onnx")
    images = image(64, 96, 2)
    for found, want in zip(fast.forward_maps(images), model.forward_maps(images), strict=True):
        assert close(found, want.detach())
    assert fast.head is model.head
    assert [*fast.predict(images)[0]] == [*model.predict(images)[0]]
    assert isinstance(model.backbone, piip.PIIPBackbone)


def test_keys_change_with_all_that_matters() -> None:
    model, onnx = build(head=HeadConfig("pooled", num_classes=5)), find_format("onnx")
    key = content_key(model, onnx, (96, 96))
    assert content_key(build(head=HeadConfig("pooled", num_classes=5)), onnx, (96, 96)) == key
    assert content_key(model, onnx, (96, 128)) != key
    assert content_key(model, find_format("openvino"), (96, 96)) != key
    with torch.no_grad():
        model.head.fc.bias[0] += 1e-3
    assert content_key(model, onnx, (96, 96)) != key


def test_what_a_runtime_does_not_take(cache: Path) -> None:
    model = build(head=HeadConfig("pooled", num_classes=5))
    assert in_runtime(model, "torch") is model
    with pytest.raises(ValueError, match="runtime is 'tensorrt', expected one of torch, onnx"):
        in_runtime(model, "tensorrt")
    with pytest.raises(ValueError, match=r"images are torch.bfloat16 on cpu, expected torch.float32 on the CPU"):
        in_runtime(model, "onnx")(image(96, 96, 1).bfloat16())
    with pytest.raises(ValueError, match="is a Conv2d, expected one of piip"):
        piip.optimize_for_inference(torch.nn.Conv2d(3, 1, 1), image(96, 96, 1), runtime="onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["landcover", "nuclei_maps"])
def test_predictors_give_the_same_results(name: str, cache: Path) -> None:
    folder = Path(piip.__file__).parent / "assets" / name
    files = sorted((folder / "images").iterdir())[:2]
    want, found = (
        [row.to_dict() for row in piip.Predictor(folder / "model", runtime=runtime).predict_paths(files)]
        for runtime in ("torch", "openvino")
    )
    assert len([*cache.iterdir()]) == 1
    for row, other in zip(want, found, strict=True):
        for key, value in row.items():
            assert other[key] == (pytest.approx(value, abs=1e-3) if isinstance(value, (dict, float)) else value) or (
                isinstance(value, list)
            )
