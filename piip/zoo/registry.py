"""Registry of named models, filled by the families' files."""

from __future__ import annotations

from collections.abc import Callable

from piip.config import ModelConfig

ConfigMaker = Callable[[], ModelConfig]

MODELS: dict[str, ConfigMaker] = {}
OFFICIAL: dict[str, str] = {}  # official record -> our name
PUBLISHED: dict[str, ConfigMaker] = {}  # where the published figures are of other networks than the released code's


def register(
    name: str, official: str | None = None, *, published: ConfigMaker | None = None
) -> Callable[[ConfigMaker], ConfigMaker]:
    """Register a description under a name.

    Args:
        name: Our name.
        official: Name of the official record; None for a model that the authors did not release.
        published: The model whose cost was published under the name, where it is another one.

    Returns:
        A decorator for a function that returns the description.
    """

    def keep(make: ConfigMaker) -> ConfigMaker:
        MODELS[name] = make
        if official is not None:
            OFFICIAL[official] = name
        if published is not None:
            PUBLISHED[name] = published
        return make

    return keep
