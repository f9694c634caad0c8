"""Detectors and segmentors in bfloat16: the backbone is, the head stays in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import piip
from piip.serialization.load import load_model

ASSETS = Path(piip.__file__).parent / "assets"
FILES = {"nuclei": "nuclei_d827a7d8.png", "nuclei_maps": ""}


@pytest.mark.parametrize("name", FILES)
def test_bfloat16_predicts_about_the_same(name: str) -> None:
    image = min((path for path in (ASSETS / name / "images").iterdir() if FILES[name] in path.name), key=str)
    exact, rounded = (
        next(iter(piip.Predictor(ASSETS / name / "model", device="cpu", dtype=dtype).predict_paths([image])))
        for dtype in ("f32", "bf16")
    )
    if name == "nuclei":
        counts = [int((prediction.scores >= 0.5).sum()) for prediction in (exact, rounded)]
        assert counts[0] > 20
        assert abs(counts[0] - counts[1]) <= 2
    else:
        assert (torch.as_tensor(exact.labels) == torch.as_tensor(rounded.labels)).float().mean() > 0.95


def test_heads_stay_in_float32() -> None:
    model = load_model(ASSETS / "nuclei" / "model", dtype="bf16")
    again = load_model(ASSETS / "nuclei" / "model").bfloat16()
    for made in (model, again, model.to("cpu")):
        assert {p.dtype for p in made.backbone.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in made.head.parameters()} == {torch.float32}
