"""ops.py: every operation by gradcheck in float64, against readable numpy in float32, fused against composed."""

import numpy as np
import pytest

from mini_pkd import ops
from mini_pkd.gradcheck import gradcheck
from mini_pkd.tensor import Tensor, record

# Central differences with step 1e-5 in float64 are right to about 1e-9; 1e-7 leaves room for curvature and is
# four orders of magnitude below the 0.1 % error that test_gradcheck.py shows to be caught.
EXACT = 1e-7
# float32 against the same formula in float64, relative to the largest number: sums over at most 40 terms.
SINGLE = 3e-6

ROWS = (0, 1, 2, 7, 130)  # none, one, and more than the 64 blocks of the reductions


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swish_op(x):
    """swish as an operation of its own: the ops only have it fused."""
    s = sigmoid(x.data)
    return record(x.data * s, [x], lambda g: (g * s * (1 + x.data * (1 - s)),))


def forward_and_gradients(function, arrays, cotangent_seed=9, dtype=np.float64):
    """-> (value, [gradient per input]) for a random cotangent."""
    tensors = [Tensor(np.asarray(a, dtype=dtype), requires_grad=True) for a in arrays]
    out = function(*tensors)
    assert out.data.dtype == dtype
    out.backward(normal(cotangent_seed, *out.shape))
    assert all(t.grad.dtype == dtype for t in tensors)
    return out.data, [t.grad for t in tensors]


def assert_close(a, b, tolerance):
    assert a.shape == b.shape
    if a.size:
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max()), np.abs(a - b).max()


# Every operation: (name, function of Tensors, the same of arrays in plain numpy or None, input shapes for N rows).


def layer_norm_numpy(x, gain, bias):
    mean, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return gain * (x - mean) / np.sqrt(var + 1e-5) + bias


def layer_norm_swish_numpy(x, gain, bias):
    y = layer_norm_numpy(x, gain, bias)
    return y * sigmoid(y)


IDS = np.array([2, 0, 2, 2, 4, 1])

