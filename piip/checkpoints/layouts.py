"""The authors' parameter names and shapes of one branch, one class per family.

With `keymap.py` this is all that is known about official names. Where a tensor of ours is not one of theirs, an
`Origin` says which ones it is made of; nothing here is ever written back.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piip.branches import Branch
from piip.branches.beit import BeitBranch

Shape = tuple[int, ...]
Rename = tuple[str, str]


@dataclass(frozen=True)
class Origin:
    """Where one of our parameters comes from.

    Args:
        reads: Official tensors it is made of.
        shapes: Shapes of those among them that it determines.
        make: From those tensors to ours.
    """

    reads: tuple[str, ...]
    shapes: Mapping[str, Shape]
    make: Callable[..., Tensor]

    def under(self, prefix: str) -> Origin:
        """Return the same with a prefix before every official name."""
        shapes = {prefix + name: shape for name, shape in self.shapes.items()}
        return Origin(tuple(prefix + name for name in self.reads), shapes, self.make)


def unchanged(name: str, shape: Shape) -> Origin:
    """Return the origin of a parameter that the official model has too."""
    return Origin((name,), {name: shape}, lambda tensor: tensor)


class Layout(ABC):
    """Names of one family's branch."""

    renames: Sequence[Rename] = ()  # regular expressions of our names, and theirs

    def official(self, name: str) -> str:
        """Return the official name of a parameter that differs in its name only."""
        for ours, theirs in self.renames:
            name = re.sub(ours, theirs, name)
        return name

    @abstractmethod
    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter of ours comes from.

        Args:
            name: Name relative to the branch.
            shape: Its shape.
        """

    def unused(self, branch: Branch) -> dict[str, Shape]:
        """Return what official files hold besides: parameters never used, and indices."""
        return {}


class VitModels(Layout):
    """`vit_models`: DeiT and DeiT III."""

    renames: Sequence[Rename] = (("^vit\\.", ""), (r"^(blocks\.\d+)\.ls([12])\.gamma$", r"\1.gamma_\2"))

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        return unchanged(self.official(name), shape)


class InternViTLayout(Layout):
    """The InternViT class: InternViT, MAE, AugReg, DINOv2."""

    renames: Sequence[Rename] = (("^vit\\.", ""),)

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        official = self.official(name)
        if official != "pos_embed":
            return unchanged(official, shape)
        # parity: a first row for the class token is stored and never used
        stored = (shape[0], shape[1] + 1, *shape[2:])
        return Origin((official,), {official: stored}, lambda table: table[:, 1:])


class BeitLayout(Layout):
    """BEiT v2: as timm, with the rows of its index stored."""

    renames: Sequence[Rename] = (("^vit\\.", ""),)

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        return unchanged(self.official(name), shape)

    def unused(self, branch: Branch) -> dict[str, Shape]:
        """Return the stored indices of every block."""
        assert isinstance(branch, BeitBranch)
        cells = [side * side for side in branch.window_sizes]
        return {f"blocks.{i}.attn.relative_position_index": (count, count) for i, count in enumerate(cells)}


class UniPerceiverLayout(Layout):
    """Uni-Perceiver's `UnifiedBertEncoder`."""

    times = 8  # rows of the table of positions in time; images read row 0
    renames: Sequence[Rename] = (
        (r"^vit\.blocks\.", "layers."),
        (r"^vit\.norm_pre\.", "visual_embed.embeddings_norm."),
        (r"^vit\.patch_embed\.", "visual_embed.patch_embed."),
        (r"\.attn\.qkv\.", ".self_attn.in_proj."),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
        (r"\.mlp\.fc([12])\.", r".linear\1."),
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
    )

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        if name == "vit.pos_embed":
            space = "visual_embed.patch_embed.spatial_pos_embed.weight"
            return Origin((space,), {space: shape[1:]}, lambda table: table[None])
        official = self.official(name)
        if name == "vit.patch_embed.proj.bias":
            time = "visual_embed.patch_embed.temporal_pos_embed.weight"
            shapes = {official: shape, time: (self.times, shape[0])}
            return Origin((official, time), shapes, lambda bias, table: bias + table[0])
        return unchanged(official, shape)


