"""Maps at strides of 2, 4, 8, ..., as the decoders of other libraries expect them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.layers.merge import resize_map
from piip.serialization.base import PyramidModel


def checked_model(model: nn.Module) -> PyramidModel:
    """Return a model if it is one of this library.

    Raises:
        ValueError: It is another module.
    """
    if not isinstance(model, PyramidModel):
        raise ValueError(
            f"Expected a model of piip, got {type(model).__name__}: piip.create_model(NAME, features_only=True), "
            "piip.build_backbone(config) or piip.from_pretrained(DIRECTORY)."
        )
    return model


class OctaveLevels(nn.Module):
    """The maps of a pyramid at strides that double from one to the next and are powers of two.

    A map of another stride (that of a ViT with patches of 14 pixels, for instance) is resized bilinearly to the nearest
    power of two, and every map to `ceil(side / stride)`, the size that convolutions with padding return.

    Args:
        backbone: Returns one merged map, the levels of a neck, or the stages of a single network.
        out_indices: Indices of the maps to use, None for all.

    Attributes:
        strides: Image pixels per cell of each level.
        channels: Channels of each level.
        mean: Channel means of the images, RGB in [0, 1].
        std: Channel standard deviations of the images.

    Raises:
        ValueError: The strides do not double.
    """

    def __init__(self, backbone: PIIPBackbone, *, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        info = backbone.feature_info
        info = info if out_indices is None else info.from_other(out_indices)
        self.backbone = backbone
        self.out_indices = info.out_indices
        self.channels: list[int] = info.channels()
        self.strides = [2 ** round(math.log2(stride)) for stride in info.reduction()]
        self.mean, self.std = list(backbone.pretrained_cfg["mean"]), list(backbone.pretrained_cfg["std"])
        if any(coarse != 2 * fine for fine, coarse in zip(self.strides, self.strides[1:], strict=False)):
            raise ValueError(
                f"The pyramid returns maps of strides {_listed(info.reduction())}, expected one map, or strides that "
                "double: set ModelConfig.merge to a kind that makes one map and ModelConfig.neck to kind 'simple'."
            )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return maps (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) of normalised RGB images (B, 3, H, W)."""
        maps = self.backbone(image)
        height, width = image.shape[-2:]
        chosen = zip(self.out_indices, self.strides, strict=True)
        return [resize_map(maps[index], (-(-height // stride), -(-width // stride))) for index, stride in chosen]


def _listed(strides: Sequence[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)
