"""Networks as branches of a pyramid: one file per family, with all knowledge of timm's insides.

`base` is what every branch offers (`embed`, `run_stage`, `finish`); `registry` lists the families and picks the first
one that matches a network. `window` runs blocks inside attention windows.

Imports `structures`, `layers.checkpointing`, `ops` and `config`. A new family is a file here and one line in
`registry.FAMILIES`.
"""

from piip.branches.base import Branch
from piip.branches.conv_next import ConvNeXtBranch
from piip.branches.family import Cut, Family
from piip.branches.registry import create_network, interaction_points, is_network, register_family, wrap_network
from piip.branches.staged import StagedBranch
from piip.branches.tokens import TokenBranch
from piip.branches.vit import ViTBranch

__all__ = [
    "Branch",
    "ConvNeXtBranch",
    "Cut",
    "Family",
    "StagedBranch",
    "TokenBranch",
    "ViTBranch",
    "create_network",
    "interaction_points",
    "is_network",
    "register_family",
    "wrap_network",
]
