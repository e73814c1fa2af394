"""What is checked, and how: ``nox`` runs the tests, the linters, the type checker and the docs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "imports", "lint", "typing", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

#: The array libraries of a machine without a GPU: a dependency group each, and its namespace.
NAMESPACES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "array-api-strict": "array_api_strict",
}
BACKENDS = [nox.param(name, id=name) for name in NAMESPACES]

#: The libraries whose smallest arrays too are read by kernels, where numba is installed.
KERNELS_SERVE = ("numpy", "torch")

#: Warnings are errors, but for torch's own where there is no NumPy beside it.
WARNINGS = ("-W", "error", "-W", "ignore:Failed to initialize NumPy:UserWarning")

#: JAX compiles hundreds of small programs here, for which optimising costs more than it saves.
QUICK_TO_COMPILE = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
}


def interpreters() -> list[str]:
    """Find the Pythons this machine has of those the package is for, pyenv's among them."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = []
    for name in (f"python3.{minor}" for minor in range(11, 16)):
        candidates = [shutil.which(name), *map(str, sorted(pyenv.glob(f"*/bin/{name}")))]
        working = filter(_works, filter(None, candidates))
        found += list(working)[:1]
    return found


def _works(python: str) -> bool:
    """Tell a Python from a shim that stands for none."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def groups(*names: str) -> list[str]:
    """Return what the dependency groups of those names ask for."""
    return list(nox.project.dependency_groups(PYPROJECT, *names))


def install(session: nox.Session, *wanted: str) -> None:
    """Install what is wanted, in one go so that all pins are seen.

    Python compiles what it imports, and keeps that; to compile everything takes pip longer than
    all else it does.
    """
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    session.install("--no-compile", *wanted)


def conformance(session: nox.Session, namespace: str) -> None:
    """Run the conformance kit on an array library, in float32, warnings being errors."""
    kit = ("-m", "xent_array.testing", namespace, "--dtype", "float32")
    quick = {**QUICK_TO_COMPILE, "DASK_SCHEDULER": "synchronous"}
    session.run("python", *WARNINGS, *kit, env=quick)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on each array library, torch beside it as the reference, and the examples.

    ``-- jax -k softcap`` runs some of the tests on one library, ``-- examples`` every example of
    the docs and docstrings. Where kernels serve a library whatever its calls, the array code that
    they stand for is tested as well.
    """
    install(session, *groups("test", "cuda"), ".")
    chosen = [name for name in session.posargs if name in (*NAMESPACES, "examples")]
    options = [option for option in session.posargs if option not in chosen]
    libraries = [name for name in chosen or NAMESPACES if name != "examples"]
    tests_on(session, libraries, options)
    without = [name for name in libraries if name in KERNELS_SERVE]
    tests_on(session, without, options, XENT_ARRAY_KERNELS="off")
    if not chosen or "examples" in chosen:
        session.run("pytest", "README.md", "docs", "src", *options)


def tests_on(
    session: nox.Session, libraries: list[str], options: list[str], **settings: str
) -> None:
    """Run the tests on some array libraries, all at once: to collect them takes a while."""
    if not libraries:
        return
    chosen = [f"--array-api-backend={name.replace('-', '_')}" for name in libraries]
    # As many processes as processors, and no threads in them, which would get in each other's way.
    parallel = ("-n", "auto", "--dist", "worksteal")
    alone = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    environment = {**alone, **QUICK_TO_COMPILE, **settings}
    session.run("pytest", "tests", *chosen, *parallel, *options, env=environment)


@nox.session
@nox.parametrize("backend", BACKENDS)
def imports(session: nox.Session, backend: str) -> None:
    """Use one array library with nothing else installed: the self-check and the conformance kit."""
    install(session, *groups(backend), ".[testing]")
    session.run("python", *WARNINGS, "-m", "xent_array")
    conformance(session, NAMESPACES[backend])


@nox.session
def stranger(session: nox.Session) -> None:
    """Run the conformance kit on ndonnx, an array library that is not otherwise supported."""
    install(session, "ndonnx>=0.23", "onnxruntime>=1.20", ".[testing]")
    conformance(session, "ndonnx")


