"""Building models from descriptions: the only code that turns numbers into modules.

`backbone` and `model` compose modules. The tables `ATTENTIONS` (`interaction`), `MERGES` (`merge`), `NECKS` (`neck`)
and `HEADS` (`model`) contain the builders of each kind. Public names load on first use.

A new attention, merge, neck or head is one line in its table; from outside the package call `TABLE.register`
(docs/extending.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.build.backbone import PyramidWarning as PyramidWarning
    from piip.build.backbone import build_backbone as build_backbone
    from piip.build.interaction import ATTENTIONS as ATTENTIONS
    from piip.build.merge import MERGES as MERGES
    from piip.build.model import HEADS as HEADS
    from piip.build.model import build_model as build_model
    from piip.build.neck import NECKS as NECKS
    from piip.build.neck import NeckBuilder as NeckBuilder

_HOMES = {
    "ATTENTIONS": "piip.build.interaction",
    "HEADS": "piip.build.model",
    "MERGES": "piip.build.merge",
    "NECKS": "piip.build.neck",
    "NeckBuilder": "piip.build.neck",
    "PyramidWarning": "piip.build.backbone",
    "build_backbone": "piip.build.backbone",
    "build_model": "piip.build.model",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
