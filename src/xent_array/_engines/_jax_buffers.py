"""XLA's buffers in host memory, read by kernels: a call back from what XLA compiled.

To kernels the buffers are NumPy's arrays. Nothing is copied, and the gradient is written where XLA
wants to have it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xent_array._batch import Arrays, Batch, apart, lend, together, with_out
from xent_array._engines import of_memory
from xent_array._evaluate import Result
from xent_array._memory import advise_huge_pages
from xent_array._namespace import Array

#: Bytes of logits from which on kernels are worth a call back.
WORTH_A_CALL = 1 << 17

#: Array code: from the arrays of a batch to results.
Code = Callable[[Arrays], Result]

#: The same from the arrays that there are to those of the results.
_Flat = Callable[..., list[Array]]


def lent(batch: Batch) -> Batch | None:
    """The same batch as NumPy's kernels evaluate it, without its arrays; None if none serves."""
    if batch.logits.size * batch.logits.dtype.itemsize < WORTH_A_CALL:
        return None
    host = lend(batch)
    return None if host is None or host.kernels is None else apart(host, np.ndarray)[0]


def evaluate_in_buffers(host: Batch, arrays: Arrays, code: Code, derivable: Code) -> Result:
    """The results of array code, by the kernels of `host`.

    It is the code itself in programs for other platforms, and where JAX evaluates it call by call
    or many calls at once. Whatever JAX derives, it derives of the second code.
    """
    # Where JAX no longer has it, no kernels are lent.
    from jax.experimental.buffer_callback import buffer_callback

    given, of_arrays = jax.tree.flatten(arrays)
    shapes, of_results = jax.tree.flatten(jax.eval_shape(code, arrays))
    kernels = buffer_callback(
        functools.partial(_write, host), jax.tree.unflatten(of_results, shapes)
    )

    def flat(function: Code) -> _Flat:
        return lambda *given: jax.tree.leaves(function(jax.tree.unflatten(of_arrays, given)))

    found = _evaluation.bind(
        *given, kernels=flat(kernels), code=flat(code), derivable=flat(derivable), shapes=(*shapes,)
    )
    result: Result = jax.tree.unflatten(of_results, found)
    return result


def _write(host: Batch, _: Any, results: Result, arrays: Arrays) -> None:
    """Write the results of a call that is like `host`, on these arrays."""
    views = Arrays._make([None if x is None else np.asarray(x) for x in arrays])
    batch, engine = together(host, views), of_memory(host)
    if results.grad_logits is None:
        found = engine.value(batch)
    else:
        out = np.asarray(results.grad_logits)
        advise_huge_pages(out.ctypes.data, out.nbytes)
        found = engine.value_and_grad(with_out(batch, out))
    with np.errstate(all="ignore"):
        np.asarray(results.loss)[...] = found.loss
        for to, x in zip(results.stats or (), found.stats or (), strict=True):
            np.asarray(to)[...] = x


# --- what JAX makes of it. The rules of a primitive hold wherever it comes to lie: of `custom_jvp`
# JAX forgets the rule where it takes a loop apart, and a call back cannot be differentiated.

_evaluation = Primitive("xent_array_evaluation")
_evaluation.multiple_results = True


def _results(*_: Any, shapes: Sequence[Any], **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in shapes]


def _evaluated(*given: Array, code: _Flat, **_: Any) -> list[Array]:
    return code(*given)


def _lowered(context: Any, *given: Any, kernels: _Flat | None, code: _Flat, **_: Any) -> Any:
    for_cpu = tuple(context.module_context.platforms) == ("cpu",)
    function = code if kernels is None or not for_cpu else kernels
    return mlir.lower_fun(function, multiple_results=True)(context, *given)


def _derived(given: Sequence[Array], directions: Any, *, derivable: _Flat, **_: Any) -> Any:
    return jax.jvp(derivable, given, tuple(map(ad.instantiate_zeros, directions)))


def _many(given: Sequence[Array], axes: Any, *, code: _Flat, derivable: _Flat, **_: Any) -> Any:
    code, derivable = jax.vmap(code, in_axes=axes), jax.vmap(derivable, in_axes=axes)
    shapes = jax.eval_shape(code, *given)
    found = _evaluation.bind(
        *given, kernels=None, code=code, derivable=derivable, shapes=(*shapes,)
    )
    return found, [0] * len(found)


_evaluation.def_impl(_evaluated)
_evaluation.def_abstract_eval(_results)
mlir.register_lowering(_evaluation, _lowered)
ad.primitive_jvps[_evaluation] = _derived
batching.primitive_batchers[_evaluation] = _many
