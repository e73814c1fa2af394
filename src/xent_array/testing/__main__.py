"""``python -m xent_array.testing NAMESPACE``: run the kit on an array library."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from xent_array.testing import check
from xent_array.testing._cases import DTYPES, GROUPS
from xent_array.testing._plain import FLOATING


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return 1 if a case does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m xent_array.testing",
        description="Prove that xent_array computes right on the arrays of a library.",
    )
    parser.add_argument("namespace", help="dotted name of its namespace, such as jax.numpy")
    parser.add_argument("--dtype", action="append", choices=FLOATING, help="repeatable")
    parser.add_argument("--group", action="append", choices=GROUPS, help="repeatable")
    given = parser.parse_args(arguments)
    try:
        xp = importlib.import_module(given.namespace)
    except ImportError as error:
        parser.error(f"{given.namespace} cannot be imported: {error}")
    report = check(xp, dtypes=given.dtype or DTYPES, groups=given.group)
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
