"""A pyramid with a head for detection or segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.config import ModelConfig
from piip.cost.counting import NamesParts
from piip.heads.base import DenseHead, LossesAndMetrics, View
from piip.layers.outputs import ExportWrapper
from piip.models.base import ModelWithHead
from piip.structures import HeadOutput, ImageInfo, Target


class PIIPDenseModel(ModelWithHead):
    """Backbone plus a detection or segmentation head.

    Args:
        backbone: The pyramid with its neck.
        head: Reads the neck's maps.
        config: Description of the model.
    """

    def __init__(self, backbone: PIIPBackbone, head: DenseHead, *, config: ModelConfig) -> None:
        super().__init__(backbone, config=config)
        self.head: DenseHead = head
        self.title, self.hub_task = head.title, head.hub_task

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PIIPDenseModel:
        """Move or cast the model, but keep the head in float32: it counts in pixels."""
        super()._apply(fn, recurse)
        self.head.float()
        return self

    def forward(
        self,
        image: Tensor,
        image_infos: Sequence[ImageInfo] | None = None,
        targets: Sequence[Target] | None = None,
    ) -> list[HeadOutput] | dict[str, Tensor]:
        """Predict, or return losses if there are targets.

        Args:
            image: Normalised RGB images, padded at the right and bottom, (B, 3, H, W).
            image_infos: Size and padding of every image; None for images that fill the batch and were not resized.
            targets: Target objects or semantic masks of every image; see `DenseHead.losses`.

        Returns:
            Predictions in pixels of the original images, see `DenseHead.predict`, or losses by name; the total is
            their sum.
        """
        if targets is None:
            return self.predict(image, image_infos)
        return self.compute_losses(image, image_infos, targets).losses

    def compute_losses(
        self, image: Tensor, image_infos: Sequence[ImageInfo] | None, targets: Sequence[Target]
    ) -> LossesAndMetrics:
        """Return the head's losses and metrics.

        Args:
            image: See `forward`.
            image_infos: See `forward`.
            targets: See `forward`.
        """
        image_infos, maps = self._prepare(image, image_infos)
        with torch.autocast(image.device.type, enabled=False):  # heads count in pixels: they stay in float32
            return self.head.losses(maps, targets, image_infos)

    @torch.no_grad()
    def predict(
        self,
        image: Tensor,
        image_infos: Sequence[ImageInfo] | None = None,
        *,
        rescale: bool = True,
        max_detections: int | None = None,
    ) -> list[HeadOutput]:
        """Predict with the options of the head.

        Args:
            image: See `forward`.
            image_infos: See `forward`.
            rescale: Return results in pixels of the original images instead of network pixels.
            max_detections: Maximum number of detections per image; None uses the head's default.
        """
        image_infos, maps = self._prepare(image, image_infos)
        with torch.autocast(image.device.type, enabled=False):
            return self.head.predict(maps, image_infos, rescale=rescale, max_detections=max_detections)

    @torch.no_grad()
    def predict_views(
        self,
        images: Sequence[Tensor],
        image_infos: Sequence[ImageInfo],
        flipped: Sequence[bool],
        *,
        max_detections: int,
    ) -> HeadOutput:
        """Return the detections of one image from several views of it; see `DenseHead.predict_views`.

        Args:
            images: Normalised RGB, of different sizes, (1, 3, H, W).
            image_infos: Size and padding of every view.
            flipped: Which views are flipped left to right.
            max_detections: Maximum number of detections.

        Raises:
            ValueError: The head is for semantic segmentation.
        """
        views = [
            View(self._prepare(image, None)[1], image_info, is_flipped)
            for image, image_info, is_flipped in zip(images, image_infos, flipped, strict=True)
        ]
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.head.predict_views(views, max_detections=max_detections)

    def segment(self, image: Tensor) -> Tensor:
        """Return the class logits of a semantic head, at its own resolution.

        Args:
            image: Normalised RGB images, (B, 3, H, W).

        Returns:
            The logits, (B, K, h, w).

        Raises:
            ValueError: The head is for another task.
        """
        if self.task != "semantic":
            raise ValueError(f"segment() needs a head for semantic segmentation, not for {self.task!r}: use predict().")
        maps = self.forward_maps(image)
        with torch.autocast(image.device.type, enabled=False):
            logits: Tensor = self.head(maps)
        return logits

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Return the maps that the head reads of normalised RGB images (B, 3, H, W), finest first, in float32."""
        return [feature_map.float() for feature_map in self.backbone(image)]

    def _prepare(
        self, image: Tensor, image_infos: Sequence[ImageInfo] | None
    ) -> tuple[Sequence[ImageInfo], list[Tensor]]:
        if image_infos is None:
            image_infos = [ImageInfo.make((image.shape[2], image.shape[3]))] * len(image)
        return image_infos, self.forward_maps(image)

    @property
    def task(self) -> str:
        """Task: "detection", "instance" or "semantic"."""
        return self.head.task

    @property
    def max_detections(self) -> int:
        """Maximum number of detections per image by default; 0 for semantic segmentation."""
        return self.head.max_detections

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.head.num_classes

    @property
    def detection_limit(self) -> int:
        """Maximum number of detections per image: the last of the limits that training saved, or the head's own."""
        limits = self.metadata.get("detections") or [self.max_detections]
        return int(limits[-1])

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part; see `ModelParts`."""
        named = {f"head: {name}": list(modules) for name, modules in self.head.parts().items()}
        return {**self.backbone.parts(), **named, self._rest_of_head: [self.head]}

    @property
    def _rest_of_head(self) -> str:
        """Name of the part with everything of the head that is in none of its parts."""
        return "head: other" if self.head.parts() else "head"

    def up_to_dense_head(self) -> PIIPBackbone:
        """Return the backbone."""
        return self.backbone

    def dry_run(self, image: Tensor, scope: NamesParts) -> str:
        """Run everything that costs at inference on an image without values; see `ModelParts` and `DenseHead`."""
        maps = self.forward_maps(image)
        # without gradients: in training the head runs on other regions and queries than these
        with torch.no_grad(), scope.part(self._rest_of_head):
            image_info = ImageInfo.make((image.shape[2], image.shape[3]))
            return self.head.dry_run(maps, image_info, max_detections=self.detection_limit)

    def summary(self) -> str:
        """Return one sentence about the output of the model, for cards."""
        return self.head.summary()

    def usage(self) -> str:
        """Return Python code that runs the model on `image`; see `PyramidModel`."""
        return "for name, values in model((image - mean) / std)[0].items():\n    print(name, tuple(values.shape))"

    def export_wrapper(self) -> ExportWrapper:
        """Return the model as one graph with the outputs of its head."""
        return self.head.export_wrapper(self)
