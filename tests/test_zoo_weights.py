"""`pretrained_branches=True` against a stand-in for the hub that serves files in the shape of timm's repositories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hub_server import Repository, StandInHub, served_to_clients
from pyramids import small_model
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from torch import Tensor

import piip
from piip.config import BranchConfig
from piip.serialization.model_card import model_card
from piip.zoo.families import NETWORK_FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST = {name: f"piip_{family.pyramids[0]}.{name}" for name, family in NETWORK_FAMILIES.items() if family.pyramids}
DINOV3 = FIRST["dinov3"]
State = dict[str, Tensor]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    with served_to_clients(monkeypatch, tmp_path) as server:
        yield server


def publish(hub: StandInHub, branch: BranchConfig, seed: int) -> timm.models.VisionTransformer:
    """Serve random weights of a network as timm does: at its own size, its classifier and pooling included."""
    torch.manual_seed(seed)
    network = timm.create_model(branch.network, **branch.timm_args)
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(std=0.1)
    repository = hub.repositories[f"timm/{branch.network}"] = Repository()
    repository.commit("main", {"model.safetensors": save(network.state_dict())})
    return network


def check_tokens(own: State, network: timm.models.VisionTransformer, side: int) -> None:
    """Every tensor of a ViT is the file's, its position table resized."""
    stored = network.state_dict()
    for name, value in own.items():
        if name == "pos_embed" and value.shape != stored[name].shape:
            grid = side // network.patch_embed.patch_size[0]
            prefix = 0 if network.no_embed_class else network.num_prefix_tokens
            resized = resample_abs_pos_embed(stored[name], (grid, grid), num_prefix_tokens=prefix)
            assert value.shape[1] == grid**2 + prefix
            torch.testing.assert_close(value, resized)
        else:
            assert torch.equal(value, stored[name]), name


def check_stages(own: State, network: timm.models.ConvNeXt) -> None:
    """The tensors of a ConvNeXt are those of the file in its order, but for the classifier."""
    stored = [value for name, value in network.state_dict().items() if not name.startswith("head.")]
    assert len(own) == len(stored)
    assert all(torch.equal(first, second) for first, second in zip(own.values(), stored, strict=True))


@pytest.mark.parametrize("name", FIRST.values())
def test_weights_arrive_in_the_branches(name: str, hub: StandInHub) -> None:
    config = small_model(name)
    networks = [publish(hub, branch, seed) for seed, branch in enumerate(config.branches)]
    model = piip.create_model(
        name, pretrained_branches=True, features_only=True, branches=config.to_dict()["branches"], allow_direct=True
    )
    asked = [line for line in hub.asked if line.startswith("GET /timm/") or line.startswith("HEAD /timm/")]
    assert {line.split("/")[2] for line in asked} == {branch.network for branch in config.branches}
    for branch, network, described in zip(model.branches, networks, config.branches, strict=True):
        if described.network.startswith("convnext"):
            check_stages(branch.state_dict(), network)
        else:
            assert network.patch_embed.img_size[0] != described.image_size
            check_tokens(branch.vit.state_dict(), network, described.image_size)


def test_which_families_have_position_tables() -> None:
    """Their resizing is checked above; DINOv3 and ConvNeXt have no table."""
    with_tables = []
    for family, name in FIRST.items():
        first = small_model(name).branches[0]
        with torch.device("meta"):
            network = timm.create_model(first.network, **first.timm_args)
        if getattr(network, "pos_embed", None) is not None:
            with_tables.append(family)
    assert with_tables == ["deit3", "augreg", "dinov2_reg", "siglip2", "eva02", "convnextv2_deit3"]


@pytest.mark.parametrize("name", FIRST.values())
def test_a_missing_repository_is_one_line(name: str, hub: StandInHub) -> None:
    config = small_model(name)
    with pytest.raises(ValueError, match=r"^The weights of .* could not be loaded \(.*piip convert --branch") as caught:
        piip.create_model(name, pretrained_branches=True, branches=config.to_dict()["branches"], allow_direct=True)
    assert config.branches[0].network in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cards_name_the_licenses(hub: StandInHub, tmp_path: Path) -> None:
    name = "piip_cn_vb_1120_448.convnextv2_deit3"
    config = small_model(name)
    for branch in config.branches:
        publish(hub, branch, 0)
    branches = config.to_dict()["branches"]
    model = piip.create_model(name, pretrained_branches=True, branches=branches, allow_direct=True)
    lines = (
        "- branch 0: `deit3_base_patch16_224.fb_in22k_ft_in1k`, licence `apache-2.0`\n"
        "- branch 1: `convnextv2_nano.fcmae_ft_in22k_in1k`, licence `cc-by-nc-4.0`\n"
    )
    assert lines in model_card(model)
    assert "## Initial weights" not in model_card(piip.build_model(config))
    model.save_pretrained(tmp_path / "saved")
    again = piip.from_pretrained(tmp_path / "saved")
    assert not any(branch.pretrained for branch in again.config.branches)  # its weights are in the directory
    again.save_pretrained(tmp_path / "again")
    assert lines in (tmp_path / "again" / "README.md").read_text()
    assert lines in model_card(piip.from_pretrained(tmp_path / "again"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FIRST)
def test_whole_networks_load(family: str, hub: StandInHub) -> None:
    """The smallest network of each family in its real size, at the highest resolution of the family."""
    network = [*NETWORK_FAMILIES[family].networks.values()][-1]
    branch = BranchConfig(network, 1120, pretrained=True)
    published = publish(hub, dataclasses.replace(branch, pretrained=False), 0)
    backbone = piip.build_backbone(piip.ModelConfig((branch,)))
    if network.startswith("convnext"):
        check_stages(backbone.branches[0].state_dict(), published)
    else:
        check_tokens(backbone.branches[0].vit.state_dict(), published, 1120)
