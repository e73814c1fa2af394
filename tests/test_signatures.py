"""Calls alike in types, dtypes and shapes are checked once; whatever else differs is still seen."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

import xent_array
from xent_array import _gather, _kernels

from arrays import DEVICE, make, to_numpy

RNG = np.random.default_rng(12)
LOGITS = RNG.normal(size=(5, 3))
TARGET = np.asarray([0, 2, 1, 1, 0])
PROBABILITIES = RNG.dirichlet(np.ones(3), size=5)


def loss(xp, logits=LOGITS, target=TARGET, **options):
    """The loss of a call that is like an earlier one."""
    logits, target = make(xp, logits), make(xp, target)
    xent_array.cross_entropy(logits, make(xp, np.zeros_like(to_numpy(target))), **options)
    return xent_array.cross_entropy(logits, target, **options)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "reduction": "sum"}])
@pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
def test_the_values_of_each_call_count(xp, target, options):
    _gather._templates.clear()
    first = to_numpy(xent_array.cross_entropy(make(xp, LOGITS), make(xp, target), **options))
    np.testing.assert_array_equal(to_numpy(loss(xp, target=target, **options)), first)


@pytest.mark.needs("values")
def test_a_bad_class_is_found_in_a_later_call(xp):
    with pytest.raises(IndexError, match=r"target\[3\] is 3: outside the 3 classes"):
        loss(xp, target=np.asarray([0, 1, 2, 3, 0]))


def test_ignored_rows_of_a_later_call(xp):
    ignored = np.asarray([0, -100, 1, -100, 0])
    expected = to_numpy(
        xent_array.cross_entropy(make(xp, LOGITS[::2]), make(xp, TARGET[[0, 2, 4]]))
    )
    kept = np.where(ignored >= 0, TARGET, -100)
    np.testing.assert_allclose(to_numpy(loss(xp, target=kept)), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"target": TARGET[:4]}, ValueError),
        ({"target": TARGET.astype(bool)}, TypeError),
        ({"logits": LOGITS.astype(int)}, TypeError),
        ({"target": np.zeros((5, 3), dtype=int)}, ValueError),
        ({"target": None}, TypeError),
    ],
)
def test_another_signature_is_checked(xp, change, error):
    call = {"logits": LOGITS, "target": TARGET}
    xent_array.cross_entropy(**{name: make(xp, x) for name, x in call.items()})
    with pytest.raises(error):
        xent_array.cross_entropy(
            **{name: None if x is None else make(xp, x) for name, x in (call | change).items()}
        )


def test_options_of_equal_values_are_told_apart(xp):
    """True is no number, though it equals 1."""
    loss(xp, label_smoothing=1.0)
    with pytest.raises(TypeError, match="label_smoothing must be a number"):
        loss(xp, label_smoothing=True)


def test_an_array_as_option_is_read_anew():
    scale = np.asarray(1.0)
    plain = loss(np, logit_scale=scale)
    scale[...] = 2.0
    np.testing.assert_allclose(loss(np, logit_scale=scale), loss(np, logits=2.0 * LOGITS))
    assert loss(np, logit_scale=scale) != plain


def test_nothing_of_the_callers_is_held():
    logits, target = LOGITS.astype(np.float32), TARGET.copy()
    xent_array.cross_entropy_and_grad(logits, target)
    seen = [weakref.ref(logits), weakref.ref(target)]
    del logits, target
    gc.collect()
    assert [x() for x in seen] == [None, None]


def test_templates_are_bounded():
    for rows in range(2 * _gather.TEMPLATES):
        xent_array.cross_entropy(np.zeros((rows, 2)), np.zeros(rows, dtype=int))
    assert 0 < len(_gather._templates) <= _gather.TEMPLATES


def test_kernels_switched_off_between_calls():
    before = xent_array.cross_entropy(LOGITS, TARGET)
    with _kernels.disabled():
        np.testing.assert_allclose(xent_array.cross_entropy(LOGITS, TARGET), before, rtol=1e-15)


def test_memory_that_is_not_aligned():
    """No kernel reads it, though one read an array like it but for that."""
    before = xent_array.cross_entropy(LOGITS, TARGET)
    raw = np.zeros(LOGITS.nbytes + 1, dtype=np.uint8)
    odd = raw[1:].view(LOGITS.dtype).reshape(LOGITS.shape)
    odd[...] = LOGITS
    np.testing.assert_allclose(xent_array.cross_entropy(odd, TARGET), before, rtol=1e-15)


def test_many_threads():
    """Each has its own results, while templates come and go."""
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for rows in rng.integers(1, 600, size=300):
            z = np.full((rows, 2), float(seed))
            if abs(xent_array.cross_entropy(z, np.ones(rows, dtype=int)) - np.log(2)) > 1e-12:
                wrong.append((seed, rows))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.library("torch")
class TestTorch:
    """What changes between calls of one shape."""

    logits = torch.tensor(LOGITS, dtype=torch.float32, device=DEVICE)
    target = torch.tensor(TARGET, device=DEVICE)

    def test_grad_is_asked_for_or_not(self):
        leaf = self.logits.clone().requires_grad_()
        assert not xent_array.cross_entropy(self.logits, self.target).requires_grad
        assert xent_array.cross_entropy(leaf, self.target).requires_grad
        with torch.no_grad():
            assert not xent_array.cross_entropy(leaf, self.target).requires_grad
        assert xent_array.cross_entropy(leaf, self.target).requires_grad

    def test_probabilities_that_require_grad(self):
        p = torch.tensor(PROBABILITIES, dtype=torch.float32, device=DEVICE)
        leaf, asked = self.logits.clone().requires_grad_(), p.clone().requires_grad_()
        xent_array.cross_entropy(leaf, p).backward()
        xent_array.cross_entropy(leaf, asked).backward()
        assert asked.grad is not None

    def test_autocast(self):
        half = self.logits.bfloat16()
        assert xent_array.cross_entropy(half, self.target).dtype is torch.bfloat16
        with torch.autocast(DEVICE.partition(":")[0], dtype=torch.bfloat16):
            assert xent_array.cross_entropy(half, self.target).dtype is torch.float32
        assert xent_array.cross_entropy(half, self.target).dtype is torch.bfloat16

    def test_transforms(self):
        def of_row(z, t):
            return xent_array.cross_entropy(z, t)

        plain = torch.stack([of_row(z, t) for z, t in zip(self.logits, self.target, strict=True)])
        rows = torch.func.vmap(of_row)(self.logits, self.target)
        torch.testing.assert_close(rows, plain)
        grad = torch.func.grad(of_row)(self.logits, self.target)
        _, expected = xent_array.cross_entropy_and_grad(self.logits, self.target)
        torch.testing.assert_close(grad, expected)

    def test_tensors_without_values(self):
        xent_array.cross_entropy(self.logits, self.target)
        meta = xent_array.cross_entropy(self.logits.to("meta"), self.target.to("meta"))
        assert meta.is_meta

    def test_sparse_logits_are_refused(self):
        xent_array.cross_entropy(self.logits, self.target)
        with pytest.raises(TypeError, match="logits must be a strided tensor"):
            xent_array.cross_entropy(self.logits.to_sparse(), self.target)

    def test_another_librarys_target_is_refused(self):
        xent_array.cross_entropy(self.logits, self.target)
        with pytest.raises(TypeError, match="all arrays of a call must come from one library"):
            xent_array.cross_entropy(self.logits, TARGET)

    def test_an_infinite_factor_leaves_rows_that_do_not_count_zero(self):
        leaf = self.logits.clone().requires_grad_()
        target = self.target.clone()
        target[1] = -100
        for factor in (1.0, torch.inf):
            leaf.grad = None
            (xent_array.cross_entropy(leaf, target) * factor).backward()
            assert (leaf.grad[1] == 0.0).all()
