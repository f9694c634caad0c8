"""Denoising: queries from target boxes with noise, which must recover the box or be classified as background.

Source: arXiv 2203.03605, section 3.3; order of draws and constants of the released detectors (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.heads.dino.boxes import inverse_sigmoid, to_relative
from piip.heads.dino.matching import Match
from piip.structures import ImageInfo, Target

WRONG_LABELS = 0.25  # fraction of labels that are redrawn
UNUSED = -1


class NoiseLayout(NamedTuple):
    """Layout of the noisy copies.

    Slots come in groups; each group has a near copy of every true box, then a far one. Images with fewer true boxes
    than others leave slots unused.

    Attributes:
        counts: True boxes of every image.
        num_groups: Number of groups.
    """

    counts: tuple[int, ...]
    num_groups: int

    @staticmethod
    def make(targets: Sequence[Target], wanted: int) -> NoiseLayout:
        """Return a layout with about the requested number of slots.

        Args:
            targets: "labels" (G,) of every image.
            wanted: Requested number of near copies per image.
        """
        counts = tuple(len(target["labels"]) for target in targets)
        return NoiseLayout(counts, max(1, wanted // max(1, *counts)))

    @property
    def max_targets(self) -> int:
        """Maximum number of target boxes per image."""
        return max(self.counts)

    @property
    def num_slots(self) -> int:
        """Number P of slots."""
        return 2 * self.max_targets * self.num_groups

    def copies(self, image: int, device: torch.device) -> Tensor:
        """Return the slots of an image's copies, (2 * num_groups, G): near and far ones in turn."""
        start = torch.arange(2 * self.num_groups, device=device)[:, None] * self.max_targets
        return start + torch.arange(self.counts[image], device=device)

    def matches(self, device: torch.device) -> list[Match]:
        """Return the pairs of slots with near copies and true boxes, for every image."""
        pairs = []
        for image, count in enumerate(self.counts):
            near = self.copies(image, device)[0::2]
            pairs.append(Match(near.flatten(), torch.arange(count, device=device).repeat(self.num_groups)))
        return pairs

    def attn_mask(self, num_queries: int, device: torch.device) -> Tensor | None:
        """Return True where a query (row) cannot see another (column), (P + Q, P + Q); None without slots.

        Slots see their own group and the matching queries behind them; matching queries see no slots.
        """
        if not self.num_slots:
            return None
        group = torch.full((self.num_slots + num_queries,), -1, device=device)
        group[: self.num_slots] = torch.arange(self.num_slots, device=device) // (2 * self.max_targets)
        return (group[:, None] != group) & (group >= 0)


class Noise(NamedTuple):
    """Noisy copies of the true boxes.

    Attributes:
        labels: Class of every slot, possibly a wrong one, -1 where unused, int64, (B, P).
        boxes: x, y, w, h relative to the image, in logits, 0 where unused, float32, (B, P, 4).
    """

    labels: Tensor
    boxes: Tensor


def draw_noise(
    layout: NoiseLayout, targets: Sequence[Target], image_infos: Sequence[ImageInfo], num_classes: int
) -> Noise:
    """Draw noisy copies of the true boxes.

    Random numbers are drawn on the CPU, so they are the same on every device.

    Args:
        layout: Layout of the copies.
        targets: "boxes" (G, 4) in network pixels and "labels" (G,) of every image.
        image_infos: Sizes and padding of the images.
        num_classes: Number of classes K that wrong labels are drawn from.
    """
    copies = 2 * layout.num_groups
    labels = torch.cat([target["labels"] for target in targets]).repeat(copies)  # copy by copy, all images each
    relative = [
        to_relative(target["boxes"], image_info.size) for target, image_info in zip(targets, image_infos, strict=True)
    ]
    boxes = torch.cat(relative).repeat(copies, 1)
    device = labels.device

    wrong = (torch.rand(len(labels)) < WRONG_LABELS).nonzero().squeeze(1)
    labels[wrong.to(device)] = torch.randint(num_classes, (len(wrong),)).to(device)

    sign = torch.randint(2, (len(boxes), 4)).float() * 2 - 1
    shift = torch.rand(len(boxes), 4).unflatten(0, (copies, -1)) if len(boxes) else torch.zeros(copies, 0, 4)
    shift[1::2] += 1  # far copies
    moved = _move_corners(boxes, (shift.flatten(0, 1) * sign).to(device))
    logits = inverse_sigmoid(moved)

    noise = Noise(
        torch.full((len(targets), layout.num_slots), UNUSED, device=device),
        torch.zeros(len(targets), layout.num_slots, 4, device=device),
    )
    parts = zip(
        labels.view(copies, -1).split(layout.counts, 1), logits.view(copies, -1, 4).split(layout.counts, 1), strict=True
    )
    for image, (label, logit) in enumerate(parts):
        slots = layout.copies(image, device)
        noise.labels[image, slots], noise.boxes[image, slots] = label, logit
    return noise


def _move_corners(boxes: Tensor, shift: Tensor) -> Tensor:
    """Move the corners of boxes (N, 4) by shifts (N, 4) in units of half the sides, and clip to the image.

    parity: corners may change places, which gives negative sides; they become the smallest in logits.
    """
    half = boxes[:, 2:].repeat(1, 2) / 2
    return box_convert((box_convert(boxes, "cxcywh", "xyxy") + shift * half).clamp(0, 1), "xyxy", "cxcywh")
