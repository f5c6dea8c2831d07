"""convolution.py: depthwise convolution and pooling against their definitions, ragged, causal, streamed."""

import numpy as np
import pytest

from mini_pkd.convolution import (
    depthwise_convolution,
    depthwise_convolution_backward_readable,
    depthwise_convolution_readable,
    max_pool,
    max_pool_backward_readable,
    max_pool_readable,
    pooled_lengths,
)
from mini_pkd.gradcheck import gradcheck
from mini_pkd.ragged import row_starts
from mini_pkd.tensor import Tensor


def random_inputs(seed, rows, width, D, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((rows, D), (width, D), (D,))]


def convolve(x, kernel, bias, lengths, context=0):
    return depthwise_convolution(Tensor(x), Tensor(kernel), Tensor(bias), lengths, context).data


# --- depthwise convolution ----------------------------------------------------------------------------------


def test_by_hand():
    """Taps 1, 10, 100 over the rows 1 2 3: the last tap sees the present row; rows before the start are zero."""
    x, kernel = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [10.0], [100.0]])
    np.testing.assert_array_equal(convolve(x, kernel, np.array([0.5]), [3]), [[100.5], [210.5], [321.5]])
    np.testing.assert_array_equal(convolve(x, kernel, np.array([0.0]), [1, 2]), [[100], [200], [320]])


@pytest.mark.parametrize("seed", range(30))
def test_kernel_equals_the_definition(seed):
    """Every remainder of width by 4, utterances shorter and longer than the kernel."""
    rng = np.random.default_rng(seed)
    width, D = 1 + seed % 10, int(rng.integers(1, 12))
    lengths = rng.integers(1, 20, rng.integers(1, 5))
    inputs = random_inputs(seed, int(lengths.sum()), width, D)
    expected = depthwise_convolution_readable(*inputs, lengths)
    assert np.abs(convolve(*inputs, lengths) - expected).max() < 1e-13
    single = convolve(*[a.astype(np.float32) for a in inputs], lengths)
    assert single.dtype == np.float32 and np.abs(single - expected).max() < 1e-5


@pytest.mark.parametrize("seed", range(20))
def test_gradient_kernels_equal_the_definition(seed):
    """Every remainder of the number of taps by 4; utterances shorter than the taps, of one row, of none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 20, 5)
    lengths[seed % 5] = 1
    x, kernel, bias = random_inputs(seed, int(lengths.sum()), 1 + seed % 10, 5)
    tensors = [Tensor(a, requires_grad=True) for a in (x, kernel, bias)]
    out = depthwise_convolution(*tensors, lengths)
    g = rng.standard_normal(out.shape)
    out.backward(g)
    for tensor, expected in zip(tensors, depthwise_convolution_backward_readable(g, x, kernel, lengths), strict=True):
        assert np.abs(tensor.grad - expected).max() < 1e-12  # sums of 100 numbers of size 1 in float64


def test_it_is_numpys_convolution():
    """A second oracle, for the orientation of the taps: np.convolve with the kernel turned around."""
    x, kernel, bias = random_inputs(0, 50, 7, 3)
    expected = np.stack([np.convolve(x[:, d], kernel[::-1, d])[:50] for d in range(3)], axis=1) + bias
    np.testing.assert_allclose(convolve(x, kernel, bias, [50]), expected, atol=1e-13)


@pytest.mark.parametrize("seed", range(10))
def test_gradient(seed):
    rng = np.random.default_rng(seed)
    width, lengths = 1 + seed, rng.integers(1, 15, 4)
    inputs = random_inputs(seed, int(lengths.sum()), width, 5)
    assert gradcheck(lambda *a: depthwise_convolution(*a, lengths), inputs, seed=seed) < 1e-7


def test_gradient_of_more_rows_than_blocks():
    lengths = [200, 1, 130]
    assert gradcheck(lambda *a: depthwise_convolution(*a, lengths), random_inputs(0, 331, 6, 3)) < 1e-6


def test_float32_gradients_are_those_of_float64():
    lengths, gradients = [200, 1, 30], []
    cotangent = np.random.default_rng(1).standard_normal((231, 5))
    for dtype in (np.float32, np.float64):
        tensors = [Tensor(a, requires_grad=True) for a in random_inputs(0, 231, 7, 5, dtype)]
        depthwise_convolution(*tensors, lengths).backward(cotangent)
        gradients += [[t.grad for t in tensors]]
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == np.float32 and np.abs(a - b).max() < 2e-5 * np.abs(b).max()


def test_a_batch_equals_its_utterances_one_by_one():
    lengths = np.array([7, 1, 30, 2])
    x, kernel, bias = random_inputs(5, 40, 6, 4)
    tensors = [Tensor(a, requires_grad=True) for a in (x, kernel, bias)]
    out = depthwise_convolution(*tensors, lengths)
    cotangent = np.random.default_rng(0).standard_normal(out.shape)
    out.backward(cotangent)
    sums = [np.zeros_like(kernel), np.zeros_like(bias)]
    for start, T in zip(row_starts(lengths), lengths, strict=True):
        rows = slice(start, start + T)
        own = [Tensor(a, requires_grad=True) for a in (x[rows], kernel, bias)]
        out1 = depthwise_convolution(*own, [T])
        out1.backward(cotangent[rows])
        np.testing.assert_allclose(out1.data, out.data[rows], atol=1e-14)
        np.testing.assert_allclose(own[0].grad, tensors[0].grad[rows], atol=1e-14)
        sums = [s + t.grad for s, t in zip(sums, own[1:], strict=True)]
    for total, tensor in zip(sums, tensors[1:], strict=True):
        np.testing.assert_allclose(tensor.grad, total, atol=1e-12)


def test_changing_a_row_changes_only_the_rows_that_read_it():
    lengths, width = [12, 30, 5], 6
    x, kernel, bias = random_inputs(3, 47, width, 4)
    before = convolve(x, kernel, bias, lengths)
    for n in (0, 11, 12, 20, 41, 42, 46):
        changed = x.copy()
        changed[n] += 1
        rows = np.flatnonzero((convolve(changed, kernel, bias, lengths) != before).any(axis=1))
        end = min(n + width, next(e for e in np.cumsum(lengths) if n < e))
        assert rows.tolist() == list(range(n, end))


@pytest.mark.parametrize("seed", range(10))
def test_streaming_with_context_equals_the_whole(seed):
    """A row's sum has the same terms, only grouped differently near the utterance's start."""
    rng = np.random.default_rng(seed)
    T, width = int(rng.integers(1, 60)), int(rng.integers(1, 10))
    x, kernel, bias = random_inputs(seed, T, width, 4)
    whole = convolve(x, kernel, bias, [T])
    edges = np.unique([0, T, *rng.integers(0, T + 1, rng.integers(0, 8))])
    pieces = []
    for a, b in zip(edges, edges[1:], strict=False):
        context = min(a, width - 1)
        pieces.append(convolve(x[a - context : b], kernel, bias, [b - a], context))
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-14


# --- pooling ------------------------------------------------------------------------------------------------


def test_pooling_by_hand():
    """Pairs start at each utterance's beginning; the last row of an odd utterance has no partner."""
    x = np.array([[1, 9], [2, 8], [3, 7], [4, 0], [0, 5], [6, 6]], dtype=float)
    np.testing.assert_array_equal(max_pool(Tensor(x), [3, 1, 2]).data, [[2, 9], [3, 7], [4, 0], [6, 6]])
    np.testing.assert_array_equal(pooled_lengths([4, 3, 1, 2, 0]), [2, 2, 1, 1, 0])


