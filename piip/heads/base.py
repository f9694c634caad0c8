"""Interface of detection and segmentation heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from piip.layers.outputs import ExportWrapper
from piip.structures import HeadOutput, ImageInfo, Target

if TYPE_CHECKING:
    from piip.models import PIIPDenseModel


class View(NamedTuple):
    """One version of an image for test-time augmentation.

    Attributes:
        maps: Maps of the backbone, (1, C_i, H_i, W_i).
        image_info: Sizes of the view; `image_info.original` is the image size.
        flipped: Whether it was flipped left to right.
    """

    maps: Sequence[Tensor]
    image_info: ImageInfo
    flipped: bool

    def to_image(self, boxes: Tensor) -> Tensor:
        """Return boxes (..., 4) of the view in pixels of the image."""
        turned = mirror(boxes, self.image_info.size[1]) if self.flipped else boxes
        return turned / turned.new_tensor(self.image_info.scale * 2)

    def from_image(self, boxes: Tensor) -> Tensor:
        """Return boxes (..., 4) of the image in pixels of the view."""
        scaled = boxes * boxes.new_tensor(self.image_info.scale * 2)
        return mirror(scaled, self.image_info.size[1]) if self.flipped else scaled


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Flip boxes (..., 4) left to right in an image of a width."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack((width - right, top, width - left, bottom), -1)


class LossesAndMetrics(NamedTuple):
    """Output of a head in training.

    Attributes:
        losses: Scalars; the total loss is their sum.
        metrics: Additional scalars to log, without gradient.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class DenseHead(nn.Module, ABC):
    """Base class of detection and segmentation heads, which read the levels of a neck.

    `forward(maps)` of a semantic head returns logits (B, K, h, w) at its own resolution; other heads are free.

    Attributes:
        task: "detection" (boxes), "instance" (boxes and masks) or "semantic" (the class of every pixel).
        title: Name of a model with this head, for cards.
        hub_task: Task on the Hugging Face hub ("pipeline_tag").
        num_classes: Number of classes K.
        max_detections: Maximum number of detections per image by default; 0 for semantic segmentation.
    """

    task: ClassVar[str]
    title: ClassVar[str]
    hub_task: ClassVar[str]
    num_classes: int
    max_detections: int = 0

    @abstractmethod
    def predict(
        self,
        maps: Sequence[Tensor],
        image_infos: Sequence[ImageInfo],
        *,
        rescale: bool = True,
        max_detections: int | None = None,
    ) -> list[HeadOutput]:
        """Return the predictions of every image.

        Args:
            maps: Maps of the backbone, finest first.
            image_infos: Size, padding and scale of every image.
            rescale: Return results in original image pixels instead of network pixels.
            max_detections: Maximum number of detections per image; None uses the head's default.

        Returns:
            One dict per image. Detection: "boxes" (N, 4) as x1, y1, x2, y2, "scores" (N,) and "labels" (N,) from 0,
            best first; instance: also "masks" bool (N, H, W); semantic: "labels" (H, W).
        """

    def dry_run(self, maps: Sequence[Tensor], image_info: ImageInfo, *, max_detections: int) -> str:
        """Run everything that costs at inference for one image, on maps without values, to count it.

        The base class runs `predict`, which is right where no shape depends on values. Where `predict` reads values it
        is counted up to there, which the answer says; such heads run their maximum numbers of regions here instead.

        Args:
            maps: Maps of the backbone on the meta device, finest first, (1, C_i, H_i, W_i).
            image_info: The image, which was not resized.
            max_detections: Maximum number of detections.

        Returns:
            What the cost assumes where it depends on the image, for printing; empty if it does not.
        """
        try:
            self.predict(maps, [image_info], max_detections=max_detections)
        except (RuntimeError, TypeError) as error:  # as PyTorch refuses to read values of the meta device
            where = f"{type(self).__name__}.predict"
            return f"the head is counted up to where {where} needs values ({str(error).splitlines()[0].rstrip('.')})"
        return ""

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Return modules of the head by part, in the order in which they run, to count each part on its own.

        Names are short ("fpn", "decoder"); modules in no part are counted together. The base class names no parts.
        """
        return {}

    @abstractmethod
    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Target],
        image_infos: Sequence[ImageInfo],
        samples: Mapping[str, Any] | None = None,
    ) -> LossesAndMetrics:
        """Return the training losses.

        Args:
            maps: Maps of the backbone, finest first.
            targets: One dict per image. Detection: "boxes" (G, 4) in network pixels and "labels" (G,) from 0; instance:
                also "masks" bool (G, H, W); semantic: "labels" (H, W) in batch pixels, 255 for pixels to ignore.
            image_infos: Size, padding and scale of every image.
            samples: Random samples of the head, to use instead of drawing them; see the head.
        """

    def predict_views(self, views: Sequence[View], *, max_detections: int) -> HeadOutput:
        """Return the detections of one image, merged from several views of it (test-time augmentation).

        Args:
            views: At least one view.
            max_detections: Maximum number of detections.

        Raises:
            ValueError: The head is for semantic segmentation.
        """
        if self.task == "semantic":
            raise ValueError("predict_views() is for detectors: average probabilities of segment() instead.")
        raise ValueError(f"{type(self).__name__} has no test-time augmentation: leave scales and flip out.")

    @abstractmethod
    def export_wrapper(self, model: PIIPDenseModel) -> ExportWrapper:
        """Return a model with this head as one graph with named outputs.

        Args:
            model: The backbone with this head.

        Raises:
            ValueError: Such a model cannot be exported.
        """

    @abstractmethod
    def summary(self) -> str:
        """Return one sentence about the output of the head, for cards."""
