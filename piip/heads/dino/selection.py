"""The first stage: selection of the cells that the decoder starts from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from piip.heads.dino.tokens import LevelTokens, centres_in_cells
from piip.ops import grid_extent
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
    boxes = torch.cat([_level_boxes(grid, levels.valid[:, i], i) for i, grid in enumerate(levels.grids)], 1)
    usable = ((boxes > INSIDE[0]) & (boxes < INSIDE[1])).all(-1) & ~levels.padding
    return (boxes / (1 - boxes)).log().masked_fill(~usable[..., None], math.inf)


def _level_boxes(grid: Grid, valid: Tensor, level: int) -> Tensor:
    # whole cells: a centre at 0.01 exactly is at the border, and must not be moved inside by rounding
    cells = (valid * grid_extent(grid, valid.device)).round()[:, None]
    centres = centres_in_cells(grid, valid.device) / cells  # (B, H * W, 2)
    return torch.cat((centres, torch.full_like(centres, FIRST_SIDE * 2.0**level)), -1)
