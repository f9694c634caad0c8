"""Assignment of candidate boxes to target boxes, and sampling of candidates for losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from piip.heads.boxes import pairwise_iou

BACKGROUND, NEITHER = -1, -2
MAX_PAIRS = 2**22  # pairs of boxes compared at once; about 150 MB
CHUNK = 1024  # candidates of a chunk where there are more pairs


class RegionSample(NamedTuple):
    """Candidates sampled for a loss.

    Attributes:
        positives: Indices of candidates with a target box, increasing.
        negatives: Indices of background candidates, increasing.
        matched: Index of the target box of every positive.
    """

    positives: Tensor
    negatives: Tensor
    matched: Tensor


def assign_by_overlap(
    candidates: Tensor,
    target_boxes: Tensor,
    *,
    positive: float,
    negative: float,
    min_iou: float,
    allowed: Tensor | None = None,
) -> Tensor:
    """Assign true boxes to candidates.

    Every true box also gets all candidates that overlap it most, with an IoU of at least `min_iou`; later true boxes
    take candidates from earlier ones. The host waits for nothing up to `MAX_PAIRS` pairs, beyond them five times.

    Args:
        candidates: (N, 4).
        target_boxes: (G, 4).
        positive: IoU from which a candidate is a true box's, above 0.
        negative: IoU below which it is background.
        min_iou: Minimum IoU of the best candidates of a true box, above 0.
        allowed: False for candidates to leave out, (N,); None allows all.

    Returns:
        For every candidate the index of its true box, -1 for background, -2 for neither, (N,).

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.2; order and ties as in MMDetection 2.
    """
    if len(candidates) * len(target_boxes) > MAX_PAIRS:
        best, owner, most = _best_overlaps(_chunks(candidates, target_boxes, allowed), candidates, target_boxes)
        close = (best >= min_iou).nonzero().squeeze(1)  # only these can be the best of a true box
        chunks: Iterable[_Chunk] = _chunks(candidates[close], target_boxes, None)
        taker = torch.full_like(owner, -1).index_copy(0, close, _takers(chunks, most, min_iou, len(close)))
    elif len(candidates) and len(target_boxes):
        chunks = [_Chunk(slice(None), slice(None), _overlaps(candidates, target_boxes, allowed))]
        best, owner, most = _best_overlaps(chunks, candidates, target_boxes)
        taker = _takers(chunks, most, min_iou, len(candidates))
    else:
        assigned = torch.full((len(candidates),), BACKGROUND, device=candidates.device)
        return assigned if allowed is None else assigned.masked_fill(~allowed, NEITHER)
    unmatched = NEITHER + (best < negative).long()  # one more is background
    assigned = torch.where(taker >= 0, taker, torch.where(best >= positive, owner, unmatched))
    return assigned if allowed is None else assigned.masked_fill(~allowed, NEITHER)


class _Chunk(NamedTuple):
    """Candidates with the true boxes that they may overlap.

    Attributes:
        candidates: Indices of candidates, or all.
        targets: Indices of true boxes, increasing, or all.
        overlaps: IoU of every pair, (targets, candidates); -1 for candidates that are not allowed.
    """

    candidates: Tensor | slice
    targets: Tensor | slice
    overlaps: Tensor


def _chunks(candidates: Tensor, target_boxes: Tensor, allowed: Tensor | None) -> Iterator[_Chunk]:
    """Yield all pairs but those of chunks and true boxes that are apart, whose IoU is 0."""
    if not len(candidates):
        return
    pieces = _by_place(candidates).split(max(1, min(CHUNK, MAX_PAIRS // len(target_boxes))))
    low = torch.stack([candidates[piece, :2].amin(0) for piece in pieces])
    high = torch.stack([candidates[piece, 2:].amax(0) for piece in pieces])
    meet = (low[:, None] < target_boxes[:, 2:]).all(2) & (high[:, None] > target_boxes[:, :2]).all(2)
    near = meet.nonzero()[:, 1].split(meet.sum(1).tolist())
    for piece, targets in zip(pieces, near, strict=True):
        if len(targets):
            part = None if allowed is None else allowed[piece]
            yield _Chunk(piece, targets, _overlaps(candidates[piece], target_boxes[targets], part))


def _by_place(boxes: Tensor) -> Tensor:
    """Return the order (N,) of boxes by size, then along rows of squares of twice their size, back and forth."""
    size = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1).log2().ceil()
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / (2 * 2**size)[:, None]).floor().unbind(1)
    column = torch.where(row % 2 == 0, column, -column)
    order = column.argsort(stable=True)
    for key in (row, size):
        order = order[key[order].argsort(stable=True)]
    return order


def _overlaps(candidates: Tensor, target_boxes: Tensor, allowed: Tensor | None) -> Tensor:
    overlaps = pairwise_iou(target_boxes, candidates)
    return overlaps if allowed is None else overlaps.masked_fill(~allowed, -1)


def _best_overlaps(chunks: Iterable[_Chunk], candidates: Tensor, target_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return every candidate's largest IoU and its true box, (N,), and every true box's largest IoU, (G,)."""
    best = candidates.new_zeros(len(candidates))
    owner = torch.zeros(len(candidates), dtype=torch.long, device=candidates.device)
    most = target_boxes.new_zeros(len(target_boxes))
    for chunk in chunks:
        largest, first = chunk.overlaps.max(0)
        reached = chunk.overlaps.amax(1)
        if isinstance(chunk.targets, slice):  # all at once
            return largest, first, reached
        best[chunk.candidates], owner[chunk.candidates] = largest, chunk.targets[first]
        most[chunk.targets] = torch.maximum(most[chunk.targets], reached)
    return best, owner, most


def _takers(chunks: Iterable[_Chunk], most: Tensor, min_iou: float, count: int) -> Tensor:
    """Return the last true box that a candidate overlaps as much as any does, (N,), -1 for none.

    Args:
        chunks: All pairs.
        most: Largest IoU of every true box, (G,).
        min_iou: True boxes below it take none.
        count: Number of candidates.
    """
    takers = torch.full((count,), -1, device=most.device)
    numbers = torch.arange(1, len(most) + 1, device=most.device, dtype=torch.int32)
    for chunk in chunks:
        reached = most[chunk.targets, None]
        taken = (chunk.overlaps == reached) & (reached >= min_iou)
        # the last true box that takes a candidate, counted from 1, and 0 for none
        takers[chunk.candidates] = (taken * numbers[chunk.targets, None]).amax(0).long() - 1
    return takers


def draw_samples(assigned: Sequence[Tensor], count: int, positive_fraction: float) -> list[RegionSample]:
    """Draw candidates of every image at random, at most a fraction of them positive.

    All images are counted at once, since the host waits for every count.

    Args:
        assigned: Candidates of every image, (N_i,); see `assign_by_overlap`.
        count: Candidates wanted of an image.
        positive_fraction: Largest share of positives.
    """
    padded = pad_sequence([*assigned], batch_first=True, padding_value=NEITHER)  # (B, N)
    kinds = torch.stack((padded >= 0, padded == BACKGROUND), 1)
    found = kinds.nonzero()[:, 2].split(kinds.sum(2).flatten().tolist())
    samples = []
    for index, of_image in enumerate(assigned):
        positives = _draw(found[2 * index], int(count * positive_fraction))
        negatives = _draw(found[2 * index + 1], count - len(positives))
        samples.append(RegionSample(positives, negatives, of_image[positives]))
    return samples


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    order = torch.randperm(len(indices))[:count].to(indices.device)  # drawn on the CPU: the same on every device
    return indices[order].sort().values
