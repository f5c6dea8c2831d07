# %% [markdown]
# # 05 The conformer: what a row may know
#
# Forty numbers every 10 ms went in ([03](03_sound.ipynb)). A hundredth of a second is not yet a sound of a language: an
# S takes ten of them, and what it means hangs on what came before. The *encoder* turns the rows into fewer rows that
# each know their past. Ours is a *conformer*, and it never looks ahead, so it can run while somebody speaks.
#
# You will be able to say how far back a row can see, to find it out by going backwards, and to notice when utterances
# of one batch hear each other.

# %%
import numpy as np

from mini_pkd import warm_up
from mini_pkd.attention import causal_attention, causal_attention_readable
from mini_pkd.conformer import Conformer, ConformerConfig, EncoderStream
from mini_pkd.convolution import depthwise_convolution, max_pool
from mini_pkd.features import mfcc
from mini_pkd.tensor import Tensor, no_grad
from tutorial import draw, models, utterance
from tutorial.exercise import check

warm_up.ensure()
spoken, teacher = utterance.load(), models.load("T1")
encoder, features = teacher.model.encoder, teacher.normaliser(mfcc(spoken.wave))
with no_grad():
    rows, lengths = encoder(Tensor(features), [len(features)])
print(encoder.config)
print(f"{features.shape} features become {rows.shape} rows")
draw.hear(spoken.path)

# %% [markdown]
# ## One block, four sums
#
# **Question.** What does a block do to its rows? It adds to them, four times. $x$ are the rows, $(T, D)$: one for each
# moment, of width $D$.
#
# $$ x \mathrel{+}= \tfrac12\,\mathrm{FF}(x) \qquad x \mathrel{+}= \mathrm{attention}(x) \qquad
#    x \mathrel{+}= \mathrm{convolution}(x) \qquad x \mathrel{+}= \tfrac12\,\mathrm{FF}(x) $$
#
# and a layer norm at the end, which subtracts a row's mean and divides by its deviation. FF, the feed-forward module of
# [02](02_autodiff.ipynb), treats every row alone. So do norms. **Only attention and convolution bring rows together**,
# and they are what the rest of this notebook is about.
#
# (Unlike the original, Gulati et al. 2020, ours is causal, has layer norm in the place of batch norm, and simpler
# positions, those of Shaw et al. 2018.)
#
# ## Attention: a mean whose weights are computed
#
# **Question.** What does row $n$ take from row $m$? Three learned matrices make a *query* $q$, a *key* $k$ and a
# *value* $v$ of each row. The product $q_n \cdot k_m$ says how well row $m$ answers what row $n$ looks for. The
# position vector $r_i$, learned as well, stands for "$i$ rows ago". $W$ is the window. All of this is done four times
# side by side, each time with a quarter of the columns: four *heads*, each $C$ wide.
#
# $$ s_m = \frac{q_n \cdot (k_m + r_{n-m})}{\sqrt C} \qquad p = \mathrm{softmax}(s) \qquad
#    \mathrm{out}_n = \sum_m p_m v_m \qquad m = n - W + 1, \dots, n $$
#
# The smallest case: queries of zero. Then all scores are equal, and what comes out is a running mean.

# %%
values = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]])
qkv, positions = np.hstack([np.zeros((5, 2)), values]), np.zeros((3, 1))  # width 1, window 3
print("values          ", values[:, 0])
print("by definition   ", causal_attention_readable(qkv, positions, [5], heads=1)[:, 0])
kernel = causal_attention(Tensor(qkv.T.copy()), Tensor(positions), [5], heads=1).data[0]
print("as training does", kernel)
assert np.allclose(kernel, causal_attention_readable(qkv, positions, [5], heads=1)[:, 0])

# %% [markdown]
# **Exercise 1.** The last row is 11: the mean of 3, 10 and 20. The list `[5]` in both calls, `lengths`, says: five rows
# that belong to one utterance. What would the last row be with `[3, 2]`, two utterances, so that 10 and 20 are the
# other?

# %%
# SOLUTION: last = ...
last = (10 + 20) / 2
# END SOLUTION
check(
    last,
    causal_attention_readable(qkv, positions, [3, 2], heads=1)[-1, 0],
    "An utterance sees only its own rows, even if the window is longer than what there is of it.",
)

# %% [markdown]
# In the trained teacher, each of four heads has queries of its own:

