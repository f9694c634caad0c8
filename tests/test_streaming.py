"""Weights that never lie in memory twice, and shares of a model that no process holds whole."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finish_all, run, start, succeed
from pyramids import randomise
from safetensors.torch import load_file, save_file
from streaming_checks import IMAGE

from piip.build import build_backbone
from piip.config import BranchConfig, InteractionConfig, ModelConfig, NeckConfig
from piip.serialization.load import load_model, load_weights
from piip.serialization.save import save_model
from piip.serialization.weights import open_weights, weight_files
from piip.training.sharding import gradient_norm

CHECKS = Path(__file__).with_name("streaming_checks.py")
BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "intern_vit_6b.py"


def pyramid(width: int, depth: int) -> ModelConfig:
    """The layout of the released pyramid with InternViT-6B: its layers, interaction, merge and neck."""
    six = {"patch_size": 16, "embed_dim": 2 * width, "depth": depth, "num_heads": 2}
    huge = {"patch_size": 16, "embed_dim": width, "depth": depth, "num_heads": 2, "init_values": 1.0}
    fields: dict[str, Any] = {"prefix_tokens": False, "final_norm": False}
    branches = (
        BranchConfig("intern_vit_6b_patch14_224", 32, timm_args=six, **fields),
        BranchConfig("vit_huge_patch14_224.mae", 64, timm_args=huge, **fields),
    )
    return ModelConfig(branches, InteractionConfig(count=2), neck=NeckConfig("simple"), allow_direct=True)


def write(directory: Path, config: ModelConfig, *, dtype: str = "f32", shards: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    model = randomise(build_backbone(config))
    size = sum(value.numel() * (2 if dtype == "bf16" else 4) for value in model.state_dict().values())
    save_model(model, directory, dtype=dtype, max_shard_bytes=size // shards + 1)
    return model


@pytest.mark.parametrize(
    ("stored", "wanted"), [("bf16", "bf16"), ("f32", "bf16"), pytest.param("bf16", "f32", marks=pytest.mark.slow)]
)
def test_weights_are_in_memory_once(stored: str, wanted: str, tmp_path: Path) -> None:
    write(tmp_path / "empty", pyramid(16, 2))
    write(tmp_path / "model", pyramid(384, 8), dtype=stored, shards=3)
    assert len(weight_files(tmp_path / "model")) >= 3
    seen = json.loads(succeed(sys.executable, CHECKS, "memory", tmp_path, wanted))
    assert seen["weights"] > 80e6
    assert seen["peak"] - seen["start"] < 1.3 * seen["weights"]


def test_streamed_weights_compute_the_same(tmp_path: Path) -> None:
    model = write(tmp_path, pyramid(16, 2), shards=4)
    with torch.no_grad():
        for again, level in zip(load_model(tmp_path)(IMAGE), model(IMAGE), strict=True):
            assert torch.equal(again, level)


def test_progress_counts_the_bytes_of_the_files(tmp_path: Path) -> None:
    model = write(tmp_path, pyramid(16, 2), shards=3)
    told: list[tuple[int, int]] = []
    stored = open_weights(tmp_path)
    load_weights(model, stored, source="here", progress=lambda done, total: told.append((done, total)))
    assert len(told) == len(stored)
    assert told[-1][0] == told[-1][1] == sum(tensor.facts.nbytes for tensor in stored.values())


def test_a_shard_that_does_not_fit_is_named(tmp_path: Path) -> None:
    write(tmp_path, pyramid(16, 2), shards=3)
    path = tmp_path / weight_files(tmp_path)[0]
    tensors = load_file(path)
    first, second, third = [name for name in tensors if name.startswith("branches.0")][:3]
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    tensors["branches.0.more"] = tensors.pop(first)
    tensors[second] = tensors[second][..., :1].contiguous()
    index["weight_map"]["branches.0.more"] = index["weight_map"].pop(first)
    index_path.write_text(json.dumps(index))
    save_file(tensors, path)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load_model(tmp_path)
    for part in (f"missing: {first}", f"wrong shape: {second} is", "unexpected: branches.0.more"):
        assert part in str(caught.value)
    assert third not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path.name} is damaged or not a safetensors file"):
        load_model(tmp_path)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, pyramid(16, 2))
    stored = open_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(ValueError, match=r"model.safetensors changed while it was read .* load it again"):
        next(iter(stored.values())).read()


def test_two_processes_hold_half_each_and_compute_the_same(tmp_path: Path) -> None:
    model = write(tmp_path / "model", pyramid(48, 2), shards=3)
    finish_all([start(sys.executable, CHECKS, "rank", tmp_path, str(rank), "2") for rank in range(2)])
    whole = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    levels = model(IMAGE)
    levels[0].square().mean().backward()
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt")
        assert 0.49 * whole < seen["held"] < 0.52 * whole
        torch.testing.assert_close(seen["maps"], [level.detach() for level in levels])
        for half, level in zip(seen["half"], levels, strict=True):
            assert half.dtype == torch.bfloat16
            assert (half.float() - level).norm() < 3e-2 * level.norm()
        assert seen["norm"] == pytest.approx(float(gradient_norm(model)), rel=1e-4)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    options = ["--smoke", "--depth", "4", "--repeats", "1", "--write", tmp_path, "--json", tmp_path / "seen"]
    done = run(sys.executable, BENCHMARK, *options, "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert "single: pass 1 of 1 took" in done.stderr
    differences = re.findall(r"relative difference: (\S+), (\S+)", done.stdout)
    assert len(differences) == 2
    assert max(float(number) for pair in differences for number in pair) < 1e-2
    seen = json.loads((tmp_path / "seen").read_text())
    assert {name: len(shares) for name, shares in seen["processes"].items()} == {"pyramid": 2, "single": 2}
    assert {*seen["models"]} == {"pyramid", "single"}
    for name, measured in seen["models"].items():
        assert measured["peak_bytes"] >= measured["build_bytes"] >= measured["start_bytes"] > 0, name
        assert measured["macs"] > 0
        assert len(measured["forward_seconds"]) == 1
