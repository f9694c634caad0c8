"""Resizing of tables to another grid, by the rules of the authors' release.

Position tables and patch kernels: bicubic, no antialias, float32. BEiT's bias tables: splines over distances that grow
geometrically (`piip.ops.relative_positions`).

Source: the authors' public release, code state of 2025-08-05; `docs/official.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops.relative_positions import resize_table as resize_bias_table
from piip.serialization.weights import StoredTensor

CLASS_ROWS = 3  # of BEiT's tables, at the end: class to patch, patch to class, class to class
TABLES = ("pos_embed", "position_embedding.weight", "spatial_pos_embed.weight")
Change = Callable[[Tensor], Tensor]


def fitted(name: str, tensor: StoredTensor, wanted: tuple[int, ...]) -> StoredTensor | None:
    """Resize a stored tensor to another shape.

    Args:
        name: The tensor's official name, which determines the rule.
        tensor: The stored tensor.
        wanted: The branch's shape.

    Returns:
        The tensor, resized when it is read; None if no rule applies.
    """
    shape = tensor.facts.shape
    if shape == wanted:
        return tensor
    change: Change | None = None
    if name.endswith(TABLES):
        change = _position_change(shape, wanted)
    elif name.endswith("relative_position_bias_table"):
        change = _bias_change(shape, wanted)
    elif len(shape) == len(wanted) == 4 and shape[:2] == wanted[:2] and "patch_embed" in name:
        change = _kernel_change(wanted)
    elif math.prod(shape) == math.prod(wanted) and shape[: len(wanted)] == wanted[: len(shape)]:
        change = _shape_change(wanted)  # a linear layer stored as a 1x1 convolution
    return None if change is None else tensor.reshaped(wanted, _in_float(change))


def fitted_own(name: str, tensor: StoredTensor, wanted: tuple[int, ...]) -> StoredTensor | None:
    """Resize a tensor of a saved model to the shape that another model of this library has.

    Args:
        name: Our name.
        tensor: The stored tensor.
        wanted: The other model's shape.

    Returns:
        The tensor, resized when it is read; None if no rule applies.
    """
    shape = tensor.facts.shape
    if not name.endswith("relative_position_bias_table") or len(shape) != 2 or shape[1:] != wanted[1:]:
        return fitted(name, tensor, wanted)
    for extra in (0, CLASS_ROWS):  # rows of a class token, which both tables have or both lack
        sides = [math.isqrt(max(0, rows - extra)) for rows in (shape[0], wanted[0])]
        if all(
            side % 2 and side * side + extra == rows for side, rows in zip(sides, (shape[0], wanted[0]), strict=True)
        ):
            stored, window = ((side + 1) // 2 for side in sides)
            change = _table_change(stored, window, extra)
            return tensor.reshaped(wanted, _in_float(change))
    return None


def _table_change(stored: int, window: int, extra: int) -> Change:
    return lambda value: resize_bias_table(value, (stored, stored), (window, window), extra)


def _in_float(change: Change) -> Change:
    return lambda value: change(value.float()).to(value.dtype)


def _shape_change(wanted: Sequence[int]) -> Change:
    return lambda value: value.reshape(tuple(wanted))


def _kernel_change(wanted: Sequence[int]) -> Change:
    size = tuple(wanted[2:])
    return lambda value: F.interpolate(value, size=size, mode="bicubic", align_corners=False)


def split_rows(rows: int) -> tuple[int, int]:
    """Return the number of class token rows of a position table, and the side of the rest."""
    side = math.isqrt(rows)
    return rows - side * side, side


def _position_change(shape: Sequence[int], wanted: Sequence[int]) -> Change | None:
    if len(shape) < 2 or shape[-1] != wanted[-1]:
        return None
    (given_rows, given_side), (rows, side) = split_rows(shape[-2]), split_rows(wanted[-2])
    if given_rows < rows:
        return None

    def change(value: Tensor) -> Tensor:
        table = value.reshape(-1, value.shape[-1])
        first, patches = table[:rows], table[given_rows:]
        if side != given_side:
            patches = resize_positions(patches, given_side, side)
        return torch.cat((first, patches)).reshape(tuple(wanted))

    return change


def resize_positions(table: Tensor, given_side: int, side: int) -> Tensor:
    """Resize a square position table.

    Args:
        table: (given_side ** 2, C), float32.
        given_side: Side of the table.
        side: Side of the result.

    Returns:
        (side ** 2, C).
    """
    grid = table.T.reshape(1, -1, given_side, given_side)
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False).flatten(2)[0].T


def _bias_change(shape: Sequence[int], wanted: Sequence[int]) -> Change | None:
    if len(shape) != 2 or shape[0] < CLASS_ROWS or shape[1] != wanted[1]:
        return None
    side, wanted_side = math.isqrt(shape[0] - CLASS_ROWS), math.isqrt(wanted[0])
    if side * side + CLASS_ROWS != shape[0] or wanted_side * wanted_side != wanted[0]:
        return None

    stored, window = (side + 1) // 2, (wanted_side + 1) // 2
    return lambda value: resize_bias_table(value[:-CLASS_ROWS], (stored, stored), (window, window))