PYTHONS = interpreters()


@nox.session(python=sorted({*PYTHONS[:1], *PYTHONS[-1:]}))
def pythons(session: nox.Session) -> None:
    """Run the conformance kit on the oldest and the newest Python there is."""
    install(session, *groups("numpy", "array-api-strict"), ".[testing]")
    for namespace in ("numpy", "array_api_strict"):
        conformance(session, namespace)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the conformance kit with the oldest versions allowed (torch excepted)."""
    oldest = [
        f"{requirement.name}=={bound.version}.*"
        for requirement in map(
            Requirement, [*PYPROJECT["project"]["dependencies"], *groups(*NAMESPACES, "fast")]
        )
        for bound in requirement.specifier
        if requirement.name != "torch"
    ]
    install(session, *oldest, ".[testing]")
    for backend, namespace in NAMESPACES.items():
        if backend != "torch":
            conformance(session, namespace)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and which module may import which."""
    install(session, *groups("lint"), ".")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, with the array libraries there to be checked against."""
    install(session, *groups("typing", "backends"), ".")
    session.run("mypy", "--strict", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a broken reference fails."""
    install(session, *groups("docs"), ".")
    session.run("sphinx-build", "-W", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def demo(session: nox.Session) -> None:
    """Learn to read handwritten digits on every array library."""
    install(session, *groups("demo"), ".")
    session.run("python", "examples/digits.py")


@nox.session
def encoder(session: nox.Session) -> None:
    """Compare the linear loss with the logits held, on the weights of a sentence encoder."""
    install(session, *groups("encoder"), ".")
    session.run("python", "examples/sentence_encoder.py")


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into dist/; run the tests from the wheel."""
    install(session, "build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    (wheel,) = Path("dist").glob("*.whl")
    install(session, *groups("suite"), str(wheel))
    session.run("pytest", "tests", "--array-api-backend", "numpy", *session.posargs)
    # Without this file the type checkers of its users would ignore the package's types.
    typed = "import importlib.resources as r; assert (r.files('xent_array') / 'py.typed').is_file()"
    session.run("python", "-c", typed)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Run the tests on CuPy and torch CUDA with this very Python; nothing is installed.

    Where compute-sanitizer is, it watches the kernels' reads and writes of memory.
    """
    found = [library for library, there in (("cupy", cupy_gpu), ("torch", torch_gpu)) if there()]
    if not found:
        session.skip("no GPU that CuPy or torch can use")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        session.warn("compute-sanitizer is not installed: memory is not watched")
    for library in found:
        pytest = (sys.executable, "-m", "pytest", "--array-api-backend", library)
        on_gpu = {**os.environ, "XENT_DEVICE": "cuda"}
        session.run(*pytest, "tests", *session.posargs, env=on_gpu)
        if sanitizer is None:
            continue
        few = ("tests/test_gpu.py", "-k", "test_statistics or test_gradients")
        # What torch keeps of freed memory would hide who reads beyond an array.
        freeing = {**on_gpu, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for tool in ("memcheck", "racecheck"):
            watch = (sanitizer, "--tool", tool, "--report-api-errors=no", "--error-exitcode=1")
            session.run(*watch, *pytest, *few, env=freeing)


def cupy_gpu() -> bool:
    """Whether CuPy is installed and has a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return bool(cupy.is_available())


def torch_gpu() -> bool:
    """Whether torch is installed and has a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@nox.session(venv_backend="none")
def gpu_bench(session: nox.Session) -> None:
    """Time the kernels of a GPU beside other losses, with this very Python as it is."""
    if not (cupy_gpu() or torch_gpu()):
        session.skip("no GPU that CuPy or torch can use")
    session.run(sys.executable, "benchmarks/gpu.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure time and memory beside the libraries' own losses, and make the page of them."""
    install(session, *groups("bench"), ".")
    silent = {"TF_CPP_MIN_LOG_LEVEL": "3"}  # XLA tells whatever takes it long to compile
    session.run("python", "benchmarks/measure.py", *session.posargs, env=silent)
    session.run("python", "benchmarks/report.py")
