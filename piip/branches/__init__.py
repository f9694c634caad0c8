"""Networks as branches of a pyramid, one file a family."""

from piip.branches.base import Branch
from piip.branches.factory import create_network, interaction_points, is_network, wrap_network
from piip.branches.staged import StagedBranch
from piip.branches.vit import ViTBranch

__all__ = ["Branch", "StagedBranch", "ViTBranch", "create_network", "interaction_points", "is_network", "wrap_network"]
