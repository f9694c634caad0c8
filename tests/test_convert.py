"""Whole models: what is converted, saved and loaded is bit by bit what the official file holds."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from processes import succeed
from published import MODEL, convert, loaded_state, register, register_config, same
from safetensors.torch import save_file

from piip.build import build_model
from piip.checkpoints import build_released, load_official, official_shapes
from piip.checkpoints.convert import convert_checkpoint, format_conversion, parse_size
from piip.checkpoints.identify import most_alike
from piip.checkpoints.sources import own_facts, whole_model
from piip.checkpoints.unwrapping import find_weights
from piip.config import HeadConfig
from piip.device import without_values
from piip.inference.dense_predictor import load_dense_predictor
from piip.serialization.description import read_description
from piip.serialization.load import load_model
from piip.serialization.weights import open_weights
from piip.zoo import model_config, published_results
from piip.zoo.registry import OFFICIAL, PUBLISHED

OTHER = "piip_tsb_1120_896_448.deit3_coco_mask_rcnn"
CASE = "det3_deit_global_square"
CASES = [
    *("cls2_augreg_merged_normal", "cls3_augreg_separate", "cls3_deit_merged_clstoken", "det1_convnext_baseline"),
    *("det1_vit_baseline_fpn", "det2_internvit_rms_qknorm", "det3_beit_deit", "det3_convnext_regularfpn"),
    *("det3_deit_mixed_window_dino", "det3_uniperceiver_deit", "det3_vt_cs_vb", "det4_deit"),
    *("llava2_clip_clip", "llava2_clip_convnext", "seg2_internvit"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_is_the_official_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, case)
    done = convert({"state_dict": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path)
    assert done.prefix == "backbone."
    model = load_model(tmp_path / "out")
    expected = loaded_state(case, state)
    assert same(dict(model.state_dict()), expected)
    assert done.tensors == len(expected)
    assert not [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    spec, outputs = golden.load_case(case)
    with torch.inference_mode():
        maps = model(golden.case_image(spec))
    maps = maps if isinstance(maps, list) else [maps]
    for index, (got, wanted) in enumerate(zip(maps, spec["outputs"], strict=True)):
        values = got.float().reshape(-1)[:: wanted["stride"]]
        torch.testing.assert_close(values, torch.from_numpy(outputs[f"out{index}"]), rtol=1e-3, atol=1e-4)


def test_a_tower_without_projector_takes_single_networks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, "llava2_clip_clip")
    convert(state, tmp_path)
    prefix = "branch1.clip_model."
    network = {name.removeprefix(prefix): value + 1 for name, value in state.items() if name.startswith(prefix)}
    convert(network, tmp_path, branch=0)
    changed = {name: value + 1 if name.startswith(prefix) else value for name, value in state.items()}
    assert same(dict(load_model(tmp_path / "out").state_dict()), loaded_state("llava2_clip_clip", changed))


def test_a_projector_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, "llava2_clip_clip")
    with torch.device("meta"):
        shapes = official_shapes(build_released(MODEL, with_head=True))
    projector = {name: torch.randn(shape) for name, shape in shapes.items() if name not in state}
    assert projector
    content = {f"model.vision_tower.vision_tower.{name}": value for name, value in state.items()}
    content |= {f"model.{name}": value for name, value in projector.items()}
    content |= {"model.layers.0.mlp.up_proj.weight": torch.zeros(2), "lm_head.weight": torch.zeros(2)}
    done = convert(content, tmp_path)
    assert done.prefix == "model.vision_tower.vision_tower."
    assert done.left_out == {"layers": 1, "lm_head": 1}
    held = dict(load_model(tmp_path / "out").state_dict())
    official = build_released(MODEL, with_head=True)
    load_official(official, {**state, **projector})
    assert same(held, dict(official.model.state_dict()))


@pytest.mark.parametrize(
    "limit", [pytest.param("1B", marks=pytest.mark.slow), "20KB", pytest.param("500KB", marks=pytest.mark.slow)]
)
def test_shards_equal_one_file(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, CASE)
    torch.save(state, tmp_path / "file.pth")
    convert_checkpoint(tmp_path / "file.pth", tmp_path / "one", model=MODEL)
    done = convert_checkpoint(tmp_path / "file.pth", tmp_path / "many", model=MODEL, max_shard_bytes=parse_size(limit))
    assert len(done.files) > 2
    one, many = (load_model(tmp_path / name).state_dict() for name in ("one", "many"))
    assert same(dict(one), dict(many))
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "many" / "config.json").read_text()


@pytest.mark.parametrize("file_format", ["pth", "safetensors", "npz"])
def test_formats_of_files(file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, CASE)
    file = tmp_path / f"file.{file_format}"
    if file_format == "npz":
        np.savez(file, **{name: value.numpy() for name, value in state.items()})
    else:
        (torch.save if file_format == "pth" else save_file)(state, file)
    convert_checkpoint(file, tmp_path / "out", model=MODEL)
    assert same(dict(load_model(tmp_path / "out").state_dict()), loaded_state(CASE, state))


def test_number_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = {name: value.bfloat16() for name, value in register(monkeypatch, CASE).items()}
    torch.save(half, tmp_path / "file.pth")
    for dtype, expected in (("keep", torch.bfloat16), ("f32", torch.float32), ("bf16", torch.bfloat16)):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / dtype, model=MODEL, dtype=dtype)
        assert {tensor.facts.dtype for tensor in open_weights(tmp_path / dtype).values()} == {expected}
    assert same(*(dict(load_model(tmp_path / name).state_dict()) for name in ("keep", "f32")))
    with pytest.raises(ValueError, match="dtype is 'f16', expected one of keep, f32, bf16"):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "x", model=MODEL, dtype="f16")


def test_whole_detectors_keep_their_backbone_and_say_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = register(monkeypatch, CASE)
    detector = {f"backbone.{name}": value for name, value in state.items()}
    detector |= {"rpn_head.rpn_conv.weight": torch.zeros(2), "neck.a": torch.zeros(1), "neck.b": torch.zeros(1)}
    done = convert({"meta": {"epoch": 12}, "state_dict": detector, "optimizer": {"state": {}}}, tmp_path)
    assert done.left_out == {"rpn_head": 1, "neck": 2}
    assert same(dict(load_model(tmp_path / "out").state_dict()), loaded_state(CASE, state))
    text = format_conversion(done)
    assert "found under state_dict > backbone.*" in text
    assert "Left out, by part and number of tensors: rpn_head (1), neck (2)" in text
    assert str(tmp_path / "out") in text
    assert json.loads(json.dumps(done.to_dict()))["left_out"] == {"rpn_head": 1, "neck": 2}


@pytest.mark.parametrize(("head", "classes"), [("mask_rcnn", 80), ("dino", 80), ("upernet", 150)])
def test_whole_detectors_and_segmentors_predict_with_the_published_settings(
    head: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, CASE)
    config = dataclasses.replace(model_config(MODEL), head=HeadConfig(head, num_classes=classes, width=64))
    register_config(monkeypatch, config)
    evaluation = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "dense": {"short_side": 96, "long_side": 160, "pad_divisor": 32},
    }
    monkeypatch.setattr(
        "piip.checkpoints.convert.published_results",
        lambda name: dataclasses.replace(published_results(OTHER), evaluation=evaluation),
    )
    generator = torch.Generator().manual_seed(0)
    whole = build_released(MODEL, with_head=True)
    backbone_names = official_shapes(build_released(MODEL))
    state = {
        name if name not in backbone_names else f"backbone.{name}": 0.05 * torch.randn(shape, generator=generator)
        for name, shape in official_shapes(whole).items()
    }
    done = convert({"state_dict": state}, tmp_path)
    assert not done.left_out
    assert not done.initial
    assert f"of {classes} classes" in (tmp_path / "out" / "README.md").read_text()
    predictor = load_dense_predictor(tmp_path / "out")
    assert len(predictor.classes) == classes
    assert predictor.tta.config.resize == "official"
    assert predictor.tta.config.reduce_zero_label == (head == "upernet")
    (found,) = predictor.predict([Image.new("RGB", (70, 50), "red")])
    if head == "upernet":
        assert found.labels.shape == (50, 70)
    else:
        assert found.boxes.shape[1] == 4
        assert len(found.boxes) <= 100


def test_the_description_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(register(monkeypatch, CASE), tmp_path)
    description = read_description(tmp_path / "out")
    assert description["name"] == MODEL
    assert description["converted"] == [{"file": "file.pth", "branch": None}]
    assert description["input"]["input_size"] == [3, 160, 160]
    assert "## Converted from\n\n- `file.pth`\n" in (tmp_path / "out" / "README.md").read_text()


def test_classifiers_of_imagenet_know_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(register(monkeypatch, "cls3_augreg_separate"), tmp_path)
    description = read_description(tmp_path / "out")
    assert description["classes"][0] == "n01440764"
    assert description["transform"]["input_size"] == description["input"]["input_size"][-1]


def test_a_directory_is_only_replaced_by_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, CASE)
    convert(state, tmp_path)
    changed = {name: value + 1 for name, value in state.items()}
    convert(changed, tmp_path)
    assert same(dict(load_model(tmp_path / "out").state_dict()), loaded_state(CASE, changed))
    path = tmp_path / "out" / "config.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "name": "another"}))
    with pytest.raises(ValueError, match="holds another, not piip_small"):
        convert(state, tmp_path)
    del description["converted"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="holds a model that `piip convert` did not write"):
        convert(state, tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="exists and is not a converted model"):
        convert(state, tmp_path, out="full")
    with pytest.raises(ValueError, match="exists and is not a converted model"):
        convert(state, tmp_path, out="file.pth")
    with pytest.raises(ValueError, match="is already a piip model"):
        convert_checkpoint(tmp_path / "out", tmp_path / "again", model=MODEL)


def test_failures_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, CASE)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "out", model=MODEL, max_shard_bytes=100_000, progress=stop)
    assert not (tmp_path / "out").exists()
    del state["w2"]
    with pytest.raises(ValueError, match="does not fit"):
        convert(state, tmp_path)
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, CASE)
    # another real model: only shapes count, so the tensors share one number
    with torch.device("meta"):
        shapes = official_shapes(build_released("piip_tsb_1120_896_448.deit3_coco_mask_rcnn"))
    real = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save(real, tmp_path / "tsb.pth")
    with pytest.raises(ValueError, match=r"tsb\.pth does not fit") as caught:
        convert_checkpoint(tmp_path / "tsb.pth", tmp_path / "out", model="piip_sbl_1120_672_448.deit3_coco_mask_rcnn")
    message = str(caught.value)
    assert "branch 0 (branch1 in the file) has width 768, 12 blocks, expected width 1024, 24 blocks" in message
    assert "branch 2 (branch3 in the file) has width 192, 12 blocks, expected width 384, 12 blocks" in message
    assert "It fits piip_tsb_1120_896_448.deit3_coco_mask_rcnn or 2 more of the same sizes" in message
    assert not (tmp_path / "out").exists()

    del state["interactions.0.interaction_units_23.branch2to1_proj.weight"]
    state["w1"] = torch.zeros(2)
    with pytest.raises(ValueError, match="does not fit piip_small") as caught:
        convert(state, tmp_path)
    message = str(caught.value)
    assert "interactions: 1 missing: interactions.0.interaction_units_23.branch2to1_proj.weight" in message
    assert "w1 is (2,), expected ()" in message
    assert "No known model is more similar: the file may be damaged" in message
    with pytest.raises(ValueError, match="No known model is more similar"):
        convert_checkpoint(tmp_path / "file.pth", tmp_path / "out", model="small_record")
    with pytest.raises(ValueError, match="is not similar to any known model"):
        convert({"fc.weight": torch.zeros(2)}, tmp_path)


@pytest.mark.parametrize("is_small", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_fourth_branch_is_the_one_in_the_file(
    is_small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released code builds the fourth branch like the third; a file may hold the smaller one that was meant."""
    case, _ = golden.load_case("det4_deit")
    with torch.device("meta"):
        config = golden.build_case(case).config
    last = config.branches[3]
    small = dataclasses.replace(last, timm_args={**last.timm_args, "embed_dim": 16})
    meant = dataclasses.replace(config, branches=(*config.branches[:3], small))
    register_config(monkeypatch, config)
    monkeypatch.setitem(PUBLISHED, MODEL, lambda: meant)
    shapes = official_shapes(build_released(MODEL, as_published=is_small))
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    convert(state, tmp_path)
    model = load_model(tmp_path / "out")
    assert model.branches[3].stages[0].channels == (16 if is_small else 32)
    assert torch.equal(model.branches[3].vit.pos_embed, state["branch4.pos_embed"])
    prefix = "branch4."
    network = {name.removeprefix(prefix): value + 1 for name, value in state.items() if name.startswith(prefix)}
    convert(network, tmp_path, branch=3)
    again = load_model(tmp_path / "out")
    assert torch.equal(again.branches[3].vit.pos_embed, state["branch4.pos_embed"] + 1)
    assert torch.equal(again.branches[0].vit.pos_embed, model.branches[0].vit.pos_embed)


