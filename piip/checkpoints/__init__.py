"""Foreign checkpoints: the only code that knows official names."""

from piip.checkpoints.heads import build_official_head
from piip.checkpoints.official import build_official, build_released, load_official, official_shapes

__all__ = ["build_official", "build_official_head", "build_released", "load_official", "official_shapes"]
