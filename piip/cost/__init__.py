"""Cost of a model: multiply-adds, parameters and activations of one image, part by part.

`estimate` takes models, names and descriptions; `counting` counts operations on the meta device; `total` is the rule
for what runs, `paper` the rule of the published figures; `report` is the result; `operations` lists what a time floor
is made of; `launches` counts kernel launches and host synchronisations. Public names load on first use.

A new rule is a function in a file here and one line in `estimate.COST_RULES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.cost.estimate import estimate_cost as estimate_cost
    from piip.cost.launches import Launches as Launches
    from piip.cost.launches import count_launches as count_launches
    from piip.cost.operations import list_operations as list_operations
    from piip.cost.report import CostReport as CostReport
    from piip.cost.report import PartCost as PartCost
    from piip.cost.report import format_table as format_table

_HOMES = {
    "CostReport": "piip.cost.report",
    "Launches": "piip.cost.launches",
    "PartCost": "piip.cost.report",
    "count_launches": "piip.cost.launches",
    "estimate_cost": "piip.cost.estimate",
    "format_table": "piip.cost.report",
    "list_operations": "piip.cost.operations",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