OPERATIONS = [
    ("add", ops.add, lambda x, y: x + y, lambda N: [(N, 5), (N, 5)]),
    ("multiply", ops.multiply, lambda x, y: x * y, lambda N: [(N, 5), (N, 5)]),
    ("scale", lambda x: ops.scale(x, -2.5), lambda x: -2.5 * x, lambda N: [(N, 5)]),
    ("total", ops.total, lambda x: x.sum(), lambda N: [(N, 5)]),
    ("tanh", ops.tanh_, np.tanh, lambda N: [(N, 5)]),
    ("linear", ops.linear, lambda x, W, b: x @ W + b, lambda N: [(N, 5), (5, 3), (3,)]),
    ("linear without bias", ops.linear, lambda x, W: x @ W, lambda N: [(N, 5), (5, 3)]),
    ("linear_columns", ops.linear_columns, lambda x, W, b: (x @ W + b).T, lambda N: [(N, 5), (5, 3), (3,)]),
    ("embedding", lambda E: ops.embedding(E, IDS), lambda E: E[IDS], lambda N: [(5, 3)]),
    (
        "feed_forward",
        lambda x, h, *weights: ops.feed_forward(x, h, *weights, 0.5, (0.0, 0), (0.0, 0)),
        lambda x, h, W, b, V, c: x + 0.5 * ((h @ W + b) * sigmoid(h @ W + b) @ V + c),
        lambda N: [(N, 9), (N, 5), (5, 11), (11,), (11, 9), (9,)],
    ),
    (
        "linear_residual",
        lambda x, h, W, b: ops.linear_dropout_residual(x, h, W, b, 0.5, 0.0, 0),
        lambda x, h, W, b: x + 0.5 * (h @ W + b),
        lambda N: [(N, 9), (N, 5), (5, 9), (9,)],
    ),
    (
        "linear_residual of columns",
        lambda x, h, W, b: ops.linear_dropout_residual(x, h, W, b, 0.5, 0.0, 0, columns=True),
        lambda x, h, W, b: x + 0.5 * (h.T @ W + b),
        lambda N: [(N, 9), (5, N), (5, 9), (9,)],
    ),
    (
        "linear_glu",
        ops.linear_glu,
        lambda x, W, b: (x @ W + b)[:, :9] * sigmoid((x @ W + b)[:, 9:]),
        lambda N: [(N, 5), (5, 18), (18,)],
    ),
    ("layer_norm", ops.layer_norm, layer_norm_numpy, lambda N: [(N, 11), (11,), (11,)]),
    (
        "layer_norm_swish",
        lambda x, gain, bias: ops.layer_norm(x, gain, bias, swish=True),
        layer_norm_swish_numpy,
        lambda N: [(N, 11), (11,), (11,)],
    ),
    # Random but fixed elements are dropped, so these have derivatives like all others.
    ("dropout", lambda x: ops.dropout(x, 0.3, 5), None, lambda N: [(N, 5)]),
    (
        "feed_forward_dropout",
        lambda x, h, *weights: ops.feed_forward(x, h, *weights, 0.5, (0.3, 5), (0.2, 6)),
        None,
        lambda N: [(N, 9), (N, 5), (5, 11), (11,), (11, 9), (9,)],
    ),
    (
        "linear_dropout_residual",
        lambda x, h, W, b: ops.linear_dropout_residual(x, h, W, b, 0.5, 0.3, 5),
        None,
        lambda N: [(N, 9), (N, 5), (5, 9), (9,)],
    ),
]
NAMES = [operation[0] for operation in OPERATIONS]


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
@pytest.mark.parametrize("N", ROWS)
def test_gradient(operation, N):
    _, function, _, shapes = operation
    for seed in range(3):
        inputs = [normal(10 * seed + i, *shape) for i, shape in enumerate(shapes(N))]
        # step: a feed-forward curves the most, h^2 times its third derivative is 1e-7 at h = 1e-5
        assert gradcheck(function, inputs, seed=seed, step=3e-6) < EXACT


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o[2]], ids=[o[0] for o in OPERATIONS if o[2]])
@pytest.mark.parametrize("N", ROWS)
def test_value(operation, N):
    """float32 and float64 against the formula in numpy, in float64."""
    _, function, formula, shapes = operation
    for seed in range(3):
        inputs = [2 * normal(10 * seed + i, *shape) for i, shape in enumerate(shapes(N))]
        single = [x.astype(np.float32) for x in inputs]
        expected = np.asarray(formula(*[x.astype(np.float64) for x in single]))
        assert_close(function(*[Tensor(x) for x in single]).data, expected, SINGLE)
        assert_close(function(*[Tensor(x) for x in inputs]).data, np.asarray(formula(*inputs)), 1e-14)


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_float32_gradients_are_those_of_float64(operation):
    """One code for both types: what gradcheck proves in float64 holds in float32 up to rounding."""
    _, function, _, shapes = operation
    inputs = [normal(i, *shape).astype(np.float32) for i, shape in enumerate(shapes(130))]
    value, gradients = forward_and_gradients(function, inputs, dtype=np.float32)
    value64, gradients64 = forward_and_gradients(function, inputs, dtype=np.float64)
    for a, b in zip([value, *gradients], [value64, *gradients64], strict=True):
        assert_close(a, b, 2e-5)  # sums over 130 rows


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_inputs_are_never_written_to(operation):
    _, function, _, shapes = operation
    inputs = [normal(i, *shape) for i, shape in enumerate(shapes(7))]
    tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    out = function(*tensors)
    cotangent = normal(3, *out.shape)
    before = cotangent.copy()
    out.backward(cotangent)
    np.testing.assert_array_equal(cotangent, before)
    for tensor, x in zip(tensors, inputs, strict=True):
        np.testing.assert_array_equal(tensor.data, x)


BY_ROW = [  # masks know the row
    o for o in OPERATIONS
    if o[0] not in ("total", "embedding") and "dropout" not in o[0] and "columns" not in o[0]
]  # fmt: skip


@pytest.mark.parametrize("operation", BY_ROW, ids=[o[0] for o in BY_ROW])
def test_rows_do_not_see_each_other(operation):
    """Ten rows equal one row at a time, and rows 3..6 of one cotangent leave the other rows' gradients at zero."""
    _, function, _, shapes = operation
    N = 10
    inputs = [normal(i, *shape) for i, shape in enumerate(shapes(N))]
    by_row = [shape[0] == N for shape in shapes(N)]
    whole = function(*[Tensor(x) for x in inputs]).data
    rows = [
        function(*[Tensor(x[n : n + 1] if r else x) for x, r in zip(inputs, by_row, strict=True)]).data
        for n in range(N)
    ]
    assert_close(np.concatenate(rows), whole, 1e-14)  # BLAS may sum one row in another order
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    cotangent = np.zeros_like(whole)
    cotangent[3:6] = normal(5, *cotangent[3:6].shape)
    function(*tensors).backward(cotangent)
    for tensor, r in zip(tensors, by_row, strict=True):
        if r:
            assert not np.delete(tensor.grad, [3, 4, 5], axis=0).any() and tensor.grad[3:6].all()


