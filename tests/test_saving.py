"""Exported models: what is written builds the same model again, and what does not fit is named by branch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import write_model

from piip.build import build_model
from piip.config import BranchConfig, HeadConfig, MergeConfig, ModelConfig
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.save import save_model
from piip.serialization.weights import weight_files

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def test_a_saved_model_is_the_same_model(directory: Path, tmp_path: Path) -> None:
    model = load_model(directory)
    assert not model.training
    save_model(model, tmp_path / "again", {"classes": ["a", "b", "c"]})
    again = load_model(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(model(IMAGES), again(IMAGES))
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]


def test_bfloat16_files_and_models(directory: Path, tmp_path: Path) -> None:
    model = load_model(directory)
    save_model(model, tmp_path / "half", dtype="bf16")
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    half = load_model(tmp_path / "half", dtype="bf16")
    with torch.no_grad():
        expected, actual = model(IMAGES), half(IMAGES.bfloat16()).float()
        full = load_model(tmp_path / "half")(IMAGES)
    assert full.dtype == torch.float32
    assert (actual - expected).norm() / expected.norm() < 0.1
    assert (full - expected).norm() / expected.norm() < 0.1


def test_pretrained_branches_are_not_fetched_again(directory: Path) -> None:
    path = directory / "config.json"
    description = json.loads(path.read_text())
    for branch in description["model"]["branches"]:
        branch["pretrained"] = True
    path.write_text(json.dumps(description))
    load_model(directory)


def test_misfits_are_named_by_branch(directory: Path) -> None:
    path = directory / "model.safetensors"
    state = load_file(path)
    del state["backbone.branches.1.vit.norm.weight"]
    state["backbone.branches.0.vit.extra"] = torch.zeros(1)
    state["head.fc.bias"] = torch.zeros(4)
    save_file(state, path)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load_model(directory)
    message = str(caught.value)
    assert "branch 1: 1 missing: backbone.branches.1.vit.norm.weight" in message
    assert "branch 0: 1 unexpected: backbone.branches.0.vit.extra" in message
    assert "head: 1 wrong shape: head.fc.bias is (4,), expected (3,)" in message


def test_long_lists_are_cut(directory: Path) -> None:
    save_file({}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"branch 0: \d+ missing: .* and \d+ more"):
        load_model(directory)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_cut_weights_are_named(directory: Path, size: int) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or not a safetensors file"):
        load_model(directory)


def test_a_file_is_no_place_for_a_model(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a directory"):
        save_model(load_model(directory), tmp_path / "taken")


def test_what_is_no_model_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json and no model\.safetensors"):
        read_description(tmp_path)
    with pytest.raises(ValueError, match="is a file, expected a model directory; `piip convert`"):
        load_model(directory / "model.safetensors")
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_model(directory)
    (directory / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'model' field"):
        load_model(directory)
    with pytest.raises(ValueError, match="dtype is 'f16', expected one of f32, bf16"):
        load_model(directory, dtype="f16")


@pytest.mark.parametrize(
    ("network", "timm_args"),
    [
        ("eva02_tiny_patch14_224", {"depth": 2, "embed_dim": 48, "num_heads": 4}),  # rotary tables
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)}),
    ],
)
def test_what_networks_compute_for_themselves_is_there(network: str, timm_args: dict[str, Any], tmp_path: Path) -> None:
    branch = BranchConfig(network, 224, timm_args=timm_args)
    model = build_model(ModelConfig((branch,), merge=MergeConfig("none"), head=HeadConfig("pooled", 3))).eval()
    save_model(model, tmp_path, max_shard_bytes=20_000)
    loaded = load_model(tmp_path)
    assert len(weight_files(tmp_path)) > 1
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(image), loaded(image))
