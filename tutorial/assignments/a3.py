"""Assignment 3: the encoder: attention and its gradient, convolution, pooling, and the same from a stream."""

import numpy as np

from .task import CORE, Assignment, Mutant, Output, Task

CONVENTIONS = {
    "axes": {
        "rows first": {
            "N, D": "N, D",
            "M, D": "M, D",
            "T, D": "T, D",
            "0, D": "0, D",
            "a time step is": "a row",
            ".T": "",
            "axis": "0",
            "qkv by rows": "",
            "g and qkv by rows": "",
            "x by rows": "",
            "x and g by rows": "",
            "piece by rows": "",
        },
        "rows last": {
            "N, D": "D, N",
            "M, D": "D, M",
            "T, D": "D, T",
            "0, D": "D, 0",
            "a time step is": "a column",
            ".T": ".T",
            "axis": "1",
            "qkv by rows": "q, k, v = q.T, k.T, v.T  # (N, D)",
            "g and qkv by rows": "g, q, k, v = g.T, q.T, k.T, v.T  # (N, D)",
            "x by rows": "x = x.T  # (N, D)",
            "x and g by rows": "x, g = x.T, g.T  # (N, D), (M, D)",
            "piece by rows": "piece = piece.T  # (T, D)",
        },
    },
    "window": {
        "counts the row itself": {
            "seen": "distance < window",
            "one more seen": "distance <= window",
            "one fewer seen": "distance < window - 1",
            "what is seen": "the last `window` time steps, itself included",
            "smallest window": "1",
            "largest distance": "window - 1",
            "distances seen": r"0 \le n - m \le W - 1",
            "window of 3": "3",
            "window of 2": "2",
            "window of 8": "8",
        },
        "counts the past": {
            "seen": "distance <= window",
            "one more seen": "distance <= window + 1",
            "one fewer seen": "distance < window",
            "what is seen": "itself and the `window` time steps before it",
            "smallest window": "0",
            "largest distance": "window",
            "distances seen": r"0 \le n - m \le W",
            "window of 3": "2",
            "window of 2": "1",
            "window of 8": "7",
        },
    },
    # The table of relative positions, and the table of taps: here as in the package they run in opposite directions.
    "order": {
        "positions from the present, taps to it": {
            "row of distance": "distance",
            "other row of distance": "len(positions) - 1 - distance",
            "positions of i": "positions[i]",
            "table as handed out": "",
            "by distance": "",
            "tap": "K - 1 - lag",
            "other tap": "lag",
            "tap of i": "taps[K - 1 - i]",
            "the present's tap": "the last",
            "taps as handed out": "",
        },
        "positions to the present, taps from it": {
            "row of distance": "len(positions) - 1 - distance",
            "other row of distance": "distance",
            "positions of i": "positions[P - 1 - i]",
            "table as handed out": "table = table[::-1]  # distance 0 is the last of the table",
            "by distance": "[::-1]",
            "tap": "lag",
            "other tap": "K - 1 - lag",
            "tap of i": "taps[i]",
            "the present's tap": "the first",
            "taps as handed out": "taps = taps[::-1]  # the present's tap is the first",
        },
    },
    "ties": {
        "first": {
            "winner": "pair.argmax(axis=0)",
            "other winner": "len(pair) - 1 - pair[::-1].argmax(axis=0)",
            "who wins": "first",
            "first paid": "7.0",
            "second paid": "0.0",
        },
        "second": {
            "winner": "len(pair) - 1 - pair[::-1].argmax(axis=0)",
            "other winner": "pair.argmax(axis=0)",
            "who wins": "second",
            "first paid": "0.0",
            "second paid": "7.0",
        },
    },
}


# --- inputs ---------------------------------------------------------------------------------------------------------


def in_dialect(dialect, rows):
    """Rows (N, D) with the axes of the dialect; and back again."""
    return rows if dialect["axes"] == "rows first" else np.ascontiguousarray(rows.T)


def by_lag(dialect, taps):
    """Taps (K, D) as mini_pkd has them, the present row's last; and back again."""
    return taps if dialect["order"].endswith("taps to it") else taps[::-1]


def starts(lengths):
    return np.cumsum(lengths) - lengths


# --- 1 --------------------------------------------------------------------------------------------------------------


def attention_inputs(rng, dialect, lengths, W, spare=0, H=2, C=3, loud=False):
    """Arguments of attention: each row sees W rows with itself; the table has `spare` more; loud: scores near 1000."""
    N, D = sum(lengths), H * C
    q, k, v = rng.standard_normal((3, N, D))
    if loud:
        q[:, ::C], k[:, ::C] = 100.0, rng.standard_normal((N, H)) / 50 + 10.0 * np.sqrt(C)
    positions = rng.standard_normal((W + spare, D)) / (50 if loud else 1)
    window = W if dialect["window"] == "counts the row itself" else W - 1
    q, k, v = (in_dialect(dialect, rows) for rows in (q, k, v))
    return q, k, v, positions, np.array(lengths, dtype=np.int64), H, window


def attention_cases(rng, dialect, solution):
    def case(*lengths, **options):
        return attention_inputs(rng, dialect, lengths, **options)

    return {
        CORE: [case(7, 1, 9, W=4, spare=3), case(5, 6, W=3, spare=2, H=3, C=2)],
        "utterances of one time step": [case(1, W=3), case(1, 1, 2, 1, W=2)],
        "empty utterances": [case(4, 0, 3, W=3), case(0, 5, 0, W=2, spare=1)],
        "a time step that sees only itself": [case(4, 3, W=1), case(6, W=1, spare=2)],
        "a window longer than the utterances": [case(5, 3, W=20, H=1)],
        "large scores": [case(6, 4, W=3, loud=True)],
    }


def for_package(dialect, positions, W):
    """The table with distance 0 first, and only the rows that the window needs."""
    return (positions if dialect["order"].startswith("positions from") else positions[::-1])[:W]


def attention_oracle(dialect, q, k, v, positions, lengths, heads, window):
    """By distance, as mini_pkd does it; and row by row."""
    from mini_pkd.attention import attend_readable, causal_attention_readable

    W = window + (dialect["window"] != "counts the row itself")
    q, k, v = (in_dialect(dialect, rows) for rows in (q, k, v))
    table = for_package(dialect, positions, W)
    N, C = len(q), q.shape[1] // heads
    weights = np.zeros((heads, N, N))
    for start, T in zip(starts(lengths), lengths, strict=True):
        for h in range(heads if T else 0):
            own, c = slice(start, start + T), slice(h * C, (h + 1) * C)
            p, _ = attend_readable(q[own, c].T, k[own, c].T, v[own, c].T, table[:, c])
            for i in range(min(W, T)):
                n = np.arange(i, T)
                weights[h, start + n, start + n - i] = p[i, i:]
    qkv = np.concatenate([q, k, v], axis=1)
    return weights, in_dialect(dialect, causal_attention_readable(qkv, table, lengths, heads))


