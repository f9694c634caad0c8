"""The DINO head equals the released one, and holds where the golden cases do not go."""

from __future__ import annotations

from typing import Any, NamedTuple

import golden_heads
import numpy as np
import pytest
import torch
from pyramids import tiny_vit
from torch import Tensor

from piip.build import build_model
from piip.checkpoints import build_official_head, load_official, official_shapes
from piip.checkpoints.heads import OfficialHead, image_info_of
from piip.config import HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.heads.dino.boxes import generalized_iou, inverse_sigmoid
from piip.heads.dino.denoising import NoiseLayout, draw_noise
from piip.heads.dino.head import Decoded, DINOHead, matching_sets
from piip.heads.dino.losses import mean_count
from piip.heads.dino.matching import match
from piip.heads.dino.neck import ChannelMapper
from piip.heads.dino.selection import cell_boxes
from piip.heads.dino.targets import TrueBoxes
from piip.heads.dino.tokens import LevelTokens, cell_references, flatten_levels
from piip.heads.dino.transformer import LayerSizes
from piip.models import PIIPDenseModel
from piip.structures import ImageInfo

CASES = ["dino_s1", "dino_s2"]
SIZES = LayerSizes(embed_dim=64, hidden_dim=48)  # wide enough for norms of maps with one cell


class Trace(NamedTuple):
    """What a golden case does when it predicts."""

    head: OfficialHead
    model: DINOHead
    case: dict[str, Any]
    outputs: dict[str, np.ndarray]
    maps: list[Tensor]
    neck: list[Tensor]
    levels: LevelTokens
    attended: Tensor
    layer: Tensor
    memory: Tensor
    cells: Tensor
    decoded: Decoded


@pytest.fixture(scope="module", params=CASES)
def trace(request: pytest.FixtureRequest) -> Trace:
    case, outputs = golden_heads.load_head_case(request.param)
    head = build_official_head("dino", case["arch"]).eval()
    load_official(head, golden_heads.head_state(case))
    model, maps = head.model, golden_heads.head_maps(case)
    assert isinstance(model, DINOHead)
    image_infos = [image_info_of(meta) for meta in case["img_metas"]]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    first = model.encoder.layers[0]
    hooks = [
        first.norms[0].register_forward_hook(lambda module, inputs, output: seen.__setitem__("attended", inputs[0])),
        first.register_forward_hook(keep("layer")),
        model.encoder.register_forward_hook(keep("memory")),
        model.selection.norm.register_forward_hook(keep("cells")),
    ]
    with torch.no_grad():
        neck = model.neck(maps)
        levels = flatten_levels(neck, model.encoder.level_embeds, image_infos)
        decoded = model(maps, image_infos)
    for hook in hooks:
        hook.remove()
    return Trace(head, model, case, outputs, maps, neck, levels, **seen, decoded=decoded)


