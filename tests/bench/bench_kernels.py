"""Single kernels under pytest-benchmark, at the shapes of a `small` training step.

Not collected by a plain `pytest` (its name does not begin with test_); ask for it:

    python -m pytest tests/bench/bench_kernels.py --benchmark-columns=min,median,rounds --benchmark-sort=name
    python -m pytest tests/bench/bench_kernels.py --benchmark-autosave --benchmark-compare     (against the last one)

tests/conftest.py asks for one thread; say OPENBLAS_NUM_THREADS=2 NUMBA_NUM_THREADS=2 in front for two.  A benchmark
named backward runs forward and backward, since the tape is consumed.
"""

import numpy as np
import pytest

from mini_pkd import fused
from mini_pkd.attention import causal_attention
from mini_pkd.convolution import depthwise_convolution, max_pool
from mini_pkd.lattice_kernels import forward_backward
from mini_pkd.lattice_kl import distillation_loss
from mini_pkd.layers import Module, parameter
from mini_pkd.lstm import lstm
from mini_pkd.memory import keep_freed_memory
from mini_pkd.optimizer import Adam
from mini_pkd.rnnt_loss import rnnt_loss
from mini_pkd.tensor import Tensor

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed: pip install -e '.[bench]'")

LENGTHS = np.array([520, 480, 455, 430, 410, 400, 390, 370])
N, D, HEADS, WINDOW, TAPS, HIDDEN = int(LENGTHS.sum()), 112, 4, 32, 16, 224
T, U, V, J = (LENGTHS + 7) // 8, np.array([20, 16, 18, 15, 14, 15, 12, 11]), 256, 160


@pytest.fixture(autouse=True, scope="module")
def as_in_training():
    keep_freed_memory()


def tensors(*shapes):
    rng = np.random.default_rng(0)
    return [Tensor(0.3 * rng.standard_normal(shape, dtype=np.float32), requires_grad=True) for shape in shapes]


CASES = {
    "attention": (lambda qkv, r: causal_attention(qkv, r, LENGTHS, HEADS), [(3 * D, N), (WINDOW, D)]),
    "depthwise convolution": (lambda x, k, b: depthwise_convolution(x, k, b, LENGTHS), [(N, D), (TAPS, D), (D,)]),
    "max pool": (lambda x: max_pool(x, LENGTHS), [(N, D)]),
    "layer norm": (fused.layer_norm, [(N, D), (D,), (D,)]),
    "layer norm, swish": (lambda *t: fused.layer_norm(*t, swish=True), [(N, D), (D,), (D,)]),
    "linear": (fused.linear, [(N, D), (D, 3 * D), (3 * D,)]),
    "linear, glu": (fused.linear_glu, [(N, D), (D, 2 * D), (2 * D,)]),
    "feed forward": (
        lambda x, h, *weights: fused.feed_forward(x, h, *weights, 0.5, (0.1, 7), (0.1, 8)),
        [(N, D), (N, D), (D, HIDDEN), (HIDDEN,), (HIDDEN, D), (D,)],
    ),
    "linear, dropout, residual": (
        lambda x, h, w, b: fused.linear_dropout_residual(x, h, w, b, 0.5, 0.1, 7),
        [(N, D), (N, D), (D, D), (D,)],
    ),
    "lstm": (
        lambda *t: lstm(*t, U + 1),
        [(int((U + 1).sum()), J), (J, 4 * J), (J, 4 * J), (4 * J,)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_forward(benchmark, name):
    function, shapes = CASES[name]
    inputs = tensors(*shapes)
    benchmark(function, *inputs)


@pytest.mark.parametrize("name", CASES)
def test_backward(benchmark, name):
    function, shapes = CASES[name]
    inputs = tensors(*shapes)
    cotangent = np.random.default_rng(1).standard_normal(function(*inputs).shape, dtype=np.float32)
    benchmark(lambda: function(*inputs).backward(cotangent))


LATTICE = [(int(T.sum()), J), (int((U + 1).sum()), J), (V, J), (V,)]
LABELS = np.random.default_rng(2).integers(1, V, int(U.sum()))


def test_rnnt_loss_and_gradients(benchmark):
    inputs = tensors(*LATTICE)
    benchmark(lambda: rnnt_loss(*inputs, LABELS, T, U))


def test_distillation_loss_and_gradients(benchmark):
    inputs, teacher = tensors(*LATTICE), [t.data + 1 for t in tensors(*LATTICE)]
    benchmark(lambda: distillation_loss(inputs, teacher, LABELS, T, U))


def test_forward_backward_recursion(benchmark):
    columns = U + 1
    node_start = np.concatenate([[0], np.cumsum(T * columns)])
    blank, label = -3 * np.random.default_rng(0).random((2, node_start[-1]))
    out = [np.empty_like(blank) for _ in range(4)] + [np.empty(len(T))]
    benchmark(forward_backward, blank, label, node_start, columns, *out)


def test_adam(benchmark):
    module = Module()
    module.weight = parameter(np.zeros(1_280_000, np.float32))
    adam = Adam(module)
    gradient = np.random.default_rng(0).standard_normal(len(adam.gradients), dtype=np.float32)

    def step():
        adam.gradients[:] = gradient
        adam.step(1e-3)

    benchmark(step)
