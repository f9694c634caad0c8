"""Families beyond plain ViTs: BEiT, ConvNeXt between its blocks, InternViT, Uni-Perceiver, vision towers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from pyramids import image, randomise, tiny_vit

import piip
from piip.branches import ConvNeXtBranch, create_network, wrap_network
from piip.branches.beit import BeitBranch, position_bias
from piip.branches.intern_vit import RowsRMSNorm
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.ops.relative_positions import geometric_distances, relative_positions, resize_table, spline_weights

BEIT = {"depth": 3, "embed_dim": 48, "num_heads": 4, "init_values": 0.5}
CONVNEXT = {"depths": (2, 1, 3, 1), "dims": (8, 16, 24, 32)}
INTERN = {"depth": 3, "embed_dim": 48, "num_heads": 4, "patch_size": 16}
UNI = {"depth": 3, "embed_dim": 48, "num_heads": 4}
SAMPLES = {
    "beit": BranchConfig("beitv2_base_patch16_224", 96, timm_args=BEIT),
    "beit windows": BranchConfig("beitv2_base_patch16_224", 96, window_size=3, prefix_tokens=False, timm_args=BEIT),
    "convnext": BranchConfig("convnext_tiny", 96, cut="blocks", timm_args=CONVNEXT),
    "intern_vit": BranchConfig("intern_vit_6b_patch14_224", 96, timm_args=INTERN),
    "uni_perceiver": BranchConfig("uni_perceiver_base_patch16_224", 96, timm_args=UNI),
    "clip": BranchConfig("vit_base_patch16_clip_quickgelu_224", 96, timm_args=UNI),
}


def branch(config: BranchConfig, groups: int = 3):
    return randomise(wrap_network(create_network(config), config, groups))


def test_beit_equals_timm_at_its_own_size() -> None:
    made = branch(SAMPLES["beit"])
    assert isinstance(made, BeitBranch)
    lone = timm.create_model("beitv2_base_patch16_224", num_classes=0, img_size=96, global_pool="token", **BEIT).eval()
    lone.load_state_dict(made.vit.state_dict(), strict=False)
    with torch.no_grad():
        for block, ours in zip(lone.blocks, made.vit.blocks, strict=True):
            table = torch.randn_like(ours.attn.relative_position_bias_table)
            block.attn.relative_position_bias_table.copy_(table)
            ours.attn.relative_position_bias_table.copy_(table)
            block.norm1.load_state_dict(ours.norm1.state_dict())
        made.vit.norm = copy.deepcopy(lone.norm)
        got, want = made(image(96, 96)), lone.forward_features(image(96, 96))
    torch.testing.assert_close(torch.cat((got.prefix, got.patches), 1), want)


def test_beit_runs_on_any_grid_and_keeps_its_biases_where_the_grid_is_its_own() -> None:
    made = branch(SAMPLES["beit"])
    with torch.inference_mode():
        assert made(image(64, 160)).grid == (4, 10)
    attention = made.vit.blocks[0].attn
    own = position_bias(attention, (6, 6), has_class=True)
    other = position_bias(attention, (6, 9), has_class=True)
    assert own is not None
    assert other is not None
    assert own.shape == (1, 4, 37, 37)
    assert other.shape == (1, 4, 55, 55)
    torch.testing.assert_close(other[0, :, 0, 0], own[0, :, 0, 0])  # class to class
    torch.testing.assert_close(other[0, :, 5, 5], own[0, :, 5, 5])  # no offset


def test_biases_depend_on_the_offset_only() -> None:
    index = relative_positions((3, 4), False, torch.device("cpu"))
    cells = [(row, column) for row in range(3) for column in range(4)]
    for query, (query_row, query_column) in enumerate(cells):
        for key, (key_row, key_column) in enumerate(cells):
            assert index[query, key] == (query_row - key_row + 2) * 7 + query_column - key_column + 3
    with_class = relative_positions((3, 4), True, torch.device("cpu"))
    assert torch.equal(with_class[1:, 1:], index)
    assert with_class[0, 1:].unique().tolist() == [35]
    assert with_class[1:, 0].unique().tolist() == [36]
    assert with_class[0, 0] == 37


def test_tables_resize_by_cubic_splines_between_geometric_distances() -> None:
    distances = geometric_distances(4, 7)
    assert len(distances) == 7
    steps = np.diff(distances[3:])
    assert steps[0] == pytest.approx(1)
    assert steps[1] / steps[0] == pytest.approx(steps[2] / steps[1])
    assert geometric_distances(14, 28)[-1] == pytest.approx(27, abs=1e-3)
    weights = spline_weights(4, 7, torch.device("cpu"))
    asked = np.clip(np.arange(-6, 7), distances[0], distances[-1])
    for power in range(4):  # a not-a-knot spline is exact for cubics
        known = torch.tensor(distances**power, dtype=torch.float32)
        torch.testing.assert_close(
            weights @ known, torch.tensor(asked**power, dtype=torch.float32), rtol=1e-3, atol=1e-3
        )
    table = torch.randn(7 * 7 + 3, 2)
    resized = resize_table(table, (4, 4), (7, 5), 3)
    assert resized.shape == (13 * 9 + 3, 2)
    assert torch.equal(resized[-3:], table[-3:])
    torch.testing.assert_close(resized[6 * 9 + 4], table[3 * 7 + 3])  # no offset stays no offset
    assert resize_table(table, (4, 4), (4, 4), 3) is table


def test_beit_windows_are_the_same_in_training_and_pad_with_the_biases() -> None:
    made = branch(SAMPLES["beit windows"])
    assert made.vit.blocks[0].attn.relative_position_bias_table.shape == (25, 4)
    with torch.no_grad():
        once = made(image(96, 96)).patches
        torch.testing.assert_close(made.train()(image(96, 96)).patches, once)
        made.eval()
        features = made.embed(image(64, 64))  # windows of 3 do not tile a grid of 4
        block = made.vit.blocks[0]
        got = made.run_block(0, features.patches, features, 3, is_cut=False)
        attention = block.attn
        normed = torch.zeros(2, 6, 6, 48)
        normed[:, :4, :4] = block.norm1(features.patches).unflatten(1, (4, 4))
        bias = position_bias(attention, (3, 3), has_class=False)
        window = normed[:, 3:, 3:].flatten(1, 2)  # only its first token is real
        query = window @ attention.qkv.weight[:48].T + attention.q_bias
        key = window @ attention.qkv.weight[48:96].T
        value = window @ attention.qkv.weight[96:].T + attention.v_bias
        heads = [part.unflatten(2, (4, 12)).transpose(1, 2) for part in (query, key, value)]
        scores = (heads[0] @ heads[1].transpose(2, 3) / 12**0.5 + bias).softmax(-1)
        attended = (scores @ heads[2]).transpose(1, 2).flatten(2)[:, 0]
        token = features.patches[:, 15] + block.gamma_1 * attention.proj(attended)
        token = token + block.gamma_2 * block.mlp(block.norm2(token))
    torch.testing.assert_close(got[:, 15], token, rtol=1e-4, atol=1e-5)


def test_convnext_between_blocks_equals_timm() -> None:
    config = SAMPLES["convnext"]
    made = branch(config, 5)
    assert isinstance(made, ConvNeXtBranch)
    assert made.depth == 10  # 7 blocks and 3 downsampling layers
    network = timm.create_model("convnext_tiny", num_classes=0, **CONVNEXT).eval()
    network.load_state_dict(made.network.state_dict(), strict=False)
    with torch.inference_mode():
        got, want = made(image(96, 160)).as_map(), network.forward_features(image(96, 160))
    torch.testing.assert_close(got, want)
    assert made.stages[-1] == (32, 32, 10)
    depths = [made.layer_depth(name) for name, _ in made.named_parameters()]
    assert depths == sorted(depths)
    assert set(depths) == set(range(11))


def test_convnext_stages_end_where_told() -> None:
    config = BranchConfig("convnext_tiny", 96, cut="blocks", block_groups=(2, 1, 3, 4), timm_args=CONVNEXT)
    made = branch(config, 4)
    assert [(stage.channels, stage.stride) for stage in made.stages] == [(8, 4), (16, 8), (24, 16), (32, 32)]
    by_stage = branch(BranchConfig("convnext_tiny", 96, timm_args=CONVNEXT), 4)
    assert len(by_stage.stages) == 4
    assert not isinstance(by_stage, ConvNeXtBranch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_normed_as_the_whole_tensor_is(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piip.branches.intern_vit.CACHED", 200)
    stock, rows = (randomise(kind(48, eps=1e-6).to(dtype)) for kind in (torch.nn.RMSNorm, RowsRMSNorm))
    for tokens in (torch.randn(2, 7, 48).to(dtype), torch.randn(2, 7, 144).to(dtype)[..., 48:96]):
        with torch.inference_mode():
            assert torch.equal(rows(tokens), stock(tokens))
        assert torch.equal(rows(tokens), stock(tokens))
        assert rows(tokens).requires_grad


def test_intern_vit_norms_queries_and_keys_over_all_heads() -> None:
    made = branch(SAMPLES["intern_vit"], 1)
    attention = made.vit.blocks[0].attn
    tokens = torch.randn(2, 7, 48)
    with torch.inference_mode():
        query, key, value = attention.qkv(tokens).chunk(3, -1)
        query, key = (
            part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
            for part, norm in ((query, attention.q_norm), (key, attention.k_norm))
        )
        heads = [part.unflatten(2, (4, 12)).transpose(1, 2) for part in (query, key, value)]
        scores = (heads[0] @ heads[1].transpose(2, 3) / 12**0.5).softmax(-1)
        want = attention.proj((scores @ heads[2]).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(tokens), want)
    layer = create_network(
        BranchConfig("intern_vit_6b_patch14_224", 96, timm_args={**INTERN, "norm": "layer", "qk_norm": True})
    )
    assert isinstance(layer.blocks[0].attn.q_norm, torch.nn.LayerNorm)
    with pytest.raises(ValueError, match="expected one of rms, layer"):
        create_network(BranchConfig("intern_vit_6b_patch14_224", 96, timm_args={**INTERN, "norm": "batch"}))


def test_uni_perceiver_norms_its_embeddings() -> None:
    made = branch(SAMPLES["uni_perceiver"], 1)
    assert made.vit.norm_pre.eps == 1e-5
    assert made.vit.patch_embed.proj.bias is not None
    assert made.num_prefix_tokens == 0
    with pytest.raises(ValueError, match="could not be loaded"):
        piip.build_backbone(ModelConfig((BranchConfig("uni_perceiver_base_patch16_224", 96, pretrained=True),)))


@pytest.mark.parametrize("name", SAMPLES)
def test_zero_gates_leave_every_family_alone(name: str) -> None:
    configs = (SAMPLES[name], tiny_vit(24, 2, 192, depth=3))
    merge = MergeConfig("none")
    model = piip.build_backbone(
        ModelConfig(configs, InteractionConfig(count=3, num_heads=4), merge, allow_direct=True)
    ).eval()
    alone = [piip.build_backbone(ModelConfig((config,), merge=merge)).eval() for config in configs]
    for single, part in zip(alone, model.branches, strict=True):
        single.branches[0].load_state_dict(part.state_dict())
    x = image(192, 256)
    with torch.inference_mode():
        got = model(x)
        want = [single(resized)[0] for single, resized in zip(alone, model.pyramid(x), strict=True)]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_family_trains_recomputes_and_runs_in_bfloat16(name: str) -> None:
    configs = (SAMPLES[name], tiny_vit(24, 2, 192, depth=3))
    config = ModelConfig(
        configs,
        InteractionConfig(count=3, num_heads=4),
        MergeConfig("linear"),
        head=HeadConfig("pooled", 5),
        allow_direct=True,
    )
    model = randomise(piip.build_model(config)).train()
    loss = model(image(192, 192)).square().sum()
    loss.backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    assert set(gradients) == {key for key, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(image(192, 192)).square().sum().backward()
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[key], rtol=1e-3, atol=1e-4)
    model.eval()
    with torch.inference_mode():
        want = model(image(192, 192))
        got = model.bfloat16()(image(192, 192))
    assert (got.float() - want).norm() <= 5e-2 * want.norm()


def test_single_networks_with_stages_give_their_own_maps() -> None:
    config = BranchConfig("convnext_tiny", 96, cut="blocks", block_groups=(2, 2, 4, 2), timm_args=CONVNEXT)
    model = piip.build_backbone(ModelConfig((config,), merge=MergeConfig("none"), neck=NeckConfig("stages"))).eval()
    network = timm.create_model("convnext_tiny", features_only=True, **CONVNEXT).eval()
    network.load_state_dict(
        {
            key.replace("network.", "").replace("stages.", "stages_").replace("stem.", "stem_"): value
            for key, value in model.branches[0].state_dict().items()
        }
    )
    with torch.inference_mode():
        for got, want in zip(model(image(96, 128)), network(image(96, 128)), strict=True):
            torch.testing.assert_close(got, want)
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    with pytest.raises(ValueError, match="'stages' is for a single branch"):
        ModelConfig((config,), neck=NeckConfig("stages"))


def test_vision_towers_give_tokens_of_the_language_model() -> None:
    branches = (tiny_vit(32, 2, 64, depth=2), tiny_vit(16, 2, 128, depth=2))
    config = ModelConfig(
        branches, InteractionConfig(num_heads=4), MergeConfig("none"), head=HeadConfig("projector", width=64)
    )
    model = randomise(piip.build_model(config))
    with torch.inference_mode():
        tokens = model(image(128, 192))
        maps = model.backbone(image(128, 192))
        coarse = torch.nn.functional.interpolate(maps[0], (8, 12), mode="bilinear", align_corners=False)
        want = [
            sequence(part).flatten(2).transpose(1, 2)
            for sequence, part in zip(model.head.projections, (coarse, maps[1]), strict=True)
        ]
    assert tokens.shape == (2, 96, 64)
    torch.testing.assert_close(tokens, want[0] + want[1])
    report = piip.estimate_cost(model, image_size=(128, 192))
    assert report.parts["head"].macs == 2 * 96 * 64 * 64 + 96 * 64 * (32 + 16)
    with pytest.raises(ValueError, match="reads the branches before merging"):
        ModelConfig(branches, head=HeadConfig("projector"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BranchConfig("test_resnet", 64, cut="blocks"), "cut 'blocks' is for ConvNeXt"),
        (BranchConfig("beitv2_base_patch16_224", 64, window_padding="after_qkv", timm_args=BEIT), "'before_qkv' only"),
        (BranchConfig("beitv2_base_patch16_224", 64, timm_args={**BEIT, "use_abs_pos_emb": True}), "one table of"),
        (BranchConfig("beitv2_base_patch16_224", 64, window_size=2, timm_args=BEIT), "set prefix_tokens to false"),
    ],
)
def test_impossible_branches_are_explained(config: BranchConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        branch(config)
