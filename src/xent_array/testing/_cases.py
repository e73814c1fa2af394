"""The table of cases, assembled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

from xent_array.testing import _meanings, _numbers, _refusals
from xent_array.testing._checks import Check
from xent_array.testing._library import Library
from xent_array.testing._numbers import Entry
from xent_array.testing._plain import Call

DTYPES = ("float64", "float32")

#: The groups, each with what makes its cases for a dtype.
GROUPS: dict[str, Callable[[str], Iterator[Entry]]] = {
    "reference": _numbers.reference,
    "accuracy": _numbers.accuracy,
    "gradient": _numbers.derivatives,
    "options": _meanings.options,
    "non-finite": _meanings.non_finite,
    "results": _meanings.results,
    "softmax": _meanings.softmaxes,
    "errors": _refusals.errors,
    "values": _refusals.values,
}

#: Groups whose cases say nothing more in a second dtype.
_ONCE = ("errors", "values")


@dataclass(frozen=True)
class Case:
    """One thing that must hold on every array library: a call, and what must come of it.

    Attributes
    ----------
    name : str
        What it is about: its group first, its dtype last. Also ``str(case)``.
    group : str
        One of the groups that `cases` names.
    dtype : str
        The floating dtype of its arrays.
    """

    name: str
    group: str
    dtype: str
    _check: Check = field(repr=False)
    _call: Call = field(repr=False)

    def run(self, library: Library) -> None:
        """Run on a library.

        Parameters
        ----------
        library
            The array library.

        Raises
        ------
        AssertionError
            Where the library does not what the case says.
        unittest.SkipTest
            Where it lacks what the case is about, such as a dtype; pytest skips the test then.
        """
        self._check(library, self._call)

    def __str__(self) -> str:
        return self.name


def cases(dtypes: Iterable[str] = DTYPES, groups: Iterable[str] | None = None) -> tuple[Case, ...]:
    """Every case of the kit, or those of some dtypes and groups.

    Parameters
    ----------
    dtypes
        Floating dtypes by name, of "float64", "float32", "float16" and "bfloat16". Cases of errors
        are in the first of them alone.
    groups
        Of "reference", "accuracy", "gradient", "options", "non-finite", "results", "softmax",
        "errors" and "values"; None is all. The last are errors that only the values of arrays
        tell: where they cannot be looked at such a case is skipped.

    Returns
    -------
    tuple of Case
        They print as their names, which are unique.

    Examples
    --------
    As tests of pytest:

    >>> from xent_array.testing import Library, cases
    >>> def test_conforms(case):  # with @pytest.mark.parametrize("case", cases(), ids=str)
    ...     import numpy
    ...     case.run(Library(numpy))
    >>> test_conforms(cases(groups=["softmax"])[0])
    >>> print(cases(["float32"], ["reference"])[0])
    reference-index-none-float32
    """
    dtypes = tuple(dtypes)
    chosen = tuple(GROUPS if groups is None else groups)
    if unknown := set(chosen) - set(GROUPS):
        raise ValueError(f"no group {min(unknown)!r}: the groups are {', '.join(GROUPS)}")
    return tuple(
        case
        for group in chosen
        for dtype in (dtypes[:1] if group in _ONCE else dtypes)
        for case in _of_group(group, dtype)
    )


@cache
def _of_group(group: str, dtype: str) -> tuple[Case, ...]:
    return tuple(
        Case(f"{group}-{name}-{dtype}", group, dtype, check, call)
        for name, check, call in GROUPS[group](dtype)
    )
