"""How the authors name the parameters of detection and segmentation heads."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from piip.checkpoints.layouts import Origin, Rename, Shape, unchanged


@dataclass(frozen=True)
class HeadNames:
    """How the authors name the parameters of a head.

    Args:
        renames: Regular expressions of our names, and theirs.
        unused: Names and shapes of what their files hold and we do not.
    """

    renames: tuple[Rename, ...]
    unused: tuple[tuple[str, Shape], ...] = ()

    def origin(self, name: str, shape: Shape) -> Origin:
        """Return the official tensor of a parameter of ours; files may lack the counts of batches, which start anew."""
        for ours, theirs in self.renames:
            name = re.sub(ours, theirs, name)
        if name.endswith(".num_batches_tracked"):
            return Origin((), {name: shape}, lambda: torch.zeros((), dtype=torch.long))
        return unchanged(name, shape)


_MASK_RCNN: tuple[Rename, ...] = (
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
_UPERNET: tuple[Rename, ...] = (
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
_DINO: tuple[Rename, ...] = (
    (r"^neck\.maps\.(\d+)\.0\.", r"neck.convs.\1.conv."),
    (r"^neck\.maps\.(\d+)\.1\.", r"neck.convs.\1.gn."),
    (r"^neck\.further\.(\d+)\.0\.", r"neck.extra_convs.\1.conv."),
    (r"^neck\.further\.(\d+)\.1\.", r"neck.extra_convs.\1.gn."),
    (r"\.self_attention\.", ".attentions.0.attn."),
    (r"\.cross_attention\.", ".attentions.1."),
    (r"\.attention\.", ".attentions.0."),
    (r"\.offsets\.", ".sampling_offsets."),
    (r"\.weights\.", ".attention_weights."),
    (r"\.value\.", ".value_proj."),
    (r"(attentions\.\d+)\.output\.", r"\1.output_proj."),
    (r"\.feed_forward\.0\.", ".ffns.0.layers.0.0."),
    (r"\.feed_forward\.2\.", ".ffns.0.layers.1."),
    (r"^encoder\.level_embeds", "level_embeds"),
    (r"^decoder\.positions\.", "decoder.ref_point_head."),
    (r"^selection\.output\.", "enc_output."),
    (r"^selection\.norm\.", "enc_output_norm."),
    (r"^queries\.", "query_embed."),
    (r"^(?=level_embeds|encoder|decoder|enc_output|query_embed)", "bbox_head.transformer."),
    (r"^scores\.", "bbox_head.cls_branches."),
    (r"^boxes\.", "bbox_head.reg_branches."),
    (r"^labels\.", "bbox_head.label_embedding."),
)

MASK_RCNN = HeadNames(
    _MASK_RCNN + tuple((rf"^masks\.convs\.{2 * i}\.", f"roi_head.mask_head.convs.{i}.conv.") for i in range(4))
)
UPERNET = HeadNames(_UPERNET)
DINO = HeadNames(_DINO)
HEAD_NAMES = {"mask_rcnn": MASK_RCNN, "upernet": UPERNET, "dino": DINO}
