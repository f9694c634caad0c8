"""The file `config.json` of a model directory: description of the model, its input, and metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piip.config import ModelConfig
from piip.serialization.weights import WEIGHTS_NAME, weight_files

CONFIG_NAME = "config.json"


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
    temporary.write_text(json.dumps(description, indent=2, default=list) + "\n", encoding="utf-8")
    os.replace(temporary, directory / CONFIG_NAME)


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
    try:
        description = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{directory / CONFIG_NAME} is not JSON: {error}.") from error
    if not isinstance(description, dict) or "model" not in description:
        raise ValueError(f"{directory / CONFIG_NAME} has no 'model' field, expected a file written by piip.")
    return description
