"""The array libraries that the tests run on, and the examples of the documentation."""

from __future__ import annotations

import doctest
import importlib
import importlib.util

import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.myst import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

BACKENDS = ("numpy", "torch", "array_api_strict")

_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

_pages = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=_OPTIONS)],
    patterns=["README.md", "docs/*.md"],
    name="pages",
)
_docstrings = Sybil(
    parsers=[DocTestParser(optionflags=_OPTIONS)],
    patterns=["src/**/*.py"],
    document_types={".py": PythonDocStringDocument},
    name="docstrings",
)
pytest_collect_file = (_pages + _docstrings).pytest()


def pytest_addoption(parser):
    parser.addoption(
        "--array-api-backend",
        action="append",
        choices=BACKENDS,
        help="array library to run the tests on (repeatable); default: every one installed",
    )


def pytest_generate_tests(metafunc):
    if "xp" in metafunc.fixturenames:
        named = metafunc.config.getoption("--array-api-backend")
        backends = [_parameter(name, named) for name in named or BACKENDS]
        metafunc.parametrize("xp", backends, indirect=True, scope="session")


def _parameter(name, named):
    if importlib.util.find_spec(name) is not None:
        return pytest.param(name, id=name)
    if named:
        raise pytest.UsageError(f"--array-api-backend {name}: {name} is not installed")
    return pytest.param(name, id=name, marks=pytest.mark.skip(reason=f"{name} is not installed"))


@pytest.fixture(scope="session")
def xp(request):
    """Namespace of one array library; array-api-strict with its strictest flags."""
    namespace = importlib.import_module(request.param)
    if request.param == "array_api_strict":
        namespace.set_array_api_strict_flags(
            boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
        )
    return namespace
