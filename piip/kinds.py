"""The kinds of merges, attention, necks, heads and data that descriptions and recipes may name.

The facts here are needed to check a description. Tables of builders (`piip.build`, `piip.data.formats`) contain the
rest; registering a kind there also adds it here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MergeFacts:
    """Facts about a kind of merge for checking descriptions.

    Args:
        makes_one_map: Whether the branches are merged into one map.
    """

    makes_one_map: bool = True


@dataclass(frozen=True)
class NeckFacts:
    """Facts about a kind of neck for checking descriptions.

    Args:
        reads: "map" (the merged map), "interactions" (merges after some interactions), "stages" (the map of a single
            network after each stage), or "nothing" for no neck.
    """

    reads: str = "map"

    @property
    def makes_levels(self) -> bool:
        """Whether there is a neck."""
        return self.reads != "nothing"


@dataclass(frozen=True)
class HeadFacts:
    """Facts about a kind of head for checking descriptions.

    Args:
        task: "classification", "tokens", "detection", "instance", "semantic", or "features" for no head.
        reads: "map" (the merged map), "branches" (their maps before merging), "levels" (of the neck), or "nothing".
        width: Channels inside the head or of its tokens in the released models; None if the head has no width.
    """

    task: str
    reads: str
    width: int | None = None

    @property
    def needs_masks(self) -> bool:
        """Whether training reads the masks of objects."""
        return self.task == "instance"


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data format for checking recipes.

    Args:
        tasks: Tasks of the heads that can be trained on it; see `HeadFacts`.
        is_padded: Whether images keep their shape and are padded to one size per batch.
        unused: Fields of recipes that have no effect on such data, such as "data.dense"; they must have their defaults.
    """

    tasks: tuple[str, ...]
    is_padded: bool = True
    unused: tuple[str, ...] = ()


# Facts by kind; the tables of `piip.build` contain the builders and add to these.
MERGE_KINDS = {
    "linear": MergeFacts(),
    "conv": MergeFacts(),
    "slim": MergeFacts(),
    "none": MergeFacts(makes_one_map=False),
}
NECK_KINDS = {
    "simple": NeckFacts("map"),
    "interaction": NeckFacts("interactions"),
    "stages": NeckFacts("stages"),
    "none": NeckFacts("nothing"),
}
HEAD_KINDS = {
    "none": HeadFacts("features", reads="nothing"),
    "pooled": HeadFacts("classification", reads="map"),
    "per_branch": HeadFacts("classification", reads="branches"),
    "projector": HeadFacts("tokens", reads="branches", width=4096),
    "mask_rcnn": HeadFacts("instance", reads="levels", width=256),
    "upernet": HeadFacts("semantic", reads="levels", width=1536),
    "dino": HeadFacts("detection", reads="levels", width=256),
}
ATTENTION_KINDS: dict[str, None] = {"deformable": None, "dense": None}
DATA_KINDS = {
    "folder": DataFacts(
        ("classification",),
        is_padded=False,
        unused=(
            "data.dense",
            "data.max_detections",
            "data.train_images",
            "data.val_images",
            "data.group_by_aspect",
            "data.keep_empty",
            "data.image_suffix",
            "data.mask_suffix",
        ),
    ),
    "coco": DataFacts(
        ("instance", "detection"),
        unused=(
            "data.transform",
            "data.image_suffix",
            "data.mask_suffix",
            "data.dense.crop_max_share",
            "data.dense.reduce_zero_label",
            "data.dense.slide_crop",
            "data.dense.slide_stride",
            "regularize",
        ),
    ),
    "semantic_masks": DataFacts(
        ("semantic",),
        unused=("data.transform", "data.max_detections", "data.keep_empty", "data.dense.masks", "regularize"),
    ),
}