def assert_close(ours: Tensor, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    theirs = np.broadcast_to(theirs, ours.shape)
    same = np.isinf(theirs) & (ours.numpy() == theirs)
    scale = max(1.0, float(np.abs(theirs[~same]).max()))
    np.testing.assert_allclose(ours.numpy()[~same], theirs[~same], rtol=0, atol=tolerance * scale)


def test_neck_and_positions(trace: Trace) -> None:
    for index, level in enumerate(trace.neck):
        assert_close(level, trace.outputs[f"neck.{index}"])
    assert_close(trace.levels.positions, trace.outputs["pos_embed_plus_level"])
    assert_close(trace.levels.valid, trace.outputs["valid_ratios"], 0)
    assert_close(cell_references(trace.levels)[:, :, :1], trace.outputs["enc_reference_points"], 1e-6)
    assert np.array_equal(trace.levels.padding.numpy(), trace.outputs["padding_mask"])


def test_encoder(trace: Trace) -> None:
    assert_close(trace.attended, trace.outputs["enc_layer0_selfattn_with_residual"])
    assert_close(trace.layer, trace.outputs["enc_layer0"])
    assert_close(trace.memory, trace.outputs["memory"])


def test_selection(trace: Trace) -> None:
    selected = trace.decoded.selected
    assert_close(trace.cells[:, :64], trace.outputs["enc_output_memory_head"])
    assert_close(cell_boxes(trace.levels), trace.outputs["enc_proposals_unact"], 1e-6)
    assert np.array_equal(selected.indices.numpy(), trace.outputs["topk_indices"])
    assert_close(selected.logits.amax(-1), trace.outputs["topk_max_logit"])
    assert_close(selected.logits, trace.outputs["topk_class_logits"])
    assert_close(selected.boxes, trace.outputs["topk_anchor_sigmoid"])


def test_decoder(trace: Trace) -> None:
    assert_close(torch.stack(trace.decoded.states), trace.outputs["dec_normed_states"], 5e-5)
    assert_close(torch.stack(trace.decoded.references), trace.outputs["dec_references"], 5e-5)
    assert_close(trace.decoded.logits, trace.outputs["cls_logits"], 5e-5)
    assert_close(trace.decoded.boxes, trace.outputs["boxes_cxcywh"], 5e-5)


@pytest.mark.parametrize("rescale", [True, False], ids=["rescaled", "input_scale"])
def test_detections(trace: Trace, rescale: bool) -> None:
    image_infos = [image_info_of(meta) for meta in trace.case["img_metas"]]
    kind = "rescaled" if rescale else "input_scale"
    for index, found in enumerate(trace.model.predict(trace.maps, image_infos, rescale=rescale)):
        theirs = trace.outputs[f"det.{kind}.boxes.{index}"]
        assert np.array_equal(found["labels"].numpy(), trace.outputs[f"det.{kind}.labels.{index}"])
        assert_close(found["boxes"], theirs[:, :4])
        assert_close(found["scores"], theirs[:, 4])


def recorded_noise(trace: Trace) -> dict[str, Tensor]:
    return {name: torch.from_numpy(trace.outputs[f"dn.{name}"]) for name in ("label_query", "bbox_query_unact")}


def assert_losses(losses: dict[str, Tensor], outputs: dict[str, np.ndarray]) -> None:
    theirs = {name.removeprefix("loss."): value for name, value in outputs.items() if name.startswith("loss.")}
    ours = {name: value.item() for name, value in losses.items()} | {"loss": sum(losses.values()).item()}
    assert ours == {name: pytest.approx(float(value), rel=2e-5) for name, value in theirs.items()}


def test_losses_with_recorded_noise(trace: Trace) -> None:
    targets = golden_heads.case_targets(trace.case, trace.outputs)
    losses = trace.head.losses(trace.maps, targets, trace.case["img_metas"], recorded_noise(trace))
    assert_losses(losses, trace.outputs)


def test_noise_matches_and_gradients(trace: Trace) -> None:
    """The seed draws the recorded noise; losses, matches and gradients follow."""
    targets = golden_heads.case_targets(trace.case, trace.outputs)
    metas, maps = trace.case["img_metas"], [feature_map.clone().requires_grad_() for feature_map in trace.maps]
    image_infos, decoded = [image_info_of(meta) for meta in metas], {}
    hook = trace.model.register_forward_hook(lambda module, inputs, output: decoded.update(given=inputs[2], out=output))
    torch.manual_seed(trace.case["train"]["torch_seed"])
    trace.model.zero_grad()
    losses = trace.head.losses(maps, targets, metas)
    hook.remove()
    noisy, out = decoded["given"], decoded["out"]
    slots = noisy.layout.num_slots
    assert (slots, noisy.layout.num_groups) == (trace.outputs["dn.pad_size"], trace.outputs["dn.num_groups"])
    assert_close(noisy.content.detach(), trace.outputs["dn.label_query"], 0)
    assert_close(noisy.boxes, trace.outputs["dn.bbox_query_unact"])
    assert_close(out.logits[-1].detach(), trace.outputs["train.cls_logits_last"], 5e-5)
    assert_close(out.boxes[-1].detach(), trace.outputs["train.boxes_last"], 5e-5)
    hidden = noisy.layout.attn_mask(trace.model.queries.num_embeddings, torch.device("cpu"))
    assert hidden is not None
    theirs = golden_heads.unpacked(trace.outputs, "dn.attn_mask_packed", "dn.attn_mask_shape")
    assert np.array_equal(hidden.numpy(), theirs)

    owner = torch.zeros(trace.outputs["assign.gt_inds"].shape, dtype=torch.int16)
    truth = TrueBoxes.make(targets, image_infos)
    pairs = match(*matching_sets(out, slots), truth)
    sets = torch.arange(len(pairs.queries))[:, None]
    rows = owner.view(len(sets), len(targets), -1)
    rows[sets, truth.images[pairs.targets], pairs.queries] = (truth.ranks[pairs.targets] + 1).to(owner.dtype)
    assert np.array_equal(owner.numpy(), trace.outputs["assign.gt_inds"])

    assert_losses(losses, trace.outputs)
    torch.stack(list(losses.values())).sum().backward()
    norms = {name: tensor.grad.norm().item() for name, tensor in named_parameters(trace).items()}
    assert norms == {name: pytest.approx(norm, rel=1e-3) for name, norm in trace.case["grad_norms"].items()}
    inputs = [feature_map.grad.norm().item() for feature_map in maps]
    assert inputs == pytest.approx(list(trace.outputs["grad.input_norms"]), rel=1e-3)


def named_parameters(trace: Trace) -> dict[str, Any]:
    """Return our parameters by their official names."""
    return {
        trace.head.names.origin(name, tuple(tensor.shape)).reads[0]: tensor
        for name, tensor in trace.model.named_parameters()
    }


def test_released_heads_have_the_official_names() -> None:
    case, _ = golden_heads.load_head_case("dino_s1")
    with torch.device("meta"):
        head = build_official_head("dino", {"in_channels": [1024] * 3, "num_classes": 80})
    shapes = official_shapes(head)
    assert set(shapes) == set(case["state_dict_shapes"])
    transformer = "bbox_head.transformer."
    assert shapes[transformer + "query_embed.weight"] == (900, 256)
    assert shapes[transformer + "decoder.ref_point_head.0.weight"] == (256, 512)
    assert shapes[transformer + "encoder.layers.5.ffns.0.layers.0.0.weight"] == (2048, 256)
    assert shapes["neck.extra_convs.0.conv.weight"] == (256, 1024, 3, 3)


def test_from_network_input_to_detections() -> None:
    case, outputs = golden_heads.load_head_case("e2e_dino")
    head = build_official_head("dino", case["arch"]).eval()
    case["state_dict_shapes"] = official_shapes(head)
    load_official(head, golden_heads.head_state(case))
    image = torch.from_numpy(outputs["net_input"])[None]
    metas = [{name: case[name] for name in ("img_shape", "pad_shape", "ori_shape")}]
    (found,) = head.predict(
        golden_heads.stub_features(case, image), [{**metas[0], "batch_input_shape": image.shape[2:]}]
    )
    order = np.lexsort((-found["scores"].numpy(), found["labels"].numpy()))  # class by class, best first
    assert np.array_equal(found["labels"].numpy()[order], outputs["labels"])
    assert_close(found["boxes"][order], outputs["boxes"][:, :4])
    assert_close(found["scores"][order], outputs["boxes"][:, 4])


# Beyond the golden cases


def small_head(**changes: Any) -> DINOHead:
    torch.manual_seed(0)
    numbers = {"encoder_depth": 1, "decoder_depth": 2, "num_queries": 12, "num_noisy_queries": 6, "max_detections": 20}
    return DINOHead([8, 8, 8], 5, sizes=SIZES, **{**numbers, **changes})


def small_maps(batch: int, side: int = 64, channels: tuple[int, ...] = (8, 8, 8)) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, width, side // 8 >> i, side // 8 >> i) for i, width in enumerate(channels)]


def objects(count: int, side: int = 64) -> dict[str, Tensor]:
    low = torch.rand(count, 2) * side / 2
    return {"boxes": torch.cat((low, low + 4 + torch.rand(count, 2) * side / 3), 1), "labels": torch.arange(count) % 5}


FULL = ImageInfo.make((64, 64))
PART = ImageInfo.make((40, 56), padded=(64, 64), original=(20, 28))


def test_the_order_of_true_boxes_does_not_matter() -> None:
    head, maps, target = small_head(), small_maps(1), objects(4)
    turned = {name: value.flip(0) for name, value in target.items()}
    first, second = (head.losses(maps, [each], [FULL]).losses for each in (target, turned))
    for name, value in first.items():
        if "dn_" not in name:  # noise is drawn in the order of the boxes
            assert value.item() == pytest.approx(second[name].item(), rel=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 1), (3, 0), (20, 2)], ids=str)
