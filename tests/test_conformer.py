"""conformer.py against a plain numpy conformer; streaming, causality and ragged batches of the whole encoder."""

import numpy as np
import pytest

from mini_pkd import UserError, ops
from mini_pkd.attention import causal_attention_readable
from mini_pkd.conformer import Conformer, ConformerConfig, EncoderStream
from mini_pkd.convolution import depthwise_convolution_readable
from mini_pkd.layers import NO_DROPOUT, DropoutKeys
from mini_pkd.ragged import row_starts
from mini_pkd.tensor import Tensor, no_grad

CONFIG = ConformerConfig(features=5, blocks=4, width=8, heads=2, window=6, kernel=4, expansion=2, pools=3)
# Streaming and batching do the same sums; BLAS may round them differently for another number of rows.  Layer
# norms keep the rows at size 1, and four blocks add up to some 1e-14 in float64 and 1e-5 in float32.
TOLERANCE = {np.float64: 1e-12, np.float32: 5e-5}


def make(seed=0, dtype=np.float64, config=CONFIG):
    """An encoder whose every parameter is random, gains and biases included."""
    rng = np.random.default_rng(seed)
    encoder = Conformer(config, rng, dtype)
    for p in encoder.named_parameters().values():
        p.data = (p.data + 0.2 * rng.standard_normal(p.shape)).astype(dtype)
    return encoder


