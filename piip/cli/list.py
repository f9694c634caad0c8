"""The command `piip list`."""

from __future__ import annotations

from piip.output import to_json


def list_models(pattern: str = "*", *, official: bool = False, json: bool = False) -> None:
    """List model names with the main result that the authors published.

    Models that the authors did not release are pyramids of other pretrained networks; beside them stand the licences
    of the weights that `pretrained_branches` loads.

    Args:
        pattern: Part of a name, or a shell-style pattern such as "piip_tsb*".
        official: List the names of the authors' records, which build models with the authors' rules.
        json: Print a JSON list of objects: "name", "branch_licenses" (of timm's weights, by network), and of the
            authors' models "record", "task" and what they published ("results", "flops", "params", "file" and more).

    Raises:
        ValueError: No name matches.
    """
    from piip.zoo import branch_licenses, model_config, published_models
    from piip.zoo import list_models as find

    names = find(pattern if set(pattern) & set("*?[") else f"*{pattern}*", official=official)
    if not names:
        raise ValueError(f"No model name matches {pattern!r}; `piip list` shows all.")
    published = {key: model for model in published_models() for key in (model.name, model.record)}
    if json:
        facts = [
            {
                **(published[name].to_dict() if name in published else {}),
                "name": name,
                "branch_licenses": branch_licenses(model_config(name)),
            }
            for name in names
        ]
        print(to_json(facts))
        return
    width = max(len(name) for name in names)
    for name in names:
        licenses = {text or "unknown" for text in branch_licenses(model_config(name)).values()}
        note = published[name].main_result if name in published else f"branches: {', '.join(sorted(licenses))}"
        print(f"{name:<{width}}  {note}".rstrip())
