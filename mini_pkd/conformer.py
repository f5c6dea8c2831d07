"""The streaming conformer encoder (Gulati et al. 2020), strictly causal, on a ragged batch.

    rows of 10 ms -> linear -> block, pool by 2 (three times) -> block -> block ... -> block -> rows of 80 ms

"Strictly causal" means: attention and convolution look at the present row and a fixed number of past ones, a norm
looks at one row, and pooling pairs rows from the start of the utterance.  So one model serves whole utterances and
streams: EncoderStream below feeds it audio in pieces and gets the same rows.

The paper says "streaming" and gives 16 blocks, width 512, 4 heads.  Ours are: window and taps (scales.py); layer norm
instead of batch norm in the convolution module, because batch statistics would couple utterances and differ between
training and streaming; and the meaning of "dropout after every layer but the first": each block but the first drops
from the output of each of its modules, and inside its feed-forward modules.

fused.f computes what `f_readable` in ops.py says.
"""

from dataclasses import dataclass

import numpy as np

from . import UserError, fused
from .attention import attention_weights, causal_attention
from .convolution import depthwise_convolution, max_pool, pooled_lengths
from .layers import NO_DROPOUT, LayerNorm, Linear, Module, parameter
from .tensor import Tensor, no_grad


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of an encoder."""

    features: int = 40  # F
    blocks: int = 16
    width: int = 512  # D
    heads: int = 4  # H
    window: int = 64  # W: rows that attention sees, the present one included; after a pool each is twice as long
    kernel: int = 16  # K: taps of the depthwise convolution
    expansion: int = 4  # hidden width of the feed-forward modules over `width`
    pools: int = 3  # after each of the first so many blocks, time is halved

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"encoder width {self.width} is not a multiple of its {self.heads} heads: change one.")
        if self.blocks < self.pools:
            raise UserError(f"{self.blocks} encoder blocks cannot hold {self.pools} time reductions: give more blocks.")

    @property
    def reduction(self):
        """How many feature rows become one output row."""
        return 2**self.pools


# --- the modules of a block: each norms its input x, and returns x + what it computes -------------
#
# `dropout` is a DropoutKeys of layers.py; `memory` holds past rows when an utterance comes in pieces (see streaming).


class FeedForward(Module):
    """x + 1/2 dropout(narrow(dropout(swish(wide(norm(x)))))), x (N, D)."""

    def __init__(self, config, rng, dtype):
        D, hidden = config.width, config.expansion * config.width
        self.norm = LayerNorm(D, dtype=dtype)
        self.wide = Linear(D, hidden, rng, dtype)
        self.narrow = Linear(hidden, D, rng, dtype)

    def __call__(self, x, dropout):
        weights = self.wide.weight, self.wide.bias, self.narrow.weight, self.narrow.bias
        return fused.feed_forward(x, self.norm(x), *weights, 0.5, dropout.next(), dropout.next())


class Attention(Module):
    """x + dropout(out(attention(qkv(norm(x))))), x (N, D)."""

    def __init__(self, config, rng, dtype):
        D, W, self.heads = config.width, config.window, config.heads
        self.norm = LayerNorm(D, dtype=dtype)
        self.qkv = Linear(D, 3 * D, rng, dtype)
        self.positions = parameter((rng.uniform(-1, 1, (W, D)) / np.sqrt(D)).astype(dtype))
        self.out = Linear(D, D, rng, dtype)

    def __call__(self, x, lengths, dropout, memory=None):
        qkv, context = fused.linear_columns(self.norm(x), self.qkv.weight, self.qkv.bias), None  # (3D, N)
        if memory is not None:
            qkv, remembered = memory.extend("qkv", qkv, self.positions.shape[0] - 1, axis=1)
            context = np.array([remembered])
        attended = causal_attention(qkv, self.positions, lengths, self.heads, context)  # (D, N)
        out = self.out
        return fused.linear_dropout_residual(x, attended, out.weight, out.bias, 1.0, *dropout.next(), columns=True)


class Convolution(Module):
    """x + dropout(out(swish(inner_norm(depthwise(glu(gated(norm(x)))))))), x (N, D)."""

    def __init__(self, config, rng, dtype):
        D, K = config.width, config.kernel
        self.norm = LayerNorm(D, dtype=dtype)
        self.gated = Linear(D, 2 * D, rng, dtype)
        bound = 1 / np.sqrt(K)
        self.kernel = parameter(rng.uniform(-bound, bound, (K, D)).astype(dtype))
        self.bias = parameter(np.zeros(D, dtype))
        self.inner_norm = LayerNorm(D, swish=True, dtype=dtype)
        self.out = Linear(D, D, rng, dtype)

    def __call__(self, x, lengths, dropout, memory=None):
        h, context = fused.linear_glu(self.norm(x), self.gated.weight, self.gated.bias), 0  # (N, D)
        if memory is not None:
            h, context = memory.extend("conv", h, self.kernel.shape[0] - 1)
        h = self.inner_norm(depthwise_convolution(h, self.kernel, self.bias, lengths, context))
        return fused.linear_dropout_residual(x, h, self.out.weight, self.out.bias, 1.0, *dropout.next())


class Block(Module):
    """Half a feed-forward, attention, convolution, the other half (a "macaron"), layer norm: x (N, D) -> (N, D)."""

    def __init__(self, config, rng, dtype):
        self.feed_forward_1 = FeedForward(config, rng, dtype)
        self.attention = Attention(config, rng, dtype)
        self.convolution = Convolution(config, rng, dtype)
        self.feed_forward_2 = FeedForward(config, rng, dtype)
        self.norm = LayerNorm(config.width, dtype=dtype)

    def __call__(self, x, lengths, dropout=NO_DROPOUT, memory=None):
        x = self.feed_forward_1(x, dropout)
        x = self.attention(x, lengths, dropout, memory)
        x = self.convolution(x, lengths, dropout, memory)
        x = self.feed_forward_2(x, dropout)
        return self.norm(x)


# --- the encoder ----------------------------------------------------------------------------------


class Conformer(Module):
    """features (sum T, F), lengths (B,) -> rows (sum T', D), lengths' (B,) with T' = ceil(T / 2) per pool."""

    def __init__(self, config, rng, dtype=np.float32):
        self.config = config
        self.input = Linear(config.features, config.width, rng, dtype)
        self.blocks = [Block(config, rng, dtype) for _ in range(config.blocks)]

    def __call__(self, features, lengths, dropout=NO_DROPOUT, blocks=None):
        """blocks: how many, with the pools after them, to look inside; by default all."""
        x, lengths = self.input(features), np.asarray(lengths, dtype=np.int64)
        for i, block in enumerate(self.blocks[:blocks]):
            x = block(x, lengths, NO_DROPOUT if i == 0 else dropout)
            if i < self.config.pools:
                x, lengths = max_pool(x, lengths), pooled_lengths(lengths)
        return x, lengths

    def attention_weights(self, features, block):
        """To look at: in block 0, 1, ..., one utterance (T, F) -> (H, T', T'): at [h, n, m] what row n takes from m."""
        with no_grad():
            x, _ = self(Tensor(features), [len(features)], blocks=block)
            x, attention = self.blocks[block].feed_forward_1(x, NO_DROPOUT), self.blocks[block].attention
            qkv = fused.linear_columns(attention.norm(x), attention.qkv.weight, attention.qkv.bias)
        return attention_weights(qkv.data, attention.positions.data, attention.heads)


# --- streaming ------------------------------------------------------------------------------------


class _Memory:
    """The past rows of one utterance that a block must remember, because later rows will look at them."""

    def __init__(self):
        self.rows = {}

    def extend(self, name, new, keep, axis=0):
        """Put remembered rows in front of the new ones: -> (both, how many were remembered).  Keeps the last `keep`."""
        old = self.rows.get(name)
        both = new.data if old is None else np.concatenate([old, new.data], axis=axis)
        rows = both.shape[axis]
        self.rows[name] = both.take(range(max(0, rows - keep), rows), axis=axis)
        return Tensor(both), rows - new.shape[axis]


class EncoderStream:
    """Feeds one utterance to a Conformer in pieces: `push(features)`, as often as audio comes, then `finish()`.

    Concatenated, what they return equals the encoder's output for the whole utterance, up to rounding: BLAS may
    add in another order when the number of rows is another.
    """

    def __init__(self, encoder):
        self.encoder = encoder
        self.memories = [_Memory() for _ in encoder.blocks]
        nothing = np.zeros((0, encoder.config.width), encoder.input.weight.data.dtype)
        self.unpaired = [nothing] * encoder.config.pools  # for each pool, the row that waits for its partner, or none

    def push(self, features):
        """features (T, F) -> the output rows (T', D) that they complete; T' may be 0."""
        return self._run(features, last=False)

    def finish(self):
        """The rows that were waiting for a partner."""
        return self._run(np.zeros((0, self.encoder.config.features)), last=True)

    def _run(self, features, last):
        """Conformer.__call__, with a memory for each block and each pool."""
        encoder = self.encoder
        with no_grad():
            x = encoder.input(Tensor(np.asarray(features, encoder.input.weight.data.dtype))).data
            for i, block in enumerate(encoder.blocks):
                if len(x):
                    x = block(Tensor(x), np.array([len(x)]), memory=self.memories[i]).data
                if i < encoder.config.pools:
                    x = self._pool(i, x, last)
        return x

    def _pool(self, i, x, last):
        """Pool i: the pairs that are complete, and at the end the last row alone."""
        x = np.concatenate([self.unpaired[i], x])
        ready = len(x) if last else len(x) // 2 * 2
        self.unpaired[i] = x[ready:].copy()
        return max_pool(Tensor(x[:ready]), [ready]).data


def demo():
    rng = np.random.default_rng(0)
    encoder = Conformer(ConformerConfig(blocks=3, width=16, heads=2, window=8, kernel=4, expansion=2), rng)
    reduction = encoder.config.reduction
    features = rng.standard_normal((100, encoder.config.features)).astype(np.float32)
    with no_grad():
        whole, lengths = encoder(Tensor(features), [100])
        changed = features.copy()
        changed[50] += 1
        other, _ = encoder(Tensor(changed), [100])
    print(f"100 rows of 10 ms -> {lengths[0]} rows of {10 * reduction} ms")
    moved = np.flatnonzero(np.abs(other.data - whole.data).max(axis=1) > 0)
    print(f"feature row 50 changed: the first output row that moves is {moved[0]} (50 // {reduction})")
    stream = EncoderStream(encoder)
    pieces = [stream.push(features[i : i + 7]) for i in range(0, 100, 7)] + [stream.finish()]
    difference = np.abs(np.concatenate(pieces) - whole.data).max()
    print(f"fed in pieces of 7 rows: {sum(map(len, pieces))} rows, largest difference {difference:.1e}")


if __name__ == "__main__":
    demo()