def test_any_number_of_true_boxes_trains(counts: tuple[int, int]) -> None:
    head = small_head()
    losses = head.losses(small_maps(2), [objects(count) for count in counts], [FULL, PART]).losses
    assert len(losses) == 3 + 2 * 3 * 2
    assert all(value.isfinite() for value in losses.values())
    if not any(counts):
        assert all(value == 0 for name, value in losses.items() if not name.endswith("loss_cls"))
    torch.stack(list(losses.values())).sum().backward()
    grads = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None]  # distributed training waits for all of them
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)


def test_degenerate_boxes_give_finite_losses() -> None:
    target = {
        "boxes": torch.tensor([[5.0, 5, 5, 5], [0, 0, 64, 64], [64, 64, 64, 64]]),
        "labels": torch.zeros(3).long(),
    }
    head = small_head()
    losses = head.losses(small_maps(1), [target], [FULL]).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters() if parameter.grad is not None)


def test_padding_changes_nothing_but_its_own_cells() -> None:
    """What stands in the padding is not read, by the encoder or by the decoder."""
    head = small_head().eval()
    levels = [torch.randn(1, 64, 8 >> i, 8 >> i) for i in range(4)]
    found = []
    for filling in (0.0, 1e4):
        for level in levels:
            outside = flatten_levels([level], head.encoder.level_embeds[:1], [PART]).padding.view(level.shape[-2:])
            level[:, :, outside] = filling
        head.neck.forward = lambda maps: [level.clone() for level in levels]  # type: ignore[method-assign]
        with torch.no_grad():
            found.append(head([torch.zeros(1, 8, 8, 8)], [PART]))
    for first, second in zip(found[0].logits, found[1].logits, strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_cells_at_the_border_and_in_the_padding_are_invalid() -> None:
    levels = flatten_levels([torch.zeros(1, 4, 50, 50), torch.zeros(1, 4, 25, 25)], torch.zeros(2, 4), [
        ImageInfo.make((400, 320), padded=(400, 400))
    ])  # fmt: skip
    boxes = cell_boxes(levels)[0]
    fine, coarse = boxes[:2500].view(50, 50, 4), boxes[2500:].view(25, 25, 4)
    usable = fine.isfinite().all(-1)
    assert usable.any(1).nonzero().squeeze(1).tolist() == list(range(1, 49))  # 0.5 / 50 is 0.01 exactly
    assert usable.any(0).nonzero().squeeze(1).tolist() == list(range(40))
    assert fine[~usable].eq(torch.inf).all()
    assert coarse.isfinite().all(-1).sum() == 25 * 20
    assert torch.allclose(fine[1, 0].sigmoid(), torch.tensor([0.0125, 0.03, 0.05, 0.05]))


def test_images_with_fewer_cells_than_queries_take_what_there_is() -> None:
    head, maps = small_head(num_queries=200, max_detections=2000), small_maps(1)
    decoded = head(maps, [PART])
    assert decoded.logits[-1].shape == (1, 85, 5)
    assert decoded.selected.boxes.eq(1).all(-1).any()  # those of invalid cells
    (found,) = head.predict(maps, [PART])
    assert len(found["boxes"]) == 85 * 5
    assert found["boxes"].isfinite().all()
    losses = head.losses(maps, [objects(3, 40)], [PART]).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 200), (75, 101)])
