"""ops.py: every operation by gradcheck in float64, and against plain numpy in float32; test_fused.py uses the same."""

import numpy as np
import pytest

from mini_pkd import ops
from mini_pkd.gradcheck import gradcheck
from mini_pkd.simd import random_bits_readable
from mini_pkd.tensor import Tensor

# Central differences with step 1e-5 in float64 are right to about 1e-9; 1e-7 leaves room for curvature and is
# four orders of magnitude below the 0.1 % error that test_gradcheck.py shows to be caught.
EXACT = 1e-7
# float32 against the same formula in float64, relative to the largest number: sums over at most 40 terms.
SINGLE = 3e-6

ROWS = (0, 1, 2, 7, 130)  # none, one, and more than the 64 blocks of the reductions
IDS = np.array([2, 0, 2, 2, 4, 1])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


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


def layer_norm_numpy(x, gain, bias):
    mean, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return gain * (x - mean) / np.sqrt(var + 1e-5) + bias


def layer_norm_swish_numpy(x, gain, bias):
    y = layer_norm_numpy(x, gain, bias)
    return y * sigmoid(y)


def softmax_numpy(x):
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def dropped(x, rate, key):
    """In float64, with a mask that is drawn element by element below."""
    return x * (random_bits_readable(key, *x.shape) >= np.uint32(rate * 4294967295.0)) / (1 - rate)


def layers(of):
    """The layers under test, of fused.py or their readable partners: `of(name)` finds the function.

    Each one: (name, function of Tensors, the same of arrays in plain numpy, input shapes for N rows).
    """
    feed_forward, residual = of("feed_forward"), of("linear_dropout_residual")
    layer_norm, dropout = of("layer_norm"), of("dropout")
    return [
        ("linear", of("linear"), lambda x, W, b: x @ W + b, lambda N: [(N, 5), (5, 3), (3,)]),
        ("linear without bias", of("linear"), lambda x, W: x @ W, lambda N: [(N, 5), (5, 3)]),
        ("linear_columns", of("linear_columns"), lambda x, W, b: (x @ W + b).T, lambda N: [(N, 5), (5, 3), (3,)]),
        (
            "feed_forward",
            lambda x, h, *weights: feed_forward(x, h, *weights, 0.5, (0.0, 0), (0.0, 0)),
            lambda x, h, W, b, V, c: x + 0.5 * ((h @ W + b) * sigmoid(h @ W + b) @ V + c),
            lambda N: [(N, 9), (N, 5), (5, 11), (11,), (11, 9), (9,)],
        ),
        (
            "linear_residual",
            lambda x, h, W, b: residual(x, h, W, b, 0.5, 0.0, 0),
            lambda x, h, W, b: x + 0.5 * (h @ W + b),
            lambda N: [(N, 9), (N, 5), (5, 9), (9,)],
        ),
        (
            "linear_residual of columns",
            lambda x, h, W, b: residual(x, h, W, b, 0.5, 0.0, 0, columns=True),
            lambda x, h, W, b: x + 0.5 * (h.T @ W + b),
            lambda N: [(N, 9), (5, N), (5, 9), (9,)],
        ),
        (
            "linear_glu",
            of("linear_glu"),
            lambda x, W, b: (x @ W + b)[:, :9] * sigmoid((x @ W + b)[:, 9:]),
            lambda N: [(N, 5), (5, 18), (18,)],
        ),
        ("layer_norm", layer_norm, layer_norm_numpy, lambda N: [(N, 11), (11,), (11,)]),
        (
            "layer_norm_swish",
            lambda x, gain, bias: layer_norm(x, gain, bias, swish=True),
            layer_norm_swish_numpy,
            lambda N: [(N, 11), (11,), (11,)],
        ),
        # Random but fixed elements are dropped, so these have derivatives like all others.
        ("dropout", lambda x: dropout(x, 0.3, 5), lambda x: dropped(x, 0.3, 5), lambda N: [(N, 5)]),
        (
            "feed_forward_dropout",
            lambda x, h, *weights: feed_forward(x, h, *weights, 0.5, (0.3, 5), (0.2, 6)),
            lambda x, h, W, b, V, c: (
                x + 0.5 * dropped(dropped((h @ W + b) * sigmoid(h @ W + b), 0.3, 5) @ V + c, 0.2, 6)
            ),
            lambda N: [(N, 9), (N, 5), (5, 11), (11,), (11, 9), (9,)],
        ),
        (
            "linear_dropout_residual",
            lambda x, h, W, b: residual(x, h, W, b, 0.5, 0.3, 5),
            lambda x, h, W, b: x + 0.5 * dropped(h @ W + b, 0.3, 5),
            lambda N: [(N, 9), (N, 5), (5, 9), (9,)],
        ),
    ]


