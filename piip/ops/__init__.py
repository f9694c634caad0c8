"""Operations without parameters."""

from piip.ops.deform_attn import PROVIDERS, deformable_attention
from piip.ops.positions import cell_centres, grid_extent

__all__ = ["PROVIDERS", "cell_centres", "deformable_attention", "grid_extent"]