# --- fused = composed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("N", [1, 7, 130])
def test_fused_operations_equal_their_parts(rate, N):
    """In value and in every gradient; equal masks, because a mask is a function of key, row and column only."""
    key = 1234567
    cases = [
        (
            lambda x, h, *weights: ops.feed_forward(x, h, *weights, 0.5, (rate, key), (rate, key + 1)),
            lambda x, h, W, b, V, c: ops.linear_dropout_residual(
                x, ops.dropout(swish_op(ops.linear(h, W, b)), rate, key), V, c, 0.5, rate, key + 1
            ),
            [(N, 9), (N, 5), (5, 11), (11,), (11, 9), (9,)],
        ),
        (
            lambda x, h, W, b: ops.linear_dropout_residual(x, h, W, b, 0.5, rate, key),
            lambda x, h, W, b: ops.add(x, ops.scale(ops.dropout(ops.linear(h, W, b), rate, key), 0.5)),
            [(N, 9), (N, 5), (5, 9), (9,)],
        ),
        (
            lambda x, g, b: ops.layer_norm(x, g, b, swish=True),
            lambda x, g, b: swish_op(ops.layer_norm(x, g, b)),
            [(N, 11), (11,), (11,)],
        ),
    ]
    for fused, composed, shapes in cases:
        inputs = [normal(i, *shape) for i, shape in enumerate(shapes)]
        value, gradients = forward_and_gradients(fused, inputs)
        expected, expected_gradients = forward_and_gradients(composed, inputs)
        for a, b in zip([value, *gradients], [expected, *expected_gradients], strict=True):
            assert_close(a, b, 1e-13)


def test_features_that_need_no_gradient_cost_none():
    x, W, b = Tensor(normal(0, 6, 4)), Tensor(normal(1, 4, 4), True), Tensor(normal(2, 4), True)
    for function in (
        ops.linear,
        ops.linear_glu,
        lambda x, W, b: ops.feed_forward(x, x, W, b, W, b, 0.5, (0.1, 3), (0.1, 4)),
    ):
        out = function(x, W, b)
        out.backward(np.ones(out.shape))
        assert x.grad is None and W.grad is not None


def test_an_operation_used_twice_on_the_same_tensor():
    """h appears as residual and as input: both ways must be added up."""
    W, b = normal(1, 5, 5), normal(2, 5)

    def both(x):
        return ops.linear_dropout_residual(x, x, Tensor(W), Tensor(b), 0.5, 0.3, 8)

    assert gradcheck(both, [normal(0, 6, 5)]) < EXACT


def test_layer_norm_adds_what_others_have_sent():
    """x goes into two layer norms and a residual: whichever comes last in the walk adds all that is pending.

    x must be the result of an operation: a leaf takes each gradient at once, so nothing is ever pending for it.
    """
    W, b = normal(1, 5, 5), normal(2, 5)
    gains, biases = [normal(i, 5) for i in (3, 4)], [normal(i, 5) for i in (5, 6)]

    def several(leaf):
        x = ops.scale(leaf, 1.5)
        h = ops.layer_norm(x, Tensor(gains[0]), Tensor(biases[0]))
        other = ops.layer_norm(x, Tensor(gains[1]), Tensor(biases[1]), swish=True)
        return ops.multiply(ops.linear_dropout_residual(x, h, Tensor(W), Tensor(b), 0.5, 0.3, 8), other)

    assert gradcheck(several, [normal(0, 6, 5)]) < EXACT


def test_strided_and_read_only_cotangents():
    """total() hands back one number broadcast over all rows; slices and transposes may come from elsewhere."""
    x, gain, bias = (Tensor(normal(i, *shape), True) for i, shape in enumerate([(6, 11), (11,), (11,)]))
    ops.total(ops.layer_norm(ops.dropout(x, 0.2, 3), gain, bias)).backward()
    np.testing.assert_allclose(bias.grad, 6.0)
    y = Tensor(x.data, True)
    gain.grad = bias.grad = None
    ops.layer_norm(ops.dropout(y, 0.2, 3), gain, bias).backward(np.asfortranarray(np.ones((6, 11))))
    np.testing.assert_allclose(x.grad, y.grad, atol=1e-14)


# --- dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate):
    x = Tensor(np.ones((300, 200), np.float32), requires_grad=True)
    y = ops.dropout(x, rate, 99)
    kept = y.data != 0
    sigma = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * sigma
    np.testing.assert_allclose(y.data[kept], 1 / (1 - rate), rtol=1e-6)  # the survivors are scaled up
    assert abs(y.data.mean() - 1) < 5 * sigma / (1 - rate)


