"""The conformance kit: proof that xent_array computes right on the arrays of any library.

It knows of an array library only what the Python Array API standard says, and needs nothing but
mpmath (``pip install 'xent_array[testing]'``): data are plain Python lists, the truth is the
textbook formula in 60 digits, and the tolerance is the accuracy that xent_array promises.
"""

from xent_array.testing._cases import Case, cases
from xent_array.testing._library import Library
from xent_array.testing._run import Outcome, Report, check

__all__ = ["Case", "Library", "Outcome", "Report", "cases", "check"]
