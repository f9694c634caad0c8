"""Our own kernels for CPU, compiled if a C++ compiler is available.

The C++ files are compiled for the current processor on first use (a few seconds) and cached in the user's cache
directory. Without a compiler the slower stock operations of PyTorch give the same results, and a warning is issued
once.

`compiled` compiles and calls; `sampling`, `pointwise` and `gemm` are the operations, one file each.
"""

from piip.ops.native.compiled import SUFFIXES, cache_folder, call, is_available, library
from piip.ops.native.pointwise import add_resized_, gelu_, layer_norm
from piip.ops.native.sampling import MAX_DIM, sample, sample_levels, sample_maps, sample_raw, supports

__all__ = [
    "MAX_DIM",
    "SUFFIXES",
    "add_resized_",
    "cache_folder",
    "call",
    "gelu_",
    "is_available",
    "layer_norm",
    "library",
    "sample",
    "sample_levels",
    "sample_maps",
    "sample_raw",
    "supports",
]
