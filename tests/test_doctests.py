"""Every example in a docstring of the package runs and gives what it says.

pytest's own collection would import the folder `platform` under that name, in the way of the standard library's module.
"""

import doctest
import importlib
import pkgutil

import pytest

import headrace

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(headrace.__path__, "headrace.")
    if not info.name.startswith(("headrace.sql", "headrace.__main__"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
