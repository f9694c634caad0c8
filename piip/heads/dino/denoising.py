"""Denoising: queries from target boxes with noise, which must recover the box or be classified as background.

Source: arXiv 2203.03605, section 3.3; order of draws and constants of the released detectors (`docs/official.md`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.heads.dino.boxes import inverse_sigmoid
from piip.heads.dino.matching import Match
from piip.heads.dino.targets import TrueBoxes

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
    def make(counts: tuple[int, ...], wanted: int) -> NoiseLayout:
        """Return a layout with about the requested number of slots.

        Args:
            counts: True boxes of every image.
            wanted: Requested number of near copies per image.
        """
        return NoiseLayout(counts, max(1, wanted // max(1, *counts)))

    @property
    def max_targets(self) -> int:
        """Maximum number of target boxes per image."""
        return max(self.counts)

    @property
    def num_slots(self) -> int:
        """Number P of slots."""
        return 2 * self.max_targets * self.num_groups

    def copies(self, truth: TrueBoxes) -> Tensor:
        """Return the slots of the copies of all true boxes, (2 * num_groups, G): near and far ones in turn."""
        starts = torch.arange(2 * self.num_groups, device=truth.ranks.device) * self.max_targets
        return starts[:, None] + truth.ranks

    def match(self, truth: TrueBoxes) -> Match:
        """Return the pairs of slots with near copies and true boxes, for one set of predictions."""
        near = self.copies(truth)[0::2]
        every = torch.arange(near.shape[1], device=near.device).expand_as(near)
        return Match(near.reshape(1, -1), every.reshape(1, -1))

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


def draw_noise(layout: NoiseLayout, truth: TrueBoxes, num_classes: int) -> Noise:
    """Draw noisy copies of the true boxes.

    Random numbers are drawn on the CPU, so they are the same on every device.

    Args:
        layout: Layout of the copies.
        truth: True boxes of the batch.
        num_classes: Number of classes K that wrong labels are drawn from.
    """
    copies = 2 * layout.num_groups
    labels = truth.labels.repeat(copies)  # copy by copy, all images each
    boxes = truth.relative.repeat(copies, 1)
    device = labels.device

    wrong = (torch.rand(len(labels)) < WRONG_LABELS).nonzero().squeeze(1)
    labels[wrong.to(device)] = torch.randint(num_classes, (len(wrong),)).to(device)

    sign = torch.randint(2, (len(boxes), 4)).float() * 2 - 1
    shift = torch.rand(len(boxes), 4).unflatten(0, (copies, -1)) if len(boxes) else torch.zeros(copies, 0, 4)
    shift[1::2] += 1  # far copies
    moved = _move_corners(boxes, (shift.flatten(0, 1) * sign).to(device))
    logits = inverse_sigmoid(moved)

    size = (len(truth.counts), layout.num_slots)
    noise = Noise(torch.full(size, UNUSED, device=device), torch.zeros(*size, 4, device=device))
    places = truth.images, layout.copies(truth)  # (copies, G)
    noise.labels[places] = labels.view(copies, -1)
    noise.boxes[places] = logits.view(copies, -1, 4)
    return noise


def _move_corners(boxes: Tensor, shift: Tensor) -> Tensor:
    """Move the corners of boxes (N, 4) by shifts (N, 4) in units of half the sides, and clip to the image.

    parity: corners may change places, which gives negative sides; they become the smallest in logits.
    """
    half = boxes[:, 2:].repeat(1, 2) / 2
    return box_convert((box_convert(boxes, "cxcywh", "xyxy") + shift * half).clamp(0, 1), "xyxy", "cxcywh")
