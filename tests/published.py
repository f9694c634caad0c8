"""Small stand-ins for published files: the golden configurations under names of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import golden
import pytest
import torch

from piip.checkpoints import load_official
from piip.checkpoints.convert import Conversion, convert_checkpoint
from piip.config import HeadConfig, ModelConfig
from piip.zoo.registry import MODELS, OFFICIAL

MODEL = "piip_small.golden"


def register(monkeypatch: pytest.MonkeyPatch, case_name: str) -> dict[str, torch.Tensor]:
    """Give a golden configuration a name; return weights for it, under official names."""
    case, _ = golden.load_case(case_name)
    with torch.device("meta"):
        config = golden.build_case(case).config
    if case["code_base"] == "llava":
        config = dataclasses.replace(config, head=HeadConfig("projector", width=32))
    register_config(monkeypatch, config)
    return golden.case_state(case)


def register_config(monkeypatch: pytest.MonkeyPatch, config: ModelConfig) -> None:
    """Give a description a name."""
    monkeypatch.setitem(MODELS, MODEL, lambda: config)
    monkeypatch.setitem(OFFICIAL, "small_record", MODEL)


def loaded_state(case_name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return our tensors as `load_official` makes them."""
    case, _ = golden.load_case(case_name)
    model = golden.build_case(case)
    load_official(model, state)
    return dict(model.model.state_dict())


def convert(content: object, tmp_path: Path, *, branch: int | None = None, out: str = "out") -> Conversion:
    """Save a PyTorch file and convert it."""
    file = tmp_path / "file.pth"
    torch.save(content, file)
    return convert_checkpoint(file, tmp_path / out, model=MODEL, branch=branch)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts are equal bit by bit."""
    return [*first] == [*second] and all(
        value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items()
    )
