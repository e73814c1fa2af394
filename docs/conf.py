"""How Sphinx builds these pages: ``sphinx-build -W -n -b html docs docs/_build/html``."""

import xent_array

project = "xent_array"
author = "The xent_array developers"
copyright = author
version = release = xent_array.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"xent_array {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings are written in numpydoc's style; single backticks hold names of arguments.
default_role = "literal"
napoleon_google_docstring = False
napoleon_use_rtype = False

# Signatures show names and defaults. The types are told in prose, and to type checkers.
autodoc_typehints = "none"
autodoc_member_order = "bysource"

# The standard library is not linked to.
nitpick_ignore = [("py:exc", "unittest.SkipTest")]
