"""Pyramids in transformers: detectors, segmentors and LLaVA train, are saved and load again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyramids import image, tiny_pyramid, tiny_vit
from safetensors.torch import load_file, save_file
from torch import nn

import piip
from piip.config import BranchConfig, HeadConfig, MergeConfig, ModelConfig

transformers = pytest.importorskip("transformers", minversion="5.2")

from piip.integrations.transformers import (  # noqa: E402 - after the check
    PiipBackbone,
    PiipConfig,
    PiipLlavaForConditionalGeneration,
    PiipVisionConfig,
    PiipVisionModel,
)

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def _quiet(one_thread: None) -> Iterator[None]:
    """Keep transformers' progress bars and notes off the terminal."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


@dataclass(frozen=True)
class Client:
    """A model of transformers over a pyramid.

    Args:
        model: Name of its class.
        config: Name of the class of its configuration.
        fields: The smallest settings.
        out_indices: Maps that it reads, None for all.
        inputs: What it is called with beside images.
        is_slow: Whether it repeats what others test.
    """

    model: str
    config: str
    fields: dict[str, Any]
    out_indices: tuple[int, ...] | None
    inputs: dict[str, Any]
    is_slow: bool = False

    def build(self, over: PiipConfig) -> nn.Module:
        config = getattr(transformers, self.config)(backbone_config=over, num_labels=3, **self.fields)
        return getattr(transformers, self.model)(config)


