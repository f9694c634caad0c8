"""Foreign checkpoints: the only code that knows official names."""

from piip.checkpoints.heads import build_official_head
from piip.checkpoints.layer_decay import official_lr_scale
from piip.checkpoints.official import build_official, build_released, load_official, official_shapes

__all__ = [
    "build_official",
    "build_official_head",
    "build_released",
    "load_official",
    "official_lr_scale",
    "official_shapes",
]
