"""How Sphinx builds the site: ``sphinx-build -W --keep-going -b html docs docs/_build``."""

import os

import lightning_tuning

project = "lightning_tuning"
html_title = "lightning_tuning"
release = version = lightning_tuning.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_sourcelink = False
html_show_copyright = False
highlight_language = "none"  # a block without a language is output
nitpicky = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes stand in their class's own table, and once

# where warnings are errors, an inventory out of reach would fail a build that has no internet
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", None),
    }
    if os.environ.get("DOCS_ONLINE") == "1"
    else {}
)
