"""The authors' models: built from their configurations, loaded from their files.

Facts: the authors' public release, code state of 2025-08-05. The released classes repeat one model per branch count;
here each is a `ModelConfig` of the ordinary parts with official rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.build import build_model
from piip.checkpoints.head_names import HEAD_NAMES
from piip.checkpoints.heads import OfficialHead
from piip.checkpoints.keymap import OfficialNames
from piip.checkpoints.layouts import Shape, layout_of
from piip.checkpoints.translate import CODE_BASES, OFFICIAL_CLASSES, translate_config
from piip.config import HeadConfig, ModelConfig
from piip.serialization.base import ModelParts, PyramidModel
from piip.serialization.mismatch import explain_mismatch
from piip.zoo.create import model_config, official_record, published_config

INDEX_BUFFERS = ("relative_position_index", "position_ids", "num_batches_tracked")


class OfficialModel(ModelParts):
    """One of the authors' backbones or classifiers, with their rules.

    Args:
        model: The model made of our parts.
        names: How the authors name its parameters.
        config: What it was built from.
        input_size: The only accepted square input size (classification), or None.
    """

    def __init__(
        self,
        model: PyramidModel,
        names: OfficialNames,
        config: ModelConfig,
        input_size: int | None,
    ) -> None:
        super().__init__()
        self.model: PyramidModel = model
        self.names = names
        self.config: ModelConfig = config
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

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part of the model inside."""
        return self.model.parts()

    def get_backbone(self) -> PIIPBackbone:
        """Return the pyramid inside."""
        return self.model.get_backbone()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the branches' blocks in the backward pass instead of keeping their activations."""
        self.model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are usually excluded from weight decay."""
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
        code_base: "classification", "detection", "segmentation" or "llava".
        official_class: "PIIPTwoBranch", "PIIPThreeBranch", "PIIPFourBranch"; single networks "vit_models",
            "InternViT6B", "ConvNextHFWrapper"; vision towers "PIIPTwoBranchModel", "PIIPTwoBranchMixModel".
        convnext_arch: Sizes (`depths`, `hidden_sizes`) of ConvNeXt branches by the name in `pretrained`.
        clip_arch: Sizes of CLIP branches likewise (fields of a Hugging Face CLIP vision configuration).
        timm_convnext_arch: timm network (`arch`) and sizes (`depths`, `dims`) of timm's ConvNeXt branches likewise.

    Returns:
        The model: image -> list of tensors (classification: one of logits; detection and segmentation: the pyramid
        maps; multimodal: one map per branch).

    Raises:
        ValueError: A code base, class or branch family that is not supported, or a configuration that lacks fields.
    """
    if code_base not in CODE_BASES or official_class not in OFFICIAL_CLASSES:
        raise ValueError(
            f"{official_class} of code base {code_base!r} is not supported; supported are "
            f"{', '.join(OFFICIAL_CLASSES)} of {', '.join(CODE_BASES)}."
        )
    archs = {**(convnext_arch or {}), **(clip_arch or {}), **(timm_convnext_arch or {})}
    try:
        translated = translate_config(config, code_base=code_base, official_class=official_class, archs=archs)
    except KeyError as error:
        raise ValueError(f"The configuration of {official_class} lacks the field {error}.") from error
    return _wrap(translated, is_multimodal=code_base == "llava")


def build_released(name: str, *, with_head: bool = False, as_published: bool = False) -> OfficialModel:
    """Build a released model by its name, with the official rules.

    Args:
        name: Our name or that of the official record, see `piip.list_models()`.
        with_head: Of a detector, segmentor or multimodal model, its head too, which the authors keep beside the
            backbone.
        as_published: The networks whose cost was published, where the released code builds others (`docs/official.md`).

    Returns:
        The model, ready for `load_official`.

    Raises:
        ValueError: An unknown name, with the nearest ones.
    """
    config = model_config(official_record(name))
    if as_published:
        config = dataclasses.replace(published_config(name), resize=config.resize)
    is_multimodal = config.head.task == "tokens"
    if (is_multimodal or config.head.is_dense) and not with_head:
        config = dataclasses.replace(config, head=HeadConfig())
    return _wrap(config, is_multimodal=is_multimodal)


