"""The whole kit in one call, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import SkipTest

from xent_array.testing._cases import DTYPES, Case, cases
from xent_array.testing._library import Library


class Outcome(NamedTuple):
    """What came of one case: `result` is "passed", "failed" or "skipped", and `message` why."""

    case: str
    group: str
    result: str
    message: str


@dataclass(frozen=True)
class Report:
    """What came of every case on one array library; prints as a summary by group.

    Attributes
    ----------
    library : str
        Name of the library's namespace.
    outcomes : tuple of Outcome
        In the order of the cases.
    """

    library: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> list[str]:
        """Names of the cases that hold."""
        return [case for case, _ in self._of("passed")]

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Names of the cases that do not, each with what was wrong."""
        return self._of("failed")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Names of the cases that the library lacks something for, each with what that is."""
        return self._of("skipped")

    @property
    def ok(self) -> bool:
        """Whether there are cases that hold, and none that do not."""
        return bool(self.passed) and not self.failed

    def raise_if_failed(self) -> None:
        """Raise AssertionError, with the summary, unless the report is `ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        return "\n".join((*self._table(), *self._reasons(), *self._failures()))

    def _of(self, result: str) -> list[tuple[str, str]]:
        return [(o.case, o.message) for o in self.outcomes if o.result == result]

    def _table(self) -> list[str]:
        results = ("passed", "failed", "skipped")
        counts = Counter((o.group, o.result) for o in self.outcomes)
        counts += Counter(("all", o.result) for o in self.outcomes)
        head = f"{self.library:<16}" + "".join(f"{result:>9}" for result in results)
        groups = dict.fromkeys([*(o.group for o in self.outcomes), "all"])
        return [
            head,
            *(f"{name:<16}" + "".join(f"{counts[name, r]:>9}" for r in results) for name in groups),
        ]

    def _reasons(self) -> list[str]:
        reasons = Counter(message for _, message in self.skipped)
        return [f"skipped {count}: {reason}" for reason, count in reasons.items()]

    def _failures(self) -> list[str]:
        return [f"FAILED {case}\n    {message}" for case, message in self.failed]


def check(
    xp: Any,
    *,
    asarray: Callable[[Any, str], Any] | None = None,
    to_list: Callable[[Any], Any] | None = None,
    call: Callable[..., Any] | None = None,
    dtypes: Iterable[str] = DTYPES,
    groups: Iterable[str] | None = None,
) -> Report:
    """Prove that xent_array computes right on the arrays of a library.

    Every case of `cases` is run, and compared with the textbook formula in 60 digits. The library
    need not be one that xent_array knows: it must follow the Python Array API standard.

    Parameters
    ----------
    xp
        The library's namespace, as its users import it.
    asarray, to_list, call
        How arrays are made and read and calls are made, where the library has a way of its own;
        see `Library`.
    dtypes
        Floating dtypes by name, of "float64", "float32", "float16" and "bfloat16". Cases of a
        dtype that the library lacks are skipped.
    groups
        Groups of cases, see `cases`; None is all.

    Returns
    -------
    Report
        Prints as a summary. ``report.raise_if_failed()`` is a test.

    Examples
    --------
    >>> import numpy
    >>> from xent_array.testing import check
    >>> report = check(numpy, dtypes=["float32"], groups=["softmax", "results"])
    >>> print(report)
    numpy              passed   failed  skipped
    softmax                18        0        0
    results                12        0        0
    all                    30        0        0
    >>> report.raise_if_failed()
    """
    library = Library(xp, asarray=asarray, to_list=to_list, call=call)
    outcomes = tuple(_run(case, library) for case in cases(dtypes, groups))
    return Report(library.name, outcomes)


def _run(case: Case, library: Library) -> Outcome:
    result, message = "passed", ""
    try:
        case.run(library)
    except SkipTest as reason:
        result, message = "skipped", str(reason)
    except AssertionError as failure:
        result, message = "failed", str(failure)
    except Exception as error:  # whatever a library raises, other cases go on
        result, message = "failed", f"{type(error).__name__}: {error}"
    return Outcome(case.name, case.group, result, message)
