"""The command `piip list`."""

from __future__ import annotations

from piip.output import to_json


def list_models(pattern: str = "*", *, official: bool = False, json: bool = False) -> None:
    """List model names with the main result that the authors published.

    Args:
        pattern: Part of a name, or a shell-style pattern such as "piip_tsb*".
        official: List the names of the authors' records, which build models with the authors' rules.
        json: Print a JSON list of objects: "name", "record", "task", and what the authors published ("results",
            "flops", "params", "file" and more).

    Raises:
        ValueError: No name matches.
    """
    from piip.zoo import list_models as find
    from piip.zoo import published_models

    names = find(pattern if set(pattern) & set("*?[") else f"*{pattern}*", official=official)
    if not names:
        raise ValueError(f"No model name matches {pattern!r}; `piip list` shows all.")
    published = {key: model for model in published_models() for key in (model.name, model.record)}
    if json:
        facts = [{**(published[name].to_dict() if name in published else {}), "name": name} for name in names]
        print(to_json(facts))
        return
    width = max(len(name) for name in names)
    results = [published[name].main_result if name in published else "" for name in names]
    print("\n".join(f"{name:<{width}}  {result}".rstrip() for name, result in zip(names, results, strict=True)))