def _wrap(config: ModelConfig, *, is_multimodal: bool) -> OfficialModel:
    model = build_model(config)
    has_logits = config.head.task == "classification"
    side = config.branches[-1].image_size if has_logits else None
    return OfficialModel(model, _names(config, model, is_multimodal=is_multimodal), config, side)


def _names(config: ModelConfig, model: PyramidModel, *, is_multimodal: bool) -> OfficialNames:
    backbone = model.get_backbone()
    names = OfficialNames(
        layouts=tuple(layout_of(branch.network, is_multimodal=is_multimodal) for branch in config.branches),
        dense=config.interaction.attention == "dense",
        merge="short" if config.neck.kind == "interaction" else config.merge.kind,
        is_single=len(config.branches) == 1,
        per_branch_head=config.head.kind == "per_branch",
        is_multimodal=is_multimodal,
        dense_head=HEAD_NAMES.get(config.head.kind),
        first_level=1 if 4 in config.neck.scales else 2,
    )
    unused: dict[str, Shape] = {}
    for index, (layout, branch) in enumerate(zip(names.layouts, backbone.branches, strict=True)):
        unused.update({names.branch_prefix(index) + name: shape for name, shape in layout.unused(branch).items()})
    if len(config.branches) == 3 and config.neck.kind == "simple" and 4 not in config.neck.scales:
        unused.update(_unused_level(int(backbone.feature_info[0]["num_chs"])))
    return dataclasses.replace(names, unused=tuple(unused.items()))


def _unused_level(width: int) -> dict[str, Shape]:
    """parity: the three-branch class keeps the 4x level of a detector that does not use it (`docs/official.md`)."""
    shapes: dict[str, Shape] = {"fpn1.1.weight": (width,), "fpn1.1.bias": (width,)}
    for layer in (0, 3):
        shapes |= {f"fpn1.{layer}.weight": (width, width, 2, 2), f"fpn1.{layer}.bias": (width,)}
    return shapes


def official_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that a released file of this model must have; it may lack the index buffers.

    Args:
        model: A model from `build_official` or `build_released`.

    Raises:
        ValueError: Another model.
    """
    official = _require_official(model)
    shapes = dict(official.names.unused)
    for name, tensor in official.model.state_dict().items():
        shapes.update(official.names.origin(name, tuple(tensor.shape)).shapes)
    return shapes


def own_tensors(model: nn.Module, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Make our tensors of official ones, one after the other.

    Args:
        model: A model from `build_official` or `build_released`; it may live on the meta device.
        read: Returns an official tensor by its name.

    Yields:
        Name and value of every entry of the state dict of the model inside, in its order.

    Raises:
        ValueError: Another model.
    """
    official = _require_official(model)
    for name, tensor in official.model.state_dict().items():
        origin = official.names.origin(name, tuple(tensor.shape))
        yield name, origin.make(*(read(part) for part in origin.reads))


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load an official state dict into a model from `build_official`.

    Args:
        model: The model.
        state_dict: Tensors under official names; index buffers may be absent.

    Raises:
        ValueError: Missing or unexpected names or wrong shapes, grouped by branch; nothing is loaded then.
    """
    official = _require_official(model)
    problem = explain_mismatch(*comparable(official_shapes(official), state_dict))
    if problem:
        raise ValueError(problem)
    with torch.no_grad():
        official.model.load_state_dict(dict(own_tensors(official, state_dict.__getitem__)))


def comparable(
    wanted: Mapping[str, tuple[int, ...]], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return names and shapes of a model and of a state dict without the index buffers that either may lack."""
    given = {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if name in wanted or not name.endswith(INDEX_BUFFERS)
    }
    needed = {name: shape for name, shape in wanted.items() if name in given or not name.endswith(INDEX_BUFFERS)}
    return needed, given


def _require_official(model: nn.Module) -> OfficialModel | OfficialHead:
    if not isinstance(model, OfficialModel | OfficialHead):
        raise ValueError(f"Expected a model from build_official, got {type(model).__name__}.")
    return model
