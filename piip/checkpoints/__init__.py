"""Checkpoints of the authors and of single networks: the only code with foreign parameter names.

`official` builds models as the released code did and maps their names; `families`, `layouts`, `keymap`, `head_names`
and `translate` are its tables; `heads` does the same for dense heads; `reading`, `unwrapping` and `identify` open
files; `networks` reads weights of single networks; `convert` writes model directories. Public names load on first use.

To support another publisher's layout, add a file to `networks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.checkpoints.heads import build_official_head as build_official_head
    from piip.checkpoints.layer_decay import official_lr_scale as official_lr_scale
    from piip.checkpoints.official import build_official as build_official
    from piip.checkpoints.official import build_released as build_released
    from piip.checkpoints.official import load_official as load_official
    from piip.checkpoints.official import official_shapes as official_shapes

_HOMES = {
    "build_official": "piip.checkpoints.official",
    "build_official_head": "piip.checkpoints.heads",
    "build_released": "piip.checkpoints.official",
    "load_official": "piip.checkpoints.official",
    "official_lr_scale": "piip.checkpoints.layer_decay",
    "official_shapes": "piip.checkpoints.official",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
