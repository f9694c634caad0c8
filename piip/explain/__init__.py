"""What a pyramid does with one image.

`explain_image` (`inspect`) returns an `Explanation` (`explanation`): the image of every branch and its cost, sampling
points, features before and after exchange, gates, and the result without each branch. `recording` reads them by hooks,
`components` makes colours of features, `removal` takes branches away and `changes` compares results. `figures` draws
and `page` writes HTML and PNG; only these two import matplotlib. A new section of the page is one entry of
`figures.SECTIONS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piip.lazy import lazy_names

if TYPE_CHECKING:
    from piip.explain.explanation import Explanation as Explanation
    from piip.explain.inspect import explain_image as explain_image
    from piip.explain.page import write_page as write_page

_HOMES = {
    "Explanation": "piip.explain.explanation",
    "explain_image": "piip.explain.inspect",
    "write_page": "piip.explain.page",
}
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