class HuggingFaceConvNeXt(Layout):
    """ConvNeXt of transformers 4.44 (detection)."""

    renames: Sequence[Rename] = (
        (r"^network\.stem\.0\.", "convnext_model.embeddings.patch_embeddings."),
        (r"^network\.stem\.1\.", "convnext_model.embeddings.layernorm."),
        (r"^network\.stages\.", "convnext_model.encoder.stages."),
        (r"\.downsample\.", ".downsampling_layer."),
        (r"\.blocks\.", ".layers."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.norm\.", ".layernorm."),
        (r"\.mlp\.fc([12])\.", r".pwconv\1."),
        (r"\.gamma$", ".layer_scale_parameter"),
    )
    final_norm = "convnext_model.layernorm"

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        return unchanged(self.official(name), shape)

    def unused(self, branch: Branch) -> dict[str, Shape]:
        """Return the final norm, which no model applies."""
        width = (branch.stages[-1].channels,)
        return {f"{self.final_norm}.weight": width, f"{self.final_norm}.bias": width}


class TimmConvNeXt(HuggingFaceConvNeXt):
    """ConvNeXt of timm as the multimodal models store it.

    Args:
        has_mlp_head: The network's head has a layer before the classifier, which no model applies.
    """

    renames: Sequence[Rename] = (("^network\\.", "convnext_model."), (r"\.gamma$", ".weight"))
    final_norm = "convnext_model.head.norm"

    def __init__(self, *, has_mlp_head: bool) -> None:
        self.has_mlp_head = has_mlp_head

    def unused(self, branch: Branch) -> dict[str, Shape]:
        """Return the head, which no model applies."""
        shapes = super().unused(branch)
        if self.has_mlp_head:
            width = branch.stages[-1].channels
            layer = "convnext_model.head.pre_logits.fc"
            shapes |= {f"{layer}.weight": (width, width), f"{layer}.bias": (width,)}
        return shapes


class HuggingFaceClip(Layout):
    """CLIP's vision model of transformers (multimodal)."""

    renames: Sequence[Rename] = (
        (r"^vit\.norm_pre\.", "clip_model.pre_layrnorm."),
        (r"^vit\.patch_embed\.proj\.", "clip_model.embeddings.patch_embedding."),
        (r"^vit\.blocks\.", "clip_model.encoder.layers."),
        (r"\.norm([12])\.", r".layer_norm\1."),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
    )
    class_token = "clip_model.embeddings.class_embedding"
    positions = "clip_model.embeddings.position_embedding.weight"

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return where a parameter comes from; see `Layout.origin`."""
        if name == "vit.pos_embed":
            stored = (shape[1] + 1, shape[2])
            return Origin((self.positions,), {self.positions: stored}, lambda table: table[None, 1:])
        if name == "vit.cls_token":
            reads = (self.class_token, self.positions)
            return Origin(reads, {self.class_token: shape[2:]}, lambda value, table: (value + table[0])[None, None])
        official = self.official(name)
        if ".attn.qkv." not in official:
            return unchanged(official, shape)
        parts = tuple(official.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv")
        return Origin(parts, dict.fromkeys(parts, (shape[0] // 3, *shape[1:])), lambda *tensors: torch.cat(tensors))

    def unused(self, branch: Branch) -> dict[str, Shape]:
        """Return the final norm, which no model applies, and the class token of branches that leave it out."""
        width = (branch.stages[-1].channels,)
        shapes: dict[str, Shape] = {"clip_model.post_layernorm.weight": width, "clip_model.post_layernorm.bias": width}
        return shapes if branch.num_prefix_tokens else {**shapes, self.class_token: width}


def layout_of(network: str, *, is_multimodal: bool) -> Layout:
    """Return how the authors store a branch.

    Args:
        network: Its timm name.
        is_multimodal: Whether it is part of a multimodal model.
    """
    convnext = TimmConvNeXt(has_mlp_head="_mlp" in network) if is_multimodal else HuggingFaceConvNeXt()
    layouts: tuple[tuple[str, Layout], ...] = (
        ("beit", BeitLayout()),
        ("deit", VitModels()),
        ("uni_perceiver", UniPerceiverLayout()),
        ("convnext", convnext),
        ("_clip_", HuggingFaceClip()),
    )
    return next((layout for part, layout in layouts if part in network), InternViTLayout())
