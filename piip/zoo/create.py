"""Models by name.

Names are `<arch>_<resolutions>.<pretraining>_<task>[_<variant>]`: networks from smallest to largest, resolutions
from highest to lowest. The authors' models also answer to the names of their official records; such a name builds the
official rules (resize by factors, class from the top-left patch), ours the rules of this library (whole patches, class
from the mean). The parameters are the same; the authors' classifiers were trained for theirs.

Names without a task (`families`) are not the authors': as in timm, they build a classifier, and with
`features_only=True` the backbone; other heads are overrides.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any

from piip.branches.published_weights import weights_license
from piip.build import build_backbone, build_model
from piip.config import HeadConfig, ModelConfig
from piip.fields import nearest_names
from piip.serialization.base import PyramidModel
from piip.zoo import convnext, families, intern_vit, multimodal, pretrainings, vit  # noqa: F401 - these fill the registry
from piip.zoo.registry import MODELS, OFFICIAL, PUBLISHED


def list_models(pattern: str = "*", *, official: bool = False) -> list[str]:
    """List model names.

    Args:
        pattern: Shell-style pattern, e.g. "*tsb*".
        official: List the names of the official records instead of ours.
    """
    return sorted(fnmatch.filter(OFFICIAL if official else MODELS, pattern))


def _check_name(name: str) -> None:
    if name not in MODELS and name not in OFFICIAL:
        raise ValueError(f"No model is called {name!r}. {nearest_names(name, [*MODELS, *OFFICIAL])}")


def official_record(name: str) -> str:
    """Return the name of the official record of a model.

    Args:
        name: Our name or already the record's.

    Raises:
        ValueError: An unknown name, with the nearest known ones, or a model that the authors did not release.
    """
    _check_name(name)
    record = name if name in OFFICIAL else next((key for key, ours in OFFICIAL.items() if ours == name), None)
    if record is None:
        raise ValueError(f"{name} is not one of the authors' models and has no record; `piip list --official` has all.")
    return record


def model_config(name: str) -> ModelConfig:
    """Return the description of a named model: ours, or with official rules for an official record's name.

    Raises:
        ValueError: An unknown name, with the nearest known ones.
    """
    _check_name(name)
    if name not in OFFICIAL:
        return MODELS[name]()
    config = MODELS[OFFICIAL[name]]()
    head = config.head
    if head.task == "classification" and head.reads == "branches":
        head = dataclasses.replace(head, pool="first_patch")
    return dataclasses.replace(config, resize="official", head=head)


def published_config(name: str) -> ModelConfig:
    """Return the model whose cost was published under a name; for models without a record their own.

    parity: the four-branch detectors are built with two ViT-S but published with the ViT-T that was meant.

    Raises:
        ValueError: An unknown name, with the nearest ones.
    """
    _check_name(name)
    ours = OFFICIAL.get(name, name)
    return PUBLISHED.get(ours, MODELS[ours])()


def branch_licenses(config: ModelConfig) -> dict[str, str | None]:
    """Return the licences of the weights that `pretrained_branches` loads, by network, as timm states them.

    Args:
        config: Description of a model.

    Returns:
        Network -> name of the licence; None where timm states none or has no weights.
    """
    return {branch.network: weights_license(branch.network) for branch in config.branches}


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    pretrained_branches: bool = False,
    features_only: bool = False,
    **overrides: Any,
) -> PyramidModel:
    """Build a model by name.

    Args:
        name: One of `list_models()`, or the name of an official record. A name without a task, such as
            `piip_sbl_1120_672_448.dinov3`, is a classifier.
        num_classes: Classes of the head, instead of the model's own.
        pretrained: Load weights of the whole model.
        pretrained_branches: Load the pretrained weights of each branch through timm.
        features_only: Build only backbone and neck: image -> list of maps.
        **overrides: Fields of `ModelConfig`, e.g. `resize="official"` or `merge={"kind": "slim"}`.

    Returns:
        The model of the name's task.

    Raises:
        ValueError: An unknown name or field (with the nearest ones), weights that are not to be had, or a task whose
            head this version does not have.

    Example:
        >>> model = create_model("piip_tsb_368_192_128.deit1_in1k", num_classes=10)
        >>> logits = model(torch.randn(1, 3, 368, 368))
    """
    config = model_config(name)
    if pretrained:
        raise ValueError(_no_weights(name))
    if features_only:  # overrides need not fit the head
        config = dataclasses.replace(config, head=HeadConfig())
    config = ModelConfig.from_dict({**config.to_dict(), **overrides}) if overrides else config
    if pretrained_branches:
        branches = tuple(dataclasses.replace(branch, pretrained=True) for branch in config.branches)
        config = dataclasses.replace(config, branches=branches)
    if features_only:
        return build_backbone(dataclasses.replace(config, head=HeadConfig()))
    if config.head.task == "features":
        raise ValueError(f"{name} cannot be built without a head; pass features_only=True for its backbone and neck.")
    if num_classes is not None and config.head.task == "tokens":
        raise ValueError(f"{name} has a projector and no classes; remove num_classes.")
    if num_classes is not None:
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, num_classes=num_classes))
    return build_model(config)


def _no_weights(name: str) -> str:
    """Return the error for weights of a whole model."""
    if name in OFFICIAL or name in OFFICIAL.values():
        return (
            f"No downloadable weights are known for {name}. Get the authors' file and convert it with "
            "`piip convert`, or start from pretrained_branches=True."
        )
    return (
        f"{name} was not trained as a whole, so pretrained=True has nothing to load; pretrained_branches=True loads "
        "timm's weights of every branch."
    )