class Checks:
    """What every operation must pass; parametrised over `operation` by the classes below and in test_fused.py."""

    @pytest.mark.parametrize("N", ROWS)
    def test_gradient(self, operation, N):
        _, function, _, shapes = operation
        for seed in range(3):
            inputs = [normal(10 * seed + i, *shape) for i, shape in enumerate(shapes(N))]
            # step: a feed-forward curves the most, h^2 times its third derivative is 1e-7 at h = 1e-5
            assert gradcheck(function, inputs, seed=seed, step=3e-6) < EXACT

    @pytest.mark.parametrize("N", ROWS)
    def test_value(self, operation, N):
        """float32 and float64 against the formula in numpy, in float64."""
        _, function, formula, shapes = operation
        for seed in range(3):
            inputs = [2 * normal(10 * seed + i, *shape) for i, shape in enumerate(shapes(N))]
            single = [x.astype(np.float32) for x in inputs]
            expected = np.asarray(formula(*[x.astype(np.float64) for x in single]))
            assert_close(function(*[Tensor(x) for x in single]).data, expected, SINGLE)
            assert_close(function(*[Tensor(x) for x in inputs]).data, np.asarray(formula(*inputs)), 1e-14)

    def test_float32_gradients_are_those_of_float64(self, operation):
        """One code for both types: what gradcheck proves in float64 holds in float32 up to rounding."""
        _, function, _, shapes = operation
        inputs = [normal(i, *shape).astype(np.float32) for i, shape in enumerate(shapes(130))]
        value, gradients = forward_and_gradients(function, inputs, dtype=np.float32)
        value64, gradients64 = forward_and_gradients(function, inputs, dtype=np.float64)
        for a, b in zip([value, *gradients], [value64, *gradients64], strict=True):
            assert_close(a, b, 2e-5)  # sums over 130 rows

    def test_inputs_are_never_written_to(self, operation):
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

    def test_rows_do_not_see_each_other(self, operation):
        """Ten rows equal one row at a time, and rows 3..6 of one cotangent leave the other rows' gradients at zero."""
        name, function, _, shapes = operation
        if name in ("total", "transpose", "embedding") or "dropout" in name or "columns" in name:
            return  # no rows, or columns; and masks know the row
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


SMALL = [
    ("add", lambda x, y: x + y, lambda x, y: x + y, lambda N: [(N, 5), (N, 5)]),
    ("subtract", lambda x, y: x - y, lambda x, y: x - y, lambda N: [(N, 5), (N, 5)]),
    ("add to each row", lambda x, y: x + y, lambda x, y: x + y, lambda N: [(N, 5), (5,)]),
    ("multiply", lambda x, y: x * y, lambda x, y: x * y, lambda N: [(N, 5), (N, 5)]),
    ("multiply columns", lambda x, y: x * y, lambda x, y: x * y, lambda N: [(1, 5), (N, 1)]),
    ("scale", lambda x: -2.5 * x, lambda x: -2.5 * x, lambda N: [(N, 5)]),
    ("matmul", lambda x, y: x @ y, lambda x, y: x @ y, lambda N: [(N, 5), (5, 3)]),
    ("total", ops.total, lambda x: x.sum(), lambda N: [(N, 5)]),
    ("transpose", ops.transpose, np.transpose, lambda N: [(N, 5)]),
    ("tanh", ops.tanh, np.tanh, lambda N: [(N, 5)]),
    ("sigmoid", ops.sigmoid, sigmoid, lambda N: [(N, 5)]),
    ("swish", ops.swish, lambda x: x * sigmoid(x), lambda N: [(N, 5)]),
    ("softmax", ops.softmax, softmax_numpy, lambda N: [(N, 5)]),
    ("glu", ops.glu, lambda x: x[:, :3] * sigmoid(x[:, 3:]), lambda N: [(N, 6)]),
    ("embedding", lambda E: ops.embedding(E, IDS), lambda E: E[IDS], lambda N: [(5, 3)]),
]
OPERATIONS = SMALL + layers(lambda name: getattr(ops, name + "_readable"))


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation[0] for operation in OPERATIONS])
class TestOperations(Checks):
    """Small operations, and the layers that are composed of them."""


# --- numbers at the edges -------------------------------------------------------------------------


def test_huge_activations_stay_finite_in_float32():
    """At +-1e4, where exp overflows: value 0 or x, gradient 0 or 1, and no warning."""
    x = np.array([[-1e4, -100.0, 100.0, 1e4]], np.float32)
    value, (dx,) = forward_and_gradients(ops.swish, [x], dtype=np.float32)
    np.testing.assert_allclose(value, [[0, 0, 100, 1e4]], atol=1e-3)
    np.testing.assert_allclose(dx, normal(9, 1, 4) * [[0, 0, 1, 1]], rtol=1e-5, atol=1e-3)
    value, (dx,) = forward_and_gradients(ops.glu, [np.hstack([x, x])], dtype=np.float32)
    np.testing.assert_allclose(value, [[0, 0, 100, 1e4]], atol=1e-3)
    value, (dx,) = forward_and_gradients(ops.softmax, [x], dtype=np.float32)
    np.testing.assert_array_equal(value, [[0, 0, 0, 1]])
    assert np.isfinite(dx).all()


def test_a_softmax_does_not_see_a_constant():
    x = normal(0, 6, 5)
    value, (dx,) = forward_and_gradients(ops.softmax, [x])
    assert_close(value.sum(axis=1), np.ones(6), 1e-15)
    assert_close(dx.sum(axis=1), np.zeros(6), 1e-15)
    assert_close(ops.softmax(Tensor(x + 100.0)).data, value, 1e-13)


def test_embedding_adds_up_repeated_ids():
    _, (gradient,) = forward_and_gradients(lambda E: ops.embedding(E, IDS), [normal(0, 5, 3)])
    cotangent = normal(9, 6, 3)
    np.testing.assert_allclose(gradient[2], cotangent[0] + cotangent[2] + cotangent[3], atol=1e-15)
    assert not gradient[3].any()


def test_a_number_that_scales_keeps_float32():
    assert (0.1 * Tensor(np.ones(3, np.float32))).data.dtype == np.float32
