"""The site's settings. Build it with `sphinx-build -W -n docs build/docs`, with Townlet installed or on PYTHONPATH."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

import townlet

project = "Townlet"
author = "the Townlet authors"
copyright = f"2026, {author}"
version = release = townlet.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "townlet_reference"]
exclude_patterns = ["_ext"]
default_role = "code"  # docstrings put names into single backticks
highlight_language = "none"
html_theme = "furo"
html_title = f"Townlet {release}"
html_static_path = ["_static"]
html_css_files = ["townlet.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

# What the annotations name outside the project: external links would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|nn|npt|gymnasium|gym|collections|pathlib|argparse|types|typing|optuna)(\..*)?"),
    ("py:.*", r"(Tensor|Module|Path|Callable|Mapping|Sequence|Iterable|Iterator|Any|Literal|NDArray|Generator|Self)"),
]
