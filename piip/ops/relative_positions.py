"""Tables of relative positions: which row a pair of tokens reads, and how a table is resized to another window.

Source: BEiT (arXiv 2106.08254), its public fine-tuning code: distances of a larger window are spread over those of a
smaller one in geometric progression, so that near ones keep their own values; between them cubic splines.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from piip.ops.positions import kept
from piip.structures import Grid


@kept
def relative_positions(grid: Grid, has_class: bool, device: torch.device) -> Tensor:
    """Return the row of a table of relative positions for every pair of tokens, int64, (P + N, P + N).

    Row (dy + H - 1) * (2W - 1) + dx + W - 1 for the offset (dy, dx) = query - key; with a class token in front, three
    more rows at the end: class to patch, patch to class, class to class.

    Args:
        grid: (H, W).
        has_class: Whether there is a class token.
        device: Device of the result.

    Source: BEiT (arXiv 2106.08254), Swin (arXiv 2103.14030).
    """
    height, width = grid
    row = torch.arange(height, device=device).repeat_interleave(width)
    column = torch.arange(width, device=device).repeat(height)
    down = row[:, None] - row + height - 1
    across = column[:, None] - column + width - 1
    patches = down * (2 * width - 1) + across
    if not has_class:
        return patches
    rows = (2 * height - 1) * (2 * width - 1)
    index = torch.full((len(row) + 1, len(row) + 1), rows, device=device)
    index[1:, 0] = rows + 1
    index[0, 0] = rows + 2
    index[1:, 1:] = patches
    return index


def resize_table(table: Tensor, stored: Grid, wanted: Grid, extra: int = 0) -> Tensor:
    """Resize a table of relative positions to another window, in float32.

    Args:
        table: ((2h - 1)(2w - 1) + extra, heads).
        stored: The window (h, w) it belongs to.
        wanted: The wanted window (H, W).
        extra: Last rows that are no offsets and stay.

    Returns:
        ((2H - 1)(2W - 1) + extra, heads), in the table's dtype.
    """
    if tuple(stored) == tuple(wanted):
        return table
    offsets = table[: len(table) - extra].float().unflatten(0, (2 * stored[0] - 1, 2 * stored[1] - 1))
    rows, columns = (spline_weights(old, new, table.device) for old, new in zip(stored, wanted, strict=True))
    resized = torch.einsum("Yy,Xx,yxh->YXh", rows, columns, offsets).flatten(0, 1)
    return torch.cat((resized.to(table.dtype), table[len(table) - extra :]))


@kept
def spline_weights(stored: int, wanted: int, device: torch.device) -> Tensor:
    """Return the matrix that resizes one axis of a table, float32, (2 * wanted - 1, 2 * stored - 1).

    Args:
        stored: Side of the window the table belongs to.
        wanted: Side of the wanted window.
        device: Device of the result.
    """
    known = geometric_distances(stored, wanted)
    asked = np.clip(np.arange(1 - wanted, wanted, dtype=np.float64), known[0], known[-1])
    return torch.tensor(_spline_matrix(known, asked), dtype=torch.float32, device=device)


def geometric_distances(stored: int, wanted: int) -> np.ndarray:
    """Return where the 2 * stored - 1 distances of a table lie among those of another window.

    They are 0 and sums of a geometric progression from 1 to `wanted` - 1, in both directions.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (stored - 1)) / (1 - ratio) > wanted - 1:
            high = ratio
        else:
            low = ratio
    outward = list(accumulate(ratio**step for step in range(stored - 1)))
    return np.array([-distance for distance in reversed(outward)] + [0.0, *outward])


def _spline_matrix(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the weights of known values in a not-a-knot cubic spline at the asked places, (asked, known)."""
    count, steps = len(known), np.diff(known)
    if count < 4:
        return np.stack([np.interp(asked, known, unit) for unit in np.eye(count)], 1)
    left, right = np.zeros((count, count)), np.zeros((count, count))  # left @ curvatures = right @ values
    for i in range(1, count - 1):
        left[i, i - 1 : i + 2] = steps[i - 1], 2 * (steps[i - 1] + steps[i]), steps[i]
        right[i, i - 1 : i + 2] = 6 / steps[i - 1], -6 / steps[i - 1] - 6 / steps[i], 6 / steps[i]
    left[0, :3] = steps[1], -(steps[0] + steps[1]), steps[0]
    left[-1, -3:] = steps[-1], -(steps[-2] + steps[-1]), steps[-2]
    curvatures = np.linalg.solve(left, right)
    cell = np.clip(np.searchsorted(known, asked, side="right") - 1, 0, count - 2)
    step, values = steps[cell][:, None], np.eye(count)
    below, above = (known[cell + 1] - asked)[:, None], (asked - known[cell])[:, None]
    bend = (below**3 / step - below * step) * curvatures[cell] + (above**3 / step - above * step) * curvatures[cell + 1]
    return (below * values[cell] + above * values[cell + 1]) / step + bend / 6
