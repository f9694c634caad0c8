"""Time and memory of assigning anchors to objects: python benchmarks/assign.py [ANCHORS] [OBJECTS] [THREADS].

Anchors are those of a square image at the strides of Mask R-CNN. The process's peak memory above its memory before
the call is printed; PyTorch's own pools count, so run one size per process.
"""

from __future__ import annotations

import math
import resource
import sys
import time

import torch

from piip.heads.mask_rcnn.anchors import grid_anchors
from piip.heads.mask_rcnn.assign import assign_by_overlap
from piip.heads.mask_rcnn.rpn import STRIDES


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def main(anchors: int = 600_000, objects: int = 1000, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    per_cell = 3 * sum(1 / stride**2 for stride in STRIDES)
    side = math.sqrt(anchors / per_cell)
    grids = [(math.ceil(side / stride),) * 2 for stride in STRIDES]
    boxes = torch.cat(
        [grid_anchors(stride, grid, torch.device("cpu")) for stride, grid in zip(STRIDES, grids, strict=True)]
    )
    corners = torch.rand(objects, 2) * side
    targets = torch.cat((corners, corners + 8 + torch.rand(objects, 2) * 120), 1)
    allowed = torch.rand(len(boxes)) > 0.05
    assign_by_overlap(boxes[:100], targets[:2], positive=0.7, negative=0.3, min_iou=0.3)  # load what it needs
    before, start = peak(), time.perf_counter()
    found = assign_by_overlap(boxes, targets, positive=0.7, negative=0.3, min_iou=0.3, allowed=allowed)
    seconds = time.perf_counter() - start
    print(f"{len(boxes)} anchors x {objects} objects: {seconds:.2f} s, {peak() - before:.0f} MB, ", end="")
    print(f"{int((found >= 0).sum())} assigned")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
