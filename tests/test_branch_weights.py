"""Initial weights of single branches from files: `model.branches.K.weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_run import branch, tiny_recipe
from training_run import run

from piip.config import BranchConfig
from piip.serialization.load import load_model
from piip.training.setup import build_recipe_model

pytestmark = pytest.mark.usefixtures("one_thread")

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def write_vit(path: Path, *, img_size: int = 24, **fields: Any) -> dict[str, torch.Tensor]:
    """Write a checkpoint as timm's training does, and return its weights."""
    torch.manual_seed(5)
    state = timm.create_model(
        "vit_tiny_patch16_224", img_size=img_size, num_classes=7, **{**VIT, **fields}
    ).state_dict()
    torch.save({"epoch": 3, "state_dict": state}, path)
    return state


def with_weights(path: Path) -> dict[str, Any]:
    return {"branches": [branch(24, 32, weights=str(path)), branch(32, 16)]}


@pytest.mark.parametrize("img_size", [24, 48])
def test_a_branch_starts_from_a_file(images: Path, tmp_path: Path, img_size: int, capsys: Any) -> None:
    state = write_vit(tmp_path / "vit.pth", img_size=img_size)
    model = build_recipe_model(tiny_recipe(images, tmp_path / "run", model=with_weights(tmp_path / "vit.pth")))
    own = model.get_backbone().branches[0].vit.state_dict()
    for name, value in own.items():
        if name != "pos_embed" or img_size == 24:
            assert torch.equal(value, state[name]), name
    assert torch.equal(own["pos_embed"][:, 0], state["pos_embed"][:, 0])
    told = capsys.readouterr().err
    assert "Branch 0: weights of vit.pth (timm's names)" in told
    assert ("resized pos_embed" in told) == (img_size == 48)


def test_loading_and_resuming_do_not_need_the_file(images: Path, tmp_path: Path) -> None:
    write_vit(tmp_path / "vit.pth")
    recipe = tiny_recipe(images, tmp_path / "run", model=with_weights(tmp_path / "vit.pth"), schedule={"epochs": 1})
    result = run(recipe)
    (tmp_path / "vit.pth").unlink()
    assert load_model(result.model_dir).config.branches[0].weights == str(tmp_path / "vit.pth")
    assert run(recipe, resume="auto").steps == result.steps
    with pytest.raises(ValueError, match=r"There is no file .*vit\.pth"):
        build_recipe_model(recipe)


def test_wrong_files_are_refused(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    write_vit(path, depth=3)
    with pytest.raises(
        ValueError, match=r"vit\.pth does not fit the branch vit_tiny.*3 blocks, the branch is .*2 blocks"
    ):
        build_recipe_model(tiny_recipe(images, tmp_path, model=with_weights(path)))
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no network of a known layout"):
        build_recipe_model(tiny_recipe(images, tmp_path, model=with_weights(path)))
    with pytest.raises(ValueError, match=r"weights is 'a' and pretrained is True"):
        BranchConfig("resnet18", 64, weights="a", pretrained=True)
    with pytest.raises(ValueError, match=r"run\.start is 'b' and a branch has the weights"):
        build_recipe_model(tiny_recipe(images, tmp_path, model=with_weights(path), run={"start": "b"}))


@pytest.mark.parametrize(
    ("network", "fields"),
    [
        ("vit_tiny_patch16_224", {}),
        ("beitv2_base_patch16_224", {"timm_args": {**VIT, "init_values": 0.1}}),
        ("vit_tiny_patch16_224", {"prefix_tokens": False, "position_resize": "official"}),
    ],
)
def test_a_run_starts_from_a_model_of_another_size(
    network: str, fields: dict[str, Any], images: Path, tmp_path: Path, capsys: Any
) -> None:
    def recipe(side: int, **changes: Any) -> Any:
        first = {"network": network, "image_size": side, "timm_args": VIT, **fields}
        model = {"branches": [first, branch(64, 16)], "head": {"kind": "pooled", "num_classes": changes.pop("k", 3)}}
        return tiny_recipe(images, tmp_path / "run", model=model, **changes)

    first = build_recipe_model(recipe(24))
    first.save_pretrained(tmp_path / "start")
    model = build_recipe_model(recipe(32, run={"start": str(tmp_path / "start")}))
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"Started from {tmp_path / 'start'}: ")
    assert "tensors resized (backbone.branches.0.vit." in told
    assert "newly" not in told
    assert "\n" not in told
    same = [value.shape == first.state_dict()[name].shape for name, value in model.state_dict().items()]
    assert not all(same)
    for name, value in model.state_dict().items():
        if value.shape == first.state_dict()[name].shape:
            assert torch.equal(value, first.state_dict()[name])
    build_recipe_model(recipe(32, run={"start": str(tmp_path / "start")}, k=5))
    assert "newly initialised (head." in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["stages", "blocks"])
def test_networks_with_stages_read_timm_files(images: Path, tmp_path: Path, cut: str) -> None:
    sizes = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    torch.manual_seed(5)
    network = timm.create_model("convnext_atto", **sizes)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "cnn.safetensors")
    fields = {"network": "convnext_atto", "image_size": 64, "timm_args": sizes, "cut": cut}
    fields["weights"] = str(tmp_path / "cnn.safetensors")
    model = {"branches": [fields], "interaction": {}, "merge": {"kind": "none"}, "head": {"kind": "pooled"}}
    built = build_recipe_model(tiny_recipe(images, tmp_path, model=model)).get_backbone().branches[0].eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(built(image).as_map(), network.eval().forward_features(image))
    other = timm.create_model("resnet18").state_dict()
    save_file({name: value.contiguous() for name, value in other.items()}, tmp_path / "cnn.safetensors")
    with pytest.raises(ValueError, match=r"cnn\.safetensors does not fit the branch convnext_atto"):
        build_recipe_model(tiny_recipe(images, tmp_path, model=model))
