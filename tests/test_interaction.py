"""Interactions, merging and necks against their description."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyramids import randomise, tiny_vit
from torch import nn

import piip
from piip.build.interaction import _say_once, fitting_heads
from piip.config import InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.layers.attention import CrossAttention, DeformableCrossAttention
from piip.layers.interaction import Interaction, InteractionUnit
from piip.layers.merge import BranchMerge, PointwiseLinear, fitting_groups, resize_map
from piip.structures import BranchFeatures


def features(dim: int, grid: tuple[int, int], seed: int) -> BranchFeatures:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(2, grid[0] * grid[1], dim, generator=generator)
    return BranchFeatures(patches, patches.new_zeros(2, 0, dim), grid)


def backbone(**interaction):
    parts = (tiny_vit(32, 2, 64), tiny_vit(24, 2, 96), tiny_vit(16, 2, 128))
    config = ModelConfig(parts, InteractionConfig(**{"count": 2, "num_heads": 4, **interaction}))
    return randomise(piip.build_backbone(config))


def test_pairs_run_from_the_highest_resolution_and_see_what_changed() -> None:
    calls = []

    class Unit(InteractionUnit):
        def __init__(self, name: str) -> None:
            super().__init__(None, None)
            self.name = name

        def forward(self, coarse: BranchFeatures, fine: BranchFeatures):
            calls.append((self.name, coarse.patches[0, 0, 0].item(), fine.patches[0, 0, 0].item()))
            return coarse._replace(patches=coarse.patches + 10), fine._replace(patches=fine.patches + 1)

    given = [features(1, (1, 1), i)._replace(patches=torch.full((2, 1, 1), float(i))) for i in range(3)]
    Interaction([Unit("0-1"), Unit("1-2")])(given)
    assert calls == [("1-2", 1.0, 2.0), ("0-1", 0.0, 11.0)]
    assert [f.patches[0, 0, 0].item() for f in given] == [0, 1, 2]  # the given list is not changed


def test_both_directions_read_the_tokens_from_before() -> None:
    unit = backbone().interactions[0].units[0]
    coarse, fine = features(32, (4, 4), 0), features(24, (6, 6), 1)
    with torch.inference_mode():
        new_coarse, new_fine = unit(coarse, fine)
        want_coarse = unit.to_coarse(coarse.patches, unit.coarse_projection(fine.patches), (4, 4), (6, 6))
        want_fine = unit.to_fine(fine.patches, unit.fine_projection(coarse.patches), (6, 6), (4, 4))
    assert torch.equal(new_coarse.patches, want_coarse)
    assert torch.equal(new_fine.patches, want_fine)


def test_injector_is_gated_attention_and_gated_ffn() -> None:
    injector = backbone().interactions[0].units[1].to_fine
    query, source = features(16, (8, 8), 0).patches, features(16, (6, 6), 1).patches
    with torch.inference_mode():
        attended = injector.attention(injector.query_norm(query), injector.source_norm(source), (8, 8), (6, 6))
        middle = query + injector.attention_gate * attended
        hidden = injector.ffn.fc1(injector.ffn_norm(middle)).transpose(1, 2).reshape(2, -1, 8, 8)
        hidden = F.gelu(F.conv2d(hidden, injector.ffn.conv.weight, injector.ffn.conv.bias, padding=1, groups=4))
        want = middle + injector.ffn_gate * injector.ffn.fc2(hidden.flatten(2).transpose(1, 2))
        torch.testing.assert_close(injector(query, source, (8, 8), (6, 6)), want)


@pytest.mark.parametrize("direction", ["both", "to_coarse", "to_fine", "none"])
def test_directions(direction: str) -> None:
    made = backbone(direction=direction)
    given = [features(32, (4, 4), 0), features(24, (6, 6), 1), features(16, (8, 8), 2)]
    with torch.inference_mode():
        got = made.interactions[0](given)
    changed = [not torch.equal(a.patches, b.patches) for a, b in zip(given, got, strict=True)]
    want = {"both": [True] * 3, "to_coarse": [True, True, False], "to_fine": [False, True, True], "none": [False] * 3}
    assert changed == want[direction]
    assert bool(list(made.interactions.parameters())) == (direction != "none")


@pytest.mark.parametrize(
    "options", [{"projection": False}, {"norm": False}, {"ffn_ratio": 0.0}, {"attention": "dense"}]
)
def test_options_leave_their_parts_out(options) -> None:
    keys = backbone(**options).interactions[0].state_dict()
    for option, part in (("projection", "projection"), ("norm", "norm"), ("ffn_ratio", "ffn")):
        assert any(part in key for key in keys) == (option not in options)
    assert any(".offsets." in key for key in keys) == ("attention" not in options)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gates_start_at_the_value_of_the_description(value: float) -> None:
    parts = (tiny_vit(32, 2, 64), tiny_vit(24, 2, 96))
    model = piip.build_backbone(ModelConfig(parts, InteractionConfig(count=1, num_heads=4, gate_init=value)))
    injectors = model.interactions[0].units[0].injectors(0).values()
    gates = [gate for injector in injectors for gate in injector.gates().values()]
    assert len(gates) == 4
    assert all((gate == value).all() for gate in gates)


def test_dense_attention_equals_torch_multi_head_attention() -> None:
    ours = CrossAttention(12, 20, num_heads=3)
    theirs = nn.MultiheadAttention(12, 3, kdim=20, vdim=20, batch_first=True, bias=False)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(ours.key.weight)
        theirs.v_proj_weight.copy_(ours.value.weight)
        theirs.out_proj.weight.copy_(ours.output.weight)
        query, source = torch.randn(2, 9, 12), torch.randn(2, 16, 20)
        got = ours(query, source, (3, 3), (4, 4)) - ours.output.bias
        torch.testing.assert_close(got, theirs(query, source, source)[0], rtol=1e-4, atol=1e-5)


def test_deformable_attention_starts_on_rays_around_each_query() -> None:
    attention = DeformableCrossAttention(32, 24, num_heads=4, num_points=3)
    offsets = attention.offsets.bias.view(4, 3, 2)
    want = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])[:, None] * torch.arange(1, 4)[None, :, None]
    torch.testing.assert_close(offsets, want, rtol=0, atol=1e-6)
    assert attention.offsets.weight.abs().max() == 0


@pytest.mark.parametrize("make", [DeformableCrossAttention, CrossAttention])
def test_heads_that_do_not_divide_are_refused_by_modules_and_fitted_by_the_builder(make, caplog) -> None:
    with pytest.raises(ValueError, match="5 heads do not divide"):
        make(32, 32, num_heads=5)
    assert [fitting_heads(width, 16) for width in (96, 20, 7, 34)] == [16, 10, 7, 2]
    _say_once.cache_clear()
    kind = "dense" if make is CrossAttention else "deformable"
    backbone(num_heads=7, attention=kind)
    assert "7 heads do not divide the attention width" in caplog.text


def test_norm_groups_fit_the_width() -> None:
    assert [fitting_groups(width) for width in (64, 48, 40, 7, 96)] == [32, 24, 20, 7, 32]


@pytest.mark.parametrize("kind", ["linear", "conv", "slim"])
def test_merge_is_a_weighted_sum_at_the_finest_grid(kind: str) -> None:
    parts = (tiny_vit(32, 2, 64), tiny_vit(16, 2, 128))
    made = randomise(piip.build_backbone(ModelConfig(parts, InteractionConfig(count=1), MergeConfig(kind, 24))))
    merge = made.merge
    given = [features(32, (4, 4), 0), features(16, (8, 8), 1)]
    with torch.inference_mode():
        projected = [p(f.as_map()) for p, f in zip(merge.projections, given, strict=True)]
        upsampled = F.interpolate(projected[0], size=(8, 8), mode="bilinear", align_corners=False)
        want = merge.scales[0] * upsampled + merge.scales[1] * projected[1]
        torch.testing.assert_close(merge(given), want)
    assert merge.out_channels == want.shape[1] == 24


def test_merge_resizes_in_float32() -> None:
    small = torch.randn(1, 2, 3, 3).bfloat16()
    want = F.interpolate(small.float(), size=(5, 7), mode="bilinear").bfloat16()
    assert torch.equal(resize_map(small, (5, 7)), want)
    assert resize_map(small, (3, 3)) is small


def test_pointwise_linear_equals_a_1x1_convolution() -> None:
    layer = PointwiseLinear(4, 6)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[:, :, None, None], layer.bias))


def test_slim_merge_and_neck_cost_less_than_the_official_ones() -> None:
    parts = (tiny_vit(192, 3, 64), tiny_vit(96, 3, 96), tiny_vit(48, 3, 128))
    costs = {}
    for kind in ("conv", "slim"):
        config = ModelConfig(
            parts, InteractionConfig(count=2), MergeConfig(kind, 64 if kind == "slim" else None), NeckConfig("simple")
        )
        report = piip.estimate_cost(config)
        costs[kind] = report.parts["merge"].macs + report.parts["neck"].macs
    assert costs["slim"] < 0.2 * costs["conv"]


def test_features_turn_into_maps_and_back() -> None:
    made = features(5, (3, 4), 0)
    assert made.as_map().shape == (2, 5, 3, 4)
    assert torch.equal(BranchFeatures.map_to_tokens(made.as_map()), made.patches)
    assert isinstance(BranchMerge([nn.Identity()], 5)([made]), torch.Tensor)


@pytest.mark.parametrize("options", [{}, {"ffn_ratio": 0.0, "norm": False}, {"attention": "dense"}])
def test_checkpointed_interactions_keep_less_and_learn_the_same(options) -> None:
    made = backbone(drop_path_rate=0.5, **options).train()
    losses, gradients, kept = [], [], []
    for enable in (False, True):
        made.zero_grad()
        for interaction in made.interactions:
            interaction.grad_checkpointing = enable
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        torch.manual_seed(0)  # of stochastic depth
        given = [features(32, (4, 4), 0), features(24, (6, 6), 1), features(16, (8, 8), 2)]
        leaves = [each.patches.requires_grad_() for each in given]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for interaction in made.interactions:
                given = interaction(given)
            loss = sum(each.patches.square().mean() for each in given)
        loss.backward()
        losses.append(loss.detach())
        parameters = [*made.interactions.parameters(), *leaves]
        gradients.append([leaf.grad.clone() for leaf in parameters])
        kept.append(sum(sizes))
    assert torch.equal(*losses)
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
    assert kept[1] < 0.25 * kept[0]


def test_checkpointing_reaches_the_interactions_and_nothing_is_recomputed_without_gradients() -> None:
    made = backbone()
    made.set_grad_checkpointing()
    assert all(interaction.grad_checkpointing for interaction in made.interactions)
    given = [features(32, (4, 4), 0), features(24, (6, 6), 1), features(16, (8, 8), 2)]
    with torch.inference_mode():
        got = made.interactions[0](given)
        made.set_grad_checkpointing(False)
        want = made.interactions[0](given)
    assert not any(interaction.grad_checkpointing for interaction in made.interactions)
    assert all(torch.equal(a.patches, b.patches) for a, b in zip(got, want, strict=True))
