"""The authors' detection and segmentation heads: built from their sizes, loaded from their files.

Facts: the authors' public release, code state of 2025-08-05 (MMDetection 2, MMSegmentation 0 inside).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from piip.checkpoints.layouts import Origin, Rename, Shape, unchanged
from piip.heads.detection.assign import Sample
from piip.heads.detection.frames import ImageFrame, Prediction, Target
from piip.heads.mask_rcnn import Draws, MaskRCNNHead
from piip.heads.upernet import UperNetHead

Metas = Sequence[Mapping[str, Any]]
MASK_RCNN_NAMES: tuple[Rename, ...] = (
    (r"^fpn\.laterals\.(\d+)\.", r"neck.lateral_convs.\1.conv."),
    (r"^fpn\.outputs\.(\d+)\.", r"neck.fpn_convs.\1.conv."),
    (r"^proposals\.conv\.", "rpn_head.rpn_conv."),
    (r"^proposals\.scores\.", "rpn_head.rpn_cls."),
    (r"^proposals\.deltas\.", "rpn_head.rpn_reg."),
    (r"^boxes\.hidden\.1\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^boxes\.hidden\.3\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"^boxes\.scores\.", "roi_head.bbox_head.fc_cls."),
    (r"^boxes\.deltas\.", "roi_head.bbox_head.fc_reg."),
    (r"^masks\.upsample\.", "roi_head.mask_head.upsample."),
    (r"^masks\.logits\.", "roi_head.mask_head.conv_logits."),
)
UPERNET_NAMES: tuple[Rename, ...] = (
    (r"\.norm\.", ".bn."),
    (r"^pools\.(\d+)\.", r"decode_head.psp_modules.\1.1."),
    (r"^bottleneck\.", "decode_head.bottleneck."),
    (r"^laterals\.", "decode_head.lateral_convs."),
    (r"^outputs\.", "decode_head.fpn_convs."),
    (r"^fusion\.", "decode_head.fpn_bottleneck."),
    (r"^classifier\.", "decode_head.conv_seg."),
    (r"^auxiliary\.", "auxiliary_head.convs.0."),
    (r"^auxiliary_classifier\.", "auxiliary_head.conv_seg."),
)


@dataclass(frozen=True)
class HeadNames:
    """How the authors name the parameters of a head.

    Args:
        renames: Regular expressions of our names, and theirs.
        unused: Names and shapes of what their files hold besides.
    """

    renames: tuple[Rename, ...]
    unused: tuple[tuple[str, Shape], ...] = ()

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return the official tensor of a parameter of ours."""
        for ours, theirs in self.renames:
            name = re.sub(ours, theirs, name)
        return unchanged(name, shape)


class OfficialHead(nn.Module):
    """One of the authors' heads behind their interface.

    Args:
        model: The head made of our parts.
        names: How the authors name its parameters.
    """

    def __init__(self, model: MaskRCNNHead | UperNetHead, names: HeadNames) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def predict(self, features: Sequence[Tensor], img_metas: Metas) -> list[Prediction]:
        """Return what the official head finds in maps of the backbone; see the head's own `predict`."""
        return self.model.predict(features, [frame_of(meta) for meta in img_metas])

    def losses(
        self, features: Sequence[Tensor], targets: Sequence[Target] | Mapping[str, Tensor], img_metas: Metas, draws: Draws | None = None
    ) -> dict[str, Tensor]:
        """Return the losses under the official names; see the head's own `losses`."""
        if isinstance(self.model, UperNetHead):
            return self.model.losses(features, targets["labels"])  # type: ignore[call-overload]
        return self.model.losses(features, targets, [frame_of(meta) for meta in img_metas], draws)


def frame_of(meta: Mapping[str, Any]) -> ImageFrame:
    """Describe an image by its official `img_metas` entry; heights and widths first, channels are ignored.

    parity: the scale is rounded to float32, one factor an axis.
    """
    size = _shape(meta["img_shape"])
    padded = _shape(meta.get("pad_shape", size))
    original = _shape(meta.get("ori_shape", size))
    frame = ImageFrame.make(size, padded=padded, batch=_shape(meta.get("batch_input_shape", size)), original=original)
    horizontal, vertical = torch.tensor(frame.scale, dtype=torch.float32).tolist()
    return frame._replace(scale=(horizontal, vertical))


def _shape(shape: Sequence[int]) -> tuple[int, int]:
    return int(shape[0]), int(shape[1])


def build_official_head(
    family: str, arch: Mapping[str, Any], *, test_cfg: Mapping[str, Any] | None = None
) -> OfficialHead:
    """Build one of the authors' heads, neck included.

    Args:
        family: "mask_rcnn" or "upernet".
        arch: Its sizes under the names of the reference.
        test_cfg: How it predicts, where the family has a choice.

    Raises:
        ValueError: Another family, or sizes that are missing.
    """
    builders = {"mask_rcnn": _mask_rcnn, "upernet": _upernet}
    if family not in builders:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(builders)}.")
    try:
        return builders[family](arch)
    except KeyError as error:
        raise ValueError(f"The sizes of a {family} head lack the field {error}.") from error


def _mask_rcnn(arch: Mapping[str, Any]) -> OfficialHead:
    head = MaskRCNNHead(
        arch["in_channels"],
        arch["num_classes"],
        channels=arch.get("fpn_channels", 256),
        proposal_channels=arch.get("rpn_feat_channels", 256),
        box_features=arch.get("fc_out_channels", 1024),
        mask_channels=arch.get("mask_conv_channels", 256),
    )
    convs = tuple((rf"^masks\.convs\.{2 * i}\.", f"roi_head.mask_head.convs.{i}.conv.") for i in range(4))
    return OfficialHead(head, HeadNames(MASK_RCNN_NAMES + convs))


def _upernet(arch: Mapping[str, Any]) -> OfficialHead:
    head = UperNetHead(
        arch["in_channels"],
        arch["num_classes"],
        channels=arch.get("channels", 512),
        auxiliary_channels=arch.get("aux_channels", 256),
    )
    return OfficialHead(head, HeadNames(UPERNET_NAMES))
