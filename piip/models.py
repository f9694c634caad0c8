"""Models for dense tasks: a pyramid with a detection or segmentation head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from piip.backbone import PIIPBackbone
from piip.config import ModelConfig
from piip.heads.dino.head import DINOHead
from piip.heads.image_info import ImageFrame, Prediction, Target
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.mask_rcnn.tta import View, box_views, mask_rcnn_views
from piip.heads.upernet import UperNetHead
from piip.serialization.base import DescribedModel

DenseHead = MaskRCNNHead | UperNetHead | DINOHead


class PIIPDenseModel(DescribedModel):
    """A pyramid and a head that answers for places in the image.

    Args:
        backbone: The pyramid with its neck.
        head: Reads the neck's maps.
        config: What both were built from.
    """

    def __init__(self, backbone: PIIPBackbone, head: DenseHead, *, config: ModelConfig) -> None:
        first = backbone.branches[0]
        super().__init__(config, mean=first.mean, std=first.std, image_size=backbone.image_sizes[-1])
        self.backbone = backbone
        self.head: DenseHead = head

    def forward(
        self,
        image: Tensor,
        frames: Sequence[ImageFrame] | None = None,
        targets: Sequence[Target] | None = None,
    ) -> list[Prediction] | dict[str, Tensor]:
        """Predict, or with targets return losses.

        Args:
            image: Normalised RGB images, padded at the right and bottom, (B, 3, H, W).
            frames: What is image and what padding; None for images that fill the batch and were not resized.
            targets: True objects ("boxes", "labels", "masks") or classes ("labels") of every image.

        Returns:
            Predictions in pixels of the original images, see the head's `predict`, or losses by name.
        """
        if targets is None:
            return self.predict(image, frames)
        frames, maps = self._prepare(image, frames)
        with torch.autocast(image.device.type, enabled=False):  # heads count in pixels: they stay in float32
            return self.head.losses(maps, targets, frames)

    @torch.no_grad()
    def predict(
        self,
        image: Tensor,
        frames: Sequence[ImageFrame] | None = None,
        *,
        rescale: bool = True,
        most: int | None = None,
    ) -> list[Prediction]:
        """Predict with the options of the head.

        Args:
            image: Normalised RGB images, padded at the right and bottom, (B, 3, H, W).
            frames: See `forward`.
            rescale: Answer in pixels of the original images instead of network pixels.
            most: Instances kept an image; None is the head's own limit.
        """
        frames, maps = self._prepare(image, frames)
        with torch.autocast(image.device.type, enabled=False):
            if isinstance(self.head, UperNetHead) or most is None:
                return self.head.predict(maps, frames, rescale=rescale)
            return self.head.predict(maps, frames, rescale=rescale, most=most)

    @torch.no_grad()
    def predict_views(
        self, images: Sequence[Tensor], frames: Sequence[ImageFrame], flipped: Sequence[bool], *, most: int
    ) -> Prediction:
        """Return the instances of one picture, found in several views of it; see `piip.heads.mask_rcnn.tta`.

        Args:
            images: Normalised RGB, each with a size of its own, (1, 3, H, W).
            frames: What is image and what padding.
            flipped: Which views are flipped left to right.
            most: Instances kept.

        Raises:
            ValueError: The head classifies pixels.
        """
        if isinstance(self.head, UperNetHead):
            raise ValueError("predict_views() needs a head that finds instances; average probabilities of segment().")
        views = [
            View(self._prepare(image, None)[1], frame, is_flipped)
            for image, frame, is_flipped in zip(images, frames, flipped, strict=True)
        ]
        with torch.autocast(images[0].device.type, enabled=False):
            if isinstance(self.head, MaskRCNNHead):
                return mask_rcnn_views(self.head, views, most=most)
            return box_views(self.head, views, most=most)

    def segment(self, image: Tensor) -> Tensor:
        """Return the class logits of a segmentor as its head made them, at the head's own resolution.

        Args:
            image: Normalised RGB images, (B, 3, H, W).

        Returns:
            The logits, (B, K, h, w).

        Raises:
            ValueError: The head finds instances.
        """
        if not isinstance(self.head, UperNetHead):
            raise ValueError("segment() needs a head that classifies pixels, head kind 'upernet'; use predict()")
        maps = self.forward_maps(image)
        with torch.autocast(image.device.type, enabled=False):
            logits: Tensor = self.head(maps)
        return logits

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Return the maps that the head reads of normalised RGB images (B, 3, H, W), finest first, in float32."""
        return [feature_map.float() for feature_map in self.backbone(image)]

    def _prepare(self, image: Tensor, frames: Sequence[ImageFrame] | None) -> tuple[Sequence[ImageFrame], list[Tensor]]:
        if frames is None:
            frames = [ImageFrame.make((image.shape[2], image.shape[3]))] * len(image)
        return frames, self.forward_maps(image)

    @property
    def finds(self) -> tuple[str, ...]:
        """What the model gives: "box", "box" and "mask", or "class" (of every pixel)."""
        if isinstance(self.head, UperNetHead):
            return ("class",)
        return ("box", "mask") if isinstance(self.head, MaskRCNNHead) else ("box",)

    @property
    def detections(self) -> int:
        """Instances that the head keeps of an image unless told otherwise; 0 for classes of pixels."""
        return 0 if isinstance(self.head, UperNetHead) else self.head.detections

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.head.num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the branches' blocks in the backward pass instead of keeping their activations."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that are usually not decayed."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