BOXES = [
    {"class_labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.1]])}
] * 2
DETECTION = {"labels": BOXES}
MASKS = {"mask_labels": [torch.ones(1, *SIZE)] * 2, "class_labels": [torch.tensor([1])] * 2}
LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 4}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
DETR = {**LAYERS, **HEADS, "d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
RT_DETR = {
    **{name: value for name, value in DETR.items() if name != "encoder_layers"},
    **{"encoder_in_channels": [32] * 3, "decoder_in_channels": [32] * 3, "encoder_hidden_dim": 32, "num_denoising": 2},
}
MASK_FORMER = {"mask_feature_size": 32, "num_attention_heads": 2}
MASK_TWO_FORMER = {
    **{**LAYERS, **MASK_FORMER, "feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32},
    **{"dim_feedforward": 32, "train_num_points": 20},
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 1100,
}
PROMPT = {"input_ids": torch.tensor([[101, 5, 1012, 6, 1012, 102]] * 2), **DETECTION}  # [CLS] word . word . [SEP]

CLIENTS = {
    "UperNet": Client(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {"hidden_size": 32, "auxiliary_in_channels": 32, "auxiliary_channels": 16},
        None,
        {"labels": torch.zeros(2, *SIZE, dtype=torch.long)},
    ),
    "Mask2Former": Client("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", MASK_TWO_FORMER, None, MASKS),
    "RTDetrV2": Client("RTDetrV2ForObjectDetection", "RTDetrV2Config", RT_DETR, (1, 2, 3), DETECTION),
    "D-FINE": Client("DFineForObjectDetection", "DFineConfig", RT_DETR, (1, 2, 3), DETECTION),
    "DeformableDetr": Client("DeformableDetrForObjectDetection", "DeformableDetrConfig", DETR, (1, 2, 3), DETECTION),
    "ConditionalDetr": Client("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", DETR, (2,), DETECTION),
    "Detr": Client("DetrForObjectDetection", "DetrConfig", DETR, (2,), DETECTION, is_slow=True),
    "DabDetr": Client(
        "DabDetrForObjectDetection",
        "DabDetrConfig",
        {"hidden_size": 32, **{name: value for name, value in DETR.items() if name != "d_model"}},
        (2,),
        DETECTION,
        is_slow=True,
    ),
    "RTDetr": Client("RTDetrForObjectDetection", "RTDetrConfig", RT_DETR, (1, 2, 3), DETECTION, is_slow=True),
    "TableTransformer": Client(
        "TableTransformerForObjectDetection", "TableTransformerConfig", DETR, (2,), DETECTION, is_slow=True
    ),
    "MaskFormer": Client(
        "MaskFormerForInstanceSegmentation",
        "MaskFormerConfig",
        {"fpn_feature_size": 32, "mask_feature_size": 32, "decoder_config": {"model_type": "detr", **DETR}},
        None,
        MASKS,
        is_slow=True,
    ),
    "GroundingDino": Client(
        "GroundingDinoForObjectDetection",
        "GroundingDinoConfig",
        {**DETR, "text_config": {"model_type": "bert", **TEXT}, "max_text_len": 16},
        (1, 2, 3),
        PROMPT,
        is_slow=True,
    ),
}
CLIENTS["MMGroundingDino"] = replace(
    CLIENTS["GroundingDino"], model="MMGroundingDinoForObjectDetection", config="MMGroundingDinoConfig"
)
CLIENTS["DetrForSegmentation"] = Client(
    "DetrForSegmentation",
    "DetrConfig",
    {**DETR, "d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
    None,
    {},
    is_slow=True,
)
ONE_FORMER = {
    name: value for name, value in MASK_TWO_FORMER.items() if name not in ("mask_feature_size", "feature_size")
}
CLIENTS["OneFormer"] = Client(
    "OneFormerModel",
    "OneFormerConfig",
    {**ONE_FORMER, "conv_dim": 32, "mask_dim": 32, "is_training": False},
    None,
    {"task_inputs": torch.zeros(2, 77, dtype=torch.long)},
    is_slow=True,
)
CASES = [pytest.param(name, marks=[pytest.mark.slow] if client.is_slow else []) for name, client in CLIENTS.items()]


def tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors of an output, those in its tuples too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from tensors(value)


def loss_of(output: Any) -> torch.Tensor:
    """Return the loss, or something to differentiate where there are no targets."""
    loss = output.get("loss")
    if loss is not None:
        return loss
    return sum(value.square().mean() for value in tensors(output.values()) if value.requires_grad)


def check_reloading(model: nn.Module, folder: Path, inputs: dict[str, Any]) -> nn.Module:
    """Save and load a model, which must return the same."""
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder).eval()
    results = []
    for each in (model.eval(), loaded):
        torch.manual_seed(0)  # some draw points or noise
        with torch.no_grad():
            results.append([*tensors(each(**inputs).values())])
    assert len(results[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return loaded


@pytest.mark.parametrize("name", CASES)
def test_clients_train_and_load_again(name: str, tmp_path: Path) -> None:
    client = CLIENTS[name]
    model = client.build(PiipConfig(tiny_pyramid(), out_indices=client.out_indices))
    loss = loss_of(model(image(*SIZE), **client.inputs))
    assert torch.isfinite(loss)
    loss.backward()
    pyramid = {name: parameter for name, parameter in model.named_parameters() if ".pyramid." in name}
    without = [name for name, parameter in pyramid.items() if parameter.grad is None]
    assert len(pyramid) > 100
    assert all(".neck." in name for name in without)  # the levels that the client does not read
    inputs = {name: value for name, value in client.inputs.items() if not name.endswith("labels")}
    check_reloading(model, tmp_path, {"pixel_values": image(*SIZE), **inputs})


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["UperNet", "ConditionalDetr"])
def test_any_number_of_branches(name: str, count: int) -> None:
    client = CLIENTS[name]
    model = client.build(PiipConfig(tiny_pyramid(count), out_indices=client.out_indices))
    model(image(*SIZE), **client.inputs).loss.backward()


def test_one_map_without_a_neck_is_enough_for_detr() -> None:
    client = CLIENTS["ConditionalDetr"]
    client.build(PiipConfig(tiny_pyramid(neck="none")))(image(*SIZE), **client.inputs).loss.backward()


def test_backbone_returns_the_maps_that_are_asked_for(tmp_path: Path) -> None:
    config = PiipConfig(tiny_pyramid(), out_features=["stage2", "stage4"])
    assert config.out_indices == [1, 3]
    assert config.hidden_size == 32
    assert config.strides == [4, 8, 16, 32]
    model = transformers.AutoBackbone.from_config(config).eval()
    assert isinstance(model, PiipBackbone)
    assert model.channels == [32, 32]
    maps = model.pyramid(image())
    output = model(image(), output_hidden_states=True)
    assert all(torch.equal(a, b) for a, b in zip(output.feature_maps, maps[1::2], strict=True))
    assert len(output.hidden_states) == 4
    assert model(image()).hidden_states is None
    (as_tuple,) = model(image(), return_dict=False)
    assert torch.equal(as_tuple[0], maps[1])
    loaded = check_reloading(model, tmp_path, {"pixel_values": image()})
    assert loaded.config.out_features == ["stage2", "stage4"]
    assert transformers.AutoConfig.from_pretrained(tmp_path).description() == config.description()
    assert PiipBackbone.from_pretrained(tmp_path, out_indices=[-1]).out_features == ["stage4"]


def test_configuration_is_read_without_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PiipConfig(tiny_pyramid())
    config.save_pretrained(tmp_path)
    monkeypatch.setattr("piip.integrations.transformers.config.build_backbone", None)
    loaded = PiipConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.description() == tiny_pyramid()
    assert PiipConfig().stage_names == []  # as transformers makes them to compare with


def test_tables_that_are_not_saved_are_computed_again(tmp_path: Path) -> None:
    """EVA-02's rotary bands are in no file, and transformers builds models without values."""
    args = {"embed_dim": 24, "num_heads": 2, "depth": 2}
    branch = BranchConfig("eva02_tiny_patch14_224", 56, timm_args=args)
    model = PiipBackbone(PiipConfig(ModelConfig((branch,), merge=MergeConfig("none"))))
    assert {name for name, _ in model.named_buffers()} - {*model.state_dict()}
    check_reloading(model, tmp_path, {"pixel_values": image(56, 84)})


def test_weights_that_are_not_in_the_file_are_initialised(tmp_path: Path) -> None:
    PiipBackbone(PiipConfig(tiny_pyramid())).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if ".neck." not in name}, file, {"format": "pt"})
    loaded = PiipBackbone.from_pretrained(tmp_path)
    assert 0 < loaded.pyramid.neck.levels[0][0].weight.std() < 1
    assert torch.equal(loaded.pyramid.neck.levels[0][1].weight, torch.ones(32))
    name = "branches.0.vit.blocks.0.mlp.fc1.weight"
    assert torch.equal(loaded.pyramid.get_parameter(name), weights[f"pyramid.{name}"])


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_.*able. is deprecated:FutureWarning")  # in new versions
def test_bfloat16_and_recomputed_activations(tmp_path: Path) -> None:
    PiipBackbone(PiipConfig(tiny_pyramid())).save_pretrained(tmp_path)
    model = PiipBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.gradient_checkpointing_enable()
    assert model.pyramid.grad_checkpointing
    assert model.pyramid.branches[1].grad_checkpointing
    model.train()(image()).feature_maps[0].float().sum().backward()
    model.gradient_checkpointing_disable()
    assert not model.pyramid.grad_checkpointing


def test_weights_of_a_trained_model() -> None:
    config = tiny_pyramid()
    trained = piip.build_model(ModelConfig(config.branches, config.interaction, head=HeadConfig("pooled", 3))).eval()
    model = PiipBackbone.from_model(trained)
    assert model.pyramid is trained.get_backbone()
    assert torch.equal(model(image()).feature_maps[0], trained.get_backbone()(image())[0])
    client = CLIENTS["ConditionalDetr"].build(model.config)
    client.model.backbone.model.pyramid.load_state_dict(model.pyramid.state_dict())  # as docs/integrations.md says


def test_pretrained_networks_load_when_built_and_not_when_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    original = piip.branches.registry.timm.create_model

    def create_model(name: str, *, pretrained: bool = False, **fields: Any) -> nn.Module:
        asked.append(pretrained)
        return original(name, pretrained=False, **fields)

    monkeypatch.setattr("timm.create_model", create_model)
    branch = tiny_vit(32, 2, 32, depth=2, pretrained=True)
    config = PiipConfig(ModelConfig((branch,), merge=MergeConfig("none")))
    assert not any(asked)  # sizes only
    PiipBackbone(config).save_pretrained(tmp_path)
    assert any(asked)
    asked.clear()
    PiipBackbone.from_pretrained(tmp_path)
    assert not any(asked)


TOWER = ModelConfig(tiny_pyramid().branches, merge=MergeConfig("none"), head=HeadConfig("projector", width=32))


def llava_config(tower: Any, **fields: Any) -> Any:
    text = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    given = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_token_index": 49, **fields}
    return transformers.LlavaConfig(vision_config=tower, text_config=text, **given)


def test_llava_trains_generates_and_loads_again(tmp_path: Path) -> None:
    tower = PiipVisionConfig(TOWER)
    assert (tower.hidden_size, tower.patch_size, tower.image_size, tower.num_image_tokens) == (32, 16, 64, 16)
    model = PiipLlavaForConditionalGeneration(llava_config(tower))
    prompt = torch.tensor([[1, *[49] * tower.num_image_tokens, 5, 6]])
    inputs = {"input_ids": prompt, "pixel_values": image(64, 64, batch=1)}
    model(**inputs, labels=prompt).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    answer = model.eval().generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > prompt.shape[1]
    check_reloading(model, tmp_path, inputs)
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["model_type"] == "piip_vision"


def test_tokens_and_layout_are_those_of_our_tower() -> None:
    tower = piip.build_model(TOWER).eval()
    model = PiipVisionModel.from_model(tower)
    assert torch.equal(model(image(64, 64)).last_hidden_state, tower(image(64, 64)))
    assert {f"pyramid.{name}" for name in tower.state_dict()} == {*model.state_dict()}
    llava = PiipLlavaForConditionalGeneration(llava_config(model.config)).eval()
    llava.model.vision_tower.pyramid.load_state_dict(tower.state_dict())
    found = llava.model.get_image_features(image(64, 64)).pooler_output
    assert torch.equal(torch.stack([*found]), tower(image(64, 64)))
    assert isinstance(transformers.AutoModel.from_config(model.config), PiipVisionModel)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: PiipBackbone(PiipConfig()), "has no model"),
    (lambda: PiipConfig({"branches": [], "nek": 1}), "nek"),
    (lambda: PiipConfig("piip_tsb_368_192_128.deit1_in1k"), "model is a str, expected ModelConfig"),
    (lambda: PiipConfig(tiny_pyramid(), out_features=["stage5"]), "stage5"),
    (lambda: PiipBackbone(PiipConfig(tiny_pyramid(), hidden_sizes=[8] * 4, strides=[4] * 4)), r"maps of \[32"),
    (lambda: PiipBackbone(PiipConfig(tiny_pyramid()))(image(), output_attentions=True), "expected False"),
    (lambda: PiipBackbone.from_model(nn.Identity()), "Expected a model of piip, got Identity"),
    (lambda: PiipVisionConfig(tiny_pyramid()), r"head is 'none', expected HeadConfig\('projector'"),
    (lambda: PiipVisionModel.from_model(nn.Identity()), "Expected a model of piip, got Identity"),
    (lambda: PiipVisionModel.from_model(piip.build_backbone(tiny_pyramid())), "head is 'none'"),
    (lambda: PiipLlavaForConditionalGeneration(transformers.LlavaConfig()), "expected a PiipVisionConfig"),
    (
        lambda: PiipLlavaForConditionalGeneration(llava_config(PiipVisionConfig(TOWER), vision_feature_layer=-2)),
        "expected -1 and 'full'",
    ),
    (
        lambda: PiipLlavaForConditionalGeneration(
            llava_config(PiipVisionConfig({**TOWER.to_dict(), "head": {"kind": "projector", "width": 64}}))
        ),
        "have 64 channels and the language model 32",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_mistakes_are_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
