"""The package as its users meet it: what it imports, names, prints and says of itself."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys

import pytest

import xent_array
from xent_array import _capabilities
from xent_array._options import Keywords, Options


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


LIBRARIES = {"numpy", "torch", "array_api_strict", "jax", "dask", "cupy", "numba"}

IMPORTS = """
import sys
import xent_array
{use}
print(*sorted({libraries} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("use", "loaded"),
    [
        ("", []),
        (
            "import numpy; xent_array.cross_entropy(numpy.zeros((2, 3)), numpy.zeros(2, int))",
            ["numpy"],
        ),
    ],
)
def test_only_the_callers_library_is_imported(use, loaded):
    """And numba, if there is work for a kernel; that is switched off here."""
    done = run("-c", IMPORTS.format(use=use, libraries=LIBRARIES), XENT_ARRAY_KERNELS="off")
    assert done.stdout.split() == loaded, done.stderr


def test_torch_does_not_bring_the_others():
    """What torch itself imports is its own business."""
    use = "import torch; before = set(sys.modules); "
    use += "xent_array.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1])); "
    use += "sys.modules = {k: v for k, v in sys.modules.items() if k not in before}"
    done = run("-c", IMPORTS.format(use=use, libraries=LIBRARIES), XENT_ARRAY_KERNELS="off")
    assert done.stdout.split() == [], done.stderr


FIRST_CALLS = """
import threading, sys
import torch, xent_array
sys.setswitchinterval(1e-6)
ready, failures = threading.Barrier(16), []
logits, target = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
def first_call():
    ready.wait()
    try:
        xent_array.cross_entropy(logits, target)
    except Exception as error:
        failures.append(error)
threads = [threading.Thread(target=first_call) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failures)
"""


def test_first_calls_may_come_from_many_threads():
    done = run("-c", FIRST_CALLS)
    assert done.stdout.strip() == "[]", done.stderr


IMPORT_TIME = """
import array_api_compat, time
start = time.process_time()
import xent_array
print(time.process_time() - start)
"""


def test_importing_is_quick():
    """Under 50 ms of the processor beyond array-api-compat, in the best of three."""
    assert any(float(run("-c", IMPORT_TIME).stdout) < 0.05 for _ in range(3))


def test_public_names_are_complete():
    """Every name is in __all__, documented, and says where it comes from by its own name."""
    names = vars(xent_array).items()  # the kit is there once somebody imported it
    public = {name for name, x in names if not name.startswith("_") and not inspect.ismodule(x)}
    assert public == set(xent_array.__all__)
    for name in xent_array.__all__:
        assert inspect.getdoc(getattr(xent_array, name))


def test_function_and_frozen_loss_take_the_same_options():
    """One list of keywords, with the same defaults, everywhere it must be spelt out."""
    function = dict(inspect.signature(xent_array.cross_entropy).parameters)
    del function["logits"], function["target"]
    options = inspect.signature(Options).parameters
    assert {name: p.default for name, p in function.items()} == {
        name: p.default for name, p in options.items()
    }
    frozen = inspect.signature(xent_array.CrossEntropyLoss).parameters
    assert [name for name in frozen if name in options] == ["weight", "return_stats"]
    assert {"weight", "return_stats"} | set(Keywords.__annotations__) == set(options)


def test_the_module_reports_what_serves_each_library():
    """Every library of the table of capabilities, installed or not."""
    done = run("-m", "xent_array")
    assert done.returncode == 0, done.stderr
    lines = {line.split(maxsplit=1)[0]: line for line in done.stdout.splitlines() if line}
    for library in _capabilities.LIBRARIES:
        if importlib.util.find_spec(library.namespace.partition(".")[0]) is None:
            assert "not installed" in lines[library.name]
        elif library.arrays != "CUDA":
            assert re.search("portable array code|kernels|chunk by chunk", lines[library.name])
            assert lines[library.name].endswith("right")
    assert ("torch" in lines) == ("torch," in lines), "of torch, a GPU's memory has a line too"
