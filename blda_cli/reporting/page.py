"""Pages rendered by Jinja2 from the templates of this package."""

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from blda_cli.version import __version__


def rendered(template: str, **content: Any) -> str:
    """Render a page, which loads nothing from anywhere.

    Args:
        template: file name of the template, which gets ``style``, ``script`` and ``version``, too.
        content: what else it gets; text is escaped.
    """
    folder = resources.files("blda_cli.reporting").joinpath("templates")

    def text(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(text), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (Markup(text(name)) for name in ("style.css", "script.js"))
    page: str = environment.get_template(template).render(style=style, script=script, version=__version__, **content)
    return page
