"""Learning rates by depth as the authors' optimiser gave them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from piip.checkpoints import official_lr_scale

RECORDED = json.loads((Path(__file__).parent / "data" / "layer_decay.json").read_text())


@pytest.mark.parametrize("record", RECORDED)
def test_rates_equal_those_of_the_released_runs(record: str) -> None:
    scales = official_lr_scale(record)
    # some recorded names stand for parameters that other models of the class have
    shared = {name: value for name, value in RECORDED[record]["rows"].items() if name in scales}
    assert len(shared) > 0.8 * len(RECORDED[record]["rows"])
    for name, value in shared.items():
        assert scales[name] == pytest.approx(value, rel=1e-12)
    for value, count in RECORDED[record].get("counts", []):
        assert Counter(round(scale, 12) for scale in scales.values())[round(value, 12)] == count


def test_convnext_branches_learn_at_full_rate() -> None:
    scales = official_lr_scale("piip_ct_cs_cb_1024_672_448.convnext_coco_mask_rcnn")
    assert set(scales.values()) == {1.0}
    mixed = official_lr_scale("piip_vt_cs_vb_1024_672_448.convnext_deit3_coco_mask_rcnn")
    assert mixed["backbone.branch1.pos_embed"] == pytest.approx(0.8**13)
    assert mixed["backbone.branch3.blocks.11.mlp.fc1.weight"] == pytest.approx(0.8)
    assert {value for name, value in mixed.items() if name.startswith("backbone.branch2.")} == {1.0}
    assert set(official_lr_scale("single_cb_1024.convnext_coco_mask_rcnn").values()) == {1.0}


def test_classifiers_and_towers_have_no_such_rates() -> None:
    for name in ("piip_tsb_368_192_128.deit1_in1k", "piip_bl_512_256.clip_llava_7b"):
        with pytest.raises(ValueError, match="not trained with layer-wise decay"):
            official_lr_scale(name)
