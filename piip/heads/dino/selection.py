"""The first stage: selection of the cells that the decoder starts from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from piip.heads.dino.tokens import LevelTokens, cell_levels, centres_in_cells
from piip.ops.positions import kept
from piip.structures import Grid

FIRST_SIDE = 0.05  # of a box on the finest level, relative to the image; doubles every level
INSIDE = (0.01, 0.99)
MAX_LEVELS = 5  # a sixth level's boxes would be larger than the image, hence all invalid


class Selected(NamedTuple):
    """The selected cells, sorted by score.

    Attributes:
        indices: Their indices in the memory, int64, (B, Q).
        logits: Class logits, float32, (B, Q, K).
        boxes: x, y, w, h in [0, 1], relative to the image, float32, (B, Q, 4).
    """

    indices: Tensor
    logits: Tensor
    boxes: Tensor


class CellSelection(nn.Module):
    """Select the cells with the highest class logits.

    Args:
        embed_dim: Width C of the memory.
        num_queries: Maximum number of cells.
    """

    def __init__(self, embed_dim: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.output = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, memory: Tensor, levels: LevelTokens, *, score: nn.Module, refine: nn.Module) -> Selected:
        """Select cells of the memory (B, N, C).

        parity: cells that are padding or at the border are zeroed, not left out; where an image has few others they are
        chosen too, all with one score and the box (1, 1, 1, 1), which no object matches before better ones.

        Args:
            memory: Output of the encoder.
            levels: Grids and padding.
            score: Branch of the class logits.
            refine: Branch that moves a cell's own box, in logits.

        Returns:
            The same number of cells for every image.
        """
        own = cell_boxes(levels)
        cells = self.norm(self.output(memory.masked_fill(own.isinf().any(-1, keepdim=True), 0)))
        logits = score(cells).float()
        indices = logits.amax(-1).topk(min(self.num_queries, logits.shape[1]), dim=1).indices
        boxes = refine(_pick(cells, indices)).float() + _pick(own, indices)
        return Selected(indices, _pick(logits, indices), boxes.sigmoid())


def _pick(rows: Tensor, indices: Tensor) -> Tensor:
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


def cell_boxes(levels: LevelTokens) -> Tensor:
    """Return a box around every cell, in logits, float32, (B, N, 4).

    Boxes of cells that are padding, or that touch the border of [0.01, 0.99], are +inf in all four numbers.
    """
    device = levels.covered.device
    # whole cells: a centre at 0.01 exactly is at the border, and must not be moved inside by rounding
    centres = centres_in_cells(levels.grids, device) / levels.covered[:, cell_levels(levels.grids, device)]
    boxes = torch.cat((centres, cell_sides(levels.grids, device).expand_as(centres)), -1)
    usable = ((boxes > INSIDE[0]) & (boxes < INSIDE[1])).all(-1) & ~levels.padding
    return (boxes / (1 - boxes)).log().masked_fill(~usable[..., None], math.inf)


@kept
def cell_sides(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    """Return the side of every cell's box relative to the image, float32, (N, 1).

    Args:
        grids: (H, W) of every level.
        device: Device of the result.
    """
    sides = torch.tensor([FIRST_SIDE * 2.0**level for level in range(len(grids))], device=device)
    return sides[cell_levels(grids, device), None]
