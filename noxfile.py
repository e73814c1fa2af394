"""What is checked, and how: ``nox`` runs the tests, the linters, the type checker and the docs."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "typing", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install dependency groups and the package itself, in one go so that all pins are seen."""
    session.install(*nox.project.dependency_groups(PYPROJECT, *groups), ".")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and every example of the docs and docstrings, on the package as installed."""
    install(session, "test")
    # One process: torch has threads of its own, which get in each other's way across processes.
    # `nox -s tests -- -n auto --dist loadfile` uses several: the examples of a file share their
    # names, so files must stay whole.
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and which module may import which."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, with the array libraries there to be checked against."""
    install(session, "typing", "backends")
    session.run("mypy", "--strict", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a broken reference fails."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def demo(session: nox.Session) -> None:
    """Learn to read handwritten digits on two array libraries."""
    install(session, "demo")
    session.run("python", "examples/digits.py")


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into dist/, and look into the wheel."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    (wheel,) = Path("dist").glob("*.whl")
    if "xent_array/py.typed" not in zipfile.ZipFile(wheel).namelist():
        session.error(f"{wheel} has no py.typed: its users' type checkers would ignore its types")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the speed of the loss beside that of the array libraries' own."""
    install(session, "bench")
    session.run("python", "benchmarks/forward.py", *session.posargs)
