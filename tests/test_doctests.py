"""The examples in the docstrings of the Python interface run, and each of its classes and functions has one."""

import doctest
import importlib
import inspect
import sys

import pytest

import blda_cli

WITHOUT_EXAMPLE = {"BldaError", "align", "merge", "read_statistics", "report"}
"""Those in the examples of others."""

PUBLIC = [
    name
    for name in blda_cli.__all__
    if inspect.isclass(getattr(blda_cli, name)) or inspect.isfunction(getattr(blda_cli, name))
]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in WITHOUT_EXAMPLE])
def test_the_example_runs(name: str) -> None:
    thing = getattr(blda_cli, name)
    module = sys.modules[thing.__module__] or importlib.import_module(thing.__module__)
    found = doctest.DocTestFinder(recurse=False).find(thing, name, module=module)
    assert sum(len(test.examples) for test in found) > 0
    for test in found:
        assert doctest.DocTestRunner().run(test).failed == 0
