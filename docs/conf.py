"""Configuration of the documentation: ``sphinx-build -W docs docs/_build``."""

import pathlib
import sys
from importlib import metadata

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

generate.write(HERE / "generated")

project = "sdd_jax"
author = "the sdd_jax authors"
project_copyright = author
release = metadata.version("sdd_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # a signature whose default is a function would not parse
add_module_names = False
napoleon_google_docstring = True
napoleon_use_rtype = False
copybutton_prompt_text = r"\$ "
# The build must not depend on the network: references to other projects are plain text.
intersphinx_mapping: dict[str, tuple[str, None]] = {}

html_theme = "sphinx_book_theme"
html_title = "sdd_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search field
}
