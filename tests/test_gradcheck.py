"""gradcheck.py: does the checker itself notice what it should?"""

import numpy as np
import pytest

from mini_pkd import ops
from mini_pkd.gradcheck import gradcheck
from mini_pkd.tensor import record

rng = np.random.default_rng(0)


def tanh_with_error(factor):
    return lambda t: record(np.tanh(t.data), [t], lambda g: (factor * g * (1 - np.tanh(t.data) ** 2),))


def softmax(x, backward):
    p = np.exp(x.data - x.data.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return record(p, [x], lambda g: (backward(g, p),))


def test_a_right_gradient_passes():
    for function, inputs in (
        (ops.tanh, [rng.standard_normal((3, 4))]),
        (lambda x, y: x * y, [rng.standard_normal((3, 4)), rng.standard_normal((3, 4))]),
        (lambda x: softmax(x, lambda g, p: p * (g - (g * p).sum(1, keepdims=True))), [rng.standard_normal((3, 5))]),
    ):
        assert gradcheck(function, inputs) < 1e-8


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_an_error_of_a_thousandth_is_caught(factor, seed):
    """It shows as exactly 0.1 %, for any seed: between that and the 1e-8 of a right gradient lies the threshold."""
    disagreement = gradcheck(tanh_with_error(factor), [rng.standard_normal((3, 4))], seed=seed)
    assert 0.9e-3 < disagreement < 1.1e-3


@pytest.mark.parametrize("seed", range(10))
def test_a_softmax_whose_backward_returns_zeros_is_caught(seed):
    """With a cotangent of all ones the true answer is zero too: the rows of a softmax sum to one."""
    x = rng.standard_normal((3, 5))
    assert gradcheck(lambda x: softmax(x, lambda g, p: np.zeros_like(g)), [x], seed=seed) > 0.5
    assert gradcheck(lambda x: softmax(x, lambda g, p: p * g), [x], seed=seed) > 1e-3


def test_a_cotangent_of_ones_hides_a_softmax_whose_backward_returns_zeros():
    """Nothing of the sum of a row changes, and nothing is what backward claims."""
    x = rng.standard_normal((3, 5))
    zeros = lambda x: softmax(x, lambda g, p: np.zeros_like(g))  # noqa: E731
    for ones in (1, np.ones((3, 5))):
        assert gradcheck(zeros, [x], cotangent=ones) < 1e-6
    assert gradcheck(zeros, [x], cotangent=[1, 0, 0, 0, 0]) > 0.5
    assert gradcheck(zeros, [x]) > 0.5
    assert gradcheck(ops.softmax, [x]) < 1e-8


def test_a_cotangent_that_the_caller_gives_does_not_hide_other_errors():
    assert 0.9e-3 < gradcheck(tanh_with_error(1.001), [rng.standard_normal((3, 4))], cotangent=2.0) < 1.1e-3


def test_one_wrong_element_of_many_is_caught():
    def wrong(x):
        def backward(g):
            d = g * 2 * x.data
            d[2, 3] *= 1.01
            return (d,)

        return record(x.data**2, [x], backward)

    assert gradcheck(wrong, [rng.standard_normal((5, 6))]) > 1e-5


def test_a_small_gradient_cannot_hide_behind_a_large_one():
    """y = 1e5 a + b with b's gradient 10 % wrong: invisible in the sum, so inputs are also moved alone."""

    def wrong(a, b):
        return record(1e5 * a.data + b.data, [a, b], lambda g: (1e5 * g, 1.1 * g))

    # b's term is 1e-5 of the whole, and disagreements below 1e-3 of the whole are measured against that
    assert gradcheck(wrong, [np.ones(3), np.ones(3)]) > 1e-4


def test_a_missing_gradient_is_caught_and_an_unused_input_is_not_an_error():
    x, y = rng.standard_normal(4), rng.standard_normal(4)
    assert gradcheck(lambda a, b: record(a.data * b.data, [a, b], lambda g: (g * b.data, None)), [x, y]) > 0.5
    assert gradcheck(lambda a, b: ops.tanh(a), [x, y]) < 1e-8


def test_swapped_and_transposed_gradients_are_caught():
    x, y = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))

    def swapped(a, b):
        return record(a.data * b.data, [a, b], lambda g: (g * a.data, g * b.data))

    def transposed(a, b):
        return record(a.data @ b.data, [a, b], lambda g: (g @ b.data, a.data.T @ g))

    assert gradcheck(swapped, [x, y]) > 0.01 and gradcheck(transposed, [x, y]) > 0.01


def test_integers_and_float32_are_checked_in_float64():
    seen = []

    def function(x):
        seen.append(x.data.dtype)
        return ops.tanh(x)

    assert gradcheck(function, [np.array([0, 1, 2], np.float32)]) < 1e-8 and set(seen) == {np.dtype(np.float64)}


def test_the_inputs_are_left_alone():
    x = rng.standard_normal(5)
    before = x.copy()
    gradcheck(ops.tanh, [x])
    np.testing.assert_array_equal(x, before)
