"""The examples in the docstrings print what they say."""

import doctest
import importlib

import pytest

from blueprint import package_sources

MODULES = sorted(source.module for source in package_sources() if ">>> " in source.path.read_text())
PUBLIC = {  # of the method: what a user calls has an example
    "certificate": ["certificate_of", "require"],
    "controllers": ["Ace"],
    "penalty": ["penalty", "record_inputs"],
    "projection": ["project"],
    "relaxation": ["relax_constraints", "set_theta"],
    "schedule": ["Schedule"],
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str) -> None:
    """Each starts from nothing: it imports all that it uses, as somebody has to who copies it."""
    found = doctest.DocTestFinder().find(importlib.import_module(name), globs={})
    with_examples = [test for test in found if test.examples]
    assert with_examples
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    for test in with_examples:
        runner.run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_of_the_method_have_examples(name: str) -> None:
    """One for each verb of docs/method.md."""
    module = importlib.import_module(f"mdrelax.method.{name}")
    for public in PUBLIC[name]:
        assert doctest.DocTestFinder(recurse=False).find(getattr(module, public))[0].examples, public
