"""The fused operations: what ops.py composes of small steps, in few passes over memory.  Engine room.

Most of a small conformer's time goes not into matrix products but into the passes over memory between them.  So here
each chain of elementwise steps is one numba kernel, forward and backward:

    dropout                    x times 0 or 1 / (1 - rate)
    linear, linear_columns     x W + b, and its transpose, which attention.py wants
    linear_dropout_residual    x + factor dropout(h W + b)            the end of every other module
    feed_forward               x + factor dropout(linear(dropout(swish(linear(h)))))
    linear_glu                 (x W + b)_left sigmoid((x W + b)_right)
    layer_norm                 gain (x - mean) / std + bias, then swish if asked

Each has a partner in ops.py with the same arguments, `..._readable`, whose gradient comes from the tape; tests compare
each pair, in value and in every gradient.

Matrix products go through `matmul` of threads.py, because numpy's own `@` may run on one thread.  Kernels take float32
and float64.  Each output row is written by one iteration of `prange`, and sums over rows go through a fixed number of
partial sums, so results do not depend on how many threads share the work.
"""

import numpy as np
from numba import prange

from .ops import (
    dropout_readable,
    feed_forward_readable,
    layer_norm_readable,
    linear_columns_readable,
    linear_dropout_residual_readable,
    linear_glu_readable,
    linear_readable,
)
from .simd import exp, kernel, random_bits, row_key
from .tensor import record
from .threads import matmul

BLOCKS = 64  # partial sums in reductions over rows: more than any machine's useful threads at these sizes


# --- dropout --------------------------------------------------------------------------------------


def dropout(x, rate, key):
    """x with a fraction `rate` of its elements set to 0 and the others divided by 1 - rate.

    Which ones depends on the 32-bit `key` and the position alone.  With rate 0 it returns x itself.
    """
    if rate == 0:
        return x

    def backward(g):
        dx = np.empty_like(g)
        _dropout(g, rate, key, 1.0, dx)
        return (dx,)

    y = np.empty_like(x.data)
    _dropout(x.data, rate, key, 1.0, y)
    return record(y, [x], backward)


@kernel(fastmath=False, readable=dropout_readable)
def _dropout(x, rate, key, factor, out):
    threshold, grow, zero = np.uint32(rate * 4294967295.0), x.dtype.type(factor / (1.0 - rate)), x.dtype.type(0)
    for n in prange(x.shape[0]):
        start = row_key(key, n)
        for d in range(x.shape[1]):
            out[n, d] = x[n, d] * grow if random_bits(start, d) >= threshold else zero


# --- linear, alone and with what follows it -------------------------------------------------------


def linear(x, weight, bias=None):
    """x W + b: (N, I) x (I, O) -> (N, O)."""
    y = matmul(x.data, weight.data)
    if bias is None:
        return record(y, [x, weight], lambda g: (matmul(g, weight.data.T), matmul(x.data.T, g)))
    _add_bias(y, bias.data)

    def backward(g):
        return _input_gradient(x, g, weight), matmul(x.data.T, g), column_sum(g)

    return record(y, [x, weight, bias], backward)


@kernel(fastmath=False, readable=linear_readable)
def _add_bias(y, bias):
    for n in prange(y.shape[0]):
        for d in range(y.shape[1]):
            y[n, d] += bias[d]


def linear_columns(x, weight, bias):
    """(x W + b)^T: (N, I) x (I, O) -> (O, N).  BLAS writes it this way round at no cost."""
    y = matmul(weight.data.T, x.data.T)
    _add_bias_columns(y, bias.data)

    def backward(g):
        return matmul(g.T, weight.data.T), matmul(x.data.T, g.T), column_sum(g.T)

    return record(y, [x, weight, bias], backward)


@kernel(fastmath=False, readable=linear_columns_readable)
def _add_bias_columns(y, bias):
    for d in prange(y.shape[0]):
        for n in range(y.shape[1]):
            y[d, n] += bias[d]


def _input_gradient(x, g, weight):
    return matmul(g, weight.data.T) if x.requires_grad else None  # the model's input needs none: a product saved


def column_sum(g):
    """The sum over rows, (N, O) -> (O,), as a matrix product, because that reads g once with all threads."""
    return matmul(np.ones((1, len(g)), dtype=g.dtype), g)[0]


def linear_dropout_residual(x, h, weight, bias, factor, rate, key, columns=False):
    """x + factor dropout(h W + b): x (N, D), h (N, I) -> (N, D).  Saves nothing but its inputs.

    columns: h comes as (I, N), as attention.py leaves it.
    """
    rows = h.data.T if columns else h.data
    y = matmul(rows, weight.data)  # (N, D)
    _bias_dropout_residual(x.data, y, bias.data, factor, rate, key)

    def backward(g):
        dy = np.empty_like(g)
        _dropout(g, rate, key, factor, dy)
        dh = matmul(weight.data, dy.T) if columns else matmul(dy, weight.data.T)
        return g, dh, matmul(rows.T, dy), column_sum(dy)

    return record(y, [x, h, weight, bias], backward)


