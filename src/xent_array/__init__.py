"""One cross-entropy loss for every array library.

`cross_entropy` means what ``torch.nn.CrossEntropyLoss`` means, on the caller's own arrays: NumPy,
torch and any other library that follows the Python Array API standard.
"""

from xent_array._linear import linear_cross_entropy, linear_cross_entropy_and_grad
from xent_array._loss import CrossEntropyLoss, cross_entropy
from xent_array._loss_and_grad import cross_entropy_and_grad
from xent_array._rowwise import Stats
from xent_array._softmax import log_softmax, logsumexp, softmax

__version__ = "0.1.0.dev0"

__all__ = [
    "CrossEntropyLoss",
    "Stats",
    "cross_entropy",
    "cross_entropy_and_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "log_softmax",
    "logsumexp",
    "softmax",
]
