"""Operations without parameters: deformable attention and position tables.

`deform_attn` is the one function for all providers (native C++ on CPU, Triton and `deformops` on CUDA, `grid_sample`
anywhere); `choice` measures which one a GPU takes;
`positions` and `relative_positions` make grids and tables; `native` compiles and calls the C++ kernels.

Imports nothing of the package. A new provider is a line in `deform_attn.PROVIDERS`.
"""

from piip.ops.deform_attn import PROVIDERS, deformable_attention, levels_deformable_attention
from piip.ops.positions import cell_centres, cell_sides, grid_extent

__all__ = [
    "PROVIDERS",
    "cell_centres",
    "cell_sides",
    "deformable_attention",
    "grid_extent",
    "levels_deformable_attention",
]
