"""simd.py: float32 exp and tanh against float64, and the random bits of dropout as a source of chance.

numba does not notice an edit of simd.py in kernels of other files, so these wrappers are not cached.
"""

import numpy as np
import pytest
from numba import njit, prange

from mini_pkd import simd


@njit(error_model="numpy", fastmath=simd.REORDER)
def exp_of(x, out):
    for i in range(len(x)):
        out[i] = simd.exp(x[i])


@njit(error_model="numpy", fastmath=simd.REORDER)
def tanh_of(x, out):
    for i in range(len(x)):
        out[i] = simd.tanh(x[i])


@njit(error_model="numpy")
def bits_of(key, rows, columns):
    out = np.empty((rows, columns), dtype=np.uint32)
    for n in range(rows):
        start = simd.row_key(key, n)
        for d in range(columns):
            out[n, d] = simd.random_bits(start, d)
    return out


@simd.kernel()
def doubled(x, out):
    for n in prange(x.shape[0]):
        for d in range(x.shape[1]):
            out[n, d] = x[n, d] + x[n, d]


def apply(kernel, x):
    out = np.empty_like(x)
    kernel(x, out)
    return out


def bits(key, rows, columns):
    return bits_of(int(key), rows, columns)


# --- exp ------------------------------------------------------------------------------------------


def test_exp_is_within_two_units_in_the_last_place():
    for x in (
        np.linspace(-87.0, 88.0, 1_000_001).astype(np.float32),
        np.linspace(-1, 1, 200_001).astype(np.float32),
        (np.log(2.0) * np.arange(-125, 126) / 2).astype(np.float32),  # where k jumps
    ):
        exact = np.exp(x.astype(np.float64))
        error = np.abs(apply(exp_of, x) - exact) / np.spacing(exact.astype(np.float32))
        assert error.max() <= 2.0, x[error.argmax()]


def test_exp_saturates_instead_of_overflowing():
    x = np.array([-np.inf, -1e30, -1000, -87.4, 88.1, 1000, 1e30, np.inf], np.float32)
    y = apply(exp_of, x)
    assert np.isfinite(y).all() and (y[:4] > 0).all() and (y[:4] < 2e-38).all() and (y[4:] > 1e38).all()


@pytest.mark.parametrize("kernel", [exp_of, tanh_of])
def test_a_nan_comes_out_as_a_nan(kernel):
    """Training counts and skips steps whose loss is not finite: a NaN that a clamp turns into 1 would go unseen."""
    for dtype in (np.float32, np.float64):
        x = np.zeros(37, dtype)
        x[[0, 9, 36]] = np.nan
        assert np.flatnonzero(np.isnan(apply(kernel, x))).tolist() == [0, 9, 36]


def test_exp_of_zero_is_exactly_one():
    """A softmax over one element must give exactly 1."""
    assert apply(exp_of, np.array([0.0, -0.0], np.float32)).tolist() == [1.0, 1.0]


def test_a_sigmoid_built_from_it_is_right_at_both_ends():
    x = np.linspace(-200, 200, 4001).astype(np.float32)
    sigmoid = 1 / (1 + apply(exp_of, -x))
    assert np.abs(sigmoid - 1 / (1 + np.exp(-x.astype(np.float64)))).max() < 2e-7


# --- tanh -----------------------------------------------------------------------------------------


def test_tanh_is_within_2e_7():
    for reach in (0.01, 1, 10, 100):
        x = np.linspace(-reach, reach, 200_001).astype(np.float32)
        assert np.abs(apply(tanh_of, x) - np.tanh(x.astype(np.float64))).max() < 2e-7


def test_tanh_is_within_3e_7_of_its_value_also_for_tiny_numbers():
    """1 - 2 / (exp(2x) + 1) would be right to 1e-7 absolutely, and wrong by 100 % at x = 1e-8."""
    x = np.geomspace(1e-30, 30, 100_001).astype(np.float32)
    for sign in (1, -1):
        exact = np.tanh(sign * x.astype(np.float64))
        assert np.abs(apply(tanh_of, sign * x) / exact - 1).max() < 3e-7


def test_tanh_saturates_at_one():
    x = np.array([-np.inf, -1e30, -50, 50, 1e30, np.inf], np.float32)
    np.testing.assert_array_equal(apply(tanh_of, x), np.sign(x))


# --- row_max --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 16, 31, 100])
def test_row_max_wherever_the_maximum_stands(size, dtype):
    x = np.linspace(-3, -2, size).astype(dtype)
    assert simd.row_max(x) == x.max()
    for i in range(size):
        y = x.copy()
        y[i] = 1
        assert simd.row_max(y) == 1
    assert simd.row_max(np.full(size, -np.inf, dtype)) == -np.inf


# --- the other types ------------------------------------------------------------------------------


def test_float64_gives_numpys_own_functions():
    """To the last two bits: numba calls libm, numpy its own vector code."""
    x = np.linspace(-700, 700, 10001)
    np.testing.assert_allclose(apply(exp_of, x), np.exp(x), rtol=5e-16)
    np.testing.assert_allclose(apply(tanh_of, x), np.tanh(x), rtol=5e-16)