@kernel(readable=linear_dropout_residual_readable)
def _bias_dropout_residual(x, y, bias, factor, rate, key):
    N, D = y.shape
    zero = y.dtype.type(0)
    grow, threshold = y.dtype.type(factor / (1.0 - rate)), np.uint32(rate * 4294967295.0)
    for n in prange(N):
        start = row_key(key, n)
        for d in range(D):
            v = grow * (y[n, d] + bias[d])
            y[n, d] = x[n, d] + (v if random_bits(start, d) >= threshold else zero)


def feed_forward(x, h, wide, wide_bias, narrow, narrow_bias, factor, inner, outer):
    """x + factor dropout(linear(dropout(swish(linear(h))))): x, h (N, D) -> (N, D), with wide (D, I) and narrow (I, D).

    swish(z) = z sigmoid(z) (Ramachandran et al. 2017); inner, outer: (rate, key) of the dropouts.  Arrays with I
    columns are several times as wide as all others, so only one of them is kept, h times `wide`: backward computes
    the activations again, in a pass that needs the same exponentials anyway.
    """
    z = matmul(h.data, wide.data)  # (N, I); overwritten by its gradient in backward
    activations = np.empty_like(z)
    _bias_swish_dropout(z, wide_bias.data, *inner, activations)
    y = matmul(activations, narrow.data)
    _bias_dropout_residual(x.data, y, narrow_bias.data, factor, *outer)

    def backward(g):
        dy = np.empty_like(g)
        _dropout(g, *outer, factor, dy)
        activations = matmul(dy, narrow.data.T)  # their gradient, until the kernel has used it
        _bias_swish_dropout_backward(activations, z, wide_bias.data, *inner)
        return (
            g, _input_gradient(h, z, wide), matmul(h.data.T, z), column_sum(z), matmul(activations.T, dy),
            column_sum(dy),
        )  # fmt: skip

    return record(y, [x, h, wide, wide_bias, narrow, narrow_bias], backward)


@kernel(readable=feed_forward_readable)
def _bias_swish_dropout(z, bias, rate, key, out):
    N, D = z.shape
    one, zero, grow = z.dtype.type(1), z.dtype.type(0), z.dtype.type(1.0 / (1.0 - rate))
    threshold = np.uint32(rate * 4294967295.0)
    for n in prange(N):
        start = row_key(key, n)
        for d in range(D):
            v = z[n, d] + bias[d]
            out[n, d] = grow * v / (one + exp(-v))
        if threshold > 0:  # teachers and decoding drop nothing
            for d in range(D):
                out[n, d] = out[n, d] if random_bits(start, d) >= threshold else zero


@kernel(readable=feed_forward_readable)
def _bias_swish_dropout_backward(g, z, bias, rate, key):
    # d/dv [v s(v)] = s + v s (1 - s).  dz replaces z, and the activations replace their gradient.
    N, D = z.shape
    one, zero, grow = z.dtype.type(1), z.dtype.type(0), z.dtype.type(1.0 / (1.0 - rate))
    threshold = np.uint32(rate * 4294967295.0)
    for n in prange(N):
        start = row_key(key, n)
        for d in range(D):
            v = z[n, d] + bias[d]
            s = one / (one + exp(-v))
            kept = grow if random_bits(start, d) >= threshold else zero
            z[n, d] = g[n, d] * kept * s * (one + v * (one - s))
            g[n, d] = kept * v * s


