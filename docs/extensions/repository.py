"""Files outside of docs/ on the site: some are pages, links to them and to others work there as on GitHub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
# Pages that show a file of the repository; on GitHub they hold a link to it.
SHOWN = {
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/security": "SECURITY.md",
    "cards/nuclei": "piip/assets/nuclei/MODEL_CARD.md",
    "cards/landcover": "piip/assets/landcover/MODEL_CARD.md",
    "cards/nuclei_maps": "piip/assets/nuclei_maps/MODEL_CARD.md",
}
PAGES = {path: f"docs/{page}.md" for page, path in SHOWN.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")


def localize(text: str, written_in: str, shown_in: str) -> str:
    """Return Markdown whose relative links are those of the page that shows it.

    Args:
        text: Markdown.
        written_in: The file it comes from, relative to the root of the repository.
        shown_in: The page, likewise.
    """

    def moved(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(written_in), match.group(1)))
        return os.path.relpath(PAGES.get(target, target), os.path.dirname(shown_in))

    return LINK.sub(moved, text)


def show(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put files of the repository into their pages, and make links lead there."""
    page = f"docs/{docname}.md"
    written_in = SHOWN.get(docname, page)
    if docname in SHOWN:
        source[0] = (ROOT / written_in).read_text(encoding="utf-8")
        app.env.note_dependency(str(ROOT / written_in))
    source[0] = localize(source[0], written_in, page)


def setup(app: Sphinx) -> dict[str, bool]:
    """Read pages through `show`."""
    app.connect("source-read", show)
    return {"parallel_read_safe": True}
