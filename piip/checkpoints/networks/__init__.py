"""Weights of single networks, in their publishers' layouts, for one branch of a pyramid."""

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
