"""Results on disk: folders are checked before the work, files are written whole, JSON has no NaN."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def writable_folder(path: str | Path) -> Path:
    """Make a folder and check that files can be written to it, before the work whose result it gets.

    Args:
        path: The folder.

    Raises:
        ValueError: It cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"The folder {folder} is not writable ({error.strerror}): choose another --out.") from error
    return folder


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that every program reads: NaN and infinity become null.

    Args:
        value: Mappings, lists, numbers and text.
        indent: Spaces of indentation; None writes one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(value: Any, path: Path, *, indent: int | None = None) -> None:
    """Write JSON atomically; see `to_json`.

    Args:
        value: Mappings, lists, numbers and text.
        path: The file.
        indent: Spaces of indentation; None writes one line.
    """
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(to_json(value, indent=indent) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