def test_forward_and_backward_drop_the_same_elements():
    x = Tensor(np.ones((50, 40)), requires_grad=True)
    y = ops.dropout(x, 0.3, 7)
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(x.grad, y.data)

    # With the identity as the weight, the inner gradient shows the mask of the fused kernels too.
    zeros, eye, zero = Tensor(np.zeros((50, 40))), Tensor(np.eye(40)), Tensor(np.zeros(40))
    for function in (
        lambda x: ops.feed_forward(zeros, x, eye, zero, eye, zero, 1.0, (0.3, 7), (0.0, 0)),
        lambda x: ops.linear_dropout_residual(zeros, x, eye, zero, 1.0, 0.3, 7),
    ):
        x = Tensor(1 + normal(0, 50, 40) ** 2, requires_grad=True)
        out = function(x)
        out.backward(np.ones(out.shape))
        np.testing.assert_array_equal(out.data != 0, y.data != 0)
        np.testing.assert_array_equal(x.grad != 0, y.data != 0)


def test_dropout_is_a_function_of_its_key():
    x = Tensor(np.ones((50, 40)))
    a, b, c = (ops.dropout(x, 0.5, key).data for key in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert 0.4 < (a == c).mean() < 0.6
    assert ops.dropout(x, 0, 1) is x


def test_the_largest_key_of_32_bits():
    assert 0.05 < (ops.dropout(Tensor(np.ones((50, 40))), 0.1, 2**32 - 1).data == 0).mean() < 0.15


# --- numbers at the edges -----------------------------------------------------------------------------------


def test_layer_norm_of_rows_with_a_large_mean():
    """E[x^2] - E[x]^2 would lose everything here: the mean is 10,000 deviations away."""
    x = (1e4 + normal(0, 5, 16)).astype(np.float32)
    y = ops.layer_norm(Tensor(x), Tensor(np.ones(16, np.float32)), Tensor(np.zeros(16, np.float32))).data
    expected = layer_norm_numpy(x.astype(np.float64), 1.0, 0.0)
    assert np.abs(y - expected).max() < 5e-3  # the rows' own spacing, 1e-3, is the limit


def test_layer_norm_of_a_constant_row_is_its_bias():
    bias = np.arange(6.0)
    for constant in (0.0, 3.0):
        out = forward_and_gradients(ops.layer_norm, [np.full((2, 6), constant), np.ones(6), bias])
        np.testing.assert_array_equal(out[0], [bias, bias])
        assert all(np.isfinite(g).all() for g in out[1])


def test_huge_activations_stay_finite_in_float32():
    """swish and glu at +-1e4, where exp overflows: value 0 or x, gradient 0 or 1, and no NaN."""
    x = np.array([[-1e4, -100.0, 100.0, 1e4]], np.float32)
    eye, zero = np.eye(4, dtype=np.float32), np.zeros(4, np.float32)
    value, (_, dx, *_) = forward_and_gradients(
        lambda *t: ops.feed_forward(*t, 1.0, (0.0, 0), (0.0, 0)),
        [np.zeros_like(x), x, eye, zero, eye, zero],
        dtype=np.float32,
    )
    np.testing.assert_allclose(value, [[0, 0, 100, 1e4]], atol=1e-3)
    cotangent = normal(9, 1, 4)
    np.testing.assert_allclose(dx, cotangent * [[0, 0, 1, 1]], rtol=1e-5, atol=1e-3)
    value, gradients = forward_and_gradients(
        ops.linear_glu, [x, np.hstack([eye, eye]), np.zeros(8, np.float32)], dtype=np.float32
    )
    np.testing.assert_allclose(value, [[0, 0, 100, 1e4]], atol=1e-3)
    assert all(np.isfinite(g).all() for g in gradients)


def test_embedding_adds_up_repeated_ids():
    _, (gradient,) = forward_and_gradients(lambda E: ops.embedding(E, IDS), [normal(0, 5, 3)])
    cotangent = normal(9, 6, 3)
    np.testing.assert_allclose(gradient[2], cotangent[0] + cotangent[2] + cotangent[3], atol=1e-15)
    assert not gradient[3].any()


def test_a_number_that_scales_keeps_float32():
    assert ops.scale(Tensor(np.ones(3, np.float32)), 0.1).data.dtype == np.float32


def test_column_sum():
    for N in ROWS:
        x = normal(N, N, 7)
        np.testing.assert_allclose(ops.column_sum(x), x.sum(axis=0), atol=1e-13)
