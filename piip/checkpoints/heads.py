"""The authors' detection and segmentation heads: built from their sizes, loaded from their files.

Facts: the authors' public release, code state of 2025-08-05 (MMDetection 2, MMSegmentation 0 inside).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piip.checkpoints.head_names import DINO, MASK_RCNN, UPERNET, HeadNames
from piip.heads.base import DenseHead
from piip.heads.dino.head import DINOHead
from piip.heads.dino.transformer import LayerSizes
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.upernet import UperNetHead
from piip.structures import HeadOutput, ImageInfo, Target

Metas = Sequence[Mapping[str, Any]]


class OfficialHead(nn.Module):
    """One of the authors' heads behind their interface.

    Args:
        model: The head made of our parts.
        names: How the authors name its parameters.
    """

    def __init__(self, model: DenseHead, names: HeadNames) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def predict(self, features: Sequence[Tensor], img_metas: Metas) -> list[HeadOutput]:
        """Return what the official head finds in maps of the backbone; see the head's own `predict`."""
        return self.model.predict(features, [image_info_of(meta) for meta in img_metas])

    def losses(
        self,
        features: Sequence[Tensor],
        targets: Sequence[Target] | Mapping[str, Tensor],
        img_metas: Metas,
        draws: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses under the official names; see the head's own `losses`.

        Args:
            features: Maps of the backbone.
            targets: One dict per image; of a segmentor also one dict with "labels" (B, H, W).
            img_metas: What is known of the images.
            draws: Samples or denoising queries to use instead of drawing them.
        """
        image_infos = [image_info_of(meta) for meta in img_metas]
        every = [{"labels": labels} for labels in targets["labels"]] if isinstance(targets, Mapping) else targets
        found = self.model.losses(features, every, image_infos, draws)
        return found.losses | found.metrics


def image_info_of(meta: Mapping[str, Any]) -> ImageInfo:
    """Describe an image by its official `img_metas` entry; heights and widths first, channels are ignored.

    parity: the scale is rounded to float32, one factor per axis.
    """
    size = _shape(meta["img_shape"])
    padded = _shape(meta.get("pad_shape", size))
    original = _shape(meta.get("ori_shape", size))
    image_info = ImageInfo.make(
        size, padded=padded, batch=_shape(meta.get("batch_input_shape", size)), original=original
    )
    horizontal, vertical = torch.tensor(image_info.scale, dtype=torch.float32).tolist()
    return image_info._replace(scale=(horizontal, vertical))


def _shape(shape: Sequence[int]) -> tuple[int, int]:
    return int(shape[0]), int(shape[1])


def build_official_head(
    family: str, arch: Mapping[str, Any], *, test_cfg: Mapping[str, Any] | None = None
) -> OfficialHead:
    """Build one of the authors' heads, neck included.

    Args:
        family: "mask_rcnn", "upernet" or "dino".
        arch: Its sizes under the names of the reference.
        test_cfg: How it predicts, where the family has a choice.

    Raises:
        ValueError: Another family, or sizes that are missing.
    """
    builders = {"mask_rcnn": _mask_rcnn, "upernet": _upernet, "dino": _dino}
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
    return OfficialHead(head, MASK_RCNN)


def _upernet(arch: Mapping[str, Any]) -> OfficialHead:
    head = UperNetHead(
        arch["in_channels"],
        arch["num_classes"],
        channels=arch.get("channels", 512),
        auxiliary_channels=arch.get("aux_channels", 256),
    )
    return OfficialHead(head, UPERNET)


def _dino(arch: Mapping[str, Any]) -> OfficialHead:
    head = DINOHead(
        arch["in_channels"],
        arch["num_classes"],
        sizes=LayerSizes(arch.get("embed_dims", 256), arch.get("ffn_channels", 2048)),
        encoder_depth=arch.get("enc_layers", 6),
        decoder_depth=arch.get("dec_layers", 6),
        num_queries=arch.get("num_query", 900),
        num_noisy_queries=arch.get("num_dn_queries", 100),
        max_detections=arch.get("max_per_img", 300),
    )
    return OfficialHead(head, DINO)
