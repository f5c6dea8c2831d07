"""optimizer.py: Adam against a plain loop over scalars, clipping, bad gradients, the schedule by hand."""

import math

import numpy as np
import pytest

from mini_pkd.layers import Linear, Module, parameter
from mini_pkd.optimizer import (
    BETA1,
    BETA2,
    EPSILON,
    Adam,
    adam_step_readable,
    clip_factor,
    global_norm_readable,
    learning_rate,
)
from mini_pkd.tensor import Tensor


class Toy(Module):
    def __init__(self, seed=0, dtype=np.float64):
        rng = np.random.default_rng(seed)
        self.linear = Linear(3, 4, rng, dtype)
        self.scale = parameter(rng.standard_normal((2, 1, 5)).astype(dtype))
        self.number = parameter(np.array(0.5, dtype))


def adam_in_plain_python(values, gradients, rates, clip):
    """Kingma & Ba's algorithm 1, number by number, with clipping by the global norm in front."""
    w, m, v = list(values), [0.0] * len(values), [0.0] * len(values)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = math.sqrt(sum(x * x for x in g))
        if clip and norm > clip:
            g = [x * clip / norm for x in g]
        for i in range(len(w)):
            m[i] = BETA1 * m[i] + (1 - BETA1) * g[i]
            v[i] = BETA2 * v[i] + (1 - BETA2) * g[i] ** 2
            m_hat, v_hat = m[i] / (1 - BETA1**t), v[i] / (1 - BETA2**t)
            w[i] -= rate * m_hat / (math.sqrt(v_hat) + EPSILON)
    return np.array(w)


def random_gradients(steps, size, seed=1, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((steps, size))


# --- Adam -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [5.0, 0.7, 0.0, None])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-6])
def test_it_is_adam(clip, scale):
    adam = Adam(Toy(), clip=clip)
    start, gradients = adam.values.copy(), random_gradients(20, len(adam.values), scale=scale)
    rates = [0.1 / (1 + t) for t in range(20)]
    for g, rate in zip(gradients, rates, strict=True):
        adam.gradients[:] = g
        norm = adam.step(rate)
        assert abs(norm - np.linalg.norm(g)) < 1e-12 * norm  # before clipping
        assert not adam.gradients.any()  # ready for the next backward
    assert adam.steps == 20
    np.testing.assert_allclose(adam.values, adam_in_plain_python(start, gradients, rates, clip), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)])
@pytest.mark.parametrize("clip", [0.7, None])
def test_a_step_equals_the_readable_one(clip, dtype, tolerance):
    """In weights and both moments; float32 rounds (the correction of v is 1 - 0.98^t, small at first)."""
    adam = Adam(Toy(dtype=dtype), clip=clip)
    w, m, v = adam.values.copy(), adam.m.copy(), adam.v.copy()
    for t, g in enumerate(random_gradients(20, len(w)).astype(dtype), start=1):
        adam.gradients[:] = g
        norm = adam.step(0.1 / t)
        assert abs(norm - global_norm_readable(g)) < 1e-12 * norm
        w, m, v = adam_step_readable(w, g * clip_factor(norm, clip), m, v, t, 0.1 / t)
        for fast, readable in ((adam.values, w), (adam.m, m), (adam.v, v)):
            assert np.abs(fast - readable).max() < tolerance


def test_the_clipped_gradient_has_the_norm_that_is_allowed():
    for norm, clip, factor in ((10.0, 5.0, 0.5), (5.0, 5.0, 1.0), (4.0, 5.0, 1.0), (9.0, 0, 1.0), (9.0, None, 1.0)):
        assert clip_factor(norm, clip) == factor
    assert clip_factor(0.0, 5.0) == 1.0


def test_float32_follows_float64():
    adam = Adam(Toy(dtype=np.float32))
    assert adam.values.dtype == adam.m.dtype == adam.v.dtype == np.float32
    start, gradients = adam.values.astype(np.float64), random_gradients(50, len(adam.values))
    for g in gradients:
        adam.gradients[:] = g
        adam.step(0.01)
    expected = adam_in_plain_python(start, gradients.astype(np.float32).astype(np.float64), [0.01] * 50, 5.0)
    assert np.abs(adam.values - expected).max() < 2e-6  # 50 roundings of numbers around 1


def test_the_first_step_has_the_size_of_the_rate():
    """m / sqrt(v) is the gradient's sign after the correction of both: every weight moves by the rate."""
    adam = Adam(Toy(), clip=None)
    before, g = adam.values.copy(), random_gradients(1, len(adam.values))[0]
    adam.gradients[:] = g
    adam.step(0.01)
    np.testing.assert_allclose(adam.values - before, -0.01 * np.sign(g), rtol=1e-5)


def test_clipping_keeps_the_direction():
    """Adam's first step forgets the scale; m and v remember it."""
    g = random_gradients(1, len(Adam(Toy()).values))[0]
    g *= 50 / np.linalg.norm(g)
    adam = Adam(Toy(), clip=5.0)
    adam.gradients[:] = g
    assert abs(adam.step(0.1) - 50) < 1e-10
    np.testing.assert_allclose(adam.m, 0.1 * (1 - BETA1) / 0.1 * g / 10, rtol=1e-12)
    np.testing.assert_allclose(adam.v, (1 - BETA2) * (g / 10) ** 2, rtol=1e-12)


