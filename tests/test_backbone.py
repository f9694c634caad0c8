"""The whole pyramid: any number of branches, any aspect ratio, exact where it must be."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from pyramids import image, randomise, tiny_vit

import piip
from piip.config import (
    BranchConfig,
    HeadConfig,
    InteractionConfig,
    MergeConfig,
    ModelConfig,
    NeckConfig,
)
from piip.layers.image_pyramid import image_pyramid, pyramid_sizes

WIDTHS = (64, 48, 32, 24, 16)
SIZES = (32, 48, 64, 96, 128)


def pyramid_config(branches: int, *, count: int = 2, **fields) -> ModelConfig:
    widths, sizes = WIDTHS[:branches], SIZES[-branches:]
    parts = tuple(tiny_vit(width, 2, size) for width, size in zip(widths, sizes, strict=True))
    return ModelConfig(parts, InteractionConfig(count=count, num_heads=4), **fields)


@pytest.mark.parametrize("branches", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(128, 128), (96, 200), (333, 47)])
@pytest.mark.parametrize("merge", ["linear", "conv", "slim", "none"])
def test_any_number_of_branches_and_any_aspect_ratio(branches: int, size: tuple[int, int], merge: str) -> None:
    config = pyramid_config(branches, merge=MergeConfig(merge, None if merge == "none" else 24))
    backbone = randomise(piip.build_backbone(config))
    with torch.inference_mode():
        maps = backbone(image(*size))
    grids = [tuple(max(1, round(side * s / SIZES[-1] / 16)) for side in size) for s in SIZES[-branches:]]
    if merge == "none":
        assert [tuple(m.shape) for m in maps] == [(2, w, *g) for w, g in zip(WIDTHS, grids, strict=False)]
    else:
        assert [tuple(m.shape) for m in maps] == [(2, 24, *grids[-1])]
    assert all(torch.isfinite(m).all() for m in maps)
    assert len(backbone.feature_info) == len(maps)
    assert [info["num_chs"] for info in backbone.feature_info] == [m.shape[1] for m in maps]


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
@pytest.mark.parametrize("attention", ["deformable", "dense"])
def test_with_zero_gates_every_branch_equals_its_lone_timm_network(size, attention: str) -> None:
    names = ("test_vit", "test_vit3", "test_resnet", "test_convnext")
    parts = tuple(BranchConfig(name, side) for name, side in zip(names, (64, 96, 96, 128), strict=True))
    config = ModelConfig(
        parts, InteractionConfig(attention=attention, num_heads=4), MergeConfig("none"), allow_direct=True
    )
    backbone = piip.build_backbone(config).eval()
    x = image(*size)
    with torch.inference_mode():
        features = backbone.forward_features(x)
    strides = [branch.stride for branch in backbone.branches]
    ratios = [side / 128 for side in (64, 96, 96, 128)]
    images = image_pyramid(x, pyramid_sizes(size, ratios, strides))
    for branch, name, resized, got in zip(backbone.branches, names, images, features, strict=True):
        if "vit" in name:
            lone = timm.create_model(
                name, num_classes=0, img_size=branch.vit.patch_embed.img_size, dynamic_img_size=True
            )
            lone.load_state_dict(branch.vit.state_dict(), strict=False)
            with torch.inference_mode():
                tokens = lone.eval().forward_features(resized)
            torch.testing.assert_close(got.prefix, tokens[:, : branch.num_prefix_tokens])
            torch.testing.assert_close(got.patches, tokens[:, branch.num_prefix_tokens :])
        else:
            lone = timm.create_model(name, features_only=True)
            lone.load_state_dict(dict(zip(lone.state_dict(), branch.state_dict().values(), strict=True)))
            with torch.inference_mode():
                torch.testing.assert_close(got.as_map(), lone.eval()(resized)[-1])


def test_at_nominal_square_sizes_exact_and_official_resizing_agree() -> None:
    x = image(128, 128)
    outputs = []
    for resize in ("exact", "official"):
        torch.manual_seed(0)
        backbone = randomise(piip.build_backbone(pyramid_config(3, resize=resize)))
        with torch.inference_mode():
            outputs.append(backbone(x)[0])
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 128), [(64, 64), (128, 128)]), ((10, 500), [(16, 256), (16, 496)]), ((120, 104), [(64, 48), (128, 96)])],
)
def test_pyramid_sizes_are_whole_patches(size, expected) -> None:
    assert pyramid_sizes(size, (0.5, 1.0), (16, 16)) == expected


def test_image_pyramid_leaves_the_finest_image_alone() -> None:
    x = image(64, 48)
    half, whole = image_pyramid(x, [(32, 24), (64, 48)])
    assert whole is x
    torch.testing.assert_close(half[:, :, 0, 0], x[:, :, :2, :2].mean((2, 3)))


def test_largest_networks_come_first_or_a_warning_explains() -> None:
    with pytest.warns(piip.PyramidWarning) as caught:
        piip.build_backbone(ModelConfig((tiny_vit(32, 2, 64), tiny_vit(64, 2, 128)), InteractionConfig(count=2)))
    message = str(caught[0].message)
    assert "vit_tiny_patch16_224 at 64 px" in message
    assert "vit_tiny_patch16_224 at 128 px" in message
    assert "GMACs" in message
    assert "allow_direct=True" in message
    with pytest.warns(piip.PyramidWarning, match="larger network at a lower resolution"):
        piip.build_backbone(ModelConfig((tiny_vit(64, 2, 128), tiny_vit(32, 2, 64)), InteractionConfig(count=2)))


def test_baselines_and_inverted_pyramids_build_without_warning(recwarn) -> None:
    piip.build_backbone(pyramid_config(3))
    same = (tiny_vit(32, 2, 64), tiny_vit(32, 2, 128))
    piip.build_backbone(ModelConfig(same, InteractionConfig(count=2), allow_direct=True))
    assert not recwarn.list


def test_interactions_default_to_what_every_branch_can_offer() -> None:
    parts = (tiny_vit(64, 2, 64, depth=6), BranchConfig("test_resnet", 128))
    backbone = piip.build_backbone(ModelConfig(parts, allow_direct=True))
    assert len(backbone.interactions) == 4  # the stages of the ResNet
    assert [stage.depth for stage in backbone.branches[0].stages] == [2, 3, 4, 6]
    assert [stage.stride for stage in backbone.branches[1].stages] == [4, 8, 16, 32]


@pytest.mark.parametrize("neck", ["simple", "interaction"])
def test_necks_return_maps_at_strides_4_to_32(neck: str) -> None:
    interactions = (0, 1, 2) if neck == "interaction" else ()
    config = pyramid_config(3, count=4, merge=MergeConfig("conv"), neck=NeckConfig(neck, interactions=interactions))
    backbone = randomise(piip.build_backbone(config))
    with torch.inference_mode():
        maps = backbone(image(128, 192))
    assert [tuple(m.shape[-2:]) for m in maps] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert [info["reduction"] for info in backbone.feature_info] == [4, 8, 16, 32]


def test_per_branch_normalisation_equals_normalising_the_image_for_each_branch() -> None:
    # SigLIP and AugReg use mean 0.5, DeiT ImageNet's
    parts = (
        BranchConfig("deit_tiny_patch16_224.fb_in1k", 64, timm_args={"depth": 2, "embed_dim": 48}),
        BranchConfig("vit_tiny_patch16_224.augreg_in21k", 96, timm_args={"depth": 2, "embed_dim": 24}),
    )
    config = ModelConfig(parts, InteractionConfig(count=2, num_heads=2), MergeConfig("none"), normalize="per_branch")
    backbone = piip.build_backbone(config).eval()
    raw = torch.rand(1, 3, 96, 96)
    first, second = backbone.branches
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (first.mean, first.std))
    with torch.inference_mode():
        got = second.embed((raw - mean) / std).patches
        want = second.vit._pos_embed(second.vit.patch_embed((raw - 0.5) / 0.5))[:, 1:]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert first.prepare(raw) is raw


@pytest.mark.parametrize("kind", ["pooled", "per_branch"])
def test_classifier_trains_every_parameter(kind: str) -> None:
    merge = MergeConfig("linear" if kind == "pooled" else "none")
    model = randomise(piip.build_model(pyramid_config(3, merge=merge, head=HeadConfig(kind, 7)))).train()
    logits = model(image())
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    # a class token that no head reads gets no gradient through the last block's own output
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("pool", ["token", "mean", "first_patch"])
def test_per_branch_head_averages_logits(pool: str) -> None:
    config = pyramid_config(2, merge=MergeConfig("none"), head=HeadConfig("per_branch", 5, pool))
    model = randomise(piip.build_model(config))
    with torch.inference_mode():
        features = model.forward_features(image())
        read = {
            "token": lambda f: f.prefix[:, 0],
            "mean": lambda f: f.patches.mean(1),
            "first_patch": lambda f: f.patches[:, 0],
        }[pool]
        want = sum(fc(read(f)) for fc, f in zip(model.head.fcs, features, strict=True)) / 2
        torch.testing.assert_close(model(image()), want)


def test_activation_checkpointing_changes_memory_not_gradients() -> None:
    parts = (tiny_vit(32, 2, 128, depth=8), BranchConfig("test_convnext", 128))
    config = ModelConfig(parts, InteractionConfig(count=1, num_heads=4), allow_direct=True)
    model = randomise(piip.build_backbone(config))
    gradients, kept = [], []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(image())[0]
        out.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_stays_close_to_float32() -> None:
    model = randomise(piip.build_backbone(pyramid_config(3, merge=MergeConfig("slim", 32), neck=NeckConfig("simple"))))
    with torch.inference_mode():
        want = model(image())
        got = model.to(torch.bfloat16)(image().bfloat16())
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() <= 2e-2 * b.norm()


def mixed_config() -> ModelConfig:
    """A pyramid with windows, a network with stages, a merge and a neck."""
    parts = (
        tiny_vit(32, 2, 64, depth=2),
        tiny_vit(24, 2, 96, depth=2, window_size=4, prefix_tokens=False),
        BranchConfig("test_convnext", 128),
    )
    return ModelConfig(
        parts,
        InteractionConfig(count=2, num_heads=4),
        MergeConfig("slim", 16),
        NeckConfig("simple"),
        allow_direct=True,
    )


def test_export_equals_eager() -> None:
    model = randomise(piip.build_backbone(mixed_config()))
    x = image(96, 160)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        for got, want in zip(program.module()(x), model(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_compile_in_one_graph_equals_eager_forward_and_backward() -> None:
    model = randomise(piip.build_backbone(mixed_config()))
    x = image(96, 160)
    want = model(x)
    sum(level.square().mean() for level in want).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    sum(level.square().mean() for level in got).backward()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_generated_code_equals_eager() -> None:
    config = ModelConfig(
        (tiny_vit(16, 2, 32, depth=1), tiny_vit(8, 1, 48, depth=1)), InteractionConfig(count=1, num_heads=2)
    )
    model = randomise(piip.build_backbone(config))
    with torch.inference_mode():
        got = torch.compile(model, fullgraph=True)(image(48, 48))
        torch.testing.assert_close(got[0], model(image(48, 48))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 3, 64, 64).numpy(), r"is a ndarray, expected a torch\.Tensor"),
        (torch.zeros(3, 64, 64), r"expected a batch \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 64, 64), "has 1 channels, expected 3"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "dtype torch.uint8, expected a float tensor"),
        (torch.zeros(1, 3, 8, 64), r"smaller than one patch \(16\)"),
        (torch.full((1, 3, 64, 64), math.nan), "NaN or infinite"),
        (torch.full((1, 3, 64, 64), math.inf), "NaN or infinite"),
    ],
)
def test_what_is_no_image_is_refused(bad: torch.Tensor, message: str) -> None:
    backbone = piip.build_backbone(pyramid_config(2))
    with pytest.raises(ValueError, match=message):
        backbone(bad)


def test_levels_of_networks_with_stages_are_described_truly() -> None:
    for first, last in (("test_convnext", "test_resnet"), ("test_convnext", "vit_tiny_patch16_224")):
        args = {"depth": 4, "embed_dim": 24, "num_heads": 2} if "vit" in last else {}
        parts = (BranchConfig(first, 64), BranchConfig(last, 128, timm_args=args))
        neck = NeckConfig("interaction", interactions=(0, 1, 2))
        config = ModelConfig(parts, InteractionConfig(count=4, num_heads=4), neck=neck, allow_direct=True)
        backbone = piip.build_backbone(config).eval()
        with torch.inference_mode():
            maps = backbone(image())
        assert [(info["num_chs"], info["reduction"]) for info in backbone.feature_info] == [
            (m.shape[1], 128 / m.shape[-1]) for m in maps
        ]


def test_class_token_is_asked_for_by_name_not_by_number_of_prefix_tokens() -> None:
    part = BranchConfig("vit_little_patch16_reg1_gap_256", 64, timm_args={"depth": 2, "embed_dim": 32, "num_heads": 2})
    with pytest.raises(ValueError, match="needs class tokens"):
        piip.build_model(ModelConfig((part,), merge=MergeConfig("none"), head=HeadConfig("per_branch", 3, "token")))


def test_images_are_cast_to_the_dtype_of_the_branches() -> None:
    model = piip.build_backbone(pyramid_config(2)).eval().to(torch.bfloat16)
    with torch.inference_mode():
        assert model(image())[0].dtype == torch.bfloat16


def test_tracing_with_stand_ins_leaves_nothing_behind() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = piip.build_backbone(pyramid_config(2)).eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        model(mode.from_tensor(image(112, 144)))
    with torch.inference_mode():
        assert type(model(image(112, 144))[0]) is torch.Tensor


def test_training_after_inference_works_on_the_same_sizes() -> None:
    model = randomise(piip.build_backbone(pyramid_config(2)))
    with torch.inference_mode():
        model(image(80, 112))
    model(image(80, 112))[0].sum().backward()


@pytest.mark.parametrize("kind", ["pooled", "per_branch"])
def test_reset_classifier_changes_the_number_of_classes_only(kind: str) -> None:
    merge = MergeConfig("linear" if kind == "pooled" else "none")
    model = piip.build_model(pyramid_config(2, merge=merge, head=HeadConfig(kind, 7))).eval()
    before = model.backbone.state_dict()
    model.reset_classifier(3)
    assert model.num_classes == model.config.head.num_classes == 3
    with torch.inference_mode():
        assert model(image()).shape == (2, 3)
    assert all(torch.equal(before[key], value) for key, value in model.backbone.state_dict().items())
    with pytest.raises(ValueError, match="num_classes is 0"):
        model.reset_classifier(0)


def test_a_pyramid_that_is_not_inverted_warns_also_with_given_groups() -> None:
    parts = (tiny_vit(32, 2, 64, block_groups=(1, 3)), tiny_vit(64, 2, 128, block_groups=(2, 2)))
    with pytest.warns(piip.PyramidWarning):
        piip.build_backbone(ModelConfig(parts, InteractionConfig(count=2, num_heads=4)))


def test_any_branch_says_how_many_interactions_there_are() -> None:
    parts = (tiny_vit(64, 2, 64), tiny_vit(32, 2, 128, block_groups=(1, 3)))
    backbone = piip.build_backbone(ModelConfig(parts, InteractionConfig(num_heads=4)))
    assert [len(branch.stages) for branch in backbone.branches] == [2, 2]
    several = (tiny_vit(64, 2, 64, block_groups=(1, 3)), tiny_vit(32, 2, 128, block_groups=(4,)))
    with pytest.raises(ValueError, match="block_groups has 1 groups, expected 2"):
        piip.build_backbone(ModelConfig(several, InteractionConfig(num_heads=4)))
