"""Lines about old names that are still read."""

from __future__ import annotations

import logging

DEPRECATED = logging.WARNING + 1  # shown like warnings, under a name of its own: nothing is wrong with the data
logging.addLevelName(DEPRECATED, "DEPRECATED")

logger = logging.getLogger("piip")


def deprecated(old: str, new: str) -> None:
    """Log that a name is an old one.

    Args:
        old: The name that was used.
        new: Its present name.
    """
    logger.log(DEPRECATED, "%s is deprecated, use %s.", old, new)