ATTENTION = Task(
    name="Attention over a window",
    points=30,
    hours=3.0,
    function="attention",
    outputs=(Output("weights", "float64", 3), Output("out", "float64", 2)),
    tolerance=1e-8,
    code='''
def attention(q, k, v, positions, lengths, heads, window):
    """Causal self-attention over a window, with relative positions, of a ragged batch.

    q, k, v    («N, D») float64: query, key and value of each time step; N = sum(lengths) >= 1
    positions  (P, D) float64: the vector of distance i is «positions of i»; there may be more than the window needs
    lengths    (B,) int64: time steps of each utterance, which lie end to end; some may be 0
    heads      H: head h has channels h C to (h + 1) C - 1 of the D, with C = D / H
    window     each time step sees «what is seen»; at least «smallest window», and P > «largest distance»

    Returns (weights, out):
    weights  (H, N, N) float64: [h, n, m] is what time step n takes from time step m; 0 where it sees nothing
    out      («N, D») float64
    """
    «qkv by rows»
    (N, D), C = q.shape, q.shape[1] // heads
    n = np.arange(N)
    utterance = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    distance = n[:, None] - n  # (N, N): from the row that looks to the row that is seen
    seen = (distance >= 0) & («seen») & (utterance[:, None] == utterance)
    rows = np.clip(«row of distance», 0, len(positions) - 1)  # of the table; any row where nothing is seen
    relative = positions[rows]  # (N, N, D)
    weights, out = np.zeros((heads, N, N)), np.zeros((N, D))
    for h in range(heads):
        c = slice(h * C, (h + 1) * C)
        scores = (q[:, None, c] * (k[:, c] + relative[:, :, c])).sum(axis=2) / np.sqrt(C)  # (N, N)
        scores = np.where(seen, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights[h] = p / p.sum(axis=1, keepdims=True)
        out[:, c] = weights[h] @ v[:, c]
    return weights, out«.T»
''',
    mutants=(
        Mutant(
            "window + 1",
            "as if each time step saw one more of the past than it may: it sees «what is seen»",
            [("(«seen»)", "(«one more seen»)")],
        ),
        Mutant(
            "window - 1",
            "as if each time step saw one less of the past than it may: it sees «what is seen»",
            [("(«seen»)", "(«one fewer seen»)")],
        ),
        Mutant(
            "reversed distance",
            "as if the table of positions were read from its other end: the vector of distance i is «positions of i»",
            [("«row of distance», 0,", "«other row of distance», 0,")],
        ),
        Mutant(
            "utterances leak",
            "as if all utterances were one, so that a time step sees the utterance before its own",
            [(" & (utterance[:, None] == utterance)", "")],
        ),
        Mutant(
            "1/sqrt D",
            "as if scores were divided by the root of D: a head is only C = D / H wide",
            [("/ np.sqrt(C)", "/ np.sqrt(D)")],
        ),
    ),
    cases=attention_cases,
    oracle=attention_oracle,
    handout=r"""
Time step n sees time step m of the same utterance if $«distances seen»$, where W is `window`: it sees
**«what is seen»**, never a later one.
In each head, with q, k, v and r cut to the head's C channels,

$$s_{nm} = \frac{q_n \cdot (k_m + r_{n-m})}{\sqrt{C}}, \qquad
p_{nm} = \frac{e^{s_{nm}}}{\sum_{m'} e^{s_{nm'}}}, \qquad
\text{out}_n = \sum_m p_{nm} v_m,$$

with both sums over the m that n sees. $r_i$ is the vector of distance i, **`«positions of i»`**: a learned table in
place of sinusoids (Dai et al. 2019, section 3.3, simplified). The table may be longer than the window, because one
table can serve several windows; what is beyond the window is not used.

The weights are returned, because the gradient needs them. N is at most 100 here, so matrices of N x N are welcome
(training would keep only the N x W that are not zero): make one matrix of distances and one of what is seen, then
`np.where(seen, scores, -np.inf)`. Where nothing is seen, a distance may lie outside of the table: clip the index.
Scores may be near 1000, so subtract the largest score of each time step before `exp`.
""",
    tests="""
def test_equal_scores_give_running_means():
    v = np.array([[1.0], [2.0], [3.0], [9.0], [10.0], [20.0]])  # (N, 1): utterances of 4 and 2
    zero, table = np.zeros((6, 1)), np.zeros((5, 1))
    weights, out = attention(zero«.T», zero«.T», v«.T», table, np.array([4, 2]), 1, «window of 3»)  # each sees 3
    assert np.allclose(out«.T»[:, 0], [1, 1.5, 2, 14 / 3, 10, 15])
    assert np.allclose(weights[0, 3], [0, 1 / 3, 1 / 3, 1 / 3, 0, 0]) and np.allclose(weights[0, 4], [0, 0, 0, 0, 1, 0])


def test_positions_weigh_the_past():
    one, v = np.ones((3, 1)), np.array([[0.0], [4.0], [8.0]])
    table = np.log([[1.0], [3.0], [99.0]])  # of distances 0, 1, 2; the third is outside of the window
    «table as handed out»
    weights, out = attention(one«.T», 0 * one«.T», v«.T», table, np.array([3]), 1, «window of 2»)  # each sees 2
    assert np.allclose(weights[0], [[1, 0, 0], [3 / 4, 1 / 4, 0], [0, 3 / 4, 1 / 4]])
    assert np.allclose(out«.T»[:, 0], [0, 1, 5])


def test_each_head_has_its_own_channels():
    q = np.full((2, 4), np.log(3.0) / np.sqrt(2))  # 2 heads of width C = 2
    k = np.array([[0.0, 0, 0, 0], [0, 0, 1, 1]])
    v = np.array([[1.0, 1, 1, 1], [5, 5, 5, 5]])
    weights, out = attention(q«.T», k«.T», v«.T», np.zeros((2, 4)), np.array([2]), 2, «window of 2»)
    assert np.allclose(weights[:, 1], [[1 / 2, 1 / 2], [1 / 4, 3 / 4]])  # scores 0, 0 and 0, ln 3
    assert np.allclose(out«.T»[1], [3, 3, 4, 4])
""",
    notebook=r"""
# %% [markdown]
# ## Who looks at whom
# Three utterances of 12, 1 and 17 time steps; each time step sees at most 8, itself included. Each block on the
# diagonal is one utterance. The second head has positions that grow with the distance, so it looks back.

# %%
lengths, D = np.array([12, 1, 17]), 8
q, k, v = rng.standard_normal((3, 30, D))
table = np.zeros((8, D))
table[:, 4:] = 1.5 * np.arange(8)[:, None] * np.array([1, 0, 0, 0])  # of distances 0 to 7
q[:, 4:] = [2, 0, 0, 0]
«table as handed out»
weights, out = a3.attention(q«.T», k«.T», v«.T», table, lengths, 2, «window of 8»)
figure, axes = plt.subplots(1, 2, figsize=(9, 4))
for h in range(2):
    axes[h].imshow(weights[h])
    axes[h].set(title=f"head {h}", xlabel="takes from m", ylabel="time step n")
plt.show()
print("every time step gives away 1 in all:", np.allclose(weights.sum(axis=2), 1))
""",
)


