"""Networks as branches of a pyramid, one file a family."""

from piip.branches.base import Branch
from piip.branches.conv_next import ConvNeXtBranch
from piip.branches.factory import create_network, interaction_points, is_network, wrap_network
from piip.branches.staged import StagedBranch
from piip.branches.tokens import TokenBranch
from piip.branches.vit import ViTBranch

__all__ = [
    "Branch",
    "ConvNeXtBranch",
    "StagedBranch",
    "TokenBranch",
    "ViTBranch",
    "create_network",
    "interaction_points",
    "is_network",
    "wrap_network",
]