def features(seed, rows, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((rows, CONFIG.features)).astype(dtype)


def encode(encoder, x, lengths):
    with no_grad():
        rows, lengths = encoder(Tensor(x), lengths)
    return rows.data, lengths


# --- a second implementation ----------------------------------------------------------------------------------


def norm(x, gain, bias):
    return gain * (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) + bias


def swish(x):
    return x / (1 + np.exp(-x))


def conformer_numpy(encoder, x, lengths):
    """The whole encoder from its parameters by name, in numpy and the readable loops."""
    weights = {name: p.data for name, p in encoder.named_parameters().items()}
    config = encoder.config

    def part(name, x):
        return x @ weights[name + ".weight"] + weights[name + ".bias"]

    def normed(name, x):
        return norm(x, weights[name + ".gain"], weights[name + ".bias"])

    def feed_forward(name, x):
        return x + 0.5 * part(f"{name}.narrow", swish(part(f"{name}.wide", normed(f"{name}.norm", x))))

    x = part("input", x)
    lengths = list(lengths)
    for i in range(config.blocks):
        b = f"blocks.{i}."
        x = feed_forward(b + "feed_forward_1", x)
        a = b + "attention"
        qkv = part(f"{a}.qkv", normed(f"{a}.norm", x))
        x = x + part(f"{a}.out", causal_attention_readable(qkv, weights[f"{a}.positions"], lengths, config.heads))
        c = b + "convolution"
        left, right = np.split(part(f"{c}.gated", normed(f"{c}.norm", x)), 2, axis=1)
        gated = left / (1 + np.exp(-right))
        depthwise = depthwise_convolution_readable(gated, weights[f"{c}.kernel"], weights[f"{c}.bias"], lengths)
        x = x + part(f"{c}.out", swish(normed(f"{c}.inner_norm", depthwise)))
        x = normed(b + "norm", feed_forward(b + "feed_forward_2", x))
        if i < config.pools:
            rows = []
            for start, T in zip(row_starts(lengths), lengths, strict=True):
                rows += [x[start + t : start + min(t + 2, T)].max(axis=0) for t in range(0, T, 2)]
            x, lengths = np.stack(rows), [(T + 1) // 2 for T in lengths]
    return x, lengths


@pytest.mark.parametrize("lengths", [[37], [9, 1, 24], [1], [8, 16, 17]])
def test_it_is_the_conformer_written_in_numpy(lengths):
    encoder, x = make(), features(0, sum(lengths))
    expected, expected_lengths = conformer_numpy(encoder, x, lengths)
    rows, out_lengths = encode(encoder, x, lengths)
    assert out_lengths.tolist() == expected_lengths
    assert np.abs(rows - expected).max() < 1e-12


# --- shapes ---------------------------------------------------------------------------------------------------


def test_one_row_per_eight_rounded_up():
    encoder, lengths = make(), np.array([*range(1, 26)])
    rows, out = encode(encoder, features(0, lengths.sum()), lengths)
    assert (out == -(-lengths // CONFIG.reduction)).all() and rows.shape == (out.sum(), 8)
    assert CONFIG.reduction == 8


def test_fewer_pools():
    for pools in (0, 1):
        config = ConformerConfig(features=5, blocks=2, width=8, heads=2, window=6, kernel=4, expansion=2, pools=pools)
        encoder = make(config=config)
        rows, out = encode(encoder, features(0, 9), [9])
        assert len(rows) == out[0] == (9, 5)[pools] == -(-9 // config.reduction)


@pytest.mark.parametrize("wrong, word", [({"width": 10, "heads": 4}, "multiple"), ({"blocks": 2}, "reductions")])
def test_impossible_sizes(wrong, word):
    with pytest.raises(UserError, match=word):
        ConformerConfig(**wrong)


# --- streaming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(15))
def test_any_cutting_gives_the_rows_of_the_whole(seed, dtype):
    rng = np.random.default_rng(seed)
    T = int(rng.integers(1, 120))
    encoder, x = make(seed % 3, dtype), features(seed, T, dtype)
    whole, (rows,) = encode(encoder, x, [T])
    cuttings = [[1] * T, [T], np.diff([0, *np.sort(rng.integers(0, T + 1, 10)), T]), [3] * (T // 3) + [T % 3]]
    for sizes in cuttings:
        stream, pieces, fed = EncoderStream(encoder), [], 0
        for size in sizes:
            pieces.append(stream.push(x[fed : fed + size]))
            fed += size
            assert sum(map(len, pieces)) == fed // CONFIG.reduction  # a row leaves as soon as it can
        pieces.append(stream.finish())
        streamed = np.concatenate(pieces)
        assert fed == T and len(streamed) == rows and streamed.dtype == dtype
        assert np.abs(streamed - whole).max() < TOLERANCE[dtype]


def test_two_streams_of_one_encoder_do_not_mix():
    encoder, a, b = make(), features(1, 40), features(2, 40)
    streams, pieces = (EncoderStream(encoder), EncoderStream(encoder)), ([], [])
    for t in range(0, 40, 5):
        for k, x in enumerate((a, b)):
            pieces[k].append(streams[k].push(x[t : t + 5]))
    for k, x in enumerate((a, b)):
        got = np.concatenate([*pieces[k], streams[k].finish()])
        assert np.abs(got - encode(encoder, x, [40])[0]).max() < 1e-12


def test_a_stream_of_nothing():
    stream = EncoderStream(make())
    assert stream.push(np.zeros((0, 5))).shape == (0, 8) and stream.finish().shape == (0, 8)


def test_a_stream_remembers_no_more_than_its_windows():
    """Hours of audio must not pile up: what is kept is bounded by window and kernel."""
    stream = EncoderStream(make())
    for _ in range(30):
        stream.push(features(0, 50))
    for memory in stream.memories:
        assert memory.rows["qkv"].shape[1] == CONFIG.window - 1 and len(memory.rows["conv"]) == CONFIG.kernel - 1
        assert all(rows.base is None for rows in memory.rows.values())  # a view would keep the whole piece alive


def test_window_and_kernel_of_one_need_no_memory():
    config = ConformerConfig(features=5, blocks=3, width=8, heads=2, window=1, kernel=1, expansion=2)
    encoder, x = make(config=config), features(0, 33)
    stream = EncoderStream(encoder)
    streamed = np.concatenate([*[stream.push(x[t : t + 4]) for t in range(0, 33, 4)], stream.finish()])
    assert np.abs(streamed - encode(encoder, x, [33])[0]).max() < 1e-12


# --- causality ------------------------------------------------------------------------------------------------


def test_changing_a_feature_row_changes_nothing_before_it():
    """Bit for bit: row n of the features first shows in output row n // reduction, in its own utterance only."""
    encoder, lengths = make(), [40, 21, 3]
    x = features(0, 64)
    before, out_lengths = encode(encoder, x, lengths)
    for utterance, t in ((0, 0), (0, 7), (0, 8), (0, 39), (1, 0), (1, 13), (2, 2)):
        changed = x.copy()
        changed[row_starts(lengths)[utterance] + t] += 3
        rows = np.flatnonzero((encode(encoder, changed, lengths)[0] != before).any(axis=1))
        first = row_starts(out_lengths)[utterance]
        assert rows[0] == first + t // CONFIG.reduction and rows[-1] < first + out_lengths[utterance]


def test_the_past_beyond_all_windows_is_forgotten():
    """What a row can see ends: per block window and kernel, at that block's rate.  So streams have no history."""
    config = ConformerConfig(features=5, blocks=3, width=8, heads=2, window=2, kernel=2, expansion=2)
    encoder, x = make(config=config), features(0, 160)
    before = encode(encoder, x, [160])[0]
    changed = x.copy()
    changed[0] += 3
    rows = np.flatnonzero((encode(encoder, changed, [160])[0] != before).any(axis=1))
    # attention and convolution look back one row each: 2 rows at rate 1, 2, 4: 2 + 4 + 8 rows, then pooled by 8
    assert rows[0] == 0 and rows[-1] <= (2 + 4 + 8) // config.reduction


# --- ragged batches -------------------------------------------------------------------------------------------


def test_attention_weights_are_those_that_the_encoder_uses():
    """Rebuilt from the weights, block i gives the rows that the encoder has after i + 1 blocks."""
    encoder, x = make(), features(1, 21)
    for i, rows in enumerate([21, 11, 6, 3]):
        weights = encoder.attention_weights(x, i)
        assert weights.shape == (CONFIG.heads, rows, rows)
        np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
        n, m = np.indices((rows, rows))
        assert (weights[:, (m > n) | (n - m >= CONFIG.window)] == 0).all() and (weights[:, m == n] > 0).all()
        with no_grad():
            before, lengths = encoder(Tensor(x), [21], blocks=i)
            block = encoder.blocks[i]
            y = block.feed_forward_1(before, NO_DROPOUT)
            attention = block.attention
            values = (attention.norm(y).data @ attention.qkv.weight.data + attention.qkv.bias.data)[:, -CONFIG.width :]
            heads = [w @ v for w, v in zip(weights, np.split(values, CONFIG.heads, axis=1), strict=True)]
            out = y.data + np.hstack(heads) @ attention.out.weight.data + attention.out.bias.data
            np.testing.assert_allclose(out, attention(y, lengths, NO_DROPOUT).data, atol=1e-12)
    with no_grad():
        np.testing.assert_array_equal(encoder(Tensor(x), [21], blocks=4)[0].data, encode(encoder, x, [21])[0])


@pytest.mark.parametrize("lengths", [[17, 1, 40, 8], [5, 5], [1, 1, 1]])
def test_a_batch_equals_its_utterances_one_by_one(lengths):
    """In value, in the features' gradient and in the sum of the parameters' gradients."""
    encoder, x = make(), features(0, sum(lengths))
    parameters = encoder.named_parameters()

    def run(rows, lengths, cotangent=None):
        for p in parameters.values():
            p.grad = None
        inputs = Tensor(rows, requires_grad=True)
        out, _ = encoder(inputs, lengths)
        out.backward(np.random.default_rng(4).standard_normal(out.shape) if cotangent is None else cotangent)
        return out.data, inputs.grad, {name: p.grad for name, p in parameters.items()}

    whole, x_gradient, gradients = run(x, lengths)
    cotangent = np.random.default_rng(4).standard_normal(whole.shape)
    out_lengths = [-(-T // CONFIG.reduction) for T in lengths]
    out_starts = row_starts(out_lengths)
    sums = {name: np.zeros_like(g) for name, g in gradients.items()}
    for b, (start, T) in enumerate(zip(row_starts(lengths), lengths, strict=True)):
        out = slice(out_starts[b], out_starts[b] + out_lengths[b])
        value, own_gradient, own = run(x[start : start + T], [T], cotangent[out])
        assert np.abs(value - whole[out]).max() < 1e-12
        assert np.abs(own_gradient - x_gradient[start : start + T]).max() < 1e-11
        for name, g in own.items():
            sums[name] += g
    for name, g in gradients.items():
        assert np.abs(g - sums[name]).max() < 1e-10, name


# --- dropout --------------------------------------------------------------------------------------------------


class Counting:
    """A DropoutKeys of rate 0 that counts who asks."""

    def __init__(self):
        self.asked = 0

    def next(self):
        self.asked += 1
        return 0.0, 0


def test_every_block_but_the_first_drops():
    """Two per feed-forward, one each for attention and convolution: six per block."""
    counting = Counting()
    make()(Tensor(features(0, 20)), [20], counting)
    assert counting.asked == 6 * (CONFIG.blocks - 1)


def test_dropout_is_a_function_of_its_keys_and_absent_by_default():
    encoder, x = make(), Tensor(features(0, 20))

    def run(seed):
        return encoder(x, [20], DropoutKeys(0.3, np.random.default_rng(seed)))[0].data

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).any() and (run(1) != encoder(x, [20])[0].data).any()
    np.testing.assert_array_equal(encoder(x, [20])[0].data, encoder(x, [20], NO_DROPOUT)[0].data)


def test_rows_masked_to_zero_do_not_blow_up_a_new_network():
    """SpecAugment sets rows to zero.  With zero biases they would stay zero, and each layer norm on the way back
    multiplies by 316; the gradient's norm was 1e9 once.  Here it stays within a factor of ten of the unmasked one.
    """
    norms = []
    for masked in (False, True):
        encoder, x = Conformer(CONFIG, np.random.default_rng(0), np.float64), features(0, 80)
        if masked:
            x[10:60] = 0
        out, _ = encoder(Tensor(x), [80])
        out.backward(np.random.default_rng(1).standard_normal(out.shape))
        norms.append(np.sqrt(sum((p.grad**2).sum() for p in encoder.named_parameters().values())))
    assert norms[1] < 10 * norms[0]


def test_every_parameter_gets_a_gradient():
    encoder = make()
    out, _ = encoder(Tensor(features(0, 60)), [60])
    ops.total(out * out).backward()
    for name, p in encoder.named_parameters().items():
        # The window reaches further back than the rows that are left after pooling: those positions are unused.
        assert p.grad is not None and np.isfinite(p.grad).all() and p.grad.any(), name