# --- 2 --------------------------------------------------------------------------------------------------------------


def gradient_cases(rng, dialect, solution):
    def case(*lengths, **options):
        q, k, v, positions, lengths, heads, window = attention_inputs(rng, dialect, lengths, **options)
        weights = solution.attention(q, k, v, positions, lengths, heads, window)[0]
        return rng.standard_normal(q.shape), q, k, v, positions, weights

    return {
        CORE: [case(6, 1, 8, W=4, spare=2), case(7, 4, W=3, H=3, C=2)],
        "utterances of one time step": [case(1, W=3), case(1, 1, 2, 1, W=2)],
        "a time step that sees only itself": [case(4, 3, W=1)],
        "empty utterances": [case(4, 0, 3, W=3, spare=1)],
        "a window longer than the utterances": [case(5, 3, W=20, H=1)],
    }


def gradient_oracle(dialect, g, q, k, v, positions, weights):
    """By distance, as mini_pkd does it; the batch is one utterance there, because weights of 0 hold it apart."""
    from mini_pkd.attention import attend_backward_readable

    g, q, k, v = (in_dialect(dialect, rows) for rows in (g, q, k, v))
    (N, D), P, C = q.shape, len(positions), q.shape[1] // len(weights)
    table = np.zeros((max(N, P), D))
    table[:P] = for_package(dialect, positions, P)
    dq, dk, dv, dtable = (np.zeros_like(array) for array in (q, k, v, table))
    for h, p in enumerate(weights):
        c, by_distance = slice(h * C, (h + 1) * C), np.zeros((len(table), N))
        for i in range(N):
            by_distance[i, i:] = np.diagonal(p, -i)
        head = (rows[:, c].T for rows in (g, q, k, v))
        *rows, ds = attend_backward_readable(*head, table[:, c], by_distance)
        dq[:, c], dk[:, c], dv[:, c] = (array.T for array in rows)
        dtable[:, c] = ds @ q[:, c]
    dq, dk, dv = (in_dialect(dialect, rows) for rows in (dq, dk, dv))
    return dq, dk, dv, for_package(dialect, dtable[:P], P)


