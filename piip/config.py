"""Descriptions of models: frozen dataclasses of plain values, checked on construction.

Only builders read them, modules do not. Everything here can be written to and read from JSON or YAML
(`ModelConfig.to_dict`, `ModelConfig.from_dict`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from piip.fields import at_least, check_fields, one_of, read_fields
from piip.kinds import ATTENTION_KINDS, HEAD_KINDS, MERGE_KINDS, NECK_KINDS

POOL_KINDS = ("token", "mean", "first_patch")
DIRECTIONS = ("both", "to_coarse", "to_fine", "none")
RESIZE_KINDS = ("exact", "official")
NORMALIZE_KINDS = ("shared", "per_branch")
WINDOW_PADDINGS = ("before_qkv", "after_qkv")


@dataclass(frozen=True)
class BranchConfig:
    """One network of the pyramid and its resolution.

    Args:
        network: A timm name, with or without pretraining tag, e.g. "vit_small_patch16_224.augreg_in21k".
        image_size: Nominal side in pixels of this branch's square image. Only the ratios between branches matter at
            run time, except for networks with a fixed input size.
        pretrained: Load the network's own weights through timm.
        weights: Initial weights for training: a checkpoint of this network by timm or its publisher (file or
            directory), or owner/name on the Hugging Face hub. `piip train` loads them; a saved model keeps the name as
            a record.
        drop_path_rate: Stochastic depth of the network's blocks, in [0, 1).
        drop_path_rule: "linear" increases from 0 to the rate over the depth (timm), "constant" is equal for all blocks.
        window_size: Side of attention windows in tokens: one value for all blocks, or one per block; 0 is global
            attention. Only for plain ViTs without prefix tokens.
        window_padding: How to zero-pad a grid that is not a multiple of the window: "before_qkv" (padded tokens have
            the biases as keys and values) or "after_qkv" (keys and values are zero).
        block_groups: Blocks (ViTs) or stages (other networks, see `cut`) that run before each interaction: counts, or
            inclusive (first, last) pairs; None splits evenly.
        cut: Where networks with stages may be split: after "stages", or (ConvNeXt) after any of its "blocks", where
            downsampling layers count as blocks. ViTs are split after any block.
        prefix_tokens: Keep class and register tokens; False removes them (detection, windows).
        final_norm: Apply the network's own final norm before merging, if it has one before pooling (some EVA and
            average-pooling networks normalise only the pooled features, which a pyramid does not use).
        position_resize: "timm" (antialiased bicubic) or "official" (bicubic without antialias, float32).
        position_grid: Side of the stored position table in tokens; None derives it from image_size.
        frozen: Keep the network's weights in training: no gradients, no optimiser state, always in evaluation mode (no
            dropout, stochastic depth or updates of statistics).
        timm_args: Additional arguments of the timm model, e.g. {"depth": 6, "embed_dim": 96}.
    """

    network: str
    image_size: int
    pretrained: bool = False
    weights: str | None = None
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
    frozen: bool = False
    timm_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.network:
            raise ValueError("BranchConfig.network is empty, expected a timm name such as 'vit_tiny_patch16_224'.")
        if self.weights is not None and (self.pretrained or not self.weights):
            raise ValueError(
                f"BranchConfig.weights is {self.weights!r} and pretrained is {self.pretrained}, expected a file or "
                "owner/name with pretrained false: a branch starts from one of them."
            )
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
            raise ValueError("BranchConfig.block_groups is empty, expected one group per interaction, or None.")
        before = -1
        for group in self.block_groups:
            if isinstance(group, int):
                at_least("BranchConfig.block_groups", group, 1)
            elif not before < group[0] <= group[1]:
                raise ValueError(
                    f"BranchConfig.block_groups holds {group}, expected increasing (first, last) pairs without overlap."
                )
            else:
                before = group[1]


@dataclass(frozen=True)
class InteractionConfig:
    """How neighbouring branches exchange features.

    Args:
        count: Number of interactions; None uses the maximum that every branch supports. A single branch has no
            interactions; its `block_groups` split it if a neck of kind "interaction" needs stages.
        attention: "deformable" or "dense" cross-attention.
        num_heads: Number of attention heads; if it does not divide a width, the largest smaller divisor is used.
        num_points: Sampling points per head (deformable).
        value_ratio: Width of the values relative to the query (deformable).
        ffn_ratio: Hidden width of the ConvFFN relative to the branch; 0 omits the ConvFFN.
        projection: Project the other branch to this branch's width before attention.
        norm: Apply LayerNorm to query, source and FFN input.
        direction: "both", only "to_coarse" (towards the larger network), only "to_fine", or "none": the branches meet
            in the merge only (baselines).
        drop_path_rate: Stochastic depth of the ConvFFN, in [0, 1).
        gate_init: Initial value of the gates. 0 (released) starts pretrained networks unchanged; networks that are
            trained from scratch may learn faster with open gates, such as 1.
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
    gate_init: float = 0.0

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
    """How the branches are merged into one map.

    A neck of kind "interaction" merges the branches itself: beside it, only whether `kind` is "none" matters.

    Args:
        kind: "linear" (official classification), "conv" (official detection), "slim" (ours: projects to
            `width` first) or "none" (one map per branch).
        width: Channels of the merged map; None uses the first branch's width (for "slim" 256).
    """

    kind: str = "linear"
    width: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("MergeConfig.kind", self.kind, MERGE_KINDS)
        if self.width is not None:
            at_least("MergeConfig.width", self.width, 1)

    @property
    def makes_one_map(self) -> bool:
        """Whether the branches are merged into one map."""
        return MERGE_KINDS[self.kind].makes_one_map


