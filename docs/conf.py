"""Settings of Sphinx, which makes the documentation's site of the pages in this folder: `make docs`."""

from pathlib import Path

from controlled_rollout import __version__

project = "controlled-rollout"
author = "The controlled-rollout authors"
copyright = "the controlled-rollout authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["evidence", "aks", "schemas"]
suppress_warnings = [
    # A page of the repository begins with a second-level heading where a reader of the repository needs no first one.
    "myst.header",
]

# Headings are link targets under the names that code hosts give them, so that a link works there and on the site.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# The reference: what `controlled_rollout` exports, with its docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Types are in the signatures; those of settings hold patterns that Sphinx would read as links.
napoleon_attr_annotations = False

html_theme = "furo"
html_title = f"controlled-rollout {release}"
html_show_sourcelink = False
# Else eighty records of decisions are found before the page that says how to do it.
html_search_scorer = str(Path(__file__).with_name("search-order.js"))
# A block without a language is a command or what was printed, and no Python.
highlight_language = "none"
# A prompt or a printed line is not part of the command.
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
