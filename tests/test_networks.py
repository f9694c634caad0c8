"""Single networks in one branch: every publisher's layout, the branch equal to the network, tables resized."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from published import MODEL, convert, loaded_state, register, register_config, same
from publishers import (
    State,
    augreg_arrays,
    to_authors_convnext,
    to_clip_vision_model,
    to_conv_mlp,
    to_convnext_model,
    to_intern_vision_model,
    to_openai,
)
from pyramids import image
from torch import Tensor, nn

from piip.checkpoints import build_released, official_shapes
from piip.checkpoints.convert import convert_checkpoint, format_conversion
from piip.checkpoints.networks import branch_shapes, fit_branch, read_network
from piip.checkpoints.networks.resizing import fitted
from piip.config import BranchConfig, InteractionConfig, MergeConfig, ModelConfig
from piip.device import without_values
from piip.ops.relative_positions import resize_table
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.weights import StoredTensor
from piip.zoo import model_config, published_models

KERNELS = ("patch_embed.proj.weight", "patch_embedding.weight", "patch_embeddings.weight", "stem.0.weight")
SIZES = {"depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.fixture
def _fixed_seed() -> None:
    torch.manual_seed(0)


pytestmark = pytest.mark.usefixtures("_fixed_seed")


def noisy(network: nn.Module) -> nn.Module:
    """Make every parameter different from its initial value."""
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return network.eval()


def pyramid(monkeypatch: pytest.MonkeyPatch, network: str, *, grid: int = 4, **timm_args: Any) -> None:
    """Name a pyramid of two such networks that see 64 and 96 pixels."""
    branch = BranchConfig(
        network,
        64,
        position_resize="official",
        position_grid=grid,
        timm_args={**SIZES, "no_embed_class": True, **timm_args},
    )
    second = dataclasses.replace(branch, image_size=96, timm_args={**branch.timm_args, "embed_dim": 24})
    interaction = InteractionConfig(count=2, num_heads=4)
    register_config(
        monkeypatch,
        ModelConfig((branch, second), interaction, MergeConfig("none"), resize="official", allow_direct=True),
    )


def branch_tokens(directory: Path, x: Tensor, branch: int = 0) -> Tensor:
    """Run one branch alone: prefix and patch tokens."""
    model = load_model(directory)
    part = getattr(model, "backbone", model).branches[branch]
    with torch.inference_mode():
        features = part.embed(x)
        for stage in range(len(part.stages)):
            features = part.run_stage(stage, features)
        features = part.finish(features)
    return torch.cat((features.prefix, features.patches), 1)


def timm_tokens(network: nn.Module, x: Tensor) -> Tensor:
    """Run timm's network; the released branches give class tokens no position."""
    with torch.inference_mode():
        network.pos_embed[:, 0] = 0
        return network.forward_features(x)


