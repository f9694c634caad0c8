"""UperNet: semantic segmentation from the maps of a backbone, with an auxiliary head for training.

Source: arXiv 1807.10221; rules of the released segmentors (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from piip.heads.base import DenseHead, LossesAndMetrics
from piip.layers.outputs import ExportWrapper, Output
from piip.structures import IGNORE_INDEX, HeadOutput, ImageInfo, Target

if TYPE_CHECKING:
    from piip.models import PIIPDenseModel

POOLED_SIDES = (1, 2, 3, 6)
AUXILIARY_MAP = 2  # the third map, stride 16
AUXILIARY_WEIGHT = 0.4


class ConvBlock(nn.Sequential):
    """Convolution without bias, batch norm, ReLU.

    Args:
        in_channels: Width of the map.
        out_channels: Width of the result.
        kernel_size: 1 or 3; the size of the map stays.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False))
        self.add_module("norm", nn.BatchNorm2d(out_channels))
        self.add_module("act", nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W).

        One value per channel, as in the 1x1 pooled map of a single image, has no variance, so PyTorch cannot train with
        it. Such a map is normalised by the running statistics, as at evaluation, and does not change them.
        """
        norm: Any = self[1]
        if not self.training or maps.numel() > maps.shape[1] or shares_statistics(norm):
            return super().forward(maps)
        normalised = F.batch_norm(
            self[0](maps), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        return self[2](normalised)


def shares_statistics(norm: nn.Module) -> bool:
    """Return whether a norm uses the values of all processes, which must then all call it."""
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map (B, C, h, w) bilinearly to (H, W)."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


class UperNetHead(DenseHead):
    """Pyramid pooling on the coarsest map, a feature pyramid above it, one classifier on all levels.

    Args:
        in_channels: Width of the maps, finest first.
        num_classes: Number of classes K.
        channels: Width inside.
        auxiliary_channels: Width of the auxiliary head.
        dropout: Fraction of channels dropped before the classifiers in training.
    """

    task = "semantic"
    title = "Semantic segmentation"
    hub_task = "image-segmentation"

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        auxiliary_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pools = nn.ModuleList([ConvBlock(in_channels[-1], channels, 1) for _ in POOLED_SIDES])
        self.bottleneck = ConvBlock(in_channels[-1] + len(POOLED_SIDES) * channels, channels, 3)
        self.laterals = nn.ModuleList([ConvBlock(width, channels, 1) for width in in_channels[:-1]])
        self.outputs = nn.ModuleList([ConvBlock(channels, channels, 3) for _ in in_channels[:-1]])
        self.fusion = ConvBlock(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary = ConvBlock(in_channels[min(AUXILIARY_MAP, len(in_channels) - 1)], auxiliary_channels, 3)
        self.auxiliary_classifier = nn.Conv2d(auxiliary_channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, H, W) on the grid of the finest map."""
        merged = [self._pool(maps[-1])]
        for lateral, feature_map in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            finer = lateral(feature_map)
            merged.insert(0, finer + resize_logits(merged[0], finer.shape[-2:]))
        levels = [*(layer(level) for layer, level in zip(self.outputs, merged[:-1], strict=True)), merged[-1]]
        size = levels[0].shape[-2:]
        joined = torch.cat([levels[0], *(resize_logits(level, size) for level in levels[1:])], 1)
        logits: Tensor = self.classifier(self.dropout(self.fusion(joined)))
        return logits

    def _pool(self, coarsest: Tensor) -> Tensor:
        size = coarsest.shape[-2:]
        pooled = [
            resize_logits(block(F.adaptive_avg_pool2d(coarsest, side)), size)
            for block, side in zip(self.pools, POOLED_SIDES, strict=True)
        ]
        merged: Tensor = self.bottleneck(torch.cat([coarsest, *pooled], 1))
        return merged

    def forward_auxiliary(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the auxiliary logits (B, K, h, w) on the grid of the third map."""
        third = maps[min(AUXILIARY_MAP, len(maps) - 1)]
        logits: Tensor = self.auxiliary_classifier(self.dropout(self.auxiliary(third)))
        return logits

    @torch.no_grad()
    def predict(
        self,
        maps: Sequence[Tensor],
        image_infos: Sequence[ImageInfo],
        *,
        rescale: bool = True,
        max_detections: int | None = None,
    ) -> list[HeadOutput]:
        """Return the class of every pixel.

        Args:
            maps: Maps of the backbone.
            image_infos: Sizes and padding of the images.
            rescale: Answer in pixels of the original image instead of network pixels.
            max_detections: Not used.

        Returns:
            "labels" (H, W) of every image.
        """
        logits = self(maps).float()
        return [  # max: argmax over channels is several times slower on CPUs
            {"labels": self.probabilities(logits[index : index + 1], image_info, rescale=rescale)[0].max(0).indices}
            for index, image_info in enumerate(image_infos)
        ]

    def probabilities(self, logits: Tensor, image_info: ImageInfo, *, rescale: bool = True) -> Tensor:
        """Return the probabilities (B, K, H, W) that logits on any grid mean for an image.

        Args:
            logits: (B, K, h, w) over the batch's size, padding included.
            image_info: The image.
            rescale: Answer in pixels of the original image instead of network pixels.
        """
        height, width = image_info.size
        full = resize_logits(logits, image_info.batch)[..., :height, :width]
        return (resize_logits(full, image_info.original) if rescale else full).softmax(1)

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Return the stages of the head by part; see `DenseHead.parts`. The auxiliary head runs in training only."""
        return {
            "pooling": [*self.pools, self.bottleneck],
            "fpn": [*self.laterals, *self.outputs],
            "fusion": [self.fusion, self.classifier],
        }

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Target],
        image_infos: Sequence[ImageInfo],
        samples: Mapping[str, Any] | None = None,
    ) -> LossesAndMetrics:
        """Return the losses, and the accuracies in percent.

        parity: ignored pixels count as zero in the mean.

        Args:
            maps: Maps of the backbone.
            targets: "labels" (H, W) of every image in batch pixels, 255 for pixels to ignore.
            image_infos: Sizes and padding of the images.
            samples: Not used: nothing is drawn.
        """
        labels = torch.stack([target["labels"] for target in targets])
        main, auxiliary = self(maps), self.forward_auxiliary(maps)
        losses, metrics = {}, {}
        for name, logits, weight in (("decode", main, 1.0), ("aux", auxiliary, AUXILIARY_WEIGHT)):
            # Channels-last maps would make the softmax over a few classes slow.
            full = resize_logits(logits.float().contiguous(), (labels.shape[1], labels.shape[2]))
            each = F.cross_entropy(full, labels, ignore_index=IGNORE_INDEX, reduction="none")
            losses[f"{name}.loss_ce"] = weight * each.mean()
            seen = labels != IGNORE_INDEX
            right = (full.detach().max(1).indices == labels) & seen
            metrics[f"{name}.acc_seg"] = right.sum() / seen.sum() * 100
        return LossesAndMetrics(losses, metrics)

    def export_wrapper(self, model: PIIPDenseModel) -> ExportWrapper:
        """Return a model with this head as one graph with logits and labels."""
        return SemanticOutputs(model)

    def summary(self) -> str:
        """Return one sentence about the output of the head, for cards."""
        return f"An UperNet head gives one of {self.num_classes} classes to every pixel."


class SemanticOutputs(ExportWrapper):
    """A segmentor as one graph: logits on the head's grid, and the class of every pixel.

    Args:
        model: The segmentor.
    """

    outputs = (
        Output("logits", "logits of the classes on the head's grid, float32 (B, K, h, w)"),
        Output("labels", "index of the class of every pixel of the input, int64 (B, H, W)"),
    )
    fixed_size = "Segmentors are exported for a fixed size, the ONNX exporter fixes the windows of their pooling"

    def __init__(self, model: PIIPDenseModel) -> None:
        super().__init__(stride=model.backbone.branches[-1].stride, min_side=model.backbone.min_side)
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, K, h, w) and labels (B, H, W) of images (B, 3, H, W)."""
        logits = self.model.segment(image)
        return logits, resize_logits(logits, image.shape[-2:]).argmax(1)
