"""Help texts that are longer than a docstring."""

from __future__ import annotations

import textwrap

from piip.cli_parser import documented_arguments


def recipe_fields() -> str:
    """Return a help text with all fields of a recipe, from the docstrings of its sections."""
    from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig
    from piip.data.transforms import TransformConfig
    from piip.recipe import DataConfig, NamedModel, OptimConfig, RegularizeConfig, RunConfig, ScheduleConfig

    sections = {
        "model": NamedModel,
        "model.branches.0": BranchConfig,
        "model.interaction": InteractionConfig,
        "model.merge": MergeConfig,
        "model.head": HeadConfig,
        "data": DataConfig,
        "data.transform": TransformConfig,
        "regularize": RegularizeConfig,
        "optim": OptimConfig,
        "schedule": ScheduleConfig,
        "run": RunConfig,
    }
    lines = [
        "fields of a recipe, to be changed as --SECTION.FIELD VALUE; a model is named, or described by its branches:"
    ]
    for section, fields in sections.items():
        for name, text in documented_arguments(fields).items():
            lines += textwrap.wrap(
                f"{section + '.' + name:<32}{text}", 100, initial_indent="  ", subsequent_indent=" " * 34
            )
    return "\n".join(lines)
