"""The array libraries that the tests run on, and the examples of the documentation."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os

import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.myst import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

import xent_array
from xent_array import _kernels
from xent_array._capabilities import FEATURES, LIBRARIES

#: Where torch's tensors of the tests lie.
DEVICE = os.environ.get("XENT_DEVICE", "cpu")

#: The arrays that the tests run on, by the name of their library.
BACKENDS = {
    library.name: library
    for library in LIBRARIES
    if library.arrays != "traced"
    and (library.name != "torch" or library.arrays.lower() == DEVICE.partition(":")[0])
}

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


def pytest_configure(config):
    for marker in (
        "needs(*features): what of xent_array._capabilities.FEATURES a test relies on",
        "library(name): the one array library that a test is about",
        "either_way: about array code, or switching kernels on and off by itself",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config, items):
    named = config.getoption("--array-api-backend") or list(BACKENDS)
    switched_off = _kernels._missing("sys") is not None
    for item in items:
        if switched_off and any(item.iter_markers("either_way")):
            item.add_marker(pytest.mark.skip(reason="needs no second run without kernels"))
        marks = list(item.iter_markers("library"))
        for mark in marks:
            (name,) = mark.args
            if name not in named or not _is_there(BACKENDS[name]):
                item.add_marker(pytest.mark.skip(reason=f"about {name}, which is not chosen"))
        # Once is enough for what is about no library: with the one that all sessions have.
        if not marks and "xp" not in getattr(item, "fixturenames", ["xp"]) and "numpy" not in named:
            item.add_marker(pytest.mark.skip(reason="about no library, and numpy is not chosen"))


def pytest_generate_tests(metafunc):
    if "xp" in metafunc.fixturenames:
        named = metafunc.config.getoption("--array-api-backend")
        needed = {name for mark in metafunc.definition.iter_markers("needs") for name in mark.args}
        assert needed <= set(FEATURES), needed
        backends = [_parameter(name, named, needed) for name in named or BACKENDS]
        metafunc.parametrize("xp", backends, indirect=True, scope="session")


def _parameter(name, named, needed):
    library = BACKENDS[name]
    missing = sorted(needed - library.features)
    if not _is_there(library):
        if named:
            raise pytest.UsageError(f"--array-api-backend {name}: {name} is not there")
        reason = f"{name} is not there"
    elif missing:
        reason = f"{name} has no {missing[0]!r}"
    else:
        return pytest.param(name, id=name)
    return pytest.param(name, id=name, marks=pytest.mark.skip(reason=reason))


def _is_there(library):
    """Whether a library is installed, with the device it is for."""
    if importlib.util.find_spec(library.namespace.partition(".")[0]) is None:
        return False
    return library.name != "cupy" or importlib.import_module("cupy").is_available()


@pytest.fixture(scope="session")
def xp(request):
    """Namespace of one array library; array-api-strict with its strictest flags."""
    namespace = importlib.import_module(BACKENDS[request.param].namespace)
    if request.param == "jax":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    if request.param == "dask":  # without threads, which cost more than these graphs
        importlib.import_module("dask").config.set(scheduler="synchronous")
    if request.param == "array_api_strict":
        namespace.set_array_api_strict_flags(
            boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
        )
    return namespace


@pytest.fixture(scope="session", autouse=True)
def _compiled():
    """Of several processes each compiles some of the kernels, which the others find on disk."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or _kernels.why_not_for_host() is not None:
        return
    np, ml_dtypes = importlib.import_module("numpy"), importlib.import_module("ml_dtypes")
    number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)[number::count]:
        for classes in (10, 100):
            logits = np.zeros((2, classes), dtype)
            for target in (np.zeros(2, int), logits):
                xent_array.cross_entropy_and_grad(logits, target)


@pytest.fixture
def set_tile_bytes(monkeypatch):
    """Say how large a tile of logits is, whatever memory it lies in."""
    tiles = importlib.import_module("xent_array._tiles")

    def set_to(size):
        monkeypatch.setattr(tiles, "TILE_BYTES", dict.fromkeys(tiles.TILE_BYTES, size))

    return set_to


#: Which tiles make a difference: JAX has them of whole rows, and dask has chunks.
_TILES = {"jax": ("3 rows", "100 rows"), "dask": ("100 rows",)}


@pytest.fixture(params=["1 row", "3 rows", "100 rows", "3 rows of 4 classes"])
def tile_rows(request, monkeypatch, set_tile_bytes):
    """What a tile of float64 logits may be, of as many classes as the test's module says."""
    library = request.node.callspec.params.get("xp")
    if request.param not in _TILES.get(library, (request.param,)):
        pytest.skip(f"no other tiles than of another case, in {library}")
    rows, *slabs = map(int, filter(str.isdigit, request.param.split()))
    if slabs:
        tiles = importlib.import_module("xent_array._tiles")
        monkeypatch.setattr(tiles, "SLAB_ROWS", rows)
        monkeypatch.setattr(tiles, "SLAB_BYTES", 8 * rows * slabs[0])
    set_tile_bytes(8 if slabs else 8 * rows * request.module.C)  # no row is as small as 8 bytes


@pytest.fixture
def xp_library(request):
    """What the table of capabilities says of the arrays of `xp`."""
    return BACKENDS[request.node.callspec.params["xp"]]
