"""Models by name: the authors' 50 models and their published data.

`create` builds models by name; `registry` holds names and descriptions, filled by one file per family (`vit`,
`convnext`, `intern_vit`, `pretrainings`, `multimodal`) from `parts`; `published` reads `published.json`. Public names
load on first use.

A new named model is one decorated function in the file of its family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.zoo.create import create_model as create_model
    from piip.zoo.create import list_models as list_models
    from piip.zoo.create import model_config as model_config
    from piip.zoo.create import official_record as official_record
    from piip.zoo.create import published_config as published_config
    from piip.zoo.published import PublishedModel as PublishedModel
    from piip.zoo.published import published_facts as published_facts
    from piip.zoo.published import published_models as published_models
    from piip.zoo.published import published_results as published_results

_HOMES = {
    "PublishedModel": "piip.zoo.published",
    "create_model": "piip.zoo.create",
    "list_models": "piip.zoo.create",
    "model_config": "piip.zoo.create",
    "official_record": "piip.zoo.create",
    "published_config": "piip.zoo.create",
    "published_facts": "piip.zoo.published",
    "published_models": "piip.zoo.published",
    "published_results": "piip.zoo.published",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
