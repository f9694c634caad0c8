"""The pyramid backbone: read this first.

One image is resized to several resolutions; each resolution has its own network (branch). Index 0 is the largest
network at the lowest resolution, the last one the smallest at the highest. After every stage neighbouring branches
exchange features. Finally the branches are merged into one map, from which a neck may make several levels.

Source: arXiv 2406.04330, Figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from piip.branches.base import Branch
from piip.config import ModelConfig
from piip.layers import checkpointing
from piip.layers.image_pyramid import check_image, image_pyramid, official_image_pyramid, pyramid_sizes
from piip.layers.interaction import Interaction
from piip.layers.map_info import MapInfo, check_format, formatted, taken_indices
from piip.layers.merge import CombinesBranches, Merge
from piip.layers.necks import Neck
from piip.layers.outputs import ExportWrapper, NamedOutputs, Output
from piip.serialization.base import PyramidModel
from piip.structures import BranchFeatures


class PIIPBackbone(PyramidModel):
    """Any number of branches that interact and are merged.

    Args:
        branches: Networks split into the same number of stages.
        interactions: One interaction after each stage.
        merge: Merges all branches into one map; None keeps one map per branch.
        neck: Makes levels from merged maps, or None.
        image_sizes: Nominal side of each branch's image; only the ratios matter.
        stage_merges: Additional merges after some stages; their maps precede the final one in the neck.
        official_resize: Resize by factors as in the released code, instead of to whole patches.
        config: Description of the model, for saving.

    Raises:
        ValueError: The number of stages of a branch differs from the number of interactions.
    """

    title = "Backbone"
    hub_task = "image-feature-extraction"

    def __init__(
        self,
        branches: Sequence[Branch],
        interactions: Sequence[Interaction],
        merge: Merge | None = None,
        neck: Neck | None = None,
        *,
        image_sizes: Sequence[int],
        stage_merges: Mapping[int, Merge] | None = None,
        official_resize: bool = False,
        config: ModelConfig | None = None,
    ) -> None:
        super().__init__(config, mean=branches[0].mean, std=branches[0].std, image_size=image_sizes[-1])
        for index, branch in enumerate(branches):
            if len(branch.stages) != len(interactions):
                raise ValueError(
                    f"Branch {index} has {len(branch.stages)} stages and there are {len(interactions)} interactions; "
                    "cut every branch into one stage per interaction."
                )
        # typed as what they hold: the types of nn.ModuleList know only modules
        self.branches: Sequence[Branch] = nn.ModuleList(branches)  # type: ignore[assignment]
        self.interactions: Sequence[Interaction] = nn.ModuleList(interactions)  # type: ignore[assignment]
        self.merge = merge
        self.neck = neck
        after = {str(stage): part for stage, part in (stage_merges or {}).items()}
        self.stage_merges: Mapping[str, Merge] = nn.ModuleDict(after)  # type: ignore[assignment]
        self.image_sizes = tuple(image_sizes)
        self.ratios = tuple(size / image_sizes[-1] for size in image_sizes)
        self.official_resize = official_resize
        self.grad_checkpointing = False

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Return the image (B, 3, H, W) resized for each branch."""
        if self.official_resize:
            images = official_image_pyramid(image, self.ratios)
            for branch, resized in zip(self.branches, images, strict=True):
                check_image(resized, min_size=branch.stride)
            return images
        height, width = image.shape[-2:]
        strides = [branch.stride for branch in self.branches]
        return image_pyramid(image, pyramid_sizes((height, width), self.ratios, strides))

    def run(self, image: Tensor) -> tuple[list[BranchFeatures], list[Tensor]]:
        """Run all branches.

        Args:
            image: Normalised RGB images, float, (B, 3, H, W), any size of at least one patch.

        Returns:
            The finished features of every branch, and the intermediate merged maps.

        Raises:
            ValueError: The input is not a batch of images.
        """
        features = self.embed(image)
        stage_maps = []
        for stage in range(len(self.interactions)):
            features = self.run_stage(stage, features)
            if str(stage) in self.stage_merges:
                stage_maps.append(self._merged(self.stage_merges[str(stage)], features))
        return self.finish(features), stage_maps

    def embed(self, image: Tensor) -> list[BranchFeatures]:
        """Return the tokens of images (B, 3, H, W) that enter the first stage of every branch."""
        check_image(image, min_size=self.branches[-1].stride)
        images = self.pyramid(image)
        return [branch.embed(resized) for branch, resized in zip(self.branches, images, strict=True)]

    def run_stage(self, stage: int, features: list[BranchFeatures]) -> list[BranchFeatures]:
        """Run one stage of every branch and the interaction behind it."""
        features = [branch.run_stage(stage, tokens) for branch, tokens in zip(self.branches, features, strict=True)]
        return self.interactions[stage](features)

    def finish(self, features: list[BranchFeatures]) -> list[BranchFeatures]:
        """Apply what every network does after its last block."""
        return [branch.finish(tokens) for branch, tokens in zip(self.branches, features, strict=True)]

    def forward_features(self, image: Tensor) -> list[BranchFeatures]:
        """Return the finished features of every branch, before merging; see `run`."""
        return self.run(image)[0]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return feature maps of images (B, 3, H, W).

        Returns:
            One map (B, C, H, W) after a merge, one per branch without, or the levels of the neck, finest first.
        """
        features, stage_maps = self.run(image)
        return self.forward_maps(features, stage_maps)

    def forward_maps(self, features: list[BranchFeatures], stage_maps: Sequence[Tensor] = ()) -> list[Tensor]:
        """Merge finished features and apply the neck; see `forward`."""
        finals = (
            [tokens.as_map() for tokens in features] if self.merge is None else [self._merged(self.merge, features)]
        )
        maps = [*stage_maps, *finals]
        return maps if self.neck is None else self.neck(maps)

    def _merged(self, merge: Merge, features: list[BranchFeatures]) -> Tensor:
        return checkpointing.call(merge, features, recompute=self.grad_checkpointing)

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        branch: int | None = None,
    ) -> Any:
        """Return intermediate maps of images, as timm's models do.

        Without `branch`, the intermediates are the maps of `forward`, described by `feature_info`. With it, they are
        the maps of one branch after each stage and its interaction, described by `branch_feature_info`.

        Args:
            image: See `forward`.
            indices: Maps or stages to return; a number selects the last ones, None all.
            return_prefix_tokens: With `branch`: return pairs of a map and the prefix tokens (B, P, C).
            norm: With `branch`: apply the network's final norm to maps of its final width. The maps of `forward` are
                made of normalised features anyway.
            stop_early: With `branch` and `intermediates_only`: do not run the stages after the last selected one.
            output_fmt: "NCHW" for maps (B, C, H, W), "NLC" for tokens (B, H * W, C).
            intermediates_only: Return the list of intermediates alone.
            branch: Index of a branch, -1 is the one of the highest resolution.

        Returns:
            The features of `forward_features` and the list of intermediates, or this list.

        Raises:
            ValueError: Arguments out of range, or that need others.
        """
        check_format(output_fmt)
        if branch is not None:
            is_cut = stop_early and intermediates_only
            features, found = self._stage_features(image, indices, branch, norm=norm, is_cut=is_cut)
            maps = [formatted(tokens.as_map(), output_fmt) for tokens in found]
            prefixes = [tokens.prefix for tokens in found]
            intermediates = [*zip(maps, prefixes, strict=True)] if return_prefix_tokens else maps
        elif return_prefix_tokens:
            raise ValueError("return_prefix_tokens needs branch=INDEX: merged maps and levels have no prefix tokens.")
        else:
            features, stage_maps = self.run(image)
            maps = self.forward_maps(features, stage_maps)
            intermediates = [formatted(maps[index], output_fmt) for index in taken_indices(len(maps), indices)]
        return intermediates if intermediates_only else (features, intermediates)

    def _stage_features(
        self, image: Tensor, indices: int | Sequence[int] | None, branch: int, *, norm: bool, is_cut: bool
    ) -> tuple[list[BranchFeatures], list[BranchFeatures]]:
        """Return the finished features of every branch, and those of one branch after selected stages."""
        stages = self._branch(branch).stages
        wanted = taken_indices(len(stages), indices)
        features = self.embed(image)
        found = {}
        for stage in range(max(wanted) + 1 if is_cut else len(stages)):
            features = self.run_stage(stage, features)
            is_normed = norm and stages[stage].channels == stages[-1].channels
            found[stage] = self.branches[branch].finish(features[branch]) if is_normed else features[branch]
        return self.finish(features), [found[stage] for stage in wanted]

    def _branch(self, index: int) -> Branch:
        count = len(self.branches)
        if not -count <= index < count:
            raise ValueError(
                f"branch is {index}, expected an index in [-{count}, {count}): there are {count} branches."
            )
        return self.branches[index]

    def branch_feature_info(self, branch: int = -1) -> MapInfo:
        """Return channels and stride in pixels of the given image of one branch's maps after each stage.

        Args:
            branch: Index of a branch, -1 is the one of the highest resolution.

        Raises:
            ValueError: There is no such branch.
        """
        stages = self._branch(branch).stages
        ratio = self.ratios[branch]
        return MapInfo([{"num_chs": stage.channels, "reduction": stage.stride / ratio} for stage in stages])

    @property
    def feature_info(self) -> MapInfo:
        """Channels (`num_chs`) and stride in image pixels (`reduction`) of every returned map, in timm's words."""
        finest = self.branches[-1].stages
        maps: list[dict[str, float]] = []
        for stage, part in self.stage_merges.items():
            maps.append({"num_chs": part.out_channels, "reduction": finest[int(stage)].stride})
        if self.merge is not None:
            maps.append({"num_chs": self.merge.out_channels, "reduction": finest[-1].stride})
        else:  # strides are in pixels of the input image, branches see smaller images
            stages = zip((branch.stages[-1] for branch in self.branches), self.ratios, strict=True)
            maps += [{"num_chs": stage.channels, "reduction": stage.stride / ratio} for stage, ratio in stages]
        return MapInfo(maps if self.neck is None else self.neck.feature_info(maps))

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part; see `ModelParts`."""
        parts: dict[str, list[nn.Module]] = {f"branch {i}": [branch] for i, branch in enumerate(self.branches)}
        if len(self.branches) > 1:
            parts["interactions"] = list(self.interactions)
        if self.merge is not None:
            parts["merge"] = [*self.stage_merges.values(), self.merge]
        if self.neck is not None:
            parts["neck"] = [self.neck]
        return parts

    def combining_parts(self) -> list[CombinesBranches]:
        """Return the merges."""
        return [*self.stage_merges.values(), *([] if self.merge is None else [self.merge])]

    def get_backbone(self) -> PIIPBackbone:
        """Return the model itself."""
        return self

    def summary(self) -> str:
        """Return one sentence about the output of the model, for cards."""
        return "There is no head: the model returns a list of feature maps."

    def usage(self) -> str:
        """Return Python code that runs the model on `image`; see `PyramidModel`."""
        return "for feature_map in model((image - mean) / std):\n    print(tuple(feature_map.shape))"

    def export_wrapper(self) -> ExportWrapper:
        """Return the backbone as one graph with an output per map."""
        shapes = ["B, {num_chs:g}, H / {reduction:g}, W / {reduction:g}".format(**info) for info in self.feature_info]
        outputs = [Output(f"map_{i}", f"feature map, float32 ({shape})") for i, shape in enumerate(shapes)]
        return NamedOutputs(self, outputs, stride=self.branches[-1].stride, min_side=self.min_side)

    @property
    def min_side(self) -> int:
        """Minimum side in pixels for dynamic image sizes: two patches of every branch."""
        sides = zip(self.branches, self.ratios, strict=True)
        return max(math.ceil(2 * branch.stride / ratio) for branch, ratio in sides)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks, interaction units, merges and levels in the backward pass instead of storing them."""
        self.grad_checkpointing = enable
        for branch in self.branches:
            branch.set_grad_checkpointing(enable)
        for interaction in self.interactions:
            interaction.grad_checkpointing = enable
        if self.neck is not None:
            self.neck.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are usually excluded from weight decay."""
        return {f"branches.{i}.{name}" for i, branch in enumerate(self.branches) for name in branch.no_weight_decay()}
