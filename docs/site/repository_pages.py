"""Sphinx extension: pages from the repository's README files, formulas as MathML, and the help of commands."""

from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.writers.html5 import HTML5Translator

from blda_cli.commands import cli

CONTENTS = {
    "README": """
```{toctree}
:hidden:
:caption: Use
docs/choosing
docs/recipes/README
docs/commands
docs/how-it-works
docs/models
docs/description
docs/images
docs/running
docs/export
docs/finetuning
```
```{toctree}
:hidden:
:caption: Reference
docs/site/commands
docs/site/python
docs/theory
tests/benchmarks/README
```
```{toctree}
:hidden:
:caption: Project
CONTRIBUTING
CHANGELOG
```
""",
    "docs/recipes/README": """
```{toctree}
:hidden:
:glob:
*
```
""",
}
"""Tables of contents of the site, which are not in the files themselves, by the page that has them."""


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:  # noqa: ARG001
    """Add the parts of the table of contents to their pages."""
    source[0] += CONTENTS.get(name, "")


class Pages(StandaloneHTMLBuilder):
    """Writes each folder's ``README.md`` as its ``index.html``."""

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        """The address of a document."""
        return super().get_target_uri(page(docname), typ)

    def get_output_path(self, page_name: str, /) -> Any:
        """The file of a page."""
        return super().get_output_path(page(page_name))


def page(name: str) -> str:
    """The path of a document's page, without its suffix."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}index" if last == "README" else name


def visit_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


class CommandHelp(Directive):
    """A section for each command of ``blda``, with the texts that ``--help`` prints."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        return [described(f"blda {name}", command) for name, command in cli.commands.items()]


def described(title: str, command: click.Command) -> nodes.section:
    """A command's section: its description, its usage and its options."""
    context = click.Context(command, info_name=title)
    section = nodes.section("", nodes.title("", title), ids=[title.replace(" ", "-")], names=[title])
    section += [nodes.paragraph("", " ".join(part.split())) for part in (command.help or "").split("\n\n")]
    section += nodes.literal_block("", " ".join([title, *command.collect_usage_pieces(context)]), language="none")
    options = nodes.definition_list()
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record:
            name, text = record
            options += nodes.definition_list_item(
                "",
                nodes.term("", "", nodes.literal("", name)),
                nodes.definition("", nodes.paragraph("", text)),
            )
    section += options
    return section


def setup(app: Sphinx) -> None:
    """Register the parts with Sphinx."""
    app.add_builder(Pages, override=True)
    app.connect("source-read", add_contents)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("command-help", CommandHelp)