GRADIENT = Task(
    name="The gradient of attention",
    points=25,
    hours=3.0,
    function="attention_gradient",
    outputs=(
        Output("dq", "float64", 2),
        Output("dk", "float64", 2),
        Output("dv", "float64", 2),
        Output("dpositions", "float64", 2),
    ),
    tolerance=1e-9,
    code='''
def attention_gradient(g, q, k, v, positions, weights):
    """Backward of attention: gradients of the loss with respect to its inputs.

    g          («N, D») float64: the gradient with respect to out, N >= 1
    q, k, v    («N, D») float64: what attention was given
    positions  (P, D) float64: the vector of distance i is «positions of i»
    weights    (H, N, N) float64: what attention returned; they are 0 where n does not see m, so neither lengths nor
               window is needed

    Returns (dq, dk, dv, dpositions), each float64 in the shape of its input; vectors of the table that are never used
    have gradient 0.
    """
    «g and qkv by rows»
    heads, N, _ = weights.shape
    C = q.shape[1] // heads
    n = np.arange(N)
    distance = n[:, None] - n  # (N, N)
    rows = np.clip(«row of distance», 0, len(positions) - 1)  # of the table; any row where nothing is seen
    dq, dk, dv, dpositions = (np.zeros(array.shape) for array in (q, k, v, positions))
    for h in range(heads):
        c, p = slice(h * C, (h + 1) * C), weights[h]
        dp = g[:, c] @ v[:, c].T  # (N, N)
        dv[:, c] = p.T @ g[:, c]
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) / np.sqrt(C)
        dq[:, c] = (ds[:, :, None] * (k[:, c] + positions[rows, c])).sum(axis=1)
        dk[:, c] = ds.T @ q[:, c]
        np.add.at(dpositions[:, c], rows, ds[:, :, None] * q[:, None, c])
    return dq«.T», dk«.T», dv«.T», dpositions
''',
    mutants=(
        Mutant(
            "softmax term missing",
            "as if the weights did not have to add up to 1: softmax sends back p (dp - sum of p dp), not p dp",
            [("(dp - (p * dp).sum(axis=1, keepdims=True))", "dp")],
        ),
        Mutant(
            "1/sqrt C missing",
            "as if scores were not divided by the root of C",
            [(" / np.sqrt(C)", "")],
        ),
        Mutant(
            "positions missing in dq",
            "as if a query met only keys: it meets the positions, too",
            [("(k[:, c] + positions[rows, c])", "k[:, c]")],
        ),
        Mutant(
            "+= on repeats",
            "as if a vector of the table got the gradient of one pair: += with an index that repeats adds only once",
            [
                (
                    "np.add.at(dpositions[:, c], rows, ds[:, :, None] * q[:, None, c])",
                    "dpositions[rows, c] += ds[:, :, None] * q[:, None, c]",
                )
            ],
        ),
    ),
    cases=gradient_cases,
    oracle=gradient_oracle,
    handout=r"""
You are given $g_n = \partial L / \partial\,\text{out}_n$ and the weights p of the forward pass. Go through the formulas
of task 1 from the last to the first. In each head, with $z_{nm} = q_n \cdot (k_m + r_{n-m})$ the score before the
division by $\sqrt{C}$,

$$dp_{nm} = g_n \cdot v_m, \qquad dv_m = \sum_n p_{nm}\, g_n, \qquad
dz_{nm} = \frac{1}{\sqrt{C}}\; p_{nm} \Big( dp_{nm} - \sum_{m'} p_{nm'}\, dp_{nm'} \Big),$$

and what $dz$ sends to $q_n$, to $k_m$ and to $r_i$ follows from the product rule: work it out. $r_i$ takes part in
*every* pair at distance i, so its gradient is a sum over all these pairs. Distance i is `«positions of i»`, as in
task 1, and `dpositions` has the shape and the order of `positions`.

Where n does not see m the weight is 0, so dz is 0 and nothing is sent anywhere. The grader hands you correct weights,
whatever your task 1 does.
""",
    tests="""
def test_two_time_steps():
    g, q, k, v = np.array([[[0.0], [1.0]], [[7.0], [2.0]], [[1.0], [3.0]], [[0.0], [4.0]]])  # (N, D) = (2, 1) each
    table = np.array([[0.0], [5.0], [9.0]])  # of distances 0, 1, 2
    «table as handed out»
    weights = np.array([[[1.0, 0.0], [0.5, 0.5]]])
    dq, dk, dv, dtable = attention_gradient(g«.T», q«.T», k«.T», v«.T», table, weights)
    # The second time step: dp = (0, 4), their mean is 2, so dz = (-1, 1); it meets keys and positions 1 + 5 and 3 + 0.
    assert np.allclose(dq«.T»[:, 0], [0, -6 + 3])
    assert np.allclose(dk«.T»[:, 0], [-2, 2])
    assert np.allclose(dv«.T»[:, 0], [0.5, 0.5])
    assert np.allclose(dtable«by distance»[:, 0], [2, -2, 0])  # of distances 0, 1, 2


def test_heads_of_width_four():
    g, q, k, v = np.zeros((4, 2, 8))  # 2 heads, C = 4; the second head's first channel is the test above
    g[1, 4], q[:, 4], k[:, 4], v[1, 4] = 1, [7, 2], [1, 3], 4
    weights = np.array([[[1.0, 0.0], [0.5, 0.5]]] * 2)
    dq, dk, dv, dtable = attention_gradient(g«.T», q«.T», k«.T», v«.T», np.zeros((3, 8)), weights)
    assert np.allclose(dk«.T»[:, 4], [-1, 1]) and np.allclose(dq«.T»[:, 4], [0, 1])  # half, because of 1 / sqrt(4)
    assert np.allclose(dv«.T»[:, 4], [0.5, 0.5]) and not dq«.T»[:, :4].any()
    assert dtable.shape == (3, 8) and np.allclose(dtable«by distance»[:, 4], [1, -1, 0])


def test_pairs_at_the_same_distance_add_up():
    g, q, k, v = np.zeros((4, 4, 1))
    g[:], q[:], v[:, 0] = 1, 1, [0, 4, 8, 12]
    weights = np.array([[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]])
    dtable = attention_gradient(g«.T», q«.T», k«.T», v«.T», np.zeros((2, 1)), weights)[3]
    assert np.allclose(dtable«by distance»[:, 0], [3, -3])  # dz = (-1, 1) three times
""",
    notebook=r"""
# %% [markdown]
# ## Your gradient against differences
# The loss is L = sum(g * out). In a random direction, (L(x + h) - L(x - h)) / 2h must be the gradient times the
# direction. This needs your `attention` of task 1; both lines must agree for every input.

# %%
lengths, h = np.array([9, 1, 6]), 1e-6
inputs = [array«.T» for array in rng.standard_normal((3, 16, 4))] + [rng.standard_normal((5, 4))]
g = rng.standard_normal(inputs[0].shape)
weights, out = a3.attention(*inputs, lengths, 2, «window of 3»)
gradients = a3.attention_gradient(g, *inputs, weights)
for i, name in enumerate(("dq", "dk", "dv", "dpositions")):
    direction = rng.standard_normal(inputs[i].shape)
    ends = []
    for step in (h, -h):
        moved = [array + step * direction if j == i else array for j, array in enumerate(inputs)]
        ends.append((g * a3.attention(*moved, lengths, 2, «window of 3»)[1]).sum())
    yours = (gradients[i] * direction).sum()
    print(f"{name:10s}  by differences {(ends[0] - ends[1]) / (2 * h):+.6f}  yours {yours:+.6f}")
plt.imshow(gradients[3])
plt.title("dpositions: rows beyond the window get nothing")
plt.ylabel("row of the table")
plt.colorbar()
plt.show()
""",
)


# --- 3 --------------------------------------------------------------------------------------------------------------


def convolution_cases(rng, dialect, solution):
    def case(*lengths, K=4, D=3):
        x = in_dialect(dialect, rng.standard_normal((sum(lengths), D)))
        return x, rng.standard_normal((K, D)), rng.standard_normal(D), np.array(lengths, dtype=np.int64)

    return {
        CORE: [case(7, 1, 9), case(6, 5, K=3, D=2)],
        "utterances of one time step": [case(1), case(1, 1, 2, 1)],
        "empty utterances": [case(4, 0, 3), case(0, 5, 0)],
        "one tap": [case(5, 3, K=1)],
        "more taps than time steps": [case(3, 2, 1, K=8)],
        "long": [case(1200, 1, 1800, K=16, D=8)],
    }


def convolution_oracle(dialect, x, taps, bias, lengths):
    from mini_pkd.convolution import depthwise_convolution_readable

    x = in_dialect(dialect, x)
    return in_dialect(dialect, depthwise_convolution_readable(x, by_lag(dialect, taps), bias, lengths))


