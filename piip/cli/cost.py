"""The command `piip cost`."""

from __future__ import annotations

from typing import Literal

from piip.output import to_json


def cost(
    model: str,
    *,
    image_size: tuple[int, int] | None = None,
    rule: Literal["total", "paper"] = "total",
    json: bool = False,
) -> None:
    """Count multiply-adds, parameters and activations of a whole model for one image, by part.

    Args:
        model: A name from `piip list`, or a recipe file.
        image_size: Height and width in pixels. Default: the nominal square size of the finest branch.
        rule: "total" counts all operations that run, "paper" follows the counting of the authors.
        json: Print JSON, with "macs" (multiply-adds), "flops" (twice that), "params", "without_head" and "parts".
    """
    from piip.cost import estimate_cost, format_table
    from piip.recipe import load_recipe

    is_recipe = model.endswith((".yaml", ".yml"))
    report = estimate_cost(load_recipe(model).model_config() if is_recipe else model, image_size=image_size, rule=rule)
    print(to_json(report.to_dict(), indent=2) if json else format_table(report))
