"""fused.py: each operation by gradcheck, against plain numpy, and against its readable partner in ops.py."""

import numpy as np
import pytest
from test_ops import EXACT, ROWS, Checks, assert_close, forward_and_gradients, layer_norm_numpy, layers, normal

from mini_pkd import fused, ops
from mini_pkd.gradcheck import gradcheck
from mini_pkd.tensor import Tensor

OPERATIONS = layers(lambda name: getattr(fused, name))


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation[0] for operation in OPERATIONS])
class TestOperations(Checks):
    """What the operations of ops.py must pass, too."""


# --- fused = readable -----------------------------------------------------------------------------

PAIRS = [
    (fused.linear, ops.linear_readable, [("N", 5), (5, 9), (9,)], lambda rate: {}),
    (fused.linear_columns, ops.linear_columns_readable, [("N", 5), (5, 9), (9,)], lambda rate: {}),
    (fused.linear_glu, ops.linear_glu_readable, [("N", 5), (5, 18), (18,)], lambda rate: {}),
    (fused.dropout, ops.dropout_readable, [("N", 5)], lambda rate: {"rate": rate, "key": 2**32 - 1}),
    (
        fused.feed_forward, ops.feed_forward_readable,
        [("N", 9), ("N", 5), (5, 11), (11,), (11, 9), (9,)],
        lambda rate: {"factor": 0.5, "inner": (rate, 1234567), "outer": (rate, 1234568)},
    ),
    (
        fused.linear_dropout_residual, ops.linear_dropout_residual_readable, [("N", 9), ("N", 5), (5, 9), (9,)],
        lambda rate: {"factor": 0.5, "rate": rate, "key": 1234567},
    ),
    (
        fused.linear_dropout_residual, ops.linear_dropout_residual_readable, [("N", 9), (5, "N"), (5, 9), (9,)],
        lambda rate: {"factor": 0.5, "rate": rate, "key": 1234567, "columns": True},
    ),
    (fused.layer_norm, ops.layer_norm_readable, [("N", 11), (11,), (11,)], lambda rate: {}),
    (fused.layer_norm, ops.layer_norm_readable, [("N", 11), (11,), (11,)], lambda rate: {"swish": True}),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].__name__}-{len(pair[3](0))}")
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("N", ROWS)
def test_fused_operations_equal_their_readable_partners(pair, rate, N):
    """In value and in every gradient, with the same arguments; masks are equal, being drawn from the same key."""
    function, readable, shapes, settings = pair
    inputs = [normal(i, *[N if size == "N" else size for size in shape]) for i, shape in enumerate(shapes)]
    # float64: rounding.  float32: sums over 130 rows, and simd.exp, which is right to 1e-7.
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 2e-5)):
        arrays = [x.astype(dtype) for x in inputs]
        value, gradients = forward_and_gradients(lambda *t: function(*t, **settings(rate)), arrays, dtype=dtype)
        expected = forward_and_gradients(lambda *t: readable(*t, **settings(rate)), arrays, dtype=dtype)
        for a, b in zip([value, *gradients], [expected[0], *expected[1]], strict=True):
            assert_close(a, b, tolerance)


def test_features_that_need_no_gradient_cost_none():
    x, W, b = Tensor(normal(0, 6, 4)), Tensor(normal(1, 4, 4), True), Tensor(normal(2, 4), True)
    for function in (
        fused.linear,
        fused.linear_glu,
        lambda x, W, b: fused.feed_forward(x, x, W, b, W, b, 0.5, (0.1, 3), (0.1, 4)),
    ):
        out = function(x, W, b)
        out.backward(np.ones(out.shape))
        assert x.grad is None and W.grad is not None


def test_an_operation_used_twice_on_the_same_tensor():
    """h appears as residual and as input: both ways must be added up."""
    W, b = normal(1, 5, 5), normal(2, 5)

    def both(x):
        return fused.linear_dropout_residual(x, x, Tensor(W), Tensor(b), 0.5, 0.3, 8)

    assert gradcheck(both, [normal(0, 6, 5)]) < EXACT


def test_layer_norm_adds_what_others_have_sent():
    """x goes into two layer norms and a residual: whichever comes last in the walk adds all that is pending.

    x must be the result of an operation: a leaf takes each gradient at once, so nothing is ever pending for it.
    """
    W, b = normal(1, 5, 5), normal(2, 5)
    gains, biases = [normal(i, 5) for i in (3, 4)], [normal(i, 5) for i in (5, 6)]

    def several(leaf):
        x = 1.5 * leaf
        h = fused.layer_norm(x, Tensor(gains[0]), Tensor(biases[0]))
        other = fused.layer_norm(x, Tensor(gains[1]), Tensor(biases[1]), swish=True)
        return fused.linear_dropout_residual(x, h, Tensor(W), Tensor(b), 0.5, 0.3, 8) * other

    assert gradcheck(several, [normal(0, 6, 5)]) < EXACT