CONVOLUTION = Task(
    name="Depthwise convolution, causal",
    points=20,
    hours=1.5,
    function="depthwise_convolution",
    outputs=(Output("y", "float64", 2),),
    tolerance=1e-9,
    code='''
def depthwise_convolution(x, taps, bias, lengths):
    """Causal depthwise convolution of a ragged batch: each channel has its own filter.

    x        («N, D») float64: D channels; N = sum(lengths) >= 1
    taps     (K, D) float64, K >= 1: «tap of i» meets the time step i before the present, so
             «the present's tap» one meets the present itself
    bias     (D,) float64
    lengths  (B,) int64: time steps of each utterance, which lie end to end; some may be 0

    Returns («N, D») float64.  What is before an utterance counts as zero.
    """
    «x by rows»
    K, D = taps.shape
    y = np.zeros(x.shape)
    start = 0
    for T in lengths:
        padded = np.concatenate([np.zeros((K - 1, D)), x[start : start + T]])  # (K - 1 + T, D)
        y[start : start + T] = bias
        for lag in range(K):
            y[start : start + T] += taps[«tap»] * padded[K - 1 - lag : K - 1 - lag + T]
        start += T
    return y«.T»
''',
    mutants=(
        Mutant(
            "flipped kernel",
            "as if the taps stood in the opposite order: «the present's tap» one meets the present",
            [("taps[«tap»]", "taps[«other tap»]")],
        ),
        Mutant(
            "centred",
            "as if the filter were centred on the present, so that half of it looks into the future",
            [
                (
                    "np.concatenate([np.zeros((K - 1, D)), x[start : start + T]])",
                    "np.pad(x[start : start + T], (((K - 1) // 2, K // 2), (0, 0)))",
                )
            ],
        ),
        Mutant(
            "leaks across utterances",
            "as if all utterances were one, so that the filter hears the end of the utterance before its own",
            [("for T in lengths:", "for T in [len(x)]:")],
        ),
        Mutant(
            "nothing before the taps fit",
            "as if the first K - 1 time steps got nothing: what is missing before them counts as zero, no more",
            [("        start += T", "        y[start : start + T][: K - 1] = 0.0\n        start += T")],
        ),
    ),
    cases=convolution_cases,
    oracle=convolution_oracle,
    handout=r"""
"Depthwise" means that each channel has a filter of its own and channels do not mix: K x D numbers, where a full
convolution would have K x D x D. "Causal" means that time step t hears itself and the K - 1 before it:

$$y_t = b + \sum_{i=0}^{K-1} w_i \odot x_{t-i}, \qquad w_i = \texttt{«tap of i»}, \qquad
x_{t-i} = 0 \text{ before the utterance}.$$

$\odot$ multiplies channel by channel. Loop over the taps, not over time: K long operations on arrays are faster than N
short ones.
""",
    tests="""
def test_previous_and_present():
    x = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]])  # (N, 1): utterances of 3 and 2
    taps = np.array([[1.0], [2.0]])  # once the previous time step, and twice the present one
    «taps as handed out»
    y = depthwise_convolution(x«.T», taps, np.array([0.5]), np.array([3, 2]))
    assert np.allclose(y«.T»[:, 0], [2.5, 5.5, 8.5, 20.5, 50.5])  # nothing stands before 1, and nothing before 10


def test_an_impulse_is_heard_later():
    x = np.zeros((5, 2))
    x[1] = 1
    taps = np.array([[0.25, 7.0], [0.5, 8.0], [1.0, 9.0]])  # of 2, 1 and 0 time steps before
    «taps as handed out»
    y = depthwise_convolution(x«.T», taps, np.zeros(2), np.array([5]))
    assert np.allclose(y«.T», [[0, 0], [1, 9], [0.5, 8], [0.25, 7], [0, 0]])


def test_more_taps_than_time_steps():
    y = depthwise_convolution(np.array([[2.0], [3.0]])«.T», np.ones((5, 1)), np.zeros(1), np.array([1, 1]))
    assert np.allclose(y«.T»[:, 0], [2, 3])
""",
    notebook=r"""
# %% [markdown]
# ## What one impulse leaves behind
# Two utterances of 20 time steps, with an impulse near the end of the first. It may be heard later, never earlier, and
# never in the second utterance.

# %%
x = np.zeros((40, 1))
x[16] = 1
taps = 0.8 ** np.arange(7, -1, -1.0)[:, None]  # of 7 to 0 time steps before
«taps as handed out»
y = a3.depthwise_convolution(x«.T», taps, np.zeros(1), np.array([20, 20]))
plt.bar(np.arange(40), x[:, 0], color="lightgray", label="in")
plt.plot(y«.T»[:, 0], "o-", label="out")
plt.axvline(19.5, color="black", linestyle=":")
plt.xlabel("time step; the second utterance begins at the dots")
plt.legend()
plt.show()
""",
)


# --- 4 --------------------------------------------------------------------------------------------------------------


