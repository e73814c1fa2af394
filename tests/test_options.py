"""Every keyword of the contract, by what it must do to hand-made numbers."""

import copy
import pickle

import numpy as np
import pytest

import xent_array

from arrays import DTYPES, dtype_of, make, set_budget, to_numpy

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(6, 4))
TARGET = np.asarray([0, 3, 1, 2, 2, 0])
PROBABILITIES = RNG.dirichlet(np.ones(4), size=6)
CLASS_WEIGHT = np.asarray([0.5, 1.0, 2.0, 1.5])
ROW_WEIGHT = np.asarray([1.0, 0.5, 2.0, 0.0, 3.0, 1.0])
KEPT = np.asarray([True, False, True, True, False, True])


def loss(xp, *, logits=LOGITS, target=TARGET, **options):
    arrays = {
        name: make(xp, value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    return to_numpy(xent_array.cross_entropy(make(xp, logits), make(xp, target), **arrays))


def rows(xp, **options):
    return loss(xp, reduction="none", **options)


def near(x):
    return pytest.approx(x, rel=1e-14)


@pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
class TestRowArguments:
    """sample_weight, where and denominator, for both kinds of target."""

    def test_sample_weight_multiplies_and_divides(self, xp, target):
        plain = rows(xp, target=target)
        assert rows(xp, target=target, sample_weight=ROW_WEIGHT) == near(ROW_WEIGHT * plain)
        assert loss(xp, target=target, sample_weight=ROW_WEIGHT) == near(
            (ROW_WEIGHT * plain).sum() / ROW_WEIGHT.sum()
        )

    def test_a_0d_sample_weight_weighs_all_rows(self, xp, target):
        half = np.asarray(0.5)
        assert loss(xp, target=target, sample_weight=half) == near(loss(xp, target=target))
        assert rows(xp, target=target, sample_weight=half) == near(0.5 * rows(xp, target=target))

    def test_class_weights_enter_the_divisor_of_index_targets_alone(self, xp, target):
        weighted = rows(xp, target=target, weight=CLASS_WEIGHT)
        share = CLASS_WEIGHT[target] if target.ndim == 1 else np.ones(6)
        assert loss(xp, target=target, weight=CLASS_WEIGHT) == near(weighted.sum() / share.sum())
        assert loss(
            xp, target=target, weight=CLASS_WEIGHT, sample_weight=ROW_WEIGHT, where=KEPT
        ) == near((weighted * ROW_WEIGHT)[KEPT].sum() / (share * ROW_WEIGHT)[KEPT].sum())

    def test_where_leaves_rows_out(self, xp, target):
        plain = rows(xp, target=target)
        assert rows(xp, target=target, where=KEPT) == near(np.where(KEPT, plain, 0.0))
        assert loss(xp, target=target, where=KEPT) == near(plain[KEPT].mean())
        assert loss(xp, target=target, where=np.asarray(True)) == near(plain.mean())

    def test_denominator(self, xp, target):
        total = rows(xp, target=target, weight=CLASS_WEIGHT, where=KEPT).sum()
        options = {"target": target, "weight": CLASS_WEIGHT, "where": KEPT}
        assert loss(xp, denominator="rows", **options) == near(total / KEPT.sum())
        assert loss(xp, denominator=12, **options) == near(total / 12)
        assert loss(xp, denominator=np.asarray(12.0), **options) == near(total / 12)
        assert loss(xp, denominator=np.asarray(12), **options) == near(total / 12)

    def test_no_row_that_counts(self, xp, target):
        nothing = {"target": target, "where": np.zeros(6, dtype=bool)}
        assert np.isnan(loss(xp, **nothing))
        assert np.isnan(loss(xp, on_empty="nan", weight=CLASS_WEIGHT, **nothing))
        assert loss(xp, on_empty="zero", **nothing) == 0.0
        assert loss(xp, denominator=3.0, **nothing) == 0.0
        assert loss(xp, reduction="sum", on_empty="raise", **nothing) == 0.0

    @pytest.mark.needs("values")
    def test_no_row_that_counts_may_raise(self, xp, target):
        nothing = {"target": target, "where": np.zeros(6, dtype=bool)}
        assert loss(xp, on_empty="raise", where=KEPT, target=target) > 0.0
        with pytest.raises(ValueError, match=r"no row counts, of rows of shape \(6,\)"):
            loss(xp, on_empty="raise", **nothing)

    def test_weights_that_sum_to_zero_have_no_mean(self, xp, target):
        assert np.isnan(loss(xp, target=target, sample_weight=np.zeros(6)))
        assert np.isnan(
            loss(xp, target=target, sample_weight=np.zeros(6), where=KEPT, on_empty="zero")
        )

    def test_row_arguments_broadcast(self, xp, target):
        images = np.broadcast_to(LOGITS[:, :, None], (6, 4, 3))
        spread = np.broadcast_to(target[..., None], (*target.shape, 3))
        column = {"sample_weight": ROW_WEIGHT[:, None], "where": KEPT[:, None]}
        result = rows(xp, logits=images, target=spread, **column)
        expected = np.where(KEPT, ROW_WEIGHT * rows(xp, target=target), 0.0)
        assert result == near(np.broadcast_to(expected[:, None], (6, 3)))


class TestIgnoreIndex:
    @pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint64"])
    def test_any_integer_dtype(self, xp, dtype):
        target = TARGET.astype(dtype)
        assert rows(xp, target=target) == near(rows(xp))
        assert rows(xp, target=target, ignore_index=2) == near(np.where(TARGET == 2, 0, rows(xp)))

    def test_one_that_the_dtype_cannot_hold_ignores_nothing(self, xp):
        """156 is -100 modulo 256; 255 is -1."""
        logits = np.zeros((2, 200))
        target = np.asarray([156, 3], dtype=np.uint8)
        assert rows(xp, logits=logits, target=target) == near(np.full(2, np.log(200.0)))
        assert rows(xp, logits=logits, target=target, ignore_index=2**80 + 3) == near(
            np.full(2, np.log(200.0))
        )

    @pytest.mark.needs("values")
    def test_wide_unsigned_values_do_not_wrap(self, xp):
        """2**64 - 100 is no class, and not -100 either."""
        target = np.asarray([2**64 - 100, 0], dtype=np.uint64)
        with pytest.raises(IndexError, match=r"target\[0\] is 18446744073709551516: outside"):
            rows(xp, logits=LOGITS[:2], target=target)

    def test_an_unsigned_one_beyond_the_signed_range(self, xp):
        target = np.asarray([2**64 - 100, 1], dtype=np.uint64)
        ignored = rows(xp, logits=LOGITS[:2], target=target, ignore_index=2**64 - 100)
        assert ignored == near([0.0, rows(xp, logits=LOGITS[:2], target=[0, 1])[1]])

    def test_it_may_be_a_numpy_integer(self, xp):
        assert rows(xp, ignore_index=np.int64(2)) == near(rows(xp, ignore_index=2))


class TestLogits:
    def test_logit_scale(self, xp):
        for scale in (2.0, -0.5, 0.0, np.float32(0.25), np.asarray(2.0), np.asarray(-0.5)):
            assert rows(xp, logit_scale=scale) == near(rows(xp, logits=float(scale) * LOGITS))

    def test_softcap_follows_the_scale(self, xp):
        capped = 3.0 * np.tanh(2.0 * LOGITS / 3.0)
        assert rows(xp, softcap=3, logit_scale=2.0) == near(rows(xp, logits=capped))

    def test_z_loss(self, xp):
        lse = np.log(np.exp(2.0 * LOGITS).sum(axis=1))
        plain = rows(xp, logit_scale=2.0)
        assert rows(xp, z_loss=0.1, logit_scale=2.0) == near(plain + 0.1 * lse**2)
        weighted = {"sample_weight": ROW_WEIGHT, "where": KEPT}
        expected = np.where(KEPT, ROW_WEIGHT * (plain + 0.1 * lse**2), 0.0)
        assert rows(xp, z_loss=0.1, logit_scale=2.0, **weighted) == near(expected)
        assert loss(xp, z_loss=0.1, logit_scale=2.0, **weighted) == near(
            expected.sum() / ROW_WEIGHT[KEPT].sum()
        )

    def test_scalars_of_numpy_do_not_widen_the_result(self, xp):
        """np.float64 scalars, which promote float32 arrays, are taken as Python's."""
        result = xent_array.cross_entropy(
            make(xp, LOGITS, "float32"),
            make(xp, TARGET),
            label_smoothing=np.float64(0.1),
            logit_scale=np.float64(2.0),
            softcap=np.float64(3.0),
            z_loss=np.float64(0.1),
            denominator=np.float64(3.0),
        )
        assert dtype_of(result) == "float32"

    def test_a_0d_label_smoothing(self, xp):
        assert rows(xp, label_smoothing=np.asarray(0.2)) == near(rows(xp, label_smoothing=0.2))


class TestDtype:
    def test_the_result_has_the_logits_dtype(self, xp):
        for dtype in DTYPES[xp.__name__]:
            logits = make(xp, LOGITS, dtype)
            assert dtype_of(xent_array.cross_entropy(logits, make(xp, TARGET))) == dtype
            assert dtype_of(xent_array.softmax(logits)) == dtype

    def test_dtype_of_the_result_may_be_chosen(self, xp):
        for dtype in DTYPES[xp.__name__]:
            result, stats = xent_array.cross_entropy(
                make(xp, LOGITS, dtype), make(xp, TARGET), dtype=xp.float64, return_stats=True
            )
            assert dtype_of(result) == dtype_of(stats.lse) == "float64"

    def test_weights_and_probabilities_of_any_floating_dtype(self, xp):
        for dtype in DTYPES[xp.__name__]:
            result = xent_array.cross_entropy(
                make(xp, LOGITS, "float32"),
                make(xp, PROBABILITIES, dtype),
                weight=make(xp, CLASS_WEIGHT, dtype),
                sample_weight=make(xp, ROW_WEIGHT, dtype),
                logit_scale=make(xp, 2.0, dtype),
            )
            assert dtype_of(result) == "float32"
            exact = loss(
                xp,
                target=PROBABILITIES,
                weight=CLASS_WEIGHT,
                sample_weight=ROW_WEIGHT,
                logit_scale=2.0,
            )
            assert float(result) == pytest.approx(exact, rel=1e-2)


class TestCheck:
    BAD = np.where(np.arange(6) == 4, 1003, TARGET)

    @pytest.mark.parametrize("check", ["auto", True])
    @pytest.mark.needs("values")
    def test_bad_targets_raise_on_the_host(self, xp, check):
        with pytest.raises(IndexError, match=r"^target\[4\] is 1003: outside the 4 classes"):
            loss(xp, target=self.BAD, check=check)

    @pytest.mark.parametrize("bad", [1003, 4, -1, -101, 2**40])
    def test_unchecked_they_become_nan(self, xp, bad):
        """And no other row is touched."""
        target = np.where(np.arange(6) == 4, bad, TARGET)
        expected = np.where(np.arange(6) == 4, np.nan, rows(xp))
        np.testing.assert_allclose(rows(xp, target=target, check=False), expected, rtol=1e-14)
        assert np.isnan(loss(xp, target=target, check=False))
        _, stats = xent_array.cross_entropy(
            make(xp, LOGITS), make(xp, target), check=False, return_stats=True
        )
        assert not to_numpy(stats.correct)[4]

    def test_a_masked_row_may_have_any_target(self, xp):
        where = np.arange(6) != 4
        assert loss(xp, target=self.BAD, where=where) == near(rows(xp)[where].mean())


class TestStats:
    def test_stats_of_every_row(self, xp):
        logits = np.asarray([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        value, stats = xent_array.cross_entropy(
            make(xp, logits), make(xp, [1, 1, -100]), return_stats=True
        )
        assert isinstance(stats, xent_array.Stats)
        lse = np.log(np.exp(logits).sum(axis=1))
        np.testing.assert_allclose(to_numpy(stats.lse), [*lse[:2], 0.0], rtol=1e-15)
        np.testing.assert_array_equal(to_numpy(stats.prediction), [1, 0, 2])
        np.testing.assert_array_equal(to_numpy(stats.correct), [True, False, False])
        assert float(value) == near(rows(xp, logits=logits, target=[1, 1, -100])[:2].mean())

    def test_the_first_nan_is_the_greatest_in_any_slab(self, xp, monkeypatch):
        rows = np.asarray([[5.0, np.nan, 1.0, 7.0], [1.0, 2.0, np.nan, 9.0]])
        for classes in (4, 2, 1):
            set_budget(monkeypatch, 8 * classes)
            _, stats = xent_array.cross_entropy(make(xp, rows), make(xp, [0, 0]), return_stats=True)
            np.testing.assert_array_equal(to_numpy(stats.prediction), [1, 2])

    def test_a_scale_of_zero_ties_all_classes(self, xp):
        _, stats = xent_array.cross_entropy(
            make(xp, [[0.0, 1.0]]), make(xp, [0]), logit_scale=0.0, return_stats=True
        )
        assert to_numpy(stats.prediction).tolist() == [0]

    def test_probabilities_are_correct_at_their_greatest(self, xp):
        _, stats = xent_array.cross_entropy(
            make(xp, LOGITS), make(xp, PROBABILITIES), return_stats=True, where=make(xp, KEPT)
        )
        expected = (LOGITS.argmax(axis=1) == PROBABILITIES.argmax(axis=1)) & KEPT
        np.testing.assert_array_equal(to_numpy(stats.correct), expected)

    def test_stats_have_the_shape_of_the_rows(self, xp):
        _, stats = xent_array.cross_entropy(
            make(xp, np.zeros((2, 3, 4, 5))), make(xp, np.zeros((2, 4, 5), int)), return_stats=True
        )
        assert [tuple(x.shape) for x in stats] == [(2, 4, 5)] * 3

    def test_scaled_and_capped_logits_are_what_stats_see(self, xp):
        _, stats = xent_array.cross_entropy(
            make(xp, LOGITS), make(xp, TARGET), logit_scale=-2.0, softcap=3.0, return_stats=True
        )
        seen = 3.0 * np.tanh(-2.0 * LOGITS / 3.0)
        assert to_numpy(stats.lse) == near(np.log(np.exp(seen).sum(axis=1)))
        np.testing.assert_array_equal(to_numpy(stats.prediction), seen.argmax(axis=1))


class TestFrozenLoss:
    def test_it_is_the_function(self, xp):
        frozen = xent_array.CrossEntropyLoss(
            make(xp, CLASS_WEIGHT), label_smoothing=0.1, reduction="sum"
        )
        expected = loss(xp, weight=CLASS_WEIGHT, label_smoothing=0.1, reduction="sum")
        assert to_numpy(frozen(make(xp, LOGITS), make(xp, TARGET))) == expected

    def test_it_pickles(self, xp):
        frozen = xent_array.CrossEntropyLoss(
            None if xp.__name__ == "array_api_strict" else make(xp, CLASS_WEIGHT), ignore_index=3
        )
        again = pickle.loads(pickle.dumps(frozen))
        logits, target = make(xp, LOGITS), make(xp, TARGET)
        assert float(again(logits, target)) == float(frozen(logits, target))
        assert repr(again) == repr(frozen)

    def test_it_prints_its_options(self, xp):
        assert repr(xent_array.CrossEntropyLoss()) == "CrossEntropyLoss()"
        frozen = xent_array.CrossEntropyLoss(make(xp, CLASS_WEIGHT), reduction="sum", z_loss=1e-4)
        assert repr(frozen) == (
            "CrossEntropyLoss(weight=array(shape=(4,), dtype=float64), "
            "reduction='sum', z_loss=0.0001)"
        )

    def test_it_prints_a_dtype(self):
        assert repr(xent_array.CrossEntropyLoss(dtype=np.float32)) == (
            "CrossEntropyLoss(dtype=<class 'numpy.float32'>)"
        )

    def test_subclasses_can_be_copied_and_pickled(self):
        for again in (copy.copy(_Sum()), copy.deepcopy(_Sum()), pickle.loads(pickle.dumps(_Sum()))):
            assert type(again) is _Sum
            assert again.options.reduction == "sum"

    def test_it_is_frozen_and_checked_at_once(self):
        frozen = xent_array.CrossEntropyLoss()
        with pytest.raises(AttributeError, match="reduction cannot be set"):
            frozen.reduction = "sum"
        with pytest.raises(AttributeError, match="options cannot be deleted"):
            del frozen.options
        with pytest.raises(TypeError, match="CrossEntropyLoss has no option 'size_average'"):
            xent_array.CrossEntropyLoss(size_average=True)
        with pytest.raises(ValueError, match="reduction must be one of"):
            xent_array.CrossEntropyLoss(reduction="avg")


class _Sum(xent_array.CrossEntropyLoss):
    def __init__(self):
        super().__init__(reduction="sum")
