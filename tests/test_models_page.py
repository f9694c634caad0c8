"""What the authors published, and the page that lists it: complete, in step with the library, and counted here."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from tool_loading import load_tool

import piip
from piip.cli import COMMANDS
from piip.data.benchmarks import ade_classes, benchmark_metadata, coco_classes
from piip.zoo import PublishedModel, model_config, official_record, published_models, published_results

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
RELEASED = {model.name for model in published_models()}
COUNTED_AGAIN = [
    "piip_tsb_368_192_128.deit1_in1k",
    "piip_tsb_1120_896_448.deit3_coco_mask_rcnn",
    "single_b_1024.deit3_coco_mask_rcnn",
    "piip_tsb_672_448_224.deit3",
    "piip_ct_vb_vl_1120_672_448.convnext_dinov3",
]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("write_models_page")


def test_all_models_are_there() -> None:
    models = published_models()
    assert Counter(model.task for model in models) == {
        "classification": 3,
        "detection": 33,
        "segmentation": 5,
        "multimodal": 9,
    }
    assert len({model.name for model in models} | {model.record for model in models}) == 100
    assert sum(model.file is not None for model in models) == 41
    assert [model.name for model in models if not model.main_result] == [
        "piip_lh6b_1536_1024_512.deit3_mae_internvl_coco_dino",
        "piip_lh6b_1536_1024_512.deit3_mae_internvl_coco_mask_rcnn",
    ]


def test_names_are_those_of_the_library() -> None:
    assert {*piip.list_models()} >= RELEASED
    assert {official_record(name) for name in RELEASED} == {*piip.list_models(official=True)}
    for name in RELEASED:
        assert published_results(name).record == official_record(name)
        assert published_results(official_record(name)).name == name


def test_facts_of_one_model() -> None:
    model = published_results("mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup")
    assert model.name == "piip_h6b_1024_512.mae_internvl_coco_mask_rcnn_speedup"
    assert model.results == {"Box mAP": "55.6", "Mask mAP": "49.0"}
    assert (model.flops, model.params, model.main_result) == ("10692G", "6752M", "Box mAP 55.6")
    assert model.tables[0].source == "mmdetection/README.md"
    assert model.file == f"https://huggingface.co/OpenGVLab/PIIP/resolve/main/detection/{model.record}.pth"
    with pytest.raises(ValueError, match=r"no model called 'piip_tsb_1120'. Did you mean: piip_"):
        published_results("piip_tsb_1120")


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_images_are_normalised_as_the_authors_evaluate(name: str) -> None:
    config, published = model_config(name), published_results(name).evaluation
    assert config.mean == pytest.approx(published["mean"], abs=5e-4)
    assert config.std == pytest.approx(published["std"], abs=5e-4)


@pytest.mark.parametrize("model", published_models(), ids=lambda model: model.record)
def test_settings_of_detectors_say_what_their_words_say(model: PublishedModel) -> None:
    config, words = model_config(model.record), model.evaluation["images"]
    if not config.head.is_dense:
        assert "dense" not in model.evaluation
        return
    settings = benchmark_metadata(config, model.evaluation)["dense"]
    windows = f"windows of {settings['slide_crop']} px every {settings['slide_stride']} px"
    padding = f"padded to multiples of {settings['pad_divisor']}"
    size = f"{settings['long_side']}x{settings['short_side']}"
    if settings["long_side"] is None:
        size = f"shorter side {settings['short_side']}"
    assert words == f"{size}, {windows if settings['slide_crop'] else padding}"


def test_names_of_classes() -> None:
    coco, ade = coco_classes(), ade_classes()
    assert (len(coco), coco[0], coco[11], coco[-1]) == (80, "person", "stop sign", "toothbrush")
    assert (len(ade), len(set(ade)), ade[0], ade[-1]) == (150, 150, "wall", "flag")


def test_page_is_up_to_date(tool: ModuleType) -> None:
    costs = tool.read_costs(PAGE)
    assert set(costs) == {model.record for model in published_models()} | ({*piip.list_models()} - RELEASED)
    assert tool.write_page(costs) == PAGE, "run `python tools/write_models_page.py`"


@pytest.mark.parametrize("name", COUNTED_AGAIN)
def test_costs_are_counted(tool: ModuleType, name: str) -> None:
    key = official_record(name) if name in RELEASED else name
    assert tool.read_costs(PAGE)[key] == tool.count(name)


def test_the_tool_says_which_names_are_missing(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "list_models", lambda: ["piip_tsb_368_192_128.deit1_in1k"])
    with pytest.raises(SystemExit, match=r"^49 of the 50 models have no name in this library: piip_sbl_320"):
        tool.count_all()


def test_commands_of_the_page_exist() -> None:
    records = {*piip.list_models(official=True)}
    seen = set()
    for block in PAGE.split("```sh\n")[1:]:
        name = ""
        for line in block.split("```")[0].splitlines():
            name = line.removeprefix("record=") if line.startswith("record=") else name
            words = shlex.split(line.replace("$record", name))
            if words[0] == "wget":
                assert words[1] == published_results(name).file
            if words[0] == "piip":
                seen.add(words[1])
                assert words[1] in COMMANDS
                assert words[1] != "convert" or words[-1] in records
    assert seen == {"convert", "evaluate", "predict"}
