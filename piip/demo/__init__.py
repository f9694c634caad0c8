"""The demo: included models on real images, compared with other networks.

`run` predicts, compares cost and time, and draws; `tasks` is the table of demo tasks; `sheet` draws the figure and
`terminal` prints. Assets lie in `piip/assets`, one folder per task with the included models, `images/`, `truth.json`
(the target of every image) and `results.json` (for every model its recorded scores, and its "folder" if it is
included); MODEL_CARD.md there describes how they were made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.demo.run import DemoReport as DemoReport
    from piip.demo.run import run_demo as run_demo
    from piip.demo.tasks import ASSETS as ASSETS
    from piip.demo.tasks import TASKS as TASKS

_HOMES = {
    "ASSETS": "piip.demo.tasks",
    "DemoReport": "piip.demo.run",
    "TASKS": "piip.demo.tasks",
    "run_demo": "piip.demo.run",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
