"""Descriptions of models: frozen dataclasses of plain values, checked when they are made.

Builders read them, modules never see them. Everything here can be written to and read from JSON or YAML
(`ModelConfig.to_dict`, `ModelConfig.from_dict`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from piip.fields import at_least, check_fields, one_of, read_fields

MERGE_KINDS = ("linear", "conv", "slim", "none")
NECK_KINDS = ("none", "simple", "interaction", "stages")
HEAD_KINDS = ("none", "pooled", "per_branch", "projector", "mask_rcnn", "upernet", "dino")
DENSE_HEADS = ("mask_rcnn", "upernet", "dino")  # read the maps of the neck
POOL_KINDS = ("token", "mean", "first_patch")
ATTENTION_KINDS = ("deformable", "dense")
DIRECTIONS = ("both", "to_coarse", "to_fine")
RESIZE_KINDS = ("exact", "official")
NORMALIZE_KINDS = ("shared", "per_branch")
WINDOW_PADDINGS = ("before_qkv", "after_qkv")


@dataclass(frozen=True)
class BranchConfig:
    """One network of the pyramid and the resolution it sees.

    Args:
        network: A timm name, with or without pretraining tag, e.g. "vit_small_patch16_224.augreg_in21k".
        image_size: Nominal side in pixels of this branch's (square) image. Only the ratios between branches
            matter at run time, except for networks with a fixed input size.
        pretrained: Load the network's own weights through timm.
        drop_path_rate: Stochastic depth of the network's blocks, in [0, 1).
        drop_path_rule: "linear" from 0 to the rate over the depth (timm), "constant" for all blocks.
        window_size: Side of attention windows in tokens: one for all blocks, or one a block; 0 is global.
            Plain ViTs without prefix tokens only.
        window_padding: Where a grid that windows do not tile is padded with zeros: "before_qkv" (padded tokens
            have the biases as keys and values) or "after_qkv" (keys and values are zero).
        block_groups: Blocks (ViTs) or stages (other networks, see `cut`) run before each interaction: counts, or
            inclusive (first, last) pairs; None splits evenly.
        cut: Where networks with stages are cut: after "stages", or (ConvNeXt) after any of its "blocks", downsampling
            layers counting as blocks of their own. ViTs are cut after any block.
        prefix_tokens: Keep class and register tokens; False removes them (detection, windows).
        final_norm: Apply the network's own final norm before merging, where it has one before pooling (some EVA and
            average-pooling networks norm only the pooled features, which a pyramid does not use).
        position_resize: "timm" (antialiased bicubic) or "official" (bicubic without antialias, float32).
        position_grid: Side of the stored position table in tokens; None follows image_size.
        timm_args: Further arguments of the timm model, e.g. {"depth": 6, "embed_dim": 96}.
    """

    network: str
    image_size: int
    pretrained: bool = False
    drop_path_rate: float = 0.0
    drop_path_rule: str = "linear"
    window_size: int | tuple[int, ...] = 0
    window_padding: str = "before_qkv"
    block_groups: tuple[int, ...] | tuple[tuple[int, int], ...] | None = None
    cut: str = "stages"
    prefix_tokens: bool = True
    final_norm: bool = True
    position_resize: str = "timm"
    position_grid: int | None = None
    timm_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.network:
            raise ValueError("BranchConfig.network is empty, expected a timm name such as 'vit_tiny_patch16_224'.")
        at_least("BranchConfig.image_size", self.image_size, 1)
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"BranchConfig.drop_path_rate is {self.drop_path_rate}, expected a value in [0, 1).")
        one_of("BranchConfig.window_padding", self.window_padding, WINDOW_PADDINGS)
        one_of("BranchConfig.position_resize", self.position_resize, ("timm", "official"))
        one_of("BranchConfig.cut", self.cut, ("stages", "blocks"))
        one_of("BranchConfig.drop_path_rule", self.drop_path_rule, ("linear", "constant"))
        self._check_groups()
        windows = (self.window_size,) if isinstance(self.window_size, int) else self.window_size
        if any(side < 0 for side in windows):
            raise ValueError(f"BranchConfig.window_size is {self.window_size}, expected sides in tokens, 0 for global.")
        if self.position_grid is not None:
            at_least("BranchConfig.position_grid", self.position_grid, 1)

    def _check_groups(self) -> None:
        if self.block_groups is None:
            return
        if not self.block_groups:
            raise ValueError("BranchConfig.block_groups is empty, expected one group before each interaction or None.")
        before = -1
        for group in self.block_groups:
            if isinstance(group, int):
                at_least("BranchConfig.block_groups", group, 1)
            elif not before < group[0] <= group[1]:
                raise ValueError(
                    f"BranchConfig.block_groups holds {group}, expected rising (first, last) pairs without overlap."
                )
            else:
                before = group[1]


@dataclass(frozen=True)
class InteractionConfig:
    """How neighbouring branches exchange features.

    Args:
        count: Number of interactions; None takes the largest number that every branch can offer. A single branch has
            none; its `block_groups` cut it where a neck of kind "interaction" needs stages.
        attention: "deformable" or "dense" cross-attention.
        num_heads: Wanted attention heads; the largest fitting number below it is taken where a width does not divide.
        num_points: Sampling points a head (deformable).
        value_ratio: Width of the values relative to the query (deformable).
        ffn_ratio: Hidden width of the ConvFFN relative to the branch; 0 leaves the ConvFFN out.
        projection: Map the other branch to this branch's width before attending.
        norm: LayerNorm on query, source and FFN input.
        direction: "both", or only "to_coarse" (towards the larger network) or "to_fine".
        drop_path_rate: Stochastic depth of the ConvFFN, in [0, 1).
    """

    count: int | None = None
    attention: str = "deformable"
    num_heads: int = 16
    num_points: int = 4
    value_ratio: float = 0.5
    ffn_ratio: float = 0.25
    projection: bool = True
    norm: bool = True
    direction: str = "both"
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.count is not None:
            at_least("InteractionConfig.count", self.count, 1)
        one_of("InteractionConfig.attention", self.attention, ATTENTION_KINDS)
        one_of("InteractionConfig.direction", self.direction, DIRECTIONS)
        for name in ("num_heads", "num_points"):
            at_least(f"InteractionConfig.{name}", getattr(self, name), 1)
        if self.value_ratio <= 0 or self.ffn_ratio < 0:
            raise ValueError(
                f"InteractionConfig.value_ratio is {self.value_ratio} and ffn_ratio {self.ffn_ratio}, "
                "expected value_ratio > 0 and ffn_ratio >= 0."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"InteractionConfig.drop_path_rate is {self.drop_path_rate}, expected a value in [0, 1).")


@dataclass(frozen=True)
class MergeConfig:
    """How the branches become one map.

    Args:
        kind: "linear" (official classification), "conv" (official detection), "slim" (ours: to the wanted width
            first) or "none" (one map a branch).
        width: Channels of the merged map; None takes the first branch's width (for "slim" 256).
    """

    kind: str = "linear"
    width: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("MergeConfig.kind", self.kind, MERGE_KINDS)
        if self.width is not None:
            at_least("MergeConfig.width", self.width, 1)


@dataclass(frozen=True)
class NeckConfig:
    """How the merged map becomes levels of several strides.

    Args:
        kind: "none", "simple" (levels from the merged map), "interaction" (one level an intermediate merge) or "stages"
            (single networks: their own map after each stage).
        scales: Level sizes relative to the merged map, finest first, from {4, 2, 1, 0.5}.
        norm: "group" (GroupNorm) or "layer" (LayerNorm over channels) in the 4x level.
        interactions: With kind "interaction": interactions (from 0) after which to merge, one fewer than levels.
    """

    kind: str = "none"
    scales: tuple[float, ...] = (4, 2, 1, 0.5)
    norm: str = "group"
    interactions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("NeckConfig.kind", self.kind, NECK_KINDS)
        one_of("NeckConfig.norm", self.norm, ("group", "layer"))
        wrong = [scale for scale in self.scales if scale not in (4, 2, 1, 0.5)]
        if wrong or not self.scales:
            raise ValueError(f"NeckConfig.scales is {self.scales}, expected values from 4, 2, 1, 0.5.")
        if any(later <= earlier for earlier, later in zip(self.interactions, self.interactions[1:], strict=False)):
            raise ValueError(f"NeckConfig.interactions is {self.interactions}, expected rising numbers.")
        if self.kind == "interaction" and len(self.interactions) != len(self.scales) - 1:
            raise ValueError(
                f"NeckConfig.interactions has {len(self.interactions)} entries, "
                f"expected {len(self.scales) - 1}: one fewer than levels (the last level is the final merge)."
            )


@dataclass(frozen=True)
class HeadConfig:
    """What stands on top: a classifier, or the projector of a multimodal model.

    Args:
        kind: "none", "pooled" (one linear layer on the merged map), "per_branch" (one a branch, logits averaged),
            "projector" (tokens for a language model from the maps of all branches), "mask_rcnn" (instances),
            "dino" (boxes) or "upernet" (a class a pixel).
        num_classes: Number of classes K.
        pool: "mean" over patches, "first_patch" (official releases), or "token" (class token, per_branch only; what
            the last interaction brings to the patches no longer reaches it).
        width: Channels of the tokens of a projector, or inside a dense head; None takes the released width.
        anchor_scale: Mask R-CNN: side of a square anchor in cells of its map; 8 (released) gives 32 to 512 pixels.
    """

    kind: str = "none"
    num_classes: int = 1000
    pool: str = "mean"
    width: int | None = None
    anchor_scale: float = 8.0

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("HeadConfig.kind", self.kind, HEAD_KINDS)
        one_of("HeadConfig.pool", self.pool, POOL_KINDS)
        at_least("HeadConfig.num_classes", self.num_classes, 1)
        if self.width is not None:
            at_least("HeadConfig.width", self.width, 1)
        if self.anchor_scale <= 0:
            raise ValueError(f"HeadConfig.anchor_scale is {self.anchor_scale}, expected a value above 0.")
        if self.kind == "pooled" and self.pool == "token":
            raise ValueError("HeadConfig.pool 'token' needs kind 'per_branch': a merged map has no class token.")


@dataclass(frozen=True)
class ModelConfig:
    """A whole pyramid model.

    Args:
        branches: Index 0 is the largest network at the lowest resolution.
        interaction: Exchange between neighbours; unused with one branch.
        merge: Branch merging.
        neck: Levels from the merged map.
        head: Classifier or projector.
        resize: "exact" rounds every branch's image to its stride; "official" resizes by the released code's factor.
        normalize: "shared" (every branch sees the same normalised image) or "per_branch" (each its own).
        mean: Channel means the images are normalised with, RGB in [0, 1]; None takes the first branch's.
        std: Channel deviations likewise.
        allow_direct: Do not warn when larger networks see higher resolutions (baselines).
    """

    branches: tuple[BranchConfig, ...]
    interaction: InteractionConfig = InteractionConfig()
    merge: MergeConfig = MergeConfig()
    neck: NeckConfig = NeckConfig()
    head: HeadConfig = HeadConfig()
    resize: str = "exact"
    normalize: str = "shared"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    allow_direct: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.branches:
            raise ValueError("ModelConfig.branches is empty, expected at least one BranchConfig.")
        one_of("ModelConfig.resize", self.resize, RESIZE_KINDS)
        one_of("ModelConfig.normalize", self.normalize, NORMALIZE_KINDS)
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"ModelConfig.std is {self.std}, expected positive deviations.")
        several_maps = self.merge.kind == "none" and len(self.branches) > 1
        if several_maps and self.neck.kind != "none":
            raise ValueError("ModelConfig.neck needs one merged map: choose merge kind linear, conv or slim.")
        if self.neck.kind == "stages" and (len(self.branches) > 1 or self.merge.kind != "none"):
            raise ValueError("ModelConfig.neck 'stages' is for a single branch with merge kind 'none'.")
        is_dense = self.head.kind in DENSE_HEADS
        if is_dense and self.neck.kind == "none":
            raise ValueError(f"ModelConfig.head {self.head.kind!r} needs maps of several strides: choose a neck.")
        if self.head.kind != "none" and not is_dense and self.neck.kind != "none":
            raise ValueError(
                "ModelConfig.neck is for dense tasks, a head here reads the maps before it: set one to 'none'."
            )
        if self.head.kind in ("per_branch", "projector") and self.merge.kind != "none":
            raise ValueError(
                f"ModelConfig.head {self.head.kind!r} reads the branches before merging: set merge kind 'none'."
            )
        if several_maps and self.head.kind == "pooled":
            raise ValueError("ModelConfig.head 'pooled' needs a merged map; with merge 'none' use head 'per_branch'.")

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain dicts, tuples and numbers (JSON-ready)."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """Read a description written by `to_dict` or in a recipe.

        Raises:
            ValueError: An unknown field (with the nearest known ones) or a value out of range.
        """
        return read_fields(ModelConfig, values, "ModelConfig")