def linear_glu(x, weight, bias):
    """Gated linear unit of Dauphin et al. 2017: split x W + b (N, 2D) into a | b, return a sigmoid(b) (N, D)."""
    z = matmul(x.data, weight.data)  # (N, 2D); overwritten by its gradient in backward
    y = np.empty((len(z), z.shape[1] // 2), dtype=z.dtype)
    _bias_glu(z, bias.data, y)

    def backward(g):
        _bias_glu_backward(g, z, bias.data)
        return _input_gradient(x, z, weight), matmul(x.data.T, z), column_sum(z)

    return record(y, [x, weight, bias], backward)


@kernel(readable=linear_glu_readable)
def _bias_glu(z, bias, out):
    N, D = out.shape
    one = z.dtype.type(1)
    for n in prange(N):
        for d in range(D):
            out[n, d] = (z[n, d] + bias[d]) / (one + exp(-(z[n, D + d] + bias[D + d])))


@kernel(readable=linear_glu_readable)
def _bias_glu_backward(g, z, bias):
    N, D = g.shape
    one = z.dtype.type(1)
    for n in prange(N):
        for d in range(D):
            left = z[n, d] + bias[d]
            s = one / (one + exp(-(z[n, D + d] + bias[D + d])))
            z[n, d] = g[n, d] * s
            z[n, D + d] = g[n, d] * left * s * (one - s)


# --- layer norm -----------------------------------------------------------------------------------


def layer_norm(x, gain, bias, swish=False, epsilon=1e-5):
    """gain (x - mean) / sqrt(var + epsilon) + bias over each row (Ba et al. 2016), then swish if asked.

    Saved for backward: mean and 1/std of each row.  The normalised row is recomputed.
    """
    N, D = x.shape
    y = np.empty_like(x.data)
    mean, inverse = np.empty(N, dtype=y.dtype), np.empty(N, dtype=y.dtype)
    _layer_norm(x.data, gain.data, bias.data, epsilon, swish, y, mean, inverse)

    def backward(g, pending):  # `pending`, x's gradient from its other uses so far, is added in the same pass
        dx = np.empty_like(x.data)
        partial = np.zeros((BLOCKS, 2, D), dtype=dx.dtype)
        _layer_norm_backward(g, x.data, gain.data, bias.data, swish, mean, inverse, pending, dx, partial)
        dgain, dbias = partial.sum(axis=0)
        return dx, dgain, dbias

    return record(y, [x, gain, bias], backward, adds=True)


@kernel(readable=layer_norm_readable)
def _layer_norm(x, gain, bias, epsilon, swish, out, mean, inverse):
    N, D = x.shape
    one = x.dtype.type(1)
    for n in prange(N):
        s = x.dtype.type(0)
        for d in range(D):
            s += x[n, d]
        m = s / x.dtype.type(D)
        s = x.dtype.type(0)
        for d in range(D):  # a second pass: E[x^2] - E[x]^2 would cancel when the mean is large
            s += (x[n, d] - m) * (x[n, d] - m)
        r = one / np.sqrt(s / x.dtype.type(D) + x.dtype.type(epsilon))
        mean[n], inverse[n] = m, r
        if swish:
            for d in range(D):
                v = gain[d] * ((x[n, d] - m) * r) + bias[d]
                out[n, d] = v / (one + exp(-v))
        else:
            for d in range(D):
                out[n, d] = gain[d] * ((x[n, d] - m) * r) + bias[d]


@kernel(readable=layer_norm_readable)
def _layer_norm_backward(g, x, gain, bias, swish, mean, inverse, pending, dx, partial):
    # With h = (x - mean) r and a = dL/dh:  dx = r (a - mean(a) - h mean(a h)).
    N, D = x.shape
    blocks = partial.shape[0]
    one = x.dtype.type(1)
    for block in prange(blocks):
        a = np.empty(D, dtype=x.dtype)
        dgain, dbias = partial[block, 0], partial[block, 1]
        for n in range(N * block // blocks, N * (block + 1) // blocks):
            m, r = mean[n], inverse[n]
            for d in range(D):
                a[d] = g[n, d]
            if swish:
                for d in range(D):
                    v = gain[d] * ((x[n, d] - m) * r) + bias[d]
                    s = one / (one + exp(-v))
                    a[d] *= s * (one + v * (one - s))
            for d in range(D):
                dbias[d] += a[d]
                dgain[d] += a[d] * ((x[n, d] - m) * r)
                a[d] *= gain[d]
            sum_a, sum_ah = x.dtype.type(0), x.dtype.type(0)
            for d in range(D):
                sum_a += a[d]
                sum_ah += a[d] * (x[n, d] - m)
            mean_a, mean_ah = sum_a / x.dtype.type(D), sum_ah * r / x.dtype.type(D)
            for d in range(D):
                dx[n, d] = r * (a[d] - mean_a - (x[n, d] - m) * r * mean_ah)
            if pending is not None:
                for d in range(D):
                    dx[n, d] += pending[n, d]


def demo():
    import time

    from . import ops
    from .tensor import Tensor

    shapes = [(2000, 96), (2000, 96), (96, 384), (384,), (384, 96), (96,)]
    arrays = [np.random.default_rng(i).normal(size=shape) / 10 for i, shape in enumerate(shapes)]
    found = {}
    for operation in (ops.feed_forward_readable, feed_forward):
        for _ in range(2):  # the first call may compile
            x, *others = (Tensor(a.astype(np.float32), requires_grad=True) for a in arrays)
            start = time.perf_counter()
            y = operation(x, *others, 0.5, (0.1, 1), (0.1, 2))
            y.backward(y.data)
            seconds = time.perf_counter() - start
        found[operation] = [y.data] + [t.grad for t in (x, *others)]
        print(f"{operation.__name__:22s} value and gradients in {1e3 * seconds:5.1f} ms")
    worst = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(*found.values(), strict=True))
    print(f"largest relative difference of the two: {worst:.0e}")


if __name__ == "__main__":
    demo()
