"""Pretrained weights come through timm's own loader; a local file stands in for the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from pyramids import image

import piip
from piip.branches import create_network, wrap_network
from piip.config import BranchConfig, InteractionConfig, MergeConfig, ModelConfig

SIZES = {"depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    """A ViT trained at 224 pixels with 1000 classes, as timm publishes them."""
    torch.manual_seed(1)
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **SIZES).state_dict(), path)
    return path


def config(path: Path, image_size: int, **timm_args: object) -> BranchConfig:
    overlay = {"pretrained_cfg_overlay": {"file": str(path), "custom_load": False}}  # older timm expects an .npz here
    return BranchConfig(
        "vit_tiny_patch16_224", image_size, pretrained=True, timm_args={**SIZES, **overlay, **timm_args}
    )


def test_a_branch_has_the_weights_of_the_file(vit_file: Path) -> None:
    description = config(vit_file, 224)
    made = wrap_network(create_network(description), description, 2).eval()
    lone = timm.create_model("vit_tiny_patch16_224", **SIZES).eval()
    lone.load_state_dict(torch.load(vit_file, weights_only=True))
    x = image(224, 224, batch=1)
    with torch.inference_mode():
        torch.testing.assert_close(made(x).patches, lone.forward_features(x)[:, 1:])


def test_positions_are_resized_to_the_resolution_of_the_branch(vit_file: Path) -> None:
    description = config(vit_file, 96)
    network = create_network(description)
    stored = torch.load(vit_file, weights_only=True)
    assert network.pos_embed.shape == (1, 37, 48)
    torch.testing.assert_close(network.pos_embed[:, 0], stored["pos_embed"][:, 0])
    torch.testing.assert_close(network.blocks[1].mlp.fc1.weight, stored["blocks.1.mlp.fc1.weight"])


def test_layer_scale_that_the_file_lacks_starts_at_its_initial_value(vit_file: Path) -> None:
    network = create_network(config(vit_file, 64, init_values=1.0))
    assert torch.equal(network.blocks[0].ls1.gamma, torch.ones(48))
    stored = torch.load(vit_file, weights_only=True)
    torch.testing.assert_close(network.blocks[0].attn.qkv.weight, stored["blocks.0.attn.qkv.weight"])


def test_networks_with_stages_load_too(tmp_path: Path) -> None:
    path = tmp_path / "convnext.pth"
    state = timm.create_model("test_convnext").state_dict()
    torch.save(state, path)
    overlay = {"pretrained_cfg_overlay": {"file": str(path), "custom_load": False}}  # older timm expects an .npz here
    network = create_network(BranchConfig("test_convnext", 128, pretrained=True, timm_args=overlay))
    torch.testing.assert_close(network["stem_0"].weight, state["stem.0.weight"])


def test_a_whole_pyramid_starts_from_its_networks(vit_file: Path) -> None:
    parts = (config(vit_file, 64), config(vit_file, 96))
    made = piip.build_backbone(
        ModelConfig(parts, InteractionConfig(count=2, num_heads=4), MergeConfig("none"), allow_direct=True)
    )
    first, second = (branch.vit.blocks[0].attn.qkv.weight for branch in made.branches)
    assert torch.equal(first, second)


def test_weights_that_cannot_be_had_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights of vit_tiny_patch16_224 could not be loaded"):
        create_network(config(tmp_path / "nowhere.pth", 64))
    with pytest.raises(ValueError, match=r"Did you mean: vit_tiny_patch16_224\.augreg_in21k"):
        create_network(BranchConfig("vit_tiny_patch16_224.augreg_in21", 64))
