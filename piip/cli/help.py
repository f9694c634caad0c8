"""Help texts that are longer than a docstring."""

from __future__ import annotations

import textwrap

from piip.cli.parser import documented_arguments


def recipe_fields() -> str:
    """Return a help text with all fields of a recipe, from the docstrings of its sections."""
    from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
    from piip.data.transforms.classification import TransformConfig
    from piip.data.transforms.dense import DenseTransformConfig
    from piip.recipe import DataConfig, NamedModel, OptimConfig, RegularizeConfig, RunConfig, ScheduleConfig

    sections = {
        "model": NamedModel,
        "model.": ModelConfig,
        "model.branches.0": BranchConfig,
        "model.interaction": InteractionConfig,
        "model.merge": MergeConfig,
        "model.neck": NeckConfig,
        "model.head": HeadConfig,
        "data": DataConfig,
        "data.transform": TransformConfig,
        "data.dense": DenseTransformConfig,
        "regularize": RegularizeConfig,
        "optim": OptimConfig,
        "schedule": ScheduleConfig,
        "run": RunConfig,
    }
    lines = ["fields of a recipe, overridden with --SECTION.FIELD VALUE; a model is given by name or by its branches:"]
    for section, fields in sections.items():
        for name, text in documented_arguments(fields).items():
            full = f"{section.rstrip('.')}.{name}"
            lines += textwrap.wrap(f"{full:<34} {text}", 100, initial_indent="  ", subsequent_indent=" " * 37)
    return "\n".join(lines)


def conversion_examples() -> str:
    """Return examples of `piip convert`."""
    lines = [
        "examples:",
        "  # a detector of the authors; the summary lists parts that are left out",
        "  piip convert mask_rcnn_deit_tsb.pth out/tsb --model piip_tsb_1120_896_448.deit3_coco_mask_rcnn",
        "  # your own initialisation: one network per branch",
        "  piip convert deit_3_base_224_21k.pth out/own --model piip_tsb_1120_896_448.deit3_coco_mask_rcnn --branch 0",
        "  piip convert deit_3_small_224_21k.pth out/own --model piip_tsb_1120_896_448.deit3_coco_mask_rcnn --branch 1",
        "  # 6 billion parameters from a sharded checkpoint, written in files of 2 GB",
        "  piip convert InternViT-6B-224px out/6b --model single_6b_1024.internvl_coco_mask_rcnn --branch 0 "
        "--max-shard-size 2GB",
    ]
    return "\n".join(lines)