def test_other_numbers_of_branches_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, "det2_deit_normal_attn")
    register(monkeypatch, CASE)
    with pytest.raises(ValueError, match="it has 2 branches, expected 3"):
        convert(state, tmp_path)


def test_likeness_is_a_share_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    state = register(monkeypatch, CASE)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert most_alike(shapes, [MODEL]).fraction == 1
    changed = {**shapes, "w1": (3,)}
    alike = most_alike(changed, [MODEL])
    assert alike.names == (MODEL,)
    assert 0.9 < alike.fraction < 1
    assert most_alike({"branch7.a": (1,)}, [MODEL]).names == ()


NAMES = sorted(OFFICIAL.values())
LIGHT = {"piip_tsb_368_192_128.deit1_in1k", "piip_bl_512_256.clip_llava_7b", "single_6b_1024.internvl_coco_mask_rcnn"}


@pytest.mark.parametrize(
    "name", [name if name in LIGHT else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_named_model_can_be_converted(name: str) -> None:
    with without_values():
        official = build_released(name, with_head=True)
        expected = build_model(model_config(name)).state_dict()
    state = {key: torch.zeros(()).expand(shape) for key, shape in official_shapes(official).items()}
    weights = find_weights({f"module.backbone.{key}": value for key, value in state.items()}, source="file")
    source = whole_model(weights, official, source="file", model=name)
    facts = {key: fact.shape for key, fact in own_facts(official, source).items()}
    assert facts == {key: tuple(value.shape) for key, value in expected.items()}


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 1610612736), ("7B", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "0GB", "1TB", ""])
def test_wrong_sizes_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 5GB"):
        parse_size(text)