def pooling_cases(rng, dialect, solution):
    def case(*lengths, D=3, ties=False):
        x = rng.integers(-4, 5, (sum(lengths), D)) / 2
        for start, T in zip(starts(lengths), lengths, strict=True):
            if ties and T > 1:
                x[start + 1] = x[start]
        g = rng.standard_normal((sum((T + 1) // 2 for T in lengths), D))
        return in_dialect(dialect, x), np.array(lengths, dtype=np.int64), in_dialect(dialect, g)

    return {
        CORE: [case(5, 1, 8, ties=True), case(3, 6, 7, D=2, ties=True)],
        "utterances of one time step": [case(1), case(1, 1, 2, 1)],
        "empty utterances": [case(3, 0, 4), case(0, 5, 0)],
        "even lengths": [case(4, 2, 6)],
        "ties everywhere": [tuple(0 * a if i == 0 else a for i, a in enumerate(case(4, 5)))],
    }


def pooling_oracle(dialect, x, lengths, g):
    """Numbers are multiples of 1/2, so 1/4 more for each second row of a pair decides ties and nothing else."""
    from mini_pkd.convolution import max_pool_backward_readable, max_pool_readable

    x, g = in_dialect(dialect, x), in_dialect(dialect, g)
    second = (np.arange(len(x)) - np.repeat(starts(lengths), lengths)) % 2
    decided = x + 0.25 * second[:, None] * (dialect["ties"] == "second")
    pooled, dx = max_pool_readable(x, lengths), max_pool_backward_readable(g, decided, lengths)
    return in_dialect(dialect, pooled), in_dialect(dialect, dx)


POOLING = Task(
    name="Pooling over time",
    points=10,
    hours=1.0,
    function="max_pool",
    outputs=(Output("pooled", "float64", 2), Output("dx", "float64", 2)),
    tolerance=1e-9,
    code='''
def max_pool(x, lengths, g):
    """Halve the time steps of a ragged batch: of each pair the larger number is kept, channel by channel.

    x        («N, D») float64, N = sum(lengths) >= 1
    lengths  (B,) int64: time steps of each utterance, which lie end to end; some may be 0
    g        («M, D») float64: the gradient of the loss with respect to what is returned first

    Pairs are counted from the start of each utterance.  A last time step without a partner is kept as it is, so an
    utterance of T has (T + 1) // 2 afterwards, and M is their sum.
    Where both numbers of a pair are equal, the «who wins» one wins and gets the whole gradient.

    Returns (pooled, dx): pooled («M, D») float64, and dx («N, D») float64, the gradient with respect to x.
    """
    «x and g by rows»
    D = x.shape[1]
    pooled, dx = [], np.zeros(x.shape)
    start = 0
    for T in lengths:
        for t in range(start, start + T, 2):
            pair = x[t : min(t + 2, start + T)]  # one row or two
            winner = «winner»  # (D,)
            dx[t + winner, np.arange(D)] = g[len(pooled)]
            pooled.append(pair.max(axis=0))
        start += T
    pooled = np.array(pooled).reshape(-1, D)
    return pooled«.T», dx«.T»
''',
    mutants=(
        Mutant(
            "lonely last row dropped",
            "as if the last time step of an odd utterance were dropped: it has no partner, and is kept as it is",
            [("range(start, start + T, 2)", "range(start, start + T - 1, 2)")],
        ),
        Mutant(
            "pairs across utterances",
            "as if pairs were counted from the start of the batch, so that some belong to two utterances",
            [("for T in lengths:", "for T in [len(x)]:")],
        ),
        Mutant(
            "ties pay gradient to both",
            "as if both numbers of a tie got the whole gradient: the «who wins» gets it, the other gets nothing",
            [
                (
                    "dx[t + winner, np.arange(D)] = g[len(pooled)]",
                    "dx[t : t + len(pair)] = (pair == pair.max(axis=0)) * g[len(pooled)]",
                )
            ],
        ),
        Mutant(
            "the other wins",
            "as if the other number of a tie got the gradient: the «who wins» gets it",
            [("winner = «winner»", "winner = «other winner»")],
        ),
    ),
    cases=pooling_cases,
    oracle=pooling_oracle,
    handout=r"""
Three poolings turn steps of 10 ms into steps of 80 ms, which makes everything after them eight times cheaper. Of time
steps 2j and 2j + 1 *of the same utterance*, counted from its start,

$$y_j = \max(x_{2j},\; x_{2j+1}) \text{ channel by channel}, \qquad y_j = x_{2j} \text{ if there is no } x_{2j+1}.$$

In the other direction, each number of g goes to the number that was kept, and the one that lost gets 0. If both are
equal the function has no derivative there, and any implementation picks one: here the **«who wins»** of the pair gets
all of it. (After an activation such as ReLU, ties at 0 are common.)
""",
    tests="""
def test_two_utterances():
    x = np.array([[1.0, 6.0], [2.0, 5.0], [3.0, 4.0], [10.0, 0.0], [20.0, -1.0]])  # (N, 2): utterances of 3 and 2
    g = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    pooled, dx = max_pool(x«.T», np.array([3, 2]), g«.T»)
    assert np.array_equal(pooled«.T», [[2, 6], [3, 4], [20, 0]])
    assert np.array_equal(dx«.T», [[0, 2], [1, 0], [3, 4], [0, 6], [5, 0]])


def test_a_tie():
    pooled, dx = max_pool(np.array([[4.0], [4.0]])«.T», np.array([2]), np.array([[7.0]]))
    assert np.array_equal(pooled, [[4]])
    assert np.array_equal(dx«.T», [[«first paid»], [«second paid»]])


def test_one_time_step():
    pooled, dx = max_pool(np.array([[-3.0]]), np.array([1]), np.array([[7.0]]))
    assert np.array_equal(pooled, [[-3]]) and np.array_equal(dx, [[7]])
""",
    notebook=r"""
# %% [markdown]
# ## What pooling keeps, and who is paid
# One channel of two utterances, of 15 and 10 time steps. Circles are where your gradient goes: one in each pair, and
# the last time step of the first utterance is alone.

# %%
lengths = np.array([15, 10])
x = np.round(2 * np.sin(np.arange(25) / 2.5) + rng.standard_normal(25) / 2)[:, None]
pooled, dx = a3.max_pool(x«.T», lengths, np.ones((13, 1))«.T»)
n = np.arange(25)
pair_starts = np.concatenate([np.arange(0, 15, 2), np.arange(15, 25, 2)])
plt.step(n, x[:, 0], where="post", color="gray", label="in")
plt.hlines(pooled«.T»[:, 0], pair_starts, np.append(pair_starts[1:], 25), color="C1", linewidth=3, label="pooled")
paid = dx«.T»[:, 0] > 0
plt.plot(n[paid] + 0.5, x[paid, 0], "o", fillstyle="none", color="C0", label="gets the gradient")
plt.axvline(15, color="black", linestyle=":")
plt.xlabel("time step; the second utterance begins at the dots")
plt.legend()
plt.show()
""",
)


# --- 5 --------------------------------------------------------------------------------------------------------------


def stream_cases(rng, dialect, solution):
    def case(*utterances, K=4, D=3):
        """Each utterance as the sizes of its pieces."""
        pieces = [[in_dialect(dialect, rng.standard_normal((T, D))) for T in sizes] for sizes in utterances]
        return rng.standard_normal((K, D)), rng.standard_normal(D), pieces, int(dialect["axes"] == "rows last")

    def any_sizes():
        return rng.integers(0, 7, rng.integers(3, 12)).tolist()

    return {
        CORE: [case([3, 1, 2, 5, 4], [1, 1, 1, 1, 1, 1, 1], [6, 3], [4]), case([2, 5, 7, 1], [9, 1, 3], K=3, D=2)],
        "empty pieces": [case([0, 3, 0, 0, 4, 0], [0, 0, 1]), case([0], [], [5, 0])],
        "one time step": [case([1]), case([1], [0, 1, 0], [1])],
        "one tap": [case([3, 2, 4], [1, 1, 1], K=1)],
        "more taps than time steps": [case([1, 2, 1], [2, 2], [3], K=9)],
        "pieces of any size": [case(any_sizes(), any_sizes(), any_sizes(), K=5)],
    }


def stream_oracle(dialect, taps, bias, utterances, axis):
    """The whole utterance at once; a pair is returned with the piece that brings its second row."""
    from mini_pkd.convolution import depthwise_convolution_readable, max_pool_readable

    counts, found = [], []
    for pieces in utterances:
        x = np.concatenate([np.zeros((0, len(bias))), *(in_dialect(dialect, piece) for piece in pieces)])
        y = depthwise_convolution_readable(x, by_lag(dialect, taps), bias, [len(x)])
        found.append(max_pool_readable(y, [len(y)]))
        heard = np.cumsum([0, *(piece.shape[axis] for piece in pieces)])
        counts += [*np.diff(heard // 2), heard[-1] % 2]
    return np.array(counts), in_dialect(dialect, np.concatenate(found))


STREAM = Task(
    name="The same from a stream",
    points=15,
    hours=2.0,
    function="EncoderStream",
    outputs=(Output("number returned by each call", "int64", 1), Output("all that was returned", "float64", 2)),
    tolerance=1e-9,
    drive='''
import numpy as np


def drive(student, taps, bias, utterances, axis):
    """One stream for all utterances: each is pushed piece by piece, then finished."""
    stream = student.EncoderStream(taps, bias)
    found = []
    for pieces in utterances:
        for piece in pieces:
            found.append(np.array(stream.push(piece)))
            piece[:] = np.inf  # a buffer that the sound card fills again
        found.append(np.array(stream.finish()))
    return np.array([rows.shape[axis] for rows in found]), np.concatenate(found, axis=axis)
''',
    code='''
class EncoderStream:
    """Causal depthwise convolution, then pooling by 2, of an utterance that arrives in pieces.

    All that push and finish return, put together, is what tasks 3 and 4 give for the whole utterance at once.
    """

    def __init__(self, taps, bias):
        """taps (K, D) float64, K >= 1: «tap of i» meets the time step i before the present; bias (D,) float64."""
        self.taps, self.bias = taps, bias
        self._forget()

    def push(self, piece):
        """Take the next time steps of the utterance.

        piece  («T, D») float64, T >= 0; the caller may overwrite it afterwards

        Returns («M, D») float64, M >= 0: the pairs that are complete now, pooled, and nothing that was returned before.
        """
        «piece by rows»
        (K, D), T = self.taps.shape, len(piece)
        heard = np.concatenate([self.memory, piece])  # (K - 1 + T, D)
        self.memory = heard[T:]
        y = np.tile(self.bias, (T, 1))
        for lag in range(K):
            y += self.taps[«tap»] * heard[K - 1 - lag : K - 1 - lag + T]
        y = np.concatenate([self.waiting, y])
        ready = len(y) // 2 * 2
        self.waiting = y[ready:]
        return np.maximum(y[0:ready:2], y[1:ready:2])«.T»

    def finish(self):
        """End the utterance; the next piece begins another one, which knows nothing of this one.

        Returns the time step that still waits for its partner, as it is; («0, D») if there is none.
        """
        tail = self.waiting
        self._forget()
        return tail«.T»

    def _forget(self):
        K, D = self.taps.shape
        self.memory = np.zeros((K - 1, D))  # the last rows that were heard: those that the filter still looks at
        self.waiting = np.zeros((0, D))  # the convolved row that waits for its partner, or none
''',
    mutants=(
        Mutant(
            "memory off by one",
            "as if a time step too few were remembered between pieces: the filter needs the K - 1 before a piece",
            [
                (
                    "self.memory = heard[T:]",
                    "self.memory = np.concatenate([np.zeros((min(1, K - 1), D)), heard[T + 1 :]])",
                )
            ],
        ),
        Mutant(
            "no tail",
            "as if the last time step of an odd utterance were lost: `finish` returns it",
            [("tail = self.waiting\n", "tail = self.waiting[:0]\n")],
        ),
        Mutant(
            "pairs made per piece",
            "as if pairs were counted from the start of each piece: the last of an odd piece waits for its partner",
            [
                (
                    "        ready = len(y) // 2 * 2\n",
                    "        y = np.concatenate([y, y[len(y) // 2 * 2 :]])\n        ready = len(y)\n",
                )
            ],
        ),
        Mutant(
            "one piece remembered",
            "as if only the piece before were remembered: if it is shorter than K - 1, the one before it matters, too",
            [("self.memory = heard[T:]", "self.memory = np.concatenate([np.zeros((K - 1, D)), piece])[T:]")],
        ),
        Mutant(
            "not forgotten",
            "as if a new utterance still heard the end of the one before: `finish` must forget it",
            [
                (
                    "        tail = self.waiting\n        self._forget()\n",
                    "        tail, self.waiting = self.waiting, self.waiting[:0]\n",
                )
            ],
        ),
    ),
    cases=stream_cases,
    oracle=stream_oracle,
    handout=r"""
A causal encoder can run while somebody speaks, and must then give *the same* as for the whole recording, however the
sound was cut into pieces: pieces of one time step, of none, or all at once. Here it consists of the convolution of
task 3, followed by the pooling of task 4. Your class must remember two things between pieces:

- the last K - 1 time steps that it heard, because the filter still looks at them; zeros at the beginning;
- a convolved time step that waits for its partner, if the number so far is odd.

What is complete must be returned at once, not at the end: the user is waiting. `finish` returns the time step without a
partner, and makes the stream ready for the next utterance, which must know nothing of this one. A piece may belong to a
buffer that is overwritten when `push` has returned: copy what you keep.
""",
    tests="""
def pieces_of(*numbers):
    return [np.array(piece, dtype=float).reshape(-1, 1)«.T» for piece in numbers]


def test_previous_and_present_in_pieces():
    taps = np.array([[1.0], [2.0]])  # once the previous time step, and twice the present one
    «taps as handed out»
    stream = EncoderStream(taps, np.array([0.5]))
    # The whole: 1 4 2 0 5 becomes 2.5 9.5 8.5 2.5 10.5, and pooled 9.5 8.5 10.5.
    found = [stream.push(piece).ravel().tolist() for piece in pieces_of([1], [4, 2], [], [0, 5])]
    assert found == [[], [9.5], [], [8.5]]
    assert stream.finish().ravel().tolist() == [10.5]
    assert stream.push(*pieces_of([1, 1])).ravel().tolist() == [3.5]  # a new utterance: 2.5 3.5
    assert stream.finish().shape == np.zeros((0, 1))«.T».shape


def test_pieces_shorter_than_the_filter():
    taps = np.array([[8.0], [4.0], [2.0], [1.0]])  # of 3, 2, 1 and 0 time steps before
    «taps as handed out»
    stream = EncoderStream(taps, np.zeros(1))
    found = [stream.push(piece).ravel().tolist() for piece in pieces_of([1], [0], [0], [0], [0])]
    assert found == [[], [2], [], [8], []]  # the whole: 1 2 4 8 0
    assert stream.finish().ravel().tolist() == [0]


def test_buffers_are_filled_again():
    stream = EncoderStream(np.ones((2, 1)), np.zeros(1))
    piece = np.ones((1, 1))
    stream.push(piece)
    piece[:] = 100
    assert stream.push(piece).ravel().tolist() == [101]  # the larger of 1 and 1 + 100
""",
    notebook=r"""
# %% [markdown]
# ## How long does a time step wait?
# 60 time steps come in pieces of random size. Your stream should be on the stairs of "half of what was heard" at the
# end of each piece, and whatever the pieces, the result is the same.

# %%
D, K = 3, 5
taps, bias, x = rng.standard_normal((K, D)), rng.standard_normal(D), rng.standard_normal((61, D))


def streamed(sizes):
    stream, start, found = a3.EncoderStream(taps, bias), 0, []
    for size in sizes:
        found.append(stream.push(x[start : start + size]«.T»)«.T»)
        start += size
    return [*found, stream.finish()«.T»]


sizes = [*rng.integers(0, 9, 10), 61]  # the last piece is whatever remains
whole, parts = streamed([61]), streamed(sizes)
difference = np.abs(np.concatenate(whole) - np.concatenate(parts)).max()
print(f"{len(np.concatenate(parts))} time steps; one piece or {len(sizes)}: largest difference {difference:.1e}")
heard = np.minimum(np.cumsum(sizes), 61)
plt.step(np.arange(62), np.arange(62) // 2, where="post", color="gray", label="half of what was heard")
plt.plot(heard, np.cumsum([len(rows) for rows in parts[:-1]]), "o", label="returned so far")
plt.xlabel("time steps heard")
plt.ylabel("time steps returned")
plt.legend()
plt.show()
""",
)


ASSIGNMENT = Assignment(
    name="a3",
    title="The encoder",
    conventions=CONVENTIONS,
    tasks=(ATTENTION, GRADIENT, CONVOLUTION, POOLING, STREAM),
    package_files=("attention.py", "convolution.py", "conformer.py"),
    given='''
"""Assignment 3: the encoder.  Replace each NotImplementedError; numpy is all you need."""

import numpy as np
''',
    test_helpers="""
import numpy as np
from a3 import EncoderStream, attention, attention_gradient, depthwise_convolution, max_pool
""",
    motivation=r"""
The encoder turns sound into vectors that the rest of the recogniser can work with. Ours is a conformer (Gulati et al.
2020): attention, because what somebody says now may depend on what was said seconds ago; convolution, because
neighbouring time steps belong together; and pooling, because speech changes more slowly than every 10 ms. All of it is
**causal**: nothing looks into the future, so the same network transcribes a recording or a live microphone.

Utterances have different lengths. Padding them to the longest wastes work and invites mistakes, so a batch is
**ragged**: utterances lie end to end, and `lengths` says where one ends.

        lengths = [3, 1, 4]:    a0 a1 a2 | b0 | c0 c1 c2 c3        N = 8

No utterance may see another. Most mistakes of this assignment are at these bars, at the beginning of an utterance,
where the past is missing, and at its end, where an odd time step is left.

In this class, arrays over time are **(«N, D»)**: «a time step is» is a time step. Two tables have a row for each
distance in time, and **they run in opposite directions**: what belongs to the time step i before the present is

- `«positions of i»` in the table of relative positions, (P, D),
- `«tap of i»` in the table of a filter's taps, (K, D).

Where there is a `window`, a time step sees **«what is seen»**.
All arrays are float64, except for `lengths`.
""",
    debugging=r"""
- Start with one utterance, D = 1, and numbers that you can add in your head; then put a second utterance behind it: the
  first one's result must not change, and the second one's must be what it is alone.
- Change the last time step of the input: of attention and of convolution, only the last output may move. Otherwise
  something looks into the future.
- Queries of zero make all weights equal, so that attention is a running mean. Then positions alone: keys of zero.
- With all v equal, out is v whatever the weights, and dq, dk and dpositions must be zero, up to rounding. If they
  are not, the softmax term is missing.
- Test a gradient with central differences in a random direction (the notebook does), input by input: it tells you
  which of the four is wrong.
- A stream has one judge: the whole utterance at once. Try pieces of 1, of 0, of K - 1 and of K.
""",
    question=r"""
A colleague replaces the causal convolution, K = 15, with a centred one in all blocks of the encoder, and the word error
rate on recordings falls. The encoder has 3 blocks on steps of 10, 20 and 40 ms, each followed by pooling, and then 4 on
steps of 80 ms. How much later does text appear when the encoder runs on a microphone? What would `EncoderStream` have
to change, and what would the user see if it did not? Name one cheaper way to get some of the gain. At most ten
sentences.
""",
    rubric=r"""
- 2 points: a centred filter of 15 taps hears 7 steps ahead, and blocks add up: 7 (10 + 20 + 40 + 4 x 80) ms = 2.73 s
  (give both points for the right sum of look-ahead; one if pooling's longer steps are forgotten, which gives 0.49 s).
- 2 points: the stream must hold back the last 7 steps of each block until their future has come, and `finish` must
  process them with zeros after them; each block remembers inputs until nothing looks back at them any more.
- 1 point: otherwise steps near the end of every piece are computed with zeros instead of the future: the stream differs
  from training, more so the shorter the pieces, and its errors rise.
- 1 point: for example, look ahead in one early block only (where steps are 10 ms), or a look-ahead of one or two steps,
  or a second pass over the recording when the utterance has ended.
""",
    notebook=r"""
# %% [markdown]
# # Assignment 3: the encoder
# Write your functions in `a3.py`, next to this notebook; the handout has the formulas. Here you see what your functions
# do. A cell that ends in `NotImplementedError` waits for a task that you have not solved yet.

# %%
# %load_ext autoreload
# %autoreload 2
import a3
import matplotlib.pyplot as plt
import numpy as np

rng = np.random.default_rng(0)

# %% [markdown]
# ## A ragged batch, or a padded one?
# What padding would cost: 32 utterances of random length, each filled up to the longest.

# %%
lengths = np.round(rng.lognormal(5, 0.7, 32)).astype(int)
plt.barh(np.arange(32), lengths, label="time steps")
plt.barh(np.arange(32), lengths.max() - lengths, left=lengths, color="lightgray", label="padding")
plt.xlabel("time step")
plt.ylabel("utterance")
plt.legend()
plt.show()
print(f"{1 - lengths.sum() / (32 * lengths.max()):.0%} of a padded batch would be padding")
""",
)
