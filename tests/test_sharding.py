"""Sharded models compute what whole ones do, in a group of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from piip.build import build_model
from piip.config import ModelConfig
from piip.training import sharding
from piip.training.sharding import clip_gradients, full_state, gradient_norm, is_sharded, shard

VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
BRANCHES: dict[str, dict[str, Any]] = {
    "beit": {"network": "beit_base_patch16_224", "timm_args": VIT},
    "windows": {"network": "vit_tiny_patch16_224", "timm_args": VIT, "window_size": 3, "prefix_tokens": False},
    "convnext": {"network": "convnext_atto", "timm_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # about in-place operations, of which there are none
@pytest.mark.parametrize("family", list(BRANCHES))
def test_every_family_of_branches(family: str, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "LEAST_PARAMETERS", 500)
    branch = {**BRANCHES[family], "image_size": 64}
    config = ModelConfig.from_dict({"branches": [branch], "head": {"kind": "pooled", "num_classes": 3}})
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model(config))
    whole, spread = models
    shard(spread, mesh)
    assert is_sharded(spread)
    assert not is_sharded(whole)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wanted, given = whole(image), spread(image)
    torch.testing.assert_close(given, wanted)
    for model, logits in ((whole, wanted), (spread, given)):
        logits.square().sum().backward()
        assert gradient_norm(model) > 1
    torch.testing.assert_close(gradient_norm(spread), gradient_norm(whole))
    clip_gradients(spread, 0.5)
    assert float(gradient_norm(spread)) == pytest.approx(0.5, rel=1e-4)
    for name, value in full_state(spread).items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_an_older_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch, mesh: DeviceMesh) -> None:
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu124")
    with pytest.raises(ValueError, match=r"fsdp2\) needs PyTorch 2\.7 or newer, but 2\.6\.0\+cu124 is installed\.$"):
        shard(torch.nn.Linear(2, 2), mesh)
