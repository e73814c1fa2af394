"""The table of what works where: each entry proved, yes or no, and the page that shows it."""

from pathlib import Path

import numpy as np
import pytest

import xent_array
from xent_array._capabilities import FEATURES, LIBRARIES

from arrays import make, to_numpy

LOGITS = np.asarray([[0.5, 1.0, -1.0], [2.0, 0.0, 1.0]])
TARGET = np.asarray([1, 2])


def eager(xp):
    """A result is there: its value can be branched on at no cost."""
    loss = xent_array.cross_entropy(make(xp, LOGITS), make(xp, TARGET))
    if hasattr(loss, "dask"):
        return False
    return np.isfinite(to_numpy(loss))


def values(xp):
    try:
        losses = xent_array.cross_entropy(make(xp, LOGITS), make(xp, TARGET + 1), reduction="none")
    except IndexError:
        return True
    assert np.isnan(to_numpy(losses)).tolist() == [False, True]
    return False


def out(xp):
    logits = make(xp, LOGITS)
    _, expected = xent_array.cross_entropy_and_grad(logits, make(xp, TARGET))
    try:
        _, grad = xent_array.cross_entropy_and_grad(logits, make(xp, TARGET), out=logits)
    except ValueError:
        return False
    np.testing.assert_array_equal(to_numpy(logits), to_numpy(expected))
    return grad is logits


def half(xp):
    try:
        halves = [make(xp, LOGITS, dtype) for dtype in ("float16", "bfloat16")]
    except (AttributeError, TypeError):
        return False
    losses = [
        float(xent_array.cross_entropy(x, make(xp, TARGET), dtype=xp.float32)) for x in halves
    ]
    return np.allclose(losses, float(xent_array.cross_entropy(LOGITS, TARGET)), rtol=1e-2)


def differentiable(xp):
    if xp.__name__ == "torch":
        logits = make(xp, LOGITS).requires_grad_()
        xent_array.cross_entropy(logits, make(xp, TARGET)).backward()
        grad = logits.grad
    elif xp.__name__ == "jax.numpy":
        import jax

        grad = jax.grad(xent_array.cross_entropy)(make(xp, LOGITS), make(xp, TARGET))
    else:
        return False
    _, expected = xent_array.cross_entropy_and_grad(LOGITS, TARGET)
    return np.allclose(to_numpy(grad), expected, rtol=1e-12)


PROBES = {
    "eager": eager,
    "values": values,
    "out": out,
    "half": half,
    "differentiable": differentiable,
}


@pytest.mark.parametrize("feature", PROBES)
def test_the_table_is_true(xp, xp_library, feature):
    """A library has a feature exactly where the table says so."""
    assert PROBES[feature](xp) == (feature in xp_library.features)


def test_every_feature_is_proved():
    """`blocks`, which is about memory, by the measurements in test_layouts, test_jax, test_dask."""
    assert set(PROBES) | {"blocks"} == set(FEATURES)


def table():
    """The table as the documentation shows it."""
    head = ["arrays", *FEATURES, "tests"]
    lines = [head, ["---"] * len(head)]
    for library in LIBRARIES:
        marks = ["yes" if feature in library.features else "-" for feature in FEATURES]
        tested = "every run" if library.tested else "where there is a GPU"
        lines.append([f"{library.name}, {library.arrays}", *marks, tested])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_page_shows_the_table():
    page = (Path(__file__).parent.parent / "docs" / "backends.md").read_text()
    assert table() in page, f"docs/backends.md must have this table:\n\n{table()}\n"
    for feature, meaning in FEATURES.items():
        assert f"- **{feature}**: {meaning}" in page
