"""The streaming conformer encoder (Gulati et al. 2020), strictly causal, on a ragged batch.

    features (10 ms rows) -> linear -> block, pool by 2 -> block, pool by 2 -> block, pool by 2 -> block ... -> block

and out come rows of 80 ms.  "Strictly causal" means: attention and convolution look at the present and past
rows only, over a fixed window (attention.py, convolution.py), normalisation looks at one row, pooling pairs
rows from the start of the utterance.  So there is one model, not an offline and a streaming one: EncoderStream
below feeds it audio in pieces and gets the same rows.

Where the paper is silent (it says "streaming" and gives 16 blocks, width 512, 4 heads) we decide: window and
taps (scales.py), layer norm instead of batch norm in the convolution module (batch statistics would couple
utterances and differ between training and streaming), "dropout after every layer but the first" read as: every
block but the first drops the output of each of its modules and the inner activation of its feed-forward modules.
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
    """Sizes of an encoder.  `pools`: after how many of the first blocks time is halved."""

    features: int = 40  # F
    blocks: int = 16
    width: int = 512  # D
    heads: int = 4  # H
    window: int = 64  # W: rows of attention, the present one included, at every block's own rate
    kernel: int = 16  # K: taps of the depthwise convolution
    expansion: int = 4  # hidden width of the feed-forward modules over `width`
    pools: int = 3

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"encoder width {self.width} is not a multiple of its {self.heads} heads: change one.")
        if self.blocks < self.pools:
            raise UserError(f"{self.blocks} encoder blocks cannot hold {self.pools} time reductions: give more blocks.")

    @property
    def reduction(self):
        """Feature rows per output row."""
        return 2**self.pools


# --- the modules of a block: each has its layer norm in front, and returns x + what it computes ---


class FeedForward(Module):
    """x + 1/2 dropout(W2 dropout(swish(W1 norm(x)))), x (N, D)."""

    def __init__(self, config, rng, dtype):
        D, hidden = config.width, config.expansion * config.width
        self.norm = LayerNorm(D, dtype=dtype)
        self.wide = Linear(D, hidden, rng, dtype)
        self.narrow = Linear(hidden, D, rng, dtype)

    def __call__(self, x, dropout):
        weights = self.wide.weight, self.wide.bias, self.narrow.weight, self.narrow.bias
        return fused.feed_forward(x, self.norm(x), *weights, 0.5, dropout.next(), dropout.next())


class Attention(Module):
    """x + dropout(W attention(norm(x))), x (N, D)."""

    def __init__(self, config, rng, dtype):
        D, W, self.heads = config.width, config.window, config.heads
        self.norm = LayerNorm(D, dtype=dtype)
        self.qkv = Linear(D, 3 * D, rng, dtype)
        self.positions = parameter((rng.uniform(-1, 1, (W, D)) / np.sqrt(D)).astype(dtype))
        self.out = Linear(D, D, rng, dtype)

    def __call__(self, x, lengths, dropout, memory=None):
        qkv, context = self.queries_keys_values(x), None
        if memory is not None:
            qkv, remembered = memory.extend("qkv", qkv, self.positions.shape[0] - 1, axis=1)
            context = np.array([remembered])
        attended = causal_attention(qkv, self.positions, lengths, self.heads, context)  # (D, N)
        out = self.out
        return fused.linear_dropout_residual(x, attended, out.weight, out.bias, 1.0, *dropout.next(), columns=True)

    def queries_keys_values(self, x):
        """x (N, D) -> (3D, N), as attention.py wants them."""
        return fused.linear_columns(self.norm(x), self.qkv.weight, self.qkv.bias)


class Convolution(Module):
    """x + dropout(W2 swish(norm(depthwise(glu(W1 norm(x)))))), x (N, D)."""

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
    """The macaron: half a feed-forward, attention, convolution, the other half, layer norm."""

    def __init__(self, config, rng, dtype):
        self.feed_forward_1 = FeedForward(config, rng, dtype)
        self.attention = Attention(config, rng, dtype)
        self.convolution = Convolution(config, rng, dtype)
        self.feed_forward_2 = FeedForward(config, rng, dtype)
        self.norm = LayerNorm(config.width, dtype=dtype)

    def __call__(self, x, lengths, dropout=NO_DROPOUT, memory=None):
        #     x = x + 1/2 feed_forward_1(norm(x))
        #     x = x + attention(norm(x))
        #     x = x + convolution(norm(x))
        #     x = x + 1/2 feed_forward_2(norm(x))
        #     x = norm(x)
        # Norm and sum stand inside the modules, because the kernel that ends a module can add x as it writes.
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
        """`blocks`: stop after so many, to look inside."""
        x, lengths = self.input(features), np.asarray(lengths, dtype=np.int64)
        for i, block in enumerate(self.blocks[:blocks]):
            x = block(x, lengths, NO_DROPOUT if i == 0 else dropout)
            if i < self.config.pools:
                x, lengths = max_pool(x, lengths), pooled_lengths(lengths)
        return x, lengths

    def attention_weights(self, features, i):
        """A picture of block i at work on one utterance, features (T, F): (H, T', T'), see attention.py."""
        with no_grad():
            x, _ = self(Tensor(features), [len(features)], blocks=i)
            qkv = self.blocks[i].attention.queries_keys_values(self.blocks[i].feed_forward_1(x, NO_DROPOUT))
        return attention_weights(qkv.data, self.blocks[i].attention.positions.data, self.config.heads)


# --- streaming ------------------------------------------------------------------------------------


class _Memory:
    """The rows of one utterance that a block must remember, because later rows will look at them."""

    def __init__(self):
        self.rows = {}

    def extend(self, name, new, keep, axis=0):
        """-> (the remembered rows and the `new` ones, how many were remembered); the last `keep` are kept for later."""
        old = self.rows.get(name)
        both = new.data if old is None else np.concatenate([old, new.data], axis=axis)
        rows = both.shape[axis]
        self.rows[name] = both.take(range(max(0, rows - keep), rows), axis=axis)
        return Tensor(both), rows - new.shape[axis]


class EncoderStream:
    """Feeds one utterance to a Conformer in pieces: `push(features)`, as often as audio comes, then `finish()`.

    Concatenated, what they return equals the encoder's output for the whole utterance.  Every operation
    does the same arithmetic per row; only BLAS may round differently for another number of rows.
    """

    def __init__(self, encoder):
        self.encoder = encoder
        self.memories = [_Memory() for _ in encoder.blocks]
        nothing = np.zeros((0, encoder.config.width), encoder.input.weight.data.dtype)
        self.unpaired = [nothing] * encoder.config.pools  # per pool, the row that waits for its partner, if one does

    def push(self, features):
        """features (N, F) -> the output rows (N', D) that are complete with them; N' may be 0."""
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