# %%
weights = encoder.attention_weights(features, block=1)
draw.show(
    draw.attention(weights, 0.02),
    "The second block of T1; there is a row every 20 ms, as we shall see. A line of the image says where one row "
    "takes from. All weight lies on "
    "the diagonal or left of it: nothing comes from the future, and nothing from further back than the window. "
    "Vertical streaks: for a while, row after row goes back to the same moment.",
)
assert np.allclose(weights.sum(axis=2), 1, atol=1e-4) and not np.triu(weights, 1).any()

# %% [markdown]
# Such maps invite stories. A calmer picture is the mean over the utterance: does a head have a favourite distance?

# %%
W = encoder.config.window
by_distance = np.array([[np.diagonal(head, -i).sum() / len(head) for i in range(W)] for head in weights])
draw.show(
    draw.looked_back(by_distance, 0.02),
    f"Mean weight of a row that lies so far back. A head that does not care gives 1/{W} to each, the dotted line. "
    f"On average a row gives {weights.max(axis=2).mean():.2f} to its favourite row, and no distance gets "
    f"more than {by_distance.max():.2f}: it looks at what it hears, more than at how long ago it was.",
)
assert np.allclose(by_distance.sum(axis=1), 1, atol=1e-4)
assert weights.max(axis=2).mean() > 1.2 * by_distance.max()

# %% [markdown]
# ## Convolution: a mean whose weights are learned
#
# **Question.** What is the difference? Its weights depend on the distance alone, not on what the rows hold. It is good
# at what is always alike: an onset, an edge. (The module around it also has linear maps and a gate, which treat every
# row alone.) Each of the $D$ columns has its own filter of $K$ *taps*:
#
# $$ y_t = b + \sum_{i=0}^{K-1} w_i\, x_{t - (K-1) + i} $$
#
# The last tap meets the present row; none meets a later one. This is "previous + 2 times present":

# %%
y = depthwise_convolution(Tensor(values), Tensor(np.array([[1.0], [2.0]])), Tensor(np.zeros(1)), [5]).data[:, 0]
print(y)
assert y[0] == 2 and y[4] == 50

# %% [markdown]
# ## Pooling: half as many rows
#
# **Question.** Who needs a hundred rows a second? After each of the first three blocks, a pair of rows becomes one: of
# each column the larger number. Three times, and a row stands for 80 ms. All later blocks, and the lattice of
# [07](07_lattice.ipynb), cost an eighth. A row without a partner stays as it is.

