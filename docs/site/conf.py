"""Sphinx configuration of the documentation site, which ``.ci/docs`` builds.

The source folder is the repository's root: the site consists of the repository's own Markdown files, whose links work
there as well. Only the reference pages, in this folder, are made for the site alone.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from blda_cli import __version__  # noqa: E402

project = "blda"
version = release = __version__
project_copyright = "The blda authors"

root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "tests/benchmarks/README.md"]
exclude_patterns = [".*", "blda_cli", "build", "dist", "examples", "*-output", "gpu-results"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "repository_pages"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False  # they would turn the dashes of options into others

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_title = f"blda {__version__}"
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
