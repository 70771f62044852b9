"""Sphinx configuration. The reference is generated from the code at every build, so that it cannot drift."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402  the folder above must be on the path first

generate.write(HERE / "generated")

project = "coupler"
author = "The Coupler developers"
copyright = "The Coupler developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "generated/parts"]
nitpicky = True
smartquotes = False
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = "coupler"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_copy_source = False