# %%
print(max_pool(Tensor(values), [5]).data[:, 0])
print(f"{len(features)} rows of 10 ms -> {lengths[0]} rows of 80 ms")
assert lengths[0] == -(-len(features) // 8)

# %% [markdown]
# ## What a row has seen
#
# **Question.** Which input rows can change output row $t$? Nobody has to think: the tape knows
# ([02](02_autodiff.ipynb)). Put a cotangent on row $t$ alone, go back, and look where the gradient of the input is not
# zero.


# %%
def strengths(encoder, features, row):
    x = Tensor(features, requires_grad=True)
    out, _ = encoder(x, [len(features)])
    cotangent = np.zeros(out.shape)
    cotangent[row] = np.random.default_rng(0).standard_normal(out.shape[1])
    out.backward(cotangent)
    return np.abs(x.grad).sum(axis=1)


seen = np.array([strengths(encoder, features, row) for row in range(lengths[0])])
recent = sum(seen[row, max(0, 8 * row - 42) : 8 * row + 8].sum() for row in range(lengths[0])) / seen.sum()
draw.show(
    draw.rows_seen(spoken.wave, seen),
    "How strongly each output row (downwards) depends on each input row (to the right), in powers of ten. White: not "
    "at all. The upper edge is the present, with its steps of 80 ms; the lower one is as far as attention and "
    f"convolution reach, and little arrives from there. {recent:.0%} of the gradient lies in the last half second.",
)
assert 0.3 < recent < 1
for row in range(lengths[0]):
    assert not seen[row, 8 * row + 8 :].any(), "the future"

# %% [markdown]
# **How far, by counting?** In a block, attention reaches back $W - 1$ rows, and convolution from there another $K - 1$.
# The first block counts rows of 10 ms, the second of 20, the third of 40. And one output row is made of $2^3 = 8$ input
# rows to begin with.

# %% [markdown]
# **Exercise 2.** How many input rows can one output row of T1 see? Write it with `W`, `K` and `pools`; it has as many
# blocks as pools. The check goes back through an untrained encoder and counts.

# %%
W, K, pools = encoder.config.window, encoder.config.kernel, encoder.config.pools
# SOLUTION: field = ...
field = 2**pools + (W - 1 + K - 1) * (2**pools - 1)  # 1 + 2 + 4 = 7
# END SOLUTION


def count(blocks, rows=600):
    config = ConformerConfig(3, blocks, width=16, heads=4, window=W, kernel=K, expansion=2, pools=pools)
    encoder = Conformer(config, np.random.default_rng(0), np.float64)
    x = np.random.default_rng(1).standard_normal((rows, 3))
    return np.count_nonzero(strengths(encoder, x, -1))


check(
    field,
    count(blocks=3),
    "Per block W - 1 + K - 1 rows of that block's length: 1, 2 and 4. Then the 2**pools that the row is made of.",
    0,
)

# %% [markdown]
# **Exercise 3.** And in seconds of sound? A row covers 25 ms, and the next begins 10 ms later.

# %%
# SOLUTION: seconds = ...
seconds = (count(blocks=3) - 1) * 0.010 + 0.025
# END SOLUTION
check(
    seconds,
    lambda s: abs(s - (0.025 + 0.010 * sum(1 for _ in range(1, count(blocks=3))))) < 1e-6,
    "As in notebook 03: the first row takes 25 ms, every further one adds 10 ms.",
)

# %% [markdown]
# **A deeper encoder** sees further, and faster than one thinks: a block after the last pool adds $W + K - 2$ rows of
# 80 ms. The paper's teacher has 16 blocks; with the window of 256 and the 32 taps that we give it, a row could know the
# last five minutes. Utterances of LibriSpeech end at about 35 s, so in principle everything can reach the last row,
# from block to block.

# %%
further = count(blocks=4) - count(blocks=3)
print(f"a fourth block adds {further} rows of 10 ms")
full = 8 + (256 - 1 + 32 - 1) * (7 + 13 * 8)
print(f"the full teacher: {full:,} rows, {full / 100:.0f} s")
assert further == 8 * (W + K - 2)

# %% [markdown]
# ## Break it: forget where utterances end
#
# **Question.** What are `lengths` for? A batch, the utterances of one training step, lays them end to end, without
# padding. Linear maps and norms do
# not care. Attention, convolution and pooling must be told where an utterance begins; otherwise it hears the end of
# its neighbour. Nothing fails, and the shapes are right.

# %%
first, second = features[:160], features[: len(features) // 2]
both, T = np.concatenate([first, second]), [len(first), len(second)]
with no_grad():
    alone = np.concatenate([encoder(Tensor(x), [len(x)])[0].data for x in (first, second)])
    batches = {"told": encoder(Tensor(both), T)[0].data, "forgot": encoder(Tensor(both), [sum(T)])[0].data}
apart = {name: np.abs(batch - alone).max(axis=1) for name, batch in batches.items()}
draw.show(
    draw.leak(apart, [0, 160 // 8]),
    "Two utterances in one batch: how far their rows are from those that they have alone. Told the lengths, not at "
    "all. Not told, the beginning of the second is wrong, and it recovers only slowly, as the end of the first moves "
    "out of its sight. The first has no neighbour before it, and is right.",
)
print({name: f"{difference.max():.1e}" for name, difference in apart.items()})
assert apart["told"].max() < 1e-3 and apart["forgot"].max() > 0.1

# %% [markdown]
# A training loss cannot say so: it is computed on the same wrong rows. In use, utterances come one by one, and the rows
# differ from those that the model was trained on. The test that finds it: *a batch must compute what its
# utterances compute one by one*.

# %% [markdown]
# ## The number
#
# A causal encoder can run on pieces, if every block keeps the last rows that later ones will want: $W - 1$ for
# attention, $K - 1$ for convolution, and a row that waits for its partner at each pool. `EncoderStream` does.
# Notebook [12](12_streaming.ipynb) listens with it. Here is only the difference from the whole, for pieces of several
# lengths.

# %%
largest = 0.0
for size in (1, 7, 16, 100):
    stream = EncoderStream(encoder)
    pieces = [stream.push(features[i : i + size]) for i in range(0, len(features), size)] + [stream.finish()]
    largest = max(largest, np.abs(np.concatenate(pieces) - rows.data).max())
print(f"streamed against whole: largest difference {largest:.1e}, where values reach {np.abs(rows.data).max():.0f}")
assert largest < 1e-3

# %% [markdown]
# **Next:** [06 prediction and joint](06_prediction_and_joint.ipynb): the other half of the model, which does not hear,
# and where both halves meet.
