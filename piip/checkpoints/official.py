"""The authors' models: built from their configurations, loaded from their files.

Facts: the authors' public release, code state of 2025-08-05. The released classes repeat one model per branch count;
here each is a `ModelConfig` of the ordinary parts with official rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.build import build_model
from piip.checkpoints.keymap import OfficialNames
from piip.checkpoints.report import explain_mismatch
from piip.checkpoints.translate import CODE_BASES, OFFICIAL_CLASSES, translate_config
from piip.config import ModelConfig
from piip.heads.classification import PIIPClassifier
from piip.zoo import model_config, official_record

INDEX_BUFFERS = ("relative_position_index", "position_ids", "num_batches_tracked")


class OfficialModel(nn.Module):
    """One of the authors' backbones or classifiers, with their rules.

    Args:
        model: The model made of our parts.
        names: How the authors name its parameters.
        config: What it was built from.
        input_size: The only accepted square input size (classification), or None.
    """

    def __init__(
        self, model: PIIPBackbone | PIIPClassifier, names: OfficialNames, config: ModelConfig, input_size: int | None
    ) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.config = config
        self.input_size = input_size

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return what the official forward pass returns for normalised images (B, 3, H, W), float32.

        Raises:
            ValueError: A classification model was given another size than its own.
        """
        if self.input_size is not None and tuple(image.shape[-2:]) != (self.input_size, self.input_size):
            raise ValueError(
                f"This released classifier takes {self.input_size}x{self.input_size} pixels only, "
                f"got {tuple(image.shape[-2:])}; resize the image, or use the model by our name for any size."
            )
        outputs = self.model(image)
        return [tensor.float() for tensor in (outputs if isinstance(outputs, list) else [outputs])]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the branches' blocks in the backward pass instead of keeping their activations."""
        self.model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that are usually not decayed."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}


def build_official(
    config: Mapping[str, Any],
    *,
    code_base: str,
    official_class: str,
    convnext_arch: Mapping[str, Any] | None = None,
    clip_arch: Mapping[str, Any] | None = None,
    timm_convnext_arch: Mapping[str, Any] | None = None,
) -> OfficialModel:
    """Build one of the authors' models from its constructor arguments.

    Args:
        config: Constructor arguments under their official names.
        code_base: "classification" or "detection".
        official_class: "PIIPTwoBranch", "PIIPThreeBranch", "PIIPFourBranch" or, single-branch, "vit_models".
        convnext_arch: Sizes of ConvNeXt branches; not supported yet.
        clip_arch: Sizes of CLIP branches; not supported yet.
        timm_convnext_arch: Sizes of timm ConvNeXt branches; not supported yet.

    Returns:
        The model: image -> list of tensors (classification: one of logits; detection: the pyramid maps).

    Raises:
        ValueError: A code base, class or branch family that is not supported, or a configuration that lacks fields.
    """
    if code_base not in CODE_BASES or official_class not in OFFICIAL_CLASSES:
        raise ValueError(
            f"{official_class} of code base {code_base!r} is not supported; supported are "
            f"{', '.join(OFFICIAL_CLASSES)} of {' and '.join(CODE_BASES)}."
        )
    if convnext_arch or clip_arch or timm_convnext_arch:
        raise ValueError("ConvNeXt and CLIP branches of the released models are not supported yet.")
    try:
        translated = translate_config(config, code_base=code_base, official_class=official_class)
    except KeyError as error:
        raise ValueError(f"The configuration of {official_class} lacks the field {error}.") from error
    return _wrap(translated)


def build_released(name: str) -> OfficialModel:
    """Build a released model by its name, with the official rules.

    Args:
        name: Our name or that of the official record, see `piip.list_models()`.

    Returns:
        The model, ready for `load_official`.

    Raises:
        ValueError: An unknown name, with the nearest ones.
    """
    return _wrap(model_config(official_record(name)))


def _wrap(config: ModelConfig) -> OfficialModel:
    model = build_model(config)
    side = config.branches[-1].image_size if config.head.kind != "none" else None
    return OfficialModel(model, _names(config, model), config, side)


def _names(config: ModelConfig, model: nn.Module) -> OfficialNames:
    has_finest_level = 4 in config.neck.scales
    unused: list[tuple[str, tuple[int, ...]]] = []
    if isinstance(model, PIIPBackbone) and len(config.branches) == 3 and not has_finest_level:
        # parity: the three-branch class keeps the 4x level of a detector that does not use it (`docs/official.md`)
        width = int(model.feature_info[0]["num_chs"])
        for layer in (0, 3):
            unused += [(f"fpn1.{layer}.weight", (width, width, 2, 2)), (f"fpn1.{layer}.bias", (width,))]
        unused += [("fpn1.1.weight", (width,)), ("fpn1.1.bias", (width,))]
    return OfficialNames(
        plain_branches=tuple(branch.network.startswith("deit") for branch in config.branches),
        dense=config.interaction.attention == "dense",
        merge="short" if config.neck.kind == "interaction" else config.merge.kind,
        is_single=len(config.branches) == 1,
        per_branch_head=config.head.kind == "per_branch",
        first_level=1 if has_finest_level else 2,
        unused=tuple(unused),
    )


def official_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that a released file of this model must have.

    Args:
        model: A model from `build_official` or `build_released`.

    Raises:
        ValueError: Another model.
    """
    official = _require_official(model)
    shapes = dict(official.names.unused)
    for name, tensor in official.model.state_dict().items():
        shape = tuple(tensor.shape)
        if official.names.has_unused_row(name):
            shape = (shape[0], shape[1] + 1, *shape[2:])
        shapes[official.names.official(name)] = shape
    return shapes


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load an official state dict into a model from `build_official`.

    Args:
        model: The model.
        state_dict: Tensors under official names; index buffers may be absent.

    Raises:
        ValueError: Missing or unexpected names or wrong shapes, grouped by branch; nothing is loaded then.
    """
    official = _require_official(model)
    wanted = official_shapes(official)
    given = {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if name in wanted or not name.endswith(INDEX_BUFFERS)
    }
    problem = explain_mismatch(wanted, given)
    if problem:
        raise ValueError(problem)
    own = {}
    for name in official.model.state_dict():
        tensor = state_dict[official.names.official(name)]
        own[name] = tensor[:, 1:] if official.names.has_unused_row(name) else tensor
    with torch.no_grad():
        official.model.load_state_dict(own)


def _require_official(model: nn.Module) -> OfficialModel:
    if not isinstance(model, OfficialModel):
        raise ValueError(f"Expected a model from build_official, got {type(model).__name__}.")
    return model
