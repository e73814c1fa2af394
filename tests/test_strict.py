"""array-api-strict: other devices, no 64-bit integers, and the oldest revision that serves."""

import numpy as np
import pytest

import xent_array

xp = pytest.importorskip("array_api_strict")
pytestmark = pytest.mark.library("array_api_strict")

LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
TARGET = np.asarray([0, 3, -100, 1, 2], dtype=np.int32)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": -100}


@pytest.fixture(autouse=True)
def strictest():
    flags = {"boolean_indexing": False, "data_dependent_shapes": False, "enabled_extensions": ()}
    xp.set_array_api_strict_flags(**flags)
    yield
    xp.set_array_api_strict_flags(**flags, api_version="2025.12")


def expected():
    return xent_array.cross_entropy(LOGITS, TARGET, **OPTIONS)


@pytest.mark.parametrize("name", ["CPU_DEVICE", "device1", "device2", "no_x64"])
def test_devices(name):
    """The result stays on the device; index dtypes are the device's own."""
    device = xp.Device(name)
    logits = xp.asarray(LOGITS, device=device)
    target = xp.asarray(TARGET, device=device)
    loss, stats = xent_array.cross_entropy(logits, target, return_stats=True, **OPTIONS)
    assert loss.device == stats.lse.device == stats.correct.device == device
    assert float(loss) == pytest.approx(float(expected()), rel=1e-6)
    assert xent_array.softmax(logits).device == device


def test_two_devices_are_refused():
    logits = xp.asarray(LOGITS, device=xp.Device("device1"))
    with pytest.raises(ValueError, match=r"target is on device .* but logits is on .*device1"):
        xent_array.cross_entropy(logits, xp.asarray(TARGET))


def test_a_projection_on_another_device_is_refused():
    features, weight = xp.ones((2, 3)), xp.ones((4, 3), device=xp.Device("device1"))
    with pytest.raises(ValueError, match=r"linear_weight is on device .*device1.* but features"):
        xent_array.linear_cross_entropy(features, weight, xp.asarray([0, 3]))


@pytest.mark.parametrize("name", ["device1", "no_x64"])
def test_devices_of_the_linear_loss(name):
    device = xp.Device(name)
    arrays = [xp.asarray(x, device=device) for x in (LOGITS[:, :2], LOGITS[:4, :2], TARGET)]
    loss, grads = xent_array.linear_cross_entropy_and_grad(*arrays)
    expected = xent_array.cross_entropy(LOGITS[:, :2] @ LOGITS[:4, :2].T, TARGET)
    assert {loss.device, grads[0].device, grads[1].device} == {device}
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("revision", ["2024.12", "2025.12"])
def test_revisions_of_the_standard(revision):
    xp.set_array_api_strict_flags(api_version=revision)
    loss = xent_array.cross_entropy(xp.asarray(LOGITS), xp.asarray(TARGET), **OPTIONS)
    assert float(loss) == pytest.approx(float(expected()), rel=1e-6)