def test_a_zero_gradient_moves_nothing():
    adam = Adam(Toy())
    before = adam.values.copy()
    assert adam.step(0.1) == 0.0 and adam.steps == 1
    np.testing.assert_array_equal(adam.values, before)


def test_it_finds_the_bottom_of_a_bowl():
    module = Toy()
    adam, target = Adam(module), np.arange(len(Adam(Toy()).values)) / 10
    for step in range(1, 801):
        adam.gradients[:] = 2 * (adam.values - target)
        adam.step(learning_rate(step, 800, 0.1, 20))
    assert np.abs(adam.values - target).max() < 1e-3


# --- one flat buffer ------------------------------------------------------------------------------


def test_parameters_become_views_of_one_buffer_in_order():
    module = Toy()
    before = {name: p.data.copy() for name, p in module.named_parameters().items()}
    adam = Adam(module)
    start = 0
    for name, p in module.named_parameters().items():
        np.testing.assert_array_equal(p.data, before[name])
        assert p.shape == before[name].shape
        assert np.shares_memory(p.data, adam.values) and np.shares_memory(p.grad, adam.gradients)
        np.testing.assert_array_equal(adam.values[start : start + p.data.size], before[name].ravel())
        start += p.data.size
    assert start == len(adam.values) == module.num_parameters()
    adam.values[0] = 42.0
    assert module.linear.weight.data[0, 0] == 42.0


def test_backward_fills_the_buffer_and_step_empties_it():
    module = Toy()
    adam, x = Adam(module), Tensor(np.ones((5, 3)))
    for times in (1, 2):
        for _ in range(times):
            module.linear(x).backward(np.ones((5, 4)))
        np.testing.assert_array_equal(adam.gradients[:16], 5.0 * times)
        assert not adam.gradients[16:].any()
        adam.step(0.0)
        assert not adam.gradients.any() and not module.linear.weight.grad.any()


# --- gradients that are no numbers ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 7, -1])
def test_a_gradient_that_is_not_finite_leaves_everything_untouched(bad, where, dtype):
    adam = Adam(Toy(dtype=dtype))
    adam.gradients[:] = random_gradients(1, len(adam.values))[0]
    adam.step(0.1)
    before = {name: array.copy() for name, array in adam.state().items()}
    adam.gradients[:] = random_gradients(1, len(adam.values), seed=2)[0]
    adam.gradients[where] = bad
    assert not math.isfinite(adam.step(0.1)) and adam.steps == 1
    for name, array in adam.state().items():
        np.testing.assert_array_equal(array, before[name])
    assert not adam.gradients.any()  # a NaN left here would spoil the next step too


def test_gradients_whose_squares_overflow_float32_are_clipped_not_lost():
    adam = Adam(Toy(dtype=np.float32))
    adam.gradients[:] = 1e25
    norm = adam.step(0.01)
    assert math.isfinite(norm) and adam.steps == 1
    assert np.isfinite(adam.values).all() and np.isfinite(adam.v).all() and adam.m.all()


# --- stop and go on -------------------------------------------------------------------------------


def test_restoring_continues_to_the_same_bits():
    gradients = random_gradients(10, len(Adam(Toy()).values))

    def run(adam, some):
        for g in some:
            adam.gradients[:] = g
            adam.step(0.05)

    undisturbed, first, second = Adam(Toy()), Adam(Toy()), Adam(Toy(seed=9))
    run(undisturbed, gradients)
    run(first, gradients[:6])
    saved = {name: array.copy() for name, array in first.state().items()}
    second.restore(saved, first.steps)
    run(second, gradients[6:])
    np.testing.assert_array_equal(second.values, undisturbed.values)
    np.testing.assert_array_equal(second.v, undisturbed.v)
    assert second.steps == 10
    assert not np.shares_memory(second.values, saved["values"])


def test_restoring_moves_the_parameters_too():
    module, other = Toy(), Adam(Toy(seed=9))
    adam = Adam(module)
    adam.restore(other.state(), 3)
    np.testing.assert_array_equal(module.linear.weight.data, Toy(seed=9).linear.weight.data)


# --- the schedule ---------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    """Warm-up over 10 steps to 2, then half a cosine to 10 % of it at step 110."""
    rate = [learning_rate(s, 110, 2.0, 10, floor=0.1) for s in range(111)]
    assert rate[1] == 0.2 and rate[5] == 1.0 and rate[10] == 2.0
    assert abs(rate[60] - 1.1) < 1e-12  # half way: the mean of 2 and 0.2
    assert abs(rate[35] - (0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)) < 1e-12  # a quarter: cos(45 degrees)
    assert abs(rate[110] - 0.2) < 1e-12
    assert all(a < b for a, b in zip(rate[:10], rate[1:11], strict=True))
    assert all(a > b for a, b in zip(rate[10:], rate[11:], strict=False))


def test_the_schedule_at_its_edges():
    assert learning_rate(1, 100, 1.0, 0) < 1.0 and learning_rate(1, 10000, 1.0, 0) > 0.999
    assert learning_rate(200, 100, 1.0, 10, floor=0.5) == 0.5  # steps beyond the end stay on the floor
    assert learning_rate(5, 5, 1.0, 10) == 0.5  # a run shorter than its warm-up
    assert learning_rate(10, 10, 1.0, 10) == 1.0 and learning_rate(11, 10, 1.0, 10) == 0.0
