"""Models by name: the authors' 50 models and their published data, and pyramids of today's networks.

`create` builds models by name; `registry` holds names and descriptions: of the authors' models from one file per kind
of network (`vit`, `convnext`, `intern_vit`, `pretrainings`, `multimodal`) with `parts`, of others from `families`;
`published` reads `published.json`. Public names load on first use.

A new model of the authors is one decorated function in the file of its family; a new family of networks is one entry in
`families.NETWORK_FAMILIES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.zoo.create import branch_licenses as branch_licenses
    from piip.zoo.create import create_model as create_model
    from piip.zoo.create import list_models as list_models
    from piip.zoo.create import model_config as model_config
    from piip.zoo.create import official_record as official_record
    from piip.zoo.create import published_config as published_config
    from piip.zoo.families import NetworkFamily as NetworkFamily
    from piip.zoo.families import add_family as add_family
    from piip.zoo.published import PublishedModel as PublishedModel
    from piip.zoo.published import published_facts as published_facts
    from piip.zoo.published import published_models as published_models
    from piip.zoo.published import published_results as published_results

_HOMES = {
    "NetworkFamily": "piip.zoo.families",
    "PublishedModel": "piip.zoo.published",
    "add_family": "piip.zoo.families",
    "branch_licenses": "piip.zoo.create",
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
