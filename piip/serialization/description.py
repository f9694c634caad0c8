"""The file `config.json` of a model directory: description of the model, its input, and metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piip.config import ModelConfig
from piip.serialization.weights import WEIGHTS_NAME, weight_files
from piip.texts import parse_json

CONFIG_NAME = "config.json"
SHOWN = 60  # characters of a wrong value in a message
KIND_NAMES = {list: "list", dict: "section with fields"}
# Metadata that evaluation, prediction and cards read.
METADATA_KINDS = {
    "classes": list,
    "detections": list,
    "converted": list,
    "transform": dict,
    "dense": dict,
    "metrics": dict,
    "recipe": dict,
    "published": dict,
    "pretrained_branches": list,
}


def write_description(
    directory: Path, config: ModelConfig, input_facts: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write config.json atomically.

    Args:
        directory: An existing directory.
        config: Description of the model.
        input_facts: "mean", "std" and "input_size" of the images.
        metadata: Additional JSON values.
    """
    facts = {name: list(input_facts[name]) for name in ("mean", "std", "input_size")}
    description = {"library": "piip", "model": config.to_dict(), "input": facts, **(metadata or {})}
    temporary = directory / (CONFIG_NAME + ".part")
    try:
        temporary.write_text(json.dumps(description, indent=2, default=list) + "\n", encoding="utf-8")
        os.replace(temporary, directory / CONFIG_NAME)
    finally:  # after success it is not there
        temporary.unlink(missing_ok=True)


def read_description(directory: str | Path) -> dict[str, Any]:
    """Return the contents of config.json: "model", "input" and the metadata given to `save_model`.

    Raises:
        ValueError: The directory is not a saved model.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(
            f"{directory} is a file, expected a model directory; `piip convert` creates one from published weights."
        )
    missing = [] if (directory / CONFIG_NAME).is_file() else [CONFIG_NAME]
    missing += [] if weight_files(directory) else [WEIGHTS_NAME]
    if missing:
        inside = [name for name in ("best", "model") if (directory / name / CONFIG_NAME).is_file()]
        hint = f" Models are in {' and '.join(str(directory / name) for name in inside)}." if inside else ""
        raise ValueError(
            f"{directory} has no {' and no '.join(missing)}, expected a model directory such as RUN/model "
            f"written by `piip train` or `piip convert`.{hint}"
        )
    description = parse_json((directory / CONFIG_NAME).read_bytes(), str(directory / CONFIG_NAME))
    if not isinstance(description, dict) or "model" not in description:
        raise ValueError(f"{directory / CONFIG_NAME} has no 'model' field, expected a file written by piip.")
    _check_metadata(description, source=str(directory / CONFIG_NAME))
    return description


def read_config(description: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Return the description of the model.

    Args:
        description: Contents of config.json.
        source: Path of the file, for messages.

    Raises:
        ValueError: A field is missing, unknown or of the wrong kind.
    """
    try:
        config = ModelConfig.from_dict(description["model"])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    classes, count = description.get("classes"), config.head.num_classes
    if classes is not None and config.head.task not in ("features", "tokens") and len(classes) != count:
        raise ValueError(
            f"{source} lists {len(classes)} classes, but its model has head.num_classes {count}: the file belongs to "
            "another model or was edited."
        )
    return config


def pretrained_branches(config: ModelConfig, metadata: Mapping[str, Any]) -> list[int]:
    """Return the branches of a model that started from timm's weights.

    Args:
        config: Description of the model.
        metadata: Its metadata; a loaded model reads no weights of timm's, so they are recorded there.
    """
    started = [index for index, branch in enumerate(config.branches) if branch.pretrained]
    return started or list(metadata.get("pretrained_branches", ()))


def _check_metadata(description: Mapping[str, Any], *, source: str) -> None:
    for name, kind in METADATA_KINDS.items():
        value = description.get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{source} has {name!r} {_shortened(value)}, expected a {KIND_NAMES[kind]}.")
    wrong = [name for name in description.get("classes") or () if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{source} has {_shortened(wrong[0])} in 'classes', expected names.")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
