"""Settings of the documentation site, which `make docs` writes to out/docs."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import piip

os.environ["NO_COLOR"] = "1"  # help texts are printed into the page of commands
warnings.filterwarnings("ignore", "OpenCV")  # supervision does without
sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "piip"
author = "The piip maintainers"
version = release = piip.__version__
html_title = f"piip {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "commands",  # these four lie in extensions/
    "docstrings",
    "public_names",
    "repository",
]
myst_heading_anchors = 4  # the anchors that GitHub makes
exclude_patterns = ["extensions"]
nitpicky = True

# Types of other libraries have no pages here, and inventories of theirs would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchvision|numpy|np|PIL|pathlib|collections|transformers|sv)\..*"),
    ("py:.*", r"Tensor|Grid|Size|tuple\[int"),  # short names of tensors and sizes
    ("py:.*", r"piip\..*"),  # of ours, tests/test_docs.py checks that everything public has a page
]
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of named tuples are members already
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
default_role = "code"  # docstrings write names as in Markdown

html_theme = "furo"
html_theme_options = {"sidebar_hide_name": False}
html_show_sourcelink = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
