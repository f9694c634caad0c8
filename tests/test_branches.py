"""Branches: any timm network with blocks or stages, windows, prefix tokens, positions."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from pyramids import REGNET, image, randomise, tiny_vit

from piip.branches import StagedBranch, ViTBranch, create_network, interaction_points, wrap_network
from piip.branches.base import even_split, group_ranges
from piip.branches.vit import resize_positions
from piip.branches.window import join_windows, pad_grid, partition_windows
from piip.config import BranchConfig

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 4}
# one of each kind of plain ViT: class token with and without position, distilled, registers, CLIP, SigLIP, rotary
PLAIN = {
    "deit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "vit_base_patch16_clip_224": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "vit_small_patch14_dinov2": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL,
    "eva02_tiny_patch14_224": {**SMALL, "num_heads": 3},
    "vit_small_patch16_dinov3": {**SMALL, "num_heads": 3},
    "vit_small_patch16_rope_mixed_224": {**SMALL, "num_heads": 3},
}
STAGED = ("test_resnet", "test_convnext", "test_convnext2", "test_nfnet", "mobilenetv4_conv_small_050", REGNET)


def branch(config: BranchConfig, groups: int):
    return wrap_network(create_network(config), config, groups).eval()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_vits_equal_timm_at_any_size(name: str) -> None:
    made = branch(BranchConfig(name, 112, timm_args=PLAIN[name]), 3)
    assert isinstance(made, ViTBranch)
    lone = timm.create_model(name, num_classes=0, img_size=112, dynamic_img_size=True, **PLAIN[name]).eval()
    lone.load_state_dict(made.vit.state_dict(), strict=False)
    x = image(made.stride * 5, made.stride * 9)
    with torch.inference_mode():
        got, want = made(x), lone.forward_features(x)
    assert got.grid == (5, 9)
    torch.testing.assert_close(torch.cat((got.prefix, got.patches), 1), want)


@pytest.mark.parametrize("name", STAGED)
def test_networks_with_stages_equal_timm_stage_by_stage(name: str) -> None:
    config = BranchConfig(name, 128)
    network = create_network(config)
    made = wrap_network(network, config, interaction_points(network, config)).eval()
    assert isinstance(made, StagedBranch)
    x = image(96, 160)
    with torch.inference_mode():
        features, got = made.embed(x), []
        for stage in range(len(made.stages)):
            features = made.run_stage(stage, features)
            got.append(features.as_map())
        want = network.eval()(x)[-len(got) :]
    for a, b, info in zip(got, want, made.stages, strict=True):
        torch.testing.assert_close(a, b)
        assert a.shape[1] == info.channels
        assert x.shape[-1] // info.stride == a.shape[-1]


def test_efficientnets_run_the_same_stages_as_timm_reports() -> None:
    made = branch(BranchConfig("test_efficientnet", 128), 4)
    lone = timm.create_model("test_efficientnet", features_only=True).eval()
    lone.load_state_dict(dict(zip(lone.state_dict(), made.state_dict().values(), strict=True)))
    with torch.inference_mode():
        torch.testing.assert_close(made(image()).as_map(), lone(image())[-1])


SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}


@pytest.mark.parametrize("network", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224"])
def test_swins_take_any_size_and_equal_timm_at_their_own(network: str) -> None:
    config = BranchConfig(network, 96, timm_args=SMALL_SWIN)
    made = branch(config, 4)
    lone = timm.create_model(network, img_size=96, features_only=True, **SMALL_SWIN).eval()
    lone.load_state_dict(dict(zip(lone.state_dict(), made.state_dict().values(), strict=True)))
    with torch.inference_mode():
        theirs = lone(image(96, 96))[-1]
        ours = made(image(96, 96)).as_map()
        torch.testing.assert_close(ours, theirs if theirs.shape == ours.shape else theirs.permute(0, 3, 1, 2))
        assert made(image(128, 224)).grid == (4, 7)
    assert made.fixed_size is None


def test_maxvit_takes_multiples_of_its_size() -> None:
    args = {"embed_dim": (32, 32, 32, 64), "depths": (1, 1, 1, 1)}
    made = branch(BranchConfig("maxvit_rmlp_pico_rw_256", 64, timm_args=args), 4)
    assert made.stride == 64
    with torch.inference_mode():
        assert made(image(128, 64)).grid == (4, 2)


def test_networks_of_one_size_refuse_others() -> None:
    args = {"embed_dim": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    made = branch(BranchConfig("coatnet_nano_rw_224", 64, timm_args=args), 4)
    assert made.fixed_size == (64, 64)
    with pytest.raises(ValueError, match=r"images of \(64, 64\) pixels only, got \(128, 64\)"):
        made(image(128, 64))


@pytest.mark.parametrize("network", ["hiera_tiny_224", "levit_128s", "xcit_nano_12_p16_224"])
def test_networks_that_cannot_be_cut_are_refused_in_one_sentence(network: str) -> None:
    with pytest.raises(ValueError, match=r"is neither a plain ViT nor a network that timm can cut into stages") as info:
        create_network(BranchConfig(network, 224))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("padding", ["before_qkv", "after_qkv"])
@pytest.mark.parametrize("grid", [(8, 12), (7, 10), (3, 5)])
def test_windows_equal_attention_over_each_window(padding: str, grid: tuple[int, int]) -> None:
    window = 4
    config = tiny_vit(24, 2, 64, depth=2, window_size=window, window_padding=padding, prefix_tokens=False)
    made = randomise(branch(config, 1))
    x = image(grid[0] * 16, grid[1] * 16)
    with torch.inference_mode():
        features = made.embed(x)
        got = made.run_stage(0, features).patches
        tokens = features.patches.view(2, *grid, -1)
        for block in made.vit.blocks:
            tokens = tokens + by_window(block, tokens, window, padding)
            tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(got, tokens.flatten(1, 2), rtol=1e-4, atol=1e-5)


def by_window(block, tokens, window: int, padding: str):
    """Plain attention in one window after the other, written from the description."""
    _, height, width, dim = tokens.shape
    normed = block.norm1(tokens)
    down, right = -height % window, -width % window
    if padding == "before_qkv":
        qkv = block.attn.qkv(F.pad(normed, (0, 0, 0, right, 0, down)))
    else:
        qkv = F.pad(block.attn.qkv(normed), (0, 0, 0, right, 0, down))
    out = torch.zeros(*qkv.shape[:3], dim)
    for top in range(0, height, window):
        for left in range(0, width, window):
            cut = qkv[:, top : top + window, left : left + window].flatten(1, 2)
            q, k, v = cut.unflatten(2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-2, -1) * block.attn.head_dim**-0.5).softmax(-1)
            joined = (scores @ v).transpose(1, 2).flatten(2)
            out[:, top : top + window, left : left + window] = joined.unflatten(1, (window, window))
    return block.attn.proj(out[:, :height, :width])


def test_windows_are_the_same_in_training_where_each_block_cuts_its_own() -> None:
    made = randomise(branch(tiny_vit(24, 2, 128, depth=3, window_size=(4, 4, 0), prefix_tokens=False), 1))
    with torch.no_grad():
        once = made(image()).patches
        torch.testing.assert_close(made.train()(image()).patches, once)


def test_drop_path_drops_whole_images_also_with_windows() -> None:
    config = tiny_vit(
        24, 2, 128, depth=1, window_size=4, prefix_tokens=False, drop_path_rate=0.5, drop_path_rule="constant"
    )
    made = branch(config, 1).train()
    with torch.no_grad():
        features = made.embed(image(batch=16))
        changed = (made.run_stage(0, features).patches != features.patches).any(2)
    assert {bool(row.any()) for row in changed} == {True, False}
    assert all(bool(row.all()) or not bool(row.any()) for row in changed)


def test_windows_cut_and_join_are_inverse() -> None:
    tokens = torch.randn(2, 6 * 9, 5)
    assert torch.equal(join_windows(partition_windows(tokens, (6, 9), 3), (6, 9), 3), tokens)
    padded, grid = pad_grid(tokens, (6, 9), 4, torch.arange(5.0))
    assert grid == (8, 12)
    assert torch.equal(padded.view(2, 8, 12, 5)[:, :6, :9].flatten(1, 2), tokens)
    assert torch.equal(padded.view(2, 8, 12, 5)[0, 7, 11], torch.arange(5.0))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"])
def test_prefix_tokens_can_be_left_out(name: str) -> None:
    made = branch(BranchConfig(name, 112, prefix_tokens=False, timm_args={**SMALL, "num_heads": 3}), 3)
    features = made(image(112, 112))
    assert features.prefix.shape[1] == 0
    assert not any("cls_token" in key or "reg_token" in key for key in made.state_dict())


def test_official_positions_keep_the_function_at_the_stored_grid() -> None:
    plain = branch(tiny_vit(24, 2, 64), 1)
    official = branch(tiny_vit(24, 2, 64, position_resize="official"), 1)
    with torch.no_grad():  # as trained networks: a class token with a position of its own
        plain.vit.pos_embed.normal_()
        plain.vit.cls_token.normal_()
    state = plain.state_dict()
    state["vit.cls_token"] = state["vit.cls_token"] + state["vit.pos_embed"][:, :1]
    state["vit.pos_embed"] = state["vit.pos_embed"][:, 1:]
    official.load_state_dict(state)
    with torch.inference_mode():
        for got, want in zip(official(image(64, 64))[:2], plain(image(64, 64))[:2], strict=True):
            torch.testing.assert_close(got, want)


def test_positions_resize_in_float32_without_antialias() -> None:
    table = torch.randn(1, 12, 4, dtype=torch.bfloat16)
    assert resize_positions(table, (3, 4), (3, 4)) is table
    got = resize_positions(table, (3, 4), (5, 2))
    maps = table.float().view(1, 3, 4, 4).permute(0, 3, 1, 2)
    want = F.interpolate(maps, (5, 2), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 10, 4)
    torch.testing.assert_close(got, want.bfloat16())


def test_depth_index_of_parameters() -> None:
    vit = branch(tiny_vit(24, 2, 64, depth=3), 3)
    assert vit.layer_depth("vit.patch_embed.proj.weight") == vit.layer_depth("vit.pos_embed") == 0
    assert [vit.layer_depth(f"vit.blocks.{i}.mlp.fc1.bias") for i in range(3)] == [1, 2, 3]
    assert vit.layer_depth("vit.norm.weight") == 4
    staged = branch(BranchConfig("test_resnet", 128), 4)
    depths = [staged.layer_depth(name) for name, _ in staged.named_parameters()]
    assert depths == sorted(depths)
    assert set(depths) == {0, 1, 2, 3, 4}
    assert vit.no_weight_decay() >= {"vit.pos_embed", "vit.cls_token"}


def test_groups_split_evenly_or_as_told() -> None:
    assert even_split(12, 5) == [(0, 2), (2, 5), (5, 7), (7, 10), (10, 12)]
    assert group_ranges(6, (1, 2, 3), 3) == [(0, 1), (1, 3), (3, 6)]
    assert group_ranges(6, ((0, 1), (4, 4)), 2) == [(0, 2), (4, 5)]
    for groups, parts, message in (
        ((1, 2), 3, "has 2 groups, expected 3"),
        ((1, 2, 2), 3, "adds up to 5 blocks, the network has 6"),
        (((0, 1), (5, 6)), 2, "reaches outside"),
        (None, 7, "cannot be split into 7 groups"),
    ):
        with pytest.raises(ValueError, match=message):
            group_ranges(6, groups, parts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BranchConfig("vit_tinny_patch16_224", 64), "Did you mean: vit_tiny_patch16_224"),
        (BranchConfig("vit_tiny_patch16_224.nobody", 64), "nobody"),
        (
            BranchConfig("vit_tiny_patch16_224", 64, timm_args={"emdeb_dim": 8}),
            "timm cannot build vit_tiny_patch16_224",
        ),
        (BranchConfig("vit_tiny_patch16_224", 64, timm_args={"img_size": 8}), "use the fields of BranchConfig"),
        (BranchConfig("vit_tiny_patch16_224", 64, timm_args={"patch_drop_rate": 0.1}), "needs every patch"),
        (BranchConfig("vit_tiny_patch16_224", 64, window_size=4), "set prefix_tokens to false"),
        (BranchConfig("vit_tiny_patch16_224", 64, window_size=(4, 4), prefix_tokens=False), "has 2 entries"),
        (BranchConfig("eva02_tiny_patch14_224", 56, window_size=2, prefix_tokens=False), "plain ViT blocks"),
        (BranchConfig("test_resnet", 64, window_size=4), "window_size needs a plain ViT"),
        (BranchConfig("test_resnet", 64, drop_path_rate=0.1, drop_path_rule="constant"), "'constant' needs a plain"),
        (BranchConfig("cait_xxs24_224", 64), "neither a plain ViT nor a network that timm can cut"),
    ],
)
def test_impossible_branches_are_explained(config: BranchConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        branch(config, 2)


def test_official_positions_keep_registers_too() -> None:
    fields = {"timm_args": SMALL, "position_grid": 4}
    plain = branch(BranchConfig("vit_small_patch14_reg4_dinov2", 56, **fields), 3)
    official = branch(BranchConfig("vit_small_patch14_reg4_dinov2", 56, position_resize="official", **fields), 3)
    official.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        for got, want in zip(official(image(56, 56))[:2], plain(image(56, 56))[:2], strict=True):
            torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match="needs a position table"):
        branch(BranchConfig("eva02_tiny_patch14_224", 56, position_resize="official"), 3)