def test_results_keep_their_type():
    """A constant of the wrong type would quietly turn a kernel into float64."""

    @njit(error_model="numpy")
    def sizes(x):
        y = np.empty(2, dtype=x.dtype)
        y[0], y[1] = simd.exp(x[0]), simd.tanh(x[0])
        return np.array([simd.exp(x[0])]).itemsize, np.array([simd.tanh(x[0])]).itemsize

    assert sizes(np.ones(1, np.float32)) == (4, 4) and sizes(np.ones(1)) == (8, 8)


def test_from_plain_python_the_names_are_numpys():
    assert simd.exp(1.0) == np.exp(1.0) and simd.tanh(1.0) == np.tanh(1.0)


@pytest.mark.parametrize("kernel", [exp_of, tanh_of])
def test_it_is_compiled_to_vector_code(kernel):
    """Eight (or four) numbers at a time is the whole point; one call into libm per number is nine times slower."""
    apply(kernel, np.ones(1, np.float32))
    code = next(iter(kernel.inspect_llvm().values()))
    for signature, llvm in kernel.inspect_llvm().items():
        if "float32" in str(signature):
            code = llvm
    assert any(f"<{n} x float>" in code for n in (4, 8, 16))


# --- random bits ----------------------------------------------------------------------------------

KEYS = (0, 1, 12345, 2**31, 2**32 - 1)


@pytest.mark.parametrize("key", KEYS)
def test_bits_are_uniform(key):
    """256 000 draws in 256 bins by each of the four bytes: chi-squared is 255 +- 22.6, we allow 5 sigma."""
    x = bits(key, 500, 512)
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((x >> np.uint32(shift)) & np.uint32(255)).ravel().astype(np.int64), minlength=256)
        chi_squared = ((counts - 1000.0) ** 2 / 1000.0).sum()
        assert 255 - 5 * 22.6 < chi_squared < 255 + 5 * 22.6, shift
    assert abs(x.mean() / 2**32 - 0.5) < 5 / np.sqrt(12 * x.size)


@pytest.mark.parametrize("key", KEYS)
def test_the_dropped_fraction_of_every_row_and_column_is_the_rate(key):
    dropped = bits(key, 400, 400) < 0.1 * 2**32
    sigma = np.sqrt(0.1 * 0.9 / 400)
    assert abs(dropped.mean() - 0.1) < 5 * sigma / 20
    for axis in (0, 1):
        assert np.abs(dropped.mean(axis=axis) - 0.1).max() < 5 * sigma
        # and the spread over rows is that of independent draws, neither lumpy nor too even
        assert 0.8 < dropped.mean(axis=axis).std() / sigma < 1.2


def correlation(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return np.corrcoef(a, b)[0, 1] * np.sqrt(len(a))  # standard deviations


def test_rows_columns_and_keys_are_independent():
    """Correlations of the numbers, and of the masks at rate 0.1, between neighbours: all within 5 sigma."""
    pairs = []
    x = bits(77, 600, 300)
    for lag in (1, 2, 3, 16, 64):
        pairs += [(x[lag:], x[:-lag]), (x[:, lag:], x[:, :-lag])]
    pairs += [(x[1:, 1:], x[:-1, :-1]), (x[1:, :-1], x[:-1, 1:])]
    for other in (76, 78, 77 ^ 1 << 31, 77 + 2**16):
        pairs += [(x, bits(other, 600, 300))]
    for other in (1, 2):  # a step in the key must not be a step in the row
        pairs += [(x[other:], bits(77 + other, 600, 300)[:-other]), (x[:-other], bits(77 + other, 600, 300)[other:])]
    for a, b in pairs:
        assert abs(correlation(a, b)) < 5
        assert abs(correlation(a < 0.1 * 2**32, b < 0.1 * 2**32)) < 5


def test_different_rows_and_keys_start_differently():
    """100 keys x 1000 rows: 100,000 starts of 32 bits collide 1.2 times on average when they are random."""

    @njit
    def starts(keys, rows):
        out = np.empty((keys, rows), dtype=np.uint32)
        for k in range(keys):
            for n in range(rows):
                out[k, n] = simd.row_key(k, n)
        return out

    drawn = starts(100, 1000)
    assert drawn.size - len(np.unique(drawn)) <= 8


def test_bits_are_a_pure_function_of_key_row_and_column():
    np.testing.assert_array_equal(bits(5, 20, 30), bits(5, 40, 60)[:20, :30])
    assert (bits(5, 20, 30) != bits(6, 20, 30)).mean() > 0.99


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 0), (1, 70_000), (50, 40), (20_000, 2)])
def test_the_readable_bits_are_the_same(key, shape):
    np.testing.assert_array_equal(simd.random_bits_readable(key, *shape), bits(key, *shape))


def test_a_row_does_not_repeat_itself():
    """65,536 columns: the hash is a bijection of the column's counter, so all numbers differ."""
    assert len(np.unique(bits(3, 1, 65536))) == 65536


# --- threads --------------------------------------------------------------------------------------


def test_a_kernel_asks_for_the_threads_that_its_largest_array_is_worth(monkeypatch):
    asked = []
    monkeypatch.setattr(simd.POOL, "team", lambda numbers: asked.append(numbers) or 1)
    for rows in (1, 1000, 3000):
        x = np.ones((rows, 100), np.float32)
        out = np.empty_like(x)
        doubled(x, out)
        assert (out == 2).all()
    assert asked == [100, 100_000, 300_000]