def test_strided_and_read_only_cotangents():
    """total() hands back one number broadcast over all rows; slices and transposes may come from elsewhere."""
    x, gain, bias = (Tensor(normal(i, *shape), True) for i, shape in enumerate([(6, 11), (11,), (11,)]))
    ops.total(fused.layer_norm(fused.dropout(x, 0.2, 3), gain, bias)).backward()
    np.testing.assert_allclose(bias.grad, 6.0)
    y = Tensor(x.data, True)
    gain.grad = bias.grad = None
    fused.layer_norm(fused.dropout(y, 0.2, 3), gain, bias).backward(np.asfortranarray(np.ones((6, 11))))
    np.testing.assert_allclose(x.grad, y.grad, atol=1e-14)


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate):
    x = Tensor(np.ones((300, 200), np.float32), requires_grad=True)
    y = fused.dropout(x, rate, 99)
    kept = y.data != 0
    sigma = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * sigma
    np.testing.assert_allclose(y.data[kept], 1 / (1 - rate), rtol=1e-6)  # the survivors are scaled up
    assert abs(y.data.mean() - 1) < 5 * sigma / (1 - rate)


def test_forward_and_backward_drop_the_same_elements():
    x = Tensor(np.ones((50, 40)), requires_grad=True)
    y = fused.dropout(x, 0.3, 7)
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(x.grad, y.data)

    # With the identity as the weight, the inner gradient shows the mask of the fused kernels too.
    zeros, eye, zero = Tensor(np.zeros((50, 40))), Tensor(np.eye(40)), Tensor(np.zeros(40))
    for function in (
        lambda x: fused.feed_forward(zeros, x, eye, zero, eye, zero, 1.0, (0.3, 7), (0.0, 0)),
        lambda x: fused.linear_dropout_residual(zeros, x, eye, zero, 1.0, 0.3, 7),
    ):
        x = Tensor(1 + normal(0, 50, 40) ** 2, requires_grad=True)
        out = function(x)
        out.backward(np.ones(out.shape))
        np.testing.assert_array_equal(out.data != 0, y.data != 0)
        np.testing.assert_array_equal(x.grad != 0, y.data != 0)


def test_dropout_is_a_function_of_its_key():
    x = Tensor(np.ones((50, 40)))
    a, b, c = (fused.dropout(x, 0.5, key).data for key in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert 0.4 < (a == c).mean() < 0.6
    assert fused.dropout(x, 0, 1) is x


def test_the_largest_key_of_32_bits():
    assert 0.05 < (fused.dropout(Tensor(np.ones((50, 40))), 0.1, 2**32 - 1).data == 0).mean() < 0.15


# --- numbers at the edges -------------------------------------------------------------------------


def test_layer_norm_of_rows_with_a_large_mean():
    """E[x^2] - E[x]^2 would lose everything here: the mean is 10,000 deviations away."""
    x = (1e4 + normal(0, 5, 16)).astype(np.float32)
    y = fused.layer_norm(Tensor(x), Tensor(np.ones(16, np.float32)), Tensor(np.zeros(16, np.float32))).data
    expected = layer_norm_numpy(x.astype(np.float64), 1.0, 0.0)
    assert np.abs(y - expected).max() < 5e-3  # the rows' own spacing, 1e-3, is the limit


def test_layer_norm_of_a_constant_row_is_its_bias():
    bias = np.arange(6.0)
    for constant in (0.0, 3.0):
        out = forward_and_gradients(fused.layer_norm, [np.full((2, 6), constant), np.ones(6), bias])
        np.testing.assert_array_equal(out[0], [bias, bias])
        assert all(np.isfinite(g).all() for g in out[1])


def test_huge_activations_stay_finite_in_float32():
    """swish and glu at +-1e4, where exp overflows: value 0 or x, gradient 0 or 1, and no NaN."""
    x = np.array([[-1e4, -100.0, 100.0, 1e4]], np.float32)
    eye, zero = np.eye(4, dtype=np.float32), np.zeros(4, np.float32)
    value, (_, dx, *_) = forward_and_gradients(
        lambda *t: fused.feed_forward(*t, 1.0, (0.0, 0), (0.0, 0)),
        [np.zeros_like(x), x, eye, zero, eye, zero],
        dtype=np.float32,
    )
    np.testing.assert_allclose(value, [[0, 0, 100, 1e4]], atol=1e-3)
    cotangent = normal(9, 1, 4)
    np.testing.assert_allclose(dx, cotangent * [[0, 0, 1, 1]], rtol=1e-5, atol=1e-3)
    value, gradients = forward_and_gradients(
        fused.linear_glu, [x, np.hstack([eye, eye]), np.zeros(8, np.float32)], dtype=np.float32
    )
    np.testing.assert_allclose(value, [[0, 0, 100, 1e4]], atol=1e-3)
    assert all(np.isfinite(g).all() for g in gradients)


def test_column_sum():
    for N in ROWS:
        x = normal(N, N, 7)
        np.testing.assert_allclose(fused.column_sum(x), x.sum(axis=0), atol=1e-13)
