"""Links of annotations: they name the module that defines a class, pages document it where it is imported from."""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def find_public(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Return a link to the documented object of that name, None if there is not exactly one."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    objects = env.domains["py"].get_objects()
    found = {(page, anchor) for name, _, _, page, anchor, _ in objects if name.rpartition(".")[2] == last}
    if len(found) != 1:
        return None
    page, anchor = found.pop()
    return make_refnode(app.builder, node["refdoc"], page, anchor, contnode)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the search for names."""
    app.connect("missing-reference", find_public)
    return {"parallel_read_safe": True}