@pytest.mark.parametrize("seed", range(20))
def test_pooling_equals_the_definition_and_has_its_gradient(seed):
    """Bit for bit, because nothing is computed: ties, odd lengths, one row, none."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, rng.integers(1, 6))
    lengths[0] = 1 + seed % 4
    x = (
        rng.integers(-2, 3, (int(lengths.sum()), 3)).astype(float)
        if seed % 2
        else rng.standard_normal((lengths.sum(), 3))
    )
    tensor = Tensor(x, requires_grad=True)
    y = max_pool(tensor, lengths)
    g = rng.standard_normal(y.shape)
    y.backward(g)
    np.testing.assert_array_equal(y.data, max_pool_readable(x, lengths))
    np.testing.assert_array_equal(tensor.grad, max_pool_backward_readable(g, x, lengths))
    assert len(y.data) == pooled_lengths(lengths).sum()
    if seed % 2 == 0:  # a tie has no derivative
        assert gradcheck(lambda x: max_pool(x, lengths), [x], seed=seed) < 1e-7


def test_ties_give_the_whole_gradient_to_one_row():
    x = Tensor(np.ones((5, 2)), requires_grad=True)
    max_pool(x, [5]).backward(np.array([[1.0, 2], [3, 4], [5, 6]]))
    np.testing.assert_array_equal(x.grad, [[1, 2], [0, 0], [3, 4], [0, 0], [5, 6]])


def test_pooling_keeps_the_type_and_the_input():
    x = Tensor(np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32), requires_grad=True)
    before = x.data.copy()
    y = max_pool(x, [4, 3])
    y.backward(np.ones(y.shape))
    assert y.data.dtype == x.grad.dtype == np.float32 and not np.shares_memory(y.data, x.data)
    np.testing.assert_array_equal(x.data, before)


def test_three_poolings_are_one_row_per_eight():
    lengths = np.arange(1, 100)
    assert (pooled_lengths(pooled_lengths(pooled_lengths(lengths))) == -(-lengths // 8)).all()


def test_utterances_without_rows():
    x = np.random.default_rng(0).standard_normal((4, 2))
    np.testing.assert_array_equal(max_pool(Tensor(x), [0, 3, 0, 1]).data, max_pool(Tensor(x), [3, 1]).data)
    inputs = random_inputs(0, 4, 3, 2)
    np.testing.assert_array_equal(convolve(*inputs, [0, 4, 0]), convolve(*inputs, [4]))