@dataclass(frozen=True)
class NeckConfig:
    """How levels of several strides are made from the merged map.

    Args:
        kind: "none", "simple" (levels from the merged map), "interaction" (one level per intermediate merge) or
            "stages" (single networks: the map after each stage).
        scales: Level sizes relative to the merged map, finest first, from {4, 2, 1, 0.5}.
        norm: "group" (GroupNorm) or "layer" (LayerNorm over channels) in the 4x level.
        interactions: For kind "interaction": indices of the interactions after which to merge, one fewer than levels.
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
            raise ValueError(f"NeckConfig.interactions is {self.interactions}, expected increasing numbers.")
        if self.reads == "interactions" and len(self.interactions) != len(self.scales) - 1:
            raise ValueError(
                f"NeckConfig.interactions has {len(self.interactions)} entries, "
                f"expected {len(self.scales) - 1}: one fewer than levels (the last level is the final merge)."
            )

    @property
    def reads(self) -> str:
        """Source of the levels; see `NeckFacts`."""
        return NECK_KINDS[self.kind].reads

    @property
    def makes_levels(self) -> bool:
        """Whether there is a neck."""
        return NECK_KINDS[self.kind].makes_levels


@dataclass(frozen=True)
class HeadConfig:
    """Head of the model: classifier, detector, segmentor, or projector of a multimodal model.

    Args:
        kind: "none", "pooled" (one linear layer on the merged map), "per_branch" (one per branch, logits averaged),
            "projector" (tokens for a language model from the maps of all branches), "mask_rcnn" (instances),
            "dino" (boxes) or "upernet" (semantic segmentation).
        num_classes: Number of classes K.
        pool: "mean" over patches, "first_patch" (official releases), or "token" (class token, per_branch only; it does
            not receive the last interaction's update of the patches).
        width: Channels of a projector's tokens, or inside a dense head; None uses the released width.
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
        if self.reads == "map" and self.pool == "token":
            raise ValueError("HeadConfig.pool 'token' needs kind 'per_branch': a merged map has no class token.")

    @property
    def task(self) -> str:
        """Task of the head; see `HeadFacts`."""
        return HEAD_KINDS[self.kind].task

    @property
    def reads(self) -> str:
        """Input of the head; see `HeadFacts`."""
        return HEAD_KINDS[self.kind].reads

    @property
    def is_dense(self) -> bool:
        """Whether the head reads the levels of a neck, as in detectors and segmentors."""
        return self.reads == "levels"


@dataclass(frozen=True)
class ModelConfig:
    """A whole pyramid model.

    Args:
        branches: Index 0 is the largest network at the lowest resolution.
        interaction: Interactions between neighbouring branches; unused with one branch.
        merge: Branch merging.
        neck: Levels from the merged map.
        head: Classifier, detector, segmentor or projector.
        resize: "exact" rounds every branch's image to its stride; "official" resizes by the released code's factor.
        normalize: "shared" (all branches use the same normalised image) or "per_branch" (own mean and std per branch).
        mean: Channel means for normalisation, RGB in [0, 1]; None uses the first branch's.
        std: Channel standard deviations for normalisation, RGB in [0, 1]; None uses the first branch's.
        allow_direct: Do not warn if larger networks have higher resolutions (baselines).
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
            raise ValueError(f"ModelConfig.std is {self.std}, expected positive standard deviations.")
        for index, branch in enumerate(self.branches):
            channels = branch.timm_args.get("in_chans", 3)
            if channels != 3:
                raise ValueError(
                    f"ModelConfig.branches[{index}].timm_args has in_chans {channels!r}, expected 3: images "
                    "are RGB in every branch; remove in_chans."
                )
        self._check_parts()

    def _check_parts(self) -> None:
        """Check that merge, neck and head fit together."""
        head, neck, one_map = self.head, self.neck, self.merge.makes_one_map
        is_single = len(self.branches) == 1
        if neck.makes_levels and not (one_map or is_single):
            raise ValueError("ModelConfig.neck needs one merged map: choose merge kind linear, conv or slim.")
        if neck.reads == "stages" and (one_map or not is_single):
            raise ValueError("ModelConfig.neck 'stages' is for a single branch with merge kind 'none'.")
        if head.is_dense and not neck.makes_levels:
            raise ValueError(f"ModelConfig.head {head.kind!r} needs maps of several strides: choose a neck.")
        if head.reads in ("map", "branches") and neck.makes_levels:
            raise ValueError(
                "ModelConfig.neck is for detectors and segmentors, this head reads the maps before it: set one 'none'."
            )
        if head.reads == "branches" and one_map:
            raise ValueError(
                f"ModelConfig.head {head.kind!r} reads the branches before merging: set merge kind 'none'."
            )
        if head.reads == "map" and not (one_map or is_single):
            raise ValueError(
                f"ModelConfig.head {head.kind!r} needs a merged map; with merge 'none' use head 'per_branch'."
            )

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
