"""Weights of single networks, in their publishers' layouts, for one branch of a pyramid.

`layouts` recognises a layout and reads it (`vit`, `convnext`, `clip`); `names` renames tensors; `resizing` and
`fitting` bring position tables and patch kernels to the branch's size. A new layout is a file and one line in
`layouts`.
"""

from piip.checkpoints.networks.fitting import FittedBranch, branch_shapes, describe_network, first_width, fit_branch
from piip.checkpoints.networks.layouts import SingleNetwork, read_network

__all__ = [
    "FittedBranch",
    "SingleNetwork",
    "branch_shapes",
    "describe_network",
    "first_width",
    "fit_branch",
    "read_network",
]
