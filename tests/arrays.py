"""Arrays of any library for the tests, and back to NumPy."""

import os
from pathlib import Path

import numpy as np

from xent_array import _blocks, _kernels
from xent_array._backends._standard import HALF
from xent_array._capabilities import LIBRARIES

DEVICE = os.environ.get("XENT_DEVICE", "cpu")

#: Where the scripts are that measure time and memory.
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

#: Floating dtypes that a library's arrays come in.
DTYPES = {
    library.namespace: ("float64", "float32", *(HALF if "half" in library.features else ()))
    for library in LIBRARIES
}


def make(xp, values, dtype=None):
    """An array of a library, of the dtype of that name, or of the one NumPy gives `values`."""
    values = np.asarray(values)
    if xp.__name__ == "torch":
        tensor = xp.from_numpy(values.copy()).to(DEVICE)
        return tensor if dtype is None else tensor.to(getattr(xp, dtype))
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    values = values if dtype is None else values.astype(dtype)
    if xp.__name__ == "dask.array":  # two chunks along each axis, the first one larger
        return xp.from_array(values, chunks=[max(1, -(-2 * n // 3)) for n in values.shape])
    return xp.asarray(values)


def to_numpy(x):
    """Values of an array as NumPy's, half dtypes and float32 widened exactly to float64."""
    if type(x).__module__ == "torch":
        x = x.detach().cpu()
        return (x.double() if x.dtype.is_floating_point else x).numpy()
    x = x.get() if type(x).__module__.startswith("cupy") else np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind in "fV" else x


def dtype_of(x):
    return str(x.dtype).rpartition(".")[2]


def set_budget(monkeypatch, size):
    """Take blocks of so many bytes of logits, their rows' own memory aside."""
    for kind in ("host", "threads", "kernel"):
        monkeypatch.setitem(_blocks.BLOCK_BYTES, kind, size)
    monkeypatch.setattr(_blocks, "ROW_BYTES", 0)
    if _kernels.why_not_for_host() is None:
        from xent_array._kernels import host

        for name, value in (("_SHARE_BYTES", size), ("_ROW_BYTES", 0), ("_SHARES", 1 << 30)):
            monkeypatch.setattr(host, name, value)


def spacing(value, dtype):
    """One ulp of `value` in the dtype of that name."""
    bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[dtype]
    return 2.0 ** (np.floor(np.log2(abs(value))) - bits) if value else 0.0


def flushed(xp, dtype):
    """The greatest number that a library may take for 0: the least normal one where it flushes."""
    tiny = {"float64": 2.0**-1022, "float32": 2.0**-126}[dtype]
    if dtype == "float32" and (xp.__name__ == "cupy" or DEVICE.startswith("cuda")):
        return tiny  # the library may not, but the kernels do
    return 0.0 if to_numpy(make(xp, [tiny], dtype) * 0.5)[0] else tiny


def unit(dtype):
    """The unit of rounding of the dtype that is computed in."""
    return 2.0**-53 if dtype == "float64" else 2.0**-24
