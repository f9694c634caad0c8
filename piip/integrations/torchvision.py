"""Detectors of torchvision over a pyramid: `detection_backbone`.

torchvision's Mask R-CNN, Faster R-CNN, Keypoint R-CNN, RetinaNet and FCOS take any module with `out_channels` that
returns an ordered dict of maps. `docs/integrations.md` shows each of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from piip.integrations.levels import OctaveLevels, checked_model


class DetectionBackbone(nn.Module):
    """A pyramid and a feature pyramid network, in the form of torchvision's `BackboneWithFPN`.

    Args:
        levels: Maps of a pyramid.
        fpn: Maps them to `out_channels`.
        out_channels: Channels of every returned map.

    Attributes:
        image_mean: Pass it to the detector: the channel means that the pyramid expects, RGB in [0, 1].
        image_std: Pass it to the detector: the channel standard deviations.
    """

    def __init__(self, levels: OctaveLevels, fpn: FeaturePyramidNetwork, *, out_channels: int) -> None:
        super().__init__()
        self.levels = levels
        self.fpn = fpn
        self.out_channels = out_channels
        self.image_mean, self.image_std = levels.mean, levels.std

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        """Return maps (B, out_channels, H_i, W_i) of normalised RGB images (B, 3, H, W), finest first.

        Returns:
            The levels under "0", "1", ..., then those of the extra block ("pool", or "p6" and "p7").
        """
        maps = self.levels(image)
        return self.fpn(OrderedDict((str(index), feature_map) for index, feature_map in enumerate(maps)))


def detection_backbone(
    model: nn.Module,
    *,
    out_channels: int = 256,
    out_indices: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> DetectionBackbone:
    """Return a pyramid as the backbone of torchvision's detectors.

    Args:
        model: A model of this library; its backbone is used, not copied, and a head is left out.
        out_channels: Channels of the feature pyramid network.
        out_indices: Which maps of the pyramid to use, None for all: (1, 2, 3) are strides 8, 16 and 32 of four levels.
        extra_blocks: Coarser levels from these, None for `LastLevelMaxPool`: one at twice the last stride.

    Raises:
        ValueError: It is no model of this library, or its maps do not double in stride.

    Example:
        >>> backbone = detection_backbone(piip.build_backbone(config))
        >>> detector = MaskRCNN(backbone, num_classes=3, image_mean=backbone.image_mean, image_std=backbone.image_std)
    """
    levels = OctaveLevels(checked_model(model).get_backbone(), out_indices=out_indices)
    fpn = FeaturePyramidNetwork(levels.channels, out_channels, extra_blocks=extra_blocks or LastLevelMaxPool())
    return DetectionBackbone(levels, fpn, out_channels=out_channels)