def test_any_image_size(height: int, width: int) -> None:
    maps = [torch.randn(1, 8, -(-height // stride), -(-width // stride)) for stride in (8, 16, 32)]
    image_info = ImageInfo.make((height, width), original=(2 * height, 3 * width))
    (found,) = small_head().predict(maps, [image_info])
    assert found["boxes"].isfinite().all()
    assert (found["boxes"] >= 0).all()
    assert found["boxes"].amax(0).le(torch.tensor([3 * width, 2 * height] * 2) + 1e-3).all()
    assert (found["scores"].diff() <= 0).all()


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 8, 8, 8), (8, 8, 8, 8, 8)], ids=len)
def test_any_number_of_maps(channels: tuple[int, ...]) -> None:
    sizes = SIZES._replace(num_levels=max(4, len(channels)))
    head = DINOHead(channels, 5, sizes=sizes, encoder_depth=1, decoder_depth=1, num_queries=9, num_noisy_queries=2)
    losses = head.losses(small_maps(1, 256, channels), [objects(2, 256)], [ImageInfo.make((256, 256))]).losses
    assert all(value.isfinite() for value in losses.values())


def test_further_levels_are_made_of_the_one_before() -> None:
    neck = ChannelMapper([8], 32, 3)
    first, second, third = neck(small_maps(1)[:1])
    assert [level.shape[-1] for level in (first, second, third)] == [8, 4, 2]
    assert torch.equal(third, neck.further[1](second))
    assert torch.equal(second, neck.further[0](small_maps(1)[0]))


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16_is_close_and_boxes_stay_in_float32(way: str) -> None:
    case, _ = golden_heads.load_head_case("dino_s2")
    head = build_official_head("dino", case["arch"]).eval()
    load_official(head, golden_heads.head_state(case))
    maps, metas, model = golden_heads.head_maps(case), case["img_metas"], head.model
    image_infos = [image_info_of(meta) for meta in metas]
    with torch.no_grad():
        exact = model.encoder(flatten_levels(model.neck(maps), model.encoder.level_embeds, image_infos))
        if way == "weights":
            model.bfloat16()
            maps = [feature_map.bfloat16() for feature_map in maps]
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            rough = model.encoder(flatten_levels(model.neck(maps), model.encoder.level_embeds, image_infos))
            decoded = model(maps, image_infos)
            losses = model.losses(maps, [objects(3, 128)], image_infos).losses
    assert (rough.float() - exact).norm() / exact.norm() < 2e-2
    floats = [*decoded.boxes, *decoded.references, *decoded.logits, *losses.values()]
    assert {value.dtype for value in floats} == {torch.float32}
    assert all(value.isfinite().all() for value in floats)


