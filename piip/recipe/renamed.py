"""Renamed fields and values of recipes; old names are still read, with a warning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piip.deprecation import deprecated

FIELDS = {"data": {"detections": "max_detections"}}  # by section: old name -> new name
VALUES = {("data", "kind"): {"index_maps": "semantic_masks"}}  # by field: old value -> new value


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a recipe with old names of fields and values replaced.

    Args:
        values: Sections by name, as read from YAML.

    Raises:
        ValueError: A field is given under both names.
    """
    current = dict(values)
    for section, names in FIELDS.items():
        for old, new in names.items():
            fields = current.get(section)
            if isinstance(fields, Mapping) and old in fields:
                if new in fields:
                    raise ValueError(f"{section}.{old} is the old name of {section}.{new}; remove one of them.")
                deprecated(f"{section}.{old}", f"{section}.{new}")
                current[section] = {new if name == old else name: value for name, value in fields.items()}
    for (section, field), replaced in VALUES.items():
        fields = current.get(section)
        if isinstance(fields, Mapping) and str(fields.get(field)) in replaced:
            new = replaced[str(fields[field])]
            deprecated(f"{section}.{field} {fields[field]}", new)
            current[section] = {**fields, field: new}
    return current