MEASURE = """
import sys, threading, time, torch
sys.path[:0] = [{tests!r}]
from piip.checkpoints.sources import own_facts, whole_model
from piip.checkpoints.unwrapping import find_weights
from piip.checkpoints.sources import own_facts, whole_model
from piip.checkpoints.unwrapping import find_weights
from piip.checkpoints.convert import convert_checkpoint
from piip.device import without_values
from piip.device import without_values
from piip.serialization.load import load_model
NAME = "single_b_1024.deit3_coco_mask_rcnn"

def memory():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) / 1024

def grown(run):
    peak, done = [memory()], threading.Event()
    def watch():
        while not done.is_set():
            peak.append(memory())
            time.sleep(0.002)
    before = memory()
    thread = threading.Thread(target=watch)
    thread.start()
    kept = run()
    done.set()
    thread.join()
    return max(peak) - before

from piip.build import build_model
from piip.build import build_model
from piip.checkpoints import build_released
with torch.device("meta"):
    build_released(NAME)  # what imports take is no matter
print(grown(lambda: convert_checkpoint({file!r}, {out!r}, model=NAME, max_shard_bytes=50_000_000)))
print(grown(lambda: load_model({out!r})))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_weights_are_never_in_memory_twice(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = official_shapes(build_released("single_b_1024.deit3_coco_mask_rcnn"))
    state = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    size = sum(value.nbytes for value in state.values()) / 2**20
    torch.save({"model": state}, tmp_path / "file.pth")
    del state
    code = MEASURE.format(
        tests=str(Path(__file__).parents[1]), file=str(tmp_path / "file.pth"), out=str(tmp_path / "out")
    )
    converting, loading = (float(line) for line in succeed(sys.executable, "-c", code).split())
    assert size > 300
    assert converting < 100  # MiB: the largest tensors, not the model
    assert loading < 1.3 * size + 50