def test_an_untrained_head_finds_nothing_and_keeps_its_boxes() -> None:
    head = small_head()
    decoded = head(small_maps(1), [FULL])
    assert decoded.logits[-1].sigmoid().mean() < 0.2
    kept = decoded.selected.boxes.clamp(max=1 / (1 + 1e-3))
    assert torch.allclose(decoded.boxes[-1], kept, atol=2e-3)


def test_it_compiles_as_one_graph() -> None:
    head, maps = small_head(num_queries=40).eval(), small_maps(2)
    with torch.no_grad():
        compiled = torch.compile(head, backend="eager", fullgraph=True)(maps, [FULL, PART])
        exact = head(maps, [FULL, PART])
    for ours, theirs in zip(compiled.logits, exact.logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_counts_are_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert [mean_count(count, device).item() for count in (0, 1, 7)] == [1, 1, 7]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(4))
    assert [mean_count(count, device).item() for count in (0, 7)] == [2, 5.5]


def test_a_whole_detector_predicts_and_trains() -> None:
    config = ModelConfig(
        (tiny_vit(32, 2, 64), tiny_vit(16, 2, 128)),
        InteractionConfig(count=2),
        MergeConfig("slim"),
        NeckConfig("simple", scales=(2, 1, 0.5)),
        HeadConfig("dino", num_classes=5, width=32),
    )
    model = build_model(config)
    assert isinstance(model, PIIPDenseModel)
    picture = torch.randn(1, 3, 128, 128)
    (found,) = model.predict(picture, max_detections=7)
    assert found["boxes"].shape == (7, 4)
    losses = model(picture, targets=[objects(2, 128)])
    assert isinstance(losses, dict)
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, parameter in model.head.named_parameters() if parameter.grad is None]


# Matching


def test_more_true_boxes_than_queries_match_every_query_once() -> None:
    truth = TrueBoxes.make([objects(9)], [FULL])
    pairs = match(torch.randn(1, 1, 4, 5), torch.rand(1, 1, 4, 4), truth)
    assert pairs.queries.tolist() == [[0, 1, 2, 3]]
    assert len(set(pairs.targets[0].tolist())) == 4


def test_matching_survives_predictions_that_are_not_finite() -> None:
    truth = TrueBoxes.make([objects(2)], [FULL])
    pairs = match(torch.full((1, 1, 4, 5), torch.nan), torch.rand(1, 1, 4, 4), truth)
    assert pairs.queries.shape == pairs.targets.shape == (1, 2)


# Boxes and noise