@pytest.mark.parametrize(
    ("network", "wanted", "wrapping"),
    [
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224", "model"),
        ("deit3_small_patch16_224", "deit3_small_patch16_224", "model"),
        ("vit_base_patch16_224", "vit_base_patch16_224", "state_dict"),
    ],
)
def test_a_branch_equals_its_network(
    network: str, wanted: str, wrapping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noisy(timm.create_model(network, img_size=64, **{**SIZES, "no_embed_class": False}))
    pyramid(monkeypatch, wanted)
    done = convert({wrapping: made.state_dict(), "epoch": 3}, tmp_path, branch=0)
    assert done.network == "ViT (timm)"
    assert done.left_out == {"head": 2}
    assert done.resized == (("pos_embed",) if "deit" in network else ())  # only the class row is dropped
    x = image(64, 64, batch=1)
    torch.testing.assert_close(branch_tokens(tmp_path / "out", x), timm_tokens(made, x))


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_augreg_arrays_are_read_as_timm_reads_them(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noisy(timm.create_model("vit_base_patch16_224", img_size=64, **SIZES))
    arrays = {prefix + name: value for name, value in augreg_arrays(made, SIZES["num_heads"]).items()}
    np.savez(tmp_path / "file.npz", **arrays)
    by_timm = timm.create_model("vit_base_patch16_224", img_size=64, **SIZES).eval()
    by_timm.load_pretrained(str(tmp_path / "file.npz"))
    pyramid(monkeypatch, "vit_base_patch16_224")
    done = convert_checkpoint(tmp_path / "file.npz", tmp_path / "out", model=MODEL, branch=0)
    assert done.network == "AugReg (.npz)"
    x = image(64, 64, batch=1)
    torch.testing.assert_close(branch_tokens(tmp_path / "out", x), timm_tokens(by_timm, x))
    torch.save(made.state_dict(), tmp_path / "file.pth")
    convert_checkpoint(tmp_path / "file.pth", tmp_path / "pth", model=MODEL, branch=0)
    assert same(dict(load_model(tmp_path / "out").state_dict()), dict(load_model(tmp_path / "pth").state_dict()))


def test_stacked_and_incomplete_arrays_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"params/embedding/kernel": np.zeros(1), "params/Transformer/encoderblock/LayerNorm_0/scale": np.zeros(1)}
    np.savez(tmp_path / "file.npz", **arrays)
    pyramid(monkeypatch, "vit_base_patch16_224")
    with pytest.raises(ValueError, match="stacks all blocks in one array"):
        convert_checkpoint(tmp_path / "file.npz", tmp_path / "out", model=MODEL, branch=0)
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    np.savez(tmp_path / "file.npz", **{"embedding/kernel": np.zeros(1), query: np.zeros((2, 1, 2))})
    with pytest.raises(ValueError, match=r"parts are missing or of other shapes .*key"):
        convert_checkpoint(tmp_path / "file.npz", tmp_path / "out", model=MODEL, branch=0)


def test_tables_and_kernels_are_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DINOv2: patches of 14, a class row and another grid; the InternViT-like branch keeps the class row, unused."""
    case = "det3_dinov2_oddgrid"
    register(monkeypatch, case)
    made = noisy(
        timm.create_model("vit_small_patch14_dinov2", img_size=98, depth=4, embed_dim=64, num_heads=4, num_classes=0)
    )
    state = {**made.state_dict(), "mask_token": torch.zeros(1, 64)}
    done = convert(state, tmp_path, branch=0)
    assert done.resized == ("pos_embed", "patch_embed.proj.weight")
    assert done.left_out == {"cls_token": 1, "norm": 2, "mask_token": 1}
    got = load_model(tmp_path / "out").branches[0].vit.state_dict()
    table = state["pos_embed"][:, 1:].reshape(1, 7, 7, 64).permute(0, 3, 1, 2)
    positions = F.interpolate(table, size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.equal(got["pos_embed"], positions.flatten(2).transpose(1, 2))
    kernel = F.interpolate(state["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(got["patch_embed.proj.weight"], kernel)
    assert torch.equal(got["blocks.3.ls1.gamma"], state["blocks.3.ls1.gamma"])
    chunked = {name.replace("blocks.", "blocks.0."): value for name, value in state.items()}
    convert(chunked, tmp_path, branch=0, out="chunked")
    assert same(*(dict(load_model(tmp_path / name).state_dict()) for name in ("out", "chunked")))


@pytest.mark.parametrize(("given", "wanted"), [(197, 196), (196, 196), (198, 196), (257, 196), (577, 197), (50, 49)])
def test_class_rows_go_or_stay(given: int, wanted: int) -> None:
    table = torch.randn(1, given, 8)
    tensor = fitted("pos_embed", StoredTensor.of(table), (1, wanted, 8))
    assert tensor is not None
    value = tensor.read()
    assert value.shape == (1, wanted, 8) == tensor.facts.shape
    extra, side = given - math.isqrt(given) ** 2, math.isqrt(wanted)
    if wanted > side**2:
        assert torch.equal(value[:, 0], table[:, 0])
    if math.isqrt(given) == side:
        assert torch.equal(value[:, -(side**2) :], table[:, extra:])


def test_tables_keep_their_number_format() -> None:
    table = torch.randn(1, 50, 8).bfloat16()
    tensor = fitted("pos_embed", StoredTensor.of(table), (1, 16, 8))
    assert tensor is not None
    grid = table[:, 1:].float().transpose(1, 2).reshape(1, 8, 7, 7)
    expected = F.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.equal(tensor.read(), expected.flatten(2).transpose(1, 2).bfloat16())
    assert fitted("pos_embed", StoredTensor.of(torch.zeros(1, 16, 8)), (1, 17, 8)) is None
    assert fitted("pos_embed", StoredTensor.of(torch.zeros(1, 16, 8)), (1, 16, 9)) is None
    assert fitted("blocks.0.norm1.weight", StoredTensor.of(torch.zeros(8)), (9,)) is None


def beit_state(*, shared: bool, window: int = 6) -> State:
    made = noisy(
        timm.create_model(
            "beitv2_base_patch16_224",
            img_size=16 * window,
            depth=4,
            embed_dim=64,
            num_heads=4,
            num_classes=5,
            init_values=0.1,
            use_shared_rel_pos_bias=shared,
            use_rel_pos_bias=not shared,
        )
    )
    state = {name: value for name, value in made.state_dict().items() if not name.endswith("k_bias")}
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = torch.zeros(2, 2, dtype=torch.int64)
    return state


@pytest.mark.parametrize("shared", [False, True])
def test_beit_tables(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "det3_beit_deit")
    state = beit_state(shared=shared)
    done = convert({"model": state}, tmp_path, branch=0)
    got = load_model(tmp_path / "out").branches[0].vit.state_dict()
    for index in range(4):
        name = "rel_pos_bias" if shared else f"blocks.{index}.attn"
        table = state[f"{name}.relative_position_bias_table"]
        assert table.shape == (11 * 11 + 3, 4)
        expected = resize_table(table[:-3], (6, 6), (4, 4))
        assert torch.equal(got[f"blocks.{index}.attn.relative_position_bias_table"], expected)
        for part in ("attn.q_bias", "attn.v_bias", "attn.qkv.weight", "gamma_1"):
            assert torch.equal(got[f"blocks.{index}.{part}"], state[f"blocks.{index}.{part}"])
    assert len(done.resized) == 4
    assert {*done.left_out} <= {"cls_token", "norm", "fc_norm", "head"}


@pytest.mark.parametrize("layout", ["original", "hugging face", "inside a chat model"])
def test_intern_vit_in_both_layouts(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = register(monkeypatch, "det2_internvit_rms_qknorm")
    prefix = "branch1."
    state = {name.removeprefix(prefix): value for name, value in official.items() if name.startswith(prefix)}
    state["cls_token"] = torch.randn(1, 1, 96)
    state["pos_embed"] = torch.randn(1, 17, 96)
    state["patch_embed.proj.weight"] = torch.randn(96, 3, 14, 14)
    given = state if layout == "original" else to_intern_vision_model(state)
    if layout == "inside a chat model":
        given = {f"vision_model.{name}": value for name, value in given.items()}
        given |= {"language_model.model.embed_tokens.weight": torch.zeros(3), "mlp1.0.weight": torch.zeros(3)}
    else:
        given |= {"clip_projector.norm1_q.weight": torch.zeros(3)}
    done = convert(given, tmp_path, branch=0)
    assert done.network == ("ViT (timm)" if layout == "original" else "InternViT (Hugging Face)")
    assert done.resized == ("pos_embed", "patch_embed.proj.weight")
    assert not done.initial
    got = load_model(tmp_path / "out").branches[0].state_dict()
    grid = state["pos_embed"][:, 1:].reshape(1, 4, 4, 96).permute(0, 3, 1, 2)
    positions = F.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False)
    assert torch.equal(got["vit.pos_embed"], positions.flatten(2).transpose(1, 2))
    for part in ("attn.qkv.weight", "attn.q_norm.weight", "ls2.gamma", "norm1.weight", "mlp.fc1.bias"):
        assert torch.equal(got[f"vit.blocks.3.{part}"], state[f"blocks.3.{part}"])


@pytest.mark.parametrize("write", [dict, to_openai, to_clip_vision_model], ids=["timm", "openai", "hugging face"])
def test_clip_in_three_layouts(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "llava2_clip_clip")
    made = timm.create_model(
        "vit_base_patch16_clip_quickgelu_224", img_size=64, depth=4, embed_dim=64, num_heads=4, num_classes=7
    )
    noisy(made)
    done = convert(write(made.state_dict()), tmp_path, branch=0)
    assert done.network == {dict: "CLIP (timm)", to_openai: "CLIP (OpenAI)"}.get(write, "CLIP (Hugging Face)")
    x = image(64, 64, batch=1)
    with torch.inference_mode():
        expected = made.norm_pre(made._pos_embed(made.patch_embed(x)))
        for block in made.blocks:
            expected = block(expected)
    torch.testing.assert_close(branch_tokens(tmp_path / "out", x), expected)


@pytest.mark.parametrize(
    ("case", "branch", "dims"),
    [
        pytest.param("det3_vt_cs_vb", 1, (24, 48, 64, 96), marks=pytest.mark.slow),
        ("llava2_clip_convnext", 1, (16, 32, 48, 64)),
    ],
)
def test_convnext_in_four_layouts(
    case: str, branch: int, dims: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, case)
    made = noisy(timm.create_model("convnext_base", depths=(2, 2, 3, 2), dims=dims, num_classes=7))
    state = dict(made.state_dict())
    for index, write in enumerate((dict, to_authors_convnext, to_convnext_model, to_conv_mlp)):
        done = convert({"model": write(state)}, tmp_path, branch=branch, out=str(index))
        assert not done.initial
    states = [dict(load_model(tmp_path / str(index)).state_dict()) for index in range(4)]
    assert all(same(states[0], other) for other in states[1:])
    x = image(64, 64, batch=1)
    with torch.inference_mode():
        expected = made.stages(made.stem(x)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(branch_tokens(tmp_path / "0", x, branch), expected)


def test_uni_perceiver_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = "det3_uniperceiver_deit"
    official = register(monkeypatch, case)
    for branch in (0, 1):
        prefix = f"branch{branch + 1}."
        state = {name.removeprefix(prefix): value for name, value in official.items() if name.startswith(prefix)}
        done = convert({"module": state}, tmp_path, branch=branch)
        assert done.network == "Uni-Perceiver"
    expected, got = loaded_state(case, official), load_model(tmp_path / "out").state_dict()
    filled = [name for name in expected if name.startswith(("branches.0.", "branches.1."))]
    assert all(torch.equal(got[name], expected[name]) for name in filled)


@pytest.mark.slow
def test_one_branch_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = "det3_deit_global_square"
    official = register(monkeypatch, case)
    states = [
        {name.removeprefix(f"branch{i}."): value for name, value in official.items() if name.startswith(f"branch{i}.")}
        for i in (1, 2, 3)
    ]
    convert(states[2], tmp_path, branch=2)
    first = {name: value.clone() for name, value in load_model(tmp_path / "out").state_dict().items()}
    convert(states[0], tmp_path, branch=0)
    convert({**states[2], "head.weight": torch.zeros(3, 32)}, tmp_path, branch=2)
    second = load_model(tmp_path / "out").state_dict()
    expected = loaded_state(case, official)
    for name, value in second.items():
        wanted = expected if name.startswith(("branches.0.", "branches.2.")) else first
        assert torch.equal(value, wanted[name]), name
    history = read_description(tmp_path / "out")["converted"]
    assert [entry["branch"] for entry in history] == [0, 2]
    again = convert(states[2], tmp_path, branch=2, out="other")
    assert same(dict(load_model(again.out).state_dict()), first)  # what no file fills starts the same every time


def test_layer_scale_that_the_file_lacks_starts_as_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "det3_deit_global_square")
    made = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=4, embed_dim=64, num_heads=4)
    done = convert({"model": made.state_dict()}, tmp_path, branch=0)
    assert len(done.initial) == 8
    assert torch.equal(load_model(tmp_path / "out").branches[0].vit.blocks[0].ls1.gamma, torch.ones(64))
    assert "Not in the file, initialised: blocks.N.gamma_1, blocks.N.gamma_2" in format_conversion(done)


@pytest.mark.parametrize("branch", [0, pytest.param(None, marks=pytest.mark.slow)])
def test_nothing_of_the_file_before_stays_in_a_branch(
    branch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = "det3_deit_global_square"
    whole = {name: value + 3 for name, value in register(monkeypatch, case).items()}
    scaled = timm.create_model(
        "deit_tiny_patch16_224", img_size=64, depth=4, embed_dim=64, num_heads=4, init_values=0.5
    ).state_dict()
    convert(scaled if branch == 0 else whole, tmp_path, branch=branch)
    before = {name: value.clone() for name, value in load_model(tmp_path / "out").state_dict().items()}
    plain = {name: value for name, value in scaled.items() if ".ls" not in name}
    done = convert(plain, tmp_path, branch=0)
    assert len(done.initial) == 8
    after = load_model(tmp_path / "out").state_dict()
    assert torch.equal(after["branches.0.vit.blocks.0.ls1.gamma"], torch.ones(64))
    rest = [name for name in after if not name.startswith("branches.0.")]
    assert all(torch.equal(after[name], before[name]) for name in rest)


def test_a_classifier_of_the_same_classes_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "cls3_augreg_separate")
    made = timm.create_model("vit_base_patch16_224", img_size=48, depth=4, embed_dim=64, num_heads=4)
    done = convert(made.state_dict(), tmp_path, branch=0)
    assert not done.left_out
    assert torch.equal(load_model(tmp_path / "out").head.fcs[0].weight, made.head.weight)


@pytest.mark.slow
def test_every_branch_takes_the_network_it_was_trained_from() -> None:
    """The names and shapes that timm publishes for the networks of all named models fit their branches."""
    seen = set()
    for name in (model.name for model in published_models()):
        branches = model_config(name).branches
        with without_values():
            shapes = official_shapes(build_released(name))
        for index, branch in enumerate(branches):
            wanted = branch_shapes(shapes, index, count=len(branches))
            key = (branch.network, *wanted.values())
            if key in seen or branch.network.startswith("uni_perceiver"):  # not one of timm's own
                continue
            seen.add(key)
            with without_values():
                published = timm.create_model(branch.network).state_dict()
            network = read_network({name: StoredTensor.of(value) for name, value in published.items()})
            assert network is not None
            fitted_branch = fit_branch(network, wanted)
            assert {re.sub(r"^blocks\.\d+\.", "", name) for name in fitted_branch.initial} <= {
                *("gamma_1", "gamma_2", "ls1.gamma", "ls2.gamma")
            }
            kernel = next(name for name in wanted if name.endswith(KERNELS))
            assert fitted_branch.tensors[kernel].facts.shape == wanted[kernel]


def test_networks_that_do_not_fit_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "det3_deit_global_square")
    middle = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=4, embed_dim=48, num_heads=3).state_dict()
    deep = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=5, embed_dim=64, num_heads=4).state_dict()
    for content, branch, message in (
        (middle, 0, "ViT .timm., width 48, 4 blocks, the branch is a plain ViT, width 64, 4 blocks"),
        (middle, 0, "It fits --branch 1"),
        (deep, 0, "width 64, 5 blocks, the branch is a plain ViT, width 64, 4 blocks .*has no place"),
        (middle, 3, "branch is 3, piip_small.golden has branches 0 .largest network. to 2"),
        (middle, -1, "branch is -1"),
        (middle, None, "holds one network .ViT .timm.., .*choose the branch to load it into with --branch"),
        (
            timm.create_model("test_convnext").state_dict(),
            0,
            "the file holds ConvNeXt .timm., the branch is a plain ViT",
        ),
        ({"fc.weight": torch.zeros(2)}, 0, "holds no network of a known layout; its first names are fc.weight"),
        ({"branch1.w": torch.zeros(2)}, 0, "holds a whole pyramid: remove --branch"),
        ({**middle, "pos_embed": torch.zeros(48)}, 1, r"pos_embed is \(48,\), expected"),
        (
            {"ln_pre.weight": torch.zeros(2), "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(())},
            0,
            "names of CLIP .OpenAI., but parts are missing or of other shapes",
        ),
        (beit_state(shared=False), 0, "BEiT|has no place|is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(content, tmp_path, branch=branch)
        assert not (tmp_path / "out").exists()
