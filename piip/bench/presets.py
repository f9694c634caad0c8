"""Named sets of models for `piip bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from piip.tables import Table
from piip.zoo.published import published_models

SINGLE = "single_b_1024.deit3_coco_mask_rcnn"  # what the others are compared with
QUICK = (
    SINGLE,
    "single_l_1024.deit3_coco_mask_rcnn",
    "piip_tsb_1120_896_448.deit3_coco_mask_rcnn",
    "piip_ct_vs_vb_1024_672_448.convnext_deit3_coco_mask_rcnn",
)
# Single networks, pyramids of ViTs trained alike, and hybrids: the figure of docs/performance.md.
SHORT = (
    SINGLE,
    "single_cb_1024.convnext_coco_mask_rcnn",
    "single_l_1024.deit3_coco_mask_rcnn",
    "piip_tsb_1120_896_448.deit3_coco_mask_rcnn",
    "piip_tsb_1568_1120_672.deit3_coco_mask_rcnn",
    "piip_sbl_1120_672_448.deit3_coco_mask_rcnn",
    "piip_sbl_1568_1120_672.deit3_coco_mask_rcnn",
    "piip_ct_vs_vb_1024_672_448.convnext_deit3_coco_mask_rcnn",
    "piip_ct_vs_cb_1024_672_448.convnext_deit3_coco_mask_rcnn",
    "piip_ct_cs_cb_1024_672_448.convnext_coco_mask_rcnn",
)


@dataclass(frozen=True)
class Preset:
    """A set of models, and how to measure them by default.

    Args:
        names: Returns the models; the first is what the others are compared with.
        dtypes: Number formats.
        form: How the models run; see `worker.FORMS`.
        repeats: Rounds that count.
    """

    names: Callable[[], tuple[str, ...]]
    dtypes: tuple[str, ...] = ("f32", "bf16")
    form: str = "optimized"
    repeats: int = 3


def _published_mask_rcnn(*, with_six_billion: bool) -> tuple[str, ...]:
    """Return the released Mask R-CNN models with a published AP, the single ViT-B first."""
    names = [
        model.name
        for model in published_models()
        if model.head == "Mask R-CNN" and model.results and (with_six_billion or "6b_" not in model.name)
    ]
    return (SINGLE, *(name for name in names if name != SINGLE))


# By name; `register` adds a preset.
PRESETS: Table[Preset, None] = Table.of(
    "preset",
    {
        "quick": Preset(lambda: QUICK, dtypes=("f32",), repeats=2),
        "coco-short": Preset(lambda: SHORT, dtypes=("f32",), repeats=2),
        "coco": Preset(lambda: _published_mask_rcnn(with_six_billion=False)),
        # packing would hold the weights of six billion parameters twice
        "coco-6b": Preset(lambda: _published_mask_rcnn(with_six_billion=True), dtypes=("bf16",), form="eager"),
    },
)