def test_overlap_of_boxes_without_area_is_finite() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 2, 2], [4, 4, 6, 6]])
    pairs = generalized_iou(boxes[:, None], boxes)
    assert pairs.isfinite().all()
    assert torch.allclose(pairs.diagonal()[1:], torch.ones(2))
    assert pairs[1, 2].item() == pytest.approx(-(36 - 8) / 36)


def test_logits_of_the_ends_are_bounded() -> None:
    ends = inverse_sigmoid(torch.tensor([-1.0, 0, 0.5, 1, 2]))
    assert torch.allclose(ends, torch.tensor([1e-3, 1e-3, 1, 1e3, 1e3]).log())


@pytest.mark.parametrize(("wanted", "most", "groups"), [(100, 3, 33), (100, 100, 1), (100, 101, 1), (100, 0, 100)])
def test_number_of_noise_groups(wanted: int, most: int, groups: int) -> None:
    layout = NoiseLayout.make((most, most // 2), wanted)
    assert layout.num_groups == groups
    assert layout.num_slots == 2 * most * groups


def test_who_sees_whom() -> None:
    layout = NoiseLayout((2, 1), 3)
    hidden = layout.attn_mask(5, torch.device("cpu"))
    assert hidden is not None
    group = torch.arange(12) // 4
    assert torch.equal(hidden[:12, :12], group[:, None] != group)
    assert hidden[12:, :12].all()
    assert not hidden[:, 12:].any()
    assert NoiseLayout((0, 0), 1).attn_mask(5, torch.device("cpu")) is None


def test_near_copies_stay_near_and_far_ones_do_not() -> None:
    torch.manual_seed(0)
    target = {"boxes": torch.tensor([[200.0, 200, 300, 300], [600, 400, 700, 600]]), "labels": torch.tensor([1, 3])}
    other = {"boxes": torch.tensor([[100.0, 100, 300, 300]]), "labels": torch.tensor([2])}
    truth = TrueBoxes.make([target, other], [ImageInfo.make((1000, 1000))] * 2)
    layout = NoiseLayout.make(truth.counts, 200)
    noise = draw_noise(layout, truth, num_classes=5)
    assert noise.labels.shape == (2, 400)
    corners = noise.boxes[0].sigmoid().view(100, 2, 2, 4) * 1000  # groups, near and far, true boxes
    low, high = corners[..., :2] - corners[..., 2:] / 2, corners[..., :2] + corners[..., 2:] / 2
    ways = torch.cat((low, high), -1) - target["boxes"]
    half = (target["boxes"][:, 2:] - target["boxes"][:, :2]).repeat(1, 2) / 2
    sides = corners[..., 2:].amin(-1, keepdim=True) > 1  # smaller ones were bounded in their logits
    near, far = ((ways[:, kind] / half).abs()[sides[:, kind].expand(-1, -1, 4)] for kind in (0, 1))
    assert near.max() <= 1.01
    assert near.mean() == pytest.approx(0.5, abs=0.05)
    assert far.min() >= 0.99
    unused = noise.labels[1].view(100, 2, 2)[..., 1]
    assert (unused == -1).all()
    assert (noise.boxes[1].view(100, 2, 2, 4)[..., 1, :] == 0).all()
    assert (noise.labels[0].view(100, 2, 2) == target["labels"]).float().mean() == pytest.approx(0.8, abs=0.05)


# Errors


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match="5 maps, expected 1 to 4"):
        DINOHead([8] * 5, 3, sizes=SIZES)
    with pytest.raises(ValueError, match="multiple of 32"):
        DINOHead([8], 3, sizes=LayerSizes(embed_dim=40))
    with pytest.raises(ValueError, match="at most 5"):
        DINOHead([8], 3, sizes=SIZES._replace(num_levels=6))
    with pytest.raises(ValueError, match="3 heads do not divide"):
        DINOHead([8], 3, sizes=SIZES._replace(num_heads=3))
    with pytest.raises(ValueError, match="lack the field 'num_classes'"):
        build_official_head("dino", {"in_channels": [8]})
    head = small_head()
    with pytest.raises(ValueError, match="2 images and image_infos 1"):
        head.predict(small_maps(2), [FULL])
    draws = {"label_query": torch.zeros(1, 3, 64), "bbox_query_unact": torch.zeros(1, 3, 4)}
    with pytest.raises(ValueError, match="expected 1 images with 12 denoising"):
        head.losses(small_maps(1), [objects(2)], [FULL], draws)
