"""Assignment 4: the transducer's lattice, from all paths one at a time to 20,000 symbols in little memory."""

import numpy as np

from .task import CORE, Assignment, Mutant, Output, Task

CONVENTIONS = {
    "blank": {
        "first": {
            "blank": "0",
            "where blank is": "symbol 0",
            "other blank": "-1",
            "A": "1",
            "B": "2",
            "example blank": "",
        },
        "last": {
            "blank": "-1",
            "where blank is": "symbol V - 1",
            "other blank": "0",
            "A": "0",
            "B": "1",
            "example blank": "scores = np.roll(scores, -1, axis=-1)  # blank is the last symbol",
        },
    },
    "axes": {
        "frames first": {
            "nodes": "T, U + 1",
            "label nodes": "T, U",
            "at (t, u)": "[t, u]",
            "log_probs by frames": "",
            "log_probs as handed out": "",
            "alpha and beta by frames": "",
            "given as handed out": "",
            "logits, alpha and beta by frames": "",
            "example axes": "",
            "alpha": "alpha",
            "beta": "beta",
            "gradient": "gradient",
            "for_blank": "for_blank",
            "for_label": "for_label",
        },
        "labels first": {
            "nodes": "U + 1, T",
            "label nodes": "U, T",
            "at (t, u)": "[u, t]",
            "log_probs by frames": "log_probs = log_probs.swapaxes(0, 1)  # (T, U + 1, V)",
            "log_probs as handed out": "log_probs = log_probs.swapaxes(0, 1)  # (U + 1, T, V)",
            "given as handed out": "logits, alpha, beta = logits.swapaxes(0, 1), alpha.T, beta.T  # (U + 1, T, ...)",
            "alpha and beta by frames": "alpha, beta = alpha.T, beta.T  # (T, U + 1)",
            "logits, alpha and beta by frames": (
                "logits, alpha, beta = logits.swapaxes(0, 1), alpha.T, beta.T  # (T, U + 1, ...)"
            ),
            "example axes": "scores = scores.swapaxes(0, 1)  # (U + 1, T, V)",
            "alpha": "alpha.T",
            "beta": "beta.T",
            "gradient": "gradient.swapaxes(0, 1)",
            "for_blank": "for_blank.T",
            "for_label": "for_label.T",
        },
    },
    "ties": {
        "blank": {"beats": ">", "other beats": ">=", "winner": "blank", "tied frames": "[0, 0]", "tied said": "early"},
        "label": {"beats": ">=", "other beats": ">", "winner": "label", "tied frames": "[2, 2]", "tied said": "late"},
    },
    "value": {
        "log-probability": {"sign": "", "value": "ln P", "example value": "-4.495667"},
        "loss": {"sign": "-", "value": "-ln P", "example value": "4.495667"},
    },
}


# --- inputs ---------------------------------------------------------------------------------------------------------


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def in_dialect(dialect, array):
    """An array of (T, U + 1, ...) with the axes of the dialect."""
    return array if dialect["axes"] == "frames first" else np.ascontiguousarray(array.swapaxes(0, 1))


def draw_labels(rng, dialect, U, V):
    return rng.integers(1, V, U) - (dialect["blank"] == "last")


def lattice(rng, dialect, T, U, V=5, impossible=False):
    """log_probs, labels; impossible: the first frame has no blank before all labels but one are said, so that some
    nodes cannot be reached, while paths remain."""
    logits = 1.5 * rng.standard_normal((T, U + 1, V))
    if impossible:
        logits[0, : max(U - 1, 1), 0 if dialect["blank"] == "first" else -1] = -np.inf
    return in_dialect(dialect, log_softmax(logits)), draw_labels(rng, dialect, U, V)


def package(dialect, labels, *arrays):
    """Labels, and arrays of every symbol, as mini_pkd has them: blank is symbol 0, frames are the first axis."""
    arrays = [in_dialect(dialect, array) for array in arrays]
    if dialect["blank"] == "last":
        labels, arrays = labels + 1, [np.roll(array, 1, axis=-1) for array in arrays]
    return labels, *arrays


def sign(dialect):
    return 1 if dialect["value"] == "log-probability" else -1


# --- 1 --------------------------------------------------------------------------------------------------------------


def enumeration_cases(rng, dialect, solution):
    return {
        CORE: [lattice(rng, dialect, 3, 2), lattice(rng, dialect, 4, 3)],
        "no labels": [lattice(rng, dialect, 1, 0), lattice(rng, dialect, 5, 0)],
        "one frame": [lattice(rng, dialect, 1, 3)],
        "more labels than frames": [lattice(rng, dialect, 2, 5)],
    }


def enumeration_oracle(dialect, log_probs, labels):
    from math import comb

    from mini_pkd.rnnt_loss import brute_force

    labels, log_probs = package(dialect, labels, log_probs)
    T, U = len(log_probs), len(labels)
    return comb(T - 1 + U, U), -sign(dialect) * brute_force(log_probs, labels)


ENUMERATION = Task(
    name="Every path, one at a time",
    points=10,
    hours=1.0,
    function="enumerate_paths",
    outputs=(Output("count", "int64", 0), Output("«value»", "float64", 0)),
    tolerance=1e-9,
    code='''
def enumerate_paths(log_probs, labels):
    """Add up all paths of a small lattice.

    log_probs  («nodes», V) float64: log_probs«at (t, u)»[k] = ln P(symbol k | node (t, u)); blank is «where blank is»
    labels     (U,) int64: the transcript; T >= 1, U >= 0

    Returns (count, value): how many paths there are, an int, and «value» of the transcript in nats, a float.
    """
    «log_probs by frames»
    T, U = len(log_probs), len(labels)
    scores = []
    for label_steps in itertools.combinations(range(T - 1 + U), U):
        t = u = 0
        score = 0.0
        for step in range(T - 1 + U):
            if step in label_steps:
                score += log_probs[t, u, labels[u]]
                u += 1
            else:
                score += log_probs[t, u, «blank»]
                t += 1
        scores.append(score + log_probs[T - 1, U, «blank»])
    largest = max(scores)
    total = largest + np.log(sum(np.exp(score - largest) for score in scores))
    return len(scores), «sign»total
''',
    mutants=(
        Mutant(
            "last blank",
            "as if the blank that ends every path were forgotten",
            [("scores.append(score + log_probs[T - 1, U, «blank»])", "scores.append(score)")],
        ),
        Mutant(
            "C(T + U, U)",
            "as if the last step could be a label: the last blank has its place, only the steps before it are free",
            [
                ("itertools.combinations(range(T - 1 + U), U)", "itertools.combinations(range(T + U), U)"),
                ("for step in range(T - 1 + U):", "for step in range(T + U):"),
                ("t += 1", "t = min(t + 1, T - 1)"),
                ("scores.append(score + log_probs[T - 1, U, «blank»])", "scores.append(score)"),
            ],
        ),
        Mutant(
            "blank fixed",
            "as if the blank stood at the other end of the vocabulary",
            [
                ("score += log_probs[t, u, «blank»]", "score += log_probs[t, u, «other blank»]"),
                ("log_probs[T - 1, U, «blank»]", "log_probs[T - 1, U, «other blank»]"),
            ],
        ),
    ),
    cases=enumeration_cases,
    oracle=enumeration_oracle,
    handout=r"""
A path starts at node (0, 0) and takes T + U steps: T blanks, each to the next frame, and U labels, each in the same
frame. Its last step is the blank of node (T - 1, U). The first T - 1 + U steps may come in any order, so there are
$\binom{T - 1 + U}{U}$ paths. The probability of a path is the product of the probabilities of its steps, and

$$P(\text{labels}) = \sum_{\text{paths}} \prod_{\text{steps}} P(\text{step} \mid \text{node}).$$

Use `itertools.combinations` to choose which steps are labels. Return the count and «value».
""",
    tests="""
def test_counts():
    log_probs, labels = example()
    assert enumerate_paths(log_probs, labels)[0] == 3  # C(2 - 1 + 2, 2)


def test_the_example_that_many_implementations_test():
    assert abs(enumerate_paths(*example())[1] - («example value»)) < 1e-6
""",
)


# --- 2 --------------------------------------------------------------------------------------------------------------


def alpha_beta_cases(rng, dialect, solution):
    return {
        CORE: [
            lattice(rng, dialect, 4, 3),
            lattice(rng, dialect, 5, 4, impossible=True),
        ],
        "no labels": [lattice(rng, dialect, 1, 0), lattice(rng, dialect, 6, 0)],
        "one frame": [lattice(rng, dialect, 1, 4)],
        "impossible steps": [lattice(rng, dialect, T, U, impossible=True) for T, U in ((3, 2), (6, 6))],
        "long": [lattice(rng, dialect, 60, 20, V=12)],
    }


def alpha_beta_oracle(dialect, log_probs, labels):
    from mini_pkd.rnnt_loss import backward_variables, forward_variables

    labels, log_probs = package(dialect, labels, log_probs)
    alpha, beta = forward_variables(log_probs, labels), backward_variables(log_probs, labels)[:-1]
    return in_dialect(dialect, alpha), in_dialect(dialect, beta)


ALPHA_BETA = Task(
    name="Alpha and beta",
    points=30,
    hours=2.5,
    function="forward_backward",
    outputs=(Output("alpha", "float64", 2), Output("beta", "float64", 2)),
    tolerance=1e-9,
    code='''
def forward_backward(log_probs, labels):
    """The forward and the backward variables of a lattice.

    log_probs  («nodes», V) float64: log_probs«at (t, u)»[k] = ln P(symbol k | node (t, u)); blank is «where blank is».
               Some may be -inf: such a step is impossible
    labels     (U,) int64: the transcript; T >= 1, U >= 0

    Returns (alpha, beta), both («nodes») float64, in nats, and never nan:
    alpha«at (t, u)» = ln P(a path comes to node (t, u)); the steps before the node count.  -inf where no path comes
    beta«at (t, u)»  = ln P(the rest of the transcript | a path is at node (t, u)); the step out of the node and the
                   last blank count.  -inf from where the end cannot be reached, whether or not a path comes there
    """
    «log_probs by frames»
    T, U = len(log_probs), len(labels)
    alpha = np.full((T, U + 1), -np.inf)
    beta = np.full((T, U + 1), -np.inf)
    alpha[0, 0] = 0.0
    for t in range(T):
        for u in range(U + 1):
            if t > 0:
                alpha[t, u] = _log_add(alpha[t, u], alpha[t - 1, u] + log_probs[t - 1, u, «blank»])
            if u > 0:
                alpha[t, u] = _log_add(alpha[t, u], alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]])
    beta[T - 1, U] = log_probs[T - 1, U, «blank»]
    for t in reversed(range(T)):
        for u in reversed(range(U + 1)):
            if t < T - 1:
                beta[t, u] = _log_add(beta[t, u], log_probs[t, u, «blank»] + beta[t + 1, u])
            if u < U:
                beta[t, u] = _log_add(beta[t, u], log_probs[t, u, labels[u]] + beta[t, u + 1])
    return «alpha», «beta»


def _log_add(a, b):
    """ln(exp(a) + exp(b)) without overflow."""
    larger = max(a, b)
    if larger == -np.inf:
        return larger
    return larger + np.log(np.exp(a - larger) + np.exp(b - larger))
''',
    mutants=(
        Mutant(
            "label off by one",
            "as if each step said the label after the right one: from column u, the next label is labels[u]",
            [
                ("log_probs[t, u - 1, labels[u - 1]]", "log_probs[t, u - 1, labels[min(u, U - 1)]]"),
                ("log_probs[t, u, labels[u]]", "log_probs[t, u, labels[min(u + 1, U - 1)]]"),
            ],
        ),
        Mutant(
            "max",
            "as if only the better of two ways counted: their probabilities must be added",
            [("return larger + np.log(np.exp(a - larger) + np.exp(b - larger))", "return larger")],
        ),
        Mutant(
            "nan at -inf",
            "as if -inf - (-inf) were computed: where both ways are impossible, the sum is impossible, too",
            [("    if larger == -np.inf:\n        return larger\n", "")],
        ),
        Mutant(
            "last blank",
            "as if beta ended before the last blank",
            [("beta[T - 1, U] = log_probs[T - 1, U, «blank»]", "beta[T - 1, U] = 0.0")],
        ),
    ),
    cases=alpha_beta_cases,
    oracle=alpha_beta_oracle,
    handout=r"""
A long utterance has more paths than there are atoms, but they share their beginnings and their ends. In probabilities,

$$\alpha(t, u) = \alpha(t-1, u)\,P(\text{blank} \mid t-1, u) + \alpha(t, u-1)\,P(\text{label } u \mid t, u-1), \qquad
\alpha(0, 0) = 1,$$

$$\beta(t, u) = P(\text{blank} \mid t, u)\,\beta(t+1, u) + P(\text{label } u+1 \mid t, u)\,\beta(t, u+1), \qquad
\beta(T-1, U) = P(\text{blank} \mid T-1, U),$$

where label u is the u-th of the transcript, counted from 1: `labels[u - 1]`. Terms that would leave the lattice are
zero. So alpha counts the steps before a node, and beta the step out of it as well. Compute both in log space, where a
product is a sum, 1 is 0 and 0 is $-\infty$ (`np.logaddexp` may be used):
$\ln(e^a + e^b) = m + \ln(e^{a-m} + e^{b-m})$ with $m = \max(a, b)$, and think about what happens where both a and b are
$-\infty$. Both variables give the total: $\ln P = \beta(0, 0)$, and it is also
$\alpha(T-1, U)$ plus the last blank.
""",
    tests="""
def test_both_give_the_total():
    log_probs, labels = example()
    alpha, beta = forward_backward(log_probs, labels)
    assert alpha.shape == beta.shape == log_probs.shape[:2]
    assert abs(beta[0, 0] + 4.495667) < 1e-6
    assert abs(alpha[-1, -1] + log_probs[-1, -1, «blank»] + 4.495667) < 1e-6


def test_two_frames_one_label_by_hand():
    log_probs = np.log(np.full((2, 2, 2), 1 / 2))  # (T, U + 1, V): every step has the probability 1/2
    «log_probs as handed out»
    alpha, beta = forward_backward(log_probs, np.array([«A»]))
    «alpha and beta by frames»
    np.testing.assert_allclose(np.exp(alpha), [[1, 1 / 2], [1 / 2, 1 / 2]], err_msg="exp(alpha), frames downwards")
    np.testing.assert_allclose(np.exp(beta), [[1 / 4, 1 / 4], [1 / 4, 1 / 2]], err_msg="exp(beta), frames downwards")


def test_an_impossible_step_is_no_nan():
    log_probs, labels = example()
    log_probs[0, 0, «blank»] = -np.inf  # all paths say the first label in the first frame
    alpha, beta = forward_backward(log_probs, labels)
    assert not np.isnan(alpha).any() and not np.isnan(beta).any()
    assert np.isfinite(beta[0, 0])


def test_no_labels():
    log_probs = np.log(np.full((4, 1, 3), 1 / 3))  # (T, 1, V)
    «log_probs as handed out»
    alpha, beta = forward_backward(log_probs, np.array([], dtype=np.int64))
    assert np.allclose(alpha.ravel(), np.log(3) * -np.arange(4))
    assert np.allclose(beta.ravel(), np.log(3) * -np.arange(4, 0, -1))
""",
    notebook=r"""
# %% [markdown]
# ## Your own alpha and beta
# Once `forward_backward` works, this draws where the paths of a transcript run: P(a path visits a node, given the
# transcript) is exp(alpha + beta - ln P). You should see a staircase, one step up every 3 frames, blurred towards
# earlier frames. Each anti-diagonal sums to 1, because every path crosses it exactly once. That only says that alpha
# and beta fit together; whether they are right, `enumerate_paths` of a4.1 tells.

# %%
rng = np.random.default_rng(0)
T, U, V = 24, 8, 12
labels = rng.integers(«A», «A» + V - 1, U)
logits = rng.standard_normal((T, U + 1, V))
for t in range(T):  # a model that hears the first label at frame 0, the next at 3, 6, ...
    for u in range(U + 1):
        logits[t, u, labels[u] if u < U and t >= 3 * u else «blank»] += 3
log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
«log_probs as handed out»
alpha, beta = a4.forward_backward(log_probs, labels)
«alpha and beta by frames»
visits = np.exp(alpha + beta - beta[0, 0])
plt.imshow(visits.T, origin="lower", aspect="auto")
plt.xlabel("frame t")
plt.ylabel("labels said u")
plt.colorbar(label="P(a path visits the node | transcript)")
plt.show()
sums = [sum(visits[d - u, u] for u in range(U + 1) if 0 <= d - u < T) for d in range(T + U)]
print("the anti-diagonals sum to", np.round(min(sums), 6), "...", np.round(max(sums), 6))
""",
)


# --- 3 --------------------------------------------------------------------------------------------------------------


def gradient_cases(rng, dialect, solution):
    def case(T, U, V=5, impossible=False):
        logits, labels = lattice(rng, dialect, T, U, V, impossible)
        shift = rng.standard_normal(logits.shape[:2])[..., None]  # log_probs are logits, and so are these
        return (logits + shift, labels, *solution.forward_backward(log_softmax(logits), labels))

    return {
        CORE: [case(3, 2), case(5, 4)],
        "no labels": [case(1, 0), case(5, 0)],
        "one frame": [case(1, 4)],
        "impossible steps": [case(5, 3, impossible=True)],
        "long": [case(40, 12, 9)],
    }


def gradient_oracle(dialect, logits, labels, alpha, beta):
    from mini_pkd.rnnt_loss import readable

    labels, logits = package(dialect, labels, logits)
    _, by_log_probs = readable(log_softmax(logits), labels)
    gradient = by_log_probs - np.exp(log_softmax(logits)) * by_log_probs.sum(axis=-1, keepdims=True)
    if dialect["blank"] == "last":
        gradient = np.roll(gradient, -1, axis=-1)
    return (in_dialect(dialect, gradient),)


GRADIENT = Task(
    name="The gradient to the logits",
    points=25,
    hours=2.5,
    function="lattice_gradient",
    outputs=(Output("gradient", "float64", 3),),
    tolerance=1e-9,
    code='''
def lattice_gradient(logits, labels, alpha, beta):
    """The derivative of the loss, -ln P(transcript), by the raw scores of every node.

    logits       («nodes», V) float64: raw scores, not normalised; blank is «where blank is»; -inf where impossible
    labels       (U,) int64: the transcript; T >= 1, U >= 0
    alpha, beta  («nodes») float64: what `forward_backward` gives for these logits, correct and in nats

    Returns («nodes», V) float64: d(-ln P) / d logits.
    """
    «logits, alpha and beta by frames»
    T, U = len(logits), len(labels)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    taken = np.zeros(logits.shape)  # P(a path takes this step, given the transcript)
    for t in range(T):
        for u in range(U + 1):
            end = 0.0 if u == U else -np.inf
            rest = beta[t + 1, u] if t < T - 1 else end
            taken[t, u, «blank»] = np.exp(alpha[t, u] + log_probs[t, u, «blank»] + rest - beta[0, 0])
            if u < U:
                label = labels[u]
                taken[t, u, label] = np.exp(alpha[t, u] + log_probs[t, u, label] + beta[t, u + 1] - beta[0, 0])
    gradient = np.exp(log_probs) * taken.sum(axis=-1, keepdims=True) - taken
    return «gradient»
''',
    mutants=(
        Mutant(
            "P(step) missing",
            "as if a step's own probability were forgotten between alpha before it and beta after it",
            [
                ("alpha[t, u] + log_probs[t, u, «blank»] + rest", "alpha[t, u] + rest"),
                ("alpha[t, u] + log_probs[t, u, label] + beta[t, u + 1]", "alpha[t, u] + beta[t, u + 1]"),
            ],
        ),
        Mutant(
            "sum term",
            "the derivative by the log-probabilities: what the normaliser of log-softmax adds is missing",
            [("np.exp(log_probs) * taken.sum(axis=-1, keepdims=True) - taken", "-taken")],
        ),
        Mutant(
            "last blank",
            "as if no path took the last blank",
            [("end = 0.0 if u == U else -np.inf", "end = -np.inf")],
        ),
        Mutant(
            "visits",
            "as if every path visited every node: P(symbol) counts as often as paths come to the node",
            [("np.exp(log_probs) * taken.sum(axis=-1, keepdims=True) - taken", "np.exp(log_probs) - taken")],
        ),
    ),
    cases=gradient_cases,
    oracle=gradient_oracle,
    handout=r"""
Raising the log-probability of a step raises $\ln P$ by the probability that a path takes this step, given the
transcript: what is before it, the step itself, what is after it. With $\alpha$ and $\beta$ in log space, as you are
given them,

$$\gamma(\text{step}) = \exp\bigl(\alpha(\text{from}) + \ln P(\text{step}) + \beta(\text{to}) - \ln P\bigr).$$

The last blank leads out of the lattice; after it nothing is left to say, so $\ln 1 = 0$ takes the place of
$\beta(\text{to})$ there. But a network gives logits $z$, and $\ln P(k) = z_k - \ln \sum_j e^{z_j}$ depends on all of
them. Through it the gradient of the loss becomes

$$\frac{\partial(-\ln P)}{\partial z_k} = P(k) \sum_j \gamma_j - \gamma_k,$$

where the sum runs over the (at most two) steps of the node: it is the probability that a path visits the node. Each
node's gradient sums to zero.
""",
    tests='''
def given():
    """Raw scores, labels, and alpha and beta by hand for one frame and one label: the only path is label, blank."""
    logits = np.array([[[1.0, 2.0, 3.0], [3.0, 1.0, 0.5]]])  # (T, U + 1, V)
    first = np.log(np.exp(logits[0, 0, «A»]) / np.exp(logits[0, 0]).sum())
    last = np.log(np.exp(logits[0, 1, «blank»]) / np.exp(logits[0, 1]).sum())
    alpha, beta = np.array([[0.0, first]]), np.array([[first + last, last]])
    «given as handed out»
    return logits, np.array([«A»]), alpha, beta


def test_the_only_path():
    logits, labels, alpha, beta = given()
    gradient = lattice_gradient(logits, labels, alpha, beta)
    assert gradient.shape == logits.shape
    P = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    first, last = gradient.reshape(2, 3)
    P_first, P_last = P.reshape(2, 3)
    P_first[«A»] -= 1  # the path takes both steps for certain
    P_last[«blank»] -= 1
    assert np.allclose(first, P_first) and np.allclose(last, P_last)


def test_each_node_sums_to_zero():
    assert np.allclose(lattice_gradient(*given()).sum(axis=-1), 0)
''',
    notebook=r"""
# %% [markdown]
# ## Is your gradient right?
# Central differences of your own beta, on one random direction.

# %%
scores, labels = rng.standard_normal((4, 3, 5)), np.array([«A», «B»])
log_probs = scores
«log_probs as handed out»
scores = log_probs


def loss(logits):
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -a4.forward_backward(log_probs, labels)[1][0, 0]


direction = rng.standard_normal(scores.shape)
measured = (loss(scores + 1e-5 * direction) - loss(scores - 1e-5 * direction)) / 2e-5
log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
gradient = a4.lattice_gradient(scores, labels, *a4.forward_backward(log_probs, labels))
print(f"central difference {measured:.8f}   your gradient {(gradient * direction).sum():.8f}")
""",
)


# --- 4 --------------------------------------------------------------------------------------------------------------


def best_path_cases(rng, dialect, solution):
    def tied(T, U, V=4):
        """Whole numbers, so that sums of ties are equal to the last bit.  They need not be normalised."""
        log_probs = -rng.integers(1, 3, (T, U + 1, V)).astype(np.float64)
        return in_dialect(dialect, log_probs), draw_labels(rng, dialect, U, V)

    level = in_dialect(dialect, np.full((4, 4, 5), np.log(0.2)))  # every path ties with every other
    return {
        CORE: [*(lattice(rng, dialect, 9, 4) for _ in range(4)), (level, draw_labels(rng, dialect, 3, 5)), tied(8, 5)],
        "no labels": [lattice(rng, dialect, 1, 0), lattice(rng, dialect, 5, 0)],
        "one frame": [lattice(rng, dialect, 1, 4)],
        "ties": [tied(T, U) for T, U in ((5, 3), (12, 6))],
        "impossible steps": [lattice(rng, dialect, 6, 5, impossible=True)],
    }


def best_path_oracle(dialect, log_probs, labels):
    """All paths, sorted by probability; ties by the last step, then the one before it, and so on."""
    from mini_pkd.rnnt_loss import paths

    labels, log_probs = package(dialect, labels, log_probs)
    ranked = []
    for path in paths(len(log_probs), len(labels)):
        score = sum(log_probs[t, u, labels[u] if says_label else 0] for t, u, says_label in path)
        wins = [(not says_label) == (dialect["ties"] == "blank") for _, _, says_label in reversed(path)]
        frames = [t for t, _, says_label in path if says_label]
        ranked.append((round(float(score), 9), wins, frames, score))
    _, _, frames, score = max(ranked)
    return np.array(frames, dtype=np.int64), sign(dialect) * score


BEST_PATH = Task(
    name="The best path",
    points=15,
    hours=1.5,
    function="best_path",
    outputs=(Output("frames", "int64", 1), Output("«value»", "float64", 0)),
    tolerance=1e-9,
    code='''
def best_path(log_probs, labels):
    """The most probable path: in which frame it says each label.

    log_probs  («nodes», V) float64: log_probs«at (t, u)»[k] = ln P(symbol k | node (t, u)); blank is «where blank is»
    labels     (U,) int64: the transcript; T >= 1, U >= 0

    Where a node is reached equally well by both steps, the «winner» wins.
    Returns (frames, value): frames (U,) int64, the frame t of each label, counted from 0; «value» of the path in nats.
    """
    «log_probs by frames»
    T, U = len(log_probs), len(labels)
    best = np.full((T, U + 1), -np.inf)
    best[0, 0] = 0.0
    by_label = np.zeros((T, U + 1), dtype=bool)
    for t in range(T):
        for u in range(U + 1):
            if t > 0:
                best[t, u] = best[t - 1, u] + log_probs[t - 1, u, «blank»]
            if u > 0:
                score = best[t, u - 1] + log_probs[t, u - 1, labels[u - 1]]
                if t == 0 or score «beats» best[t, u]:
                    best[t, u], by_label[t, u] = score, True
    frames = np.zeros(U, dtype=np.int64)
    total = best[T - 1, U] + log_probs[T - 1, U, «blank»]
    t, u = T - 1, U
    while u > 0:
        if by_label[t, u]:
            u -= 1
            frames[u] = t
        else:
            t -= 1
    return frames, «sign»total
''',
    mutants=(
        Mutant(
            "time off by one",
            "as if frames were counted from 1",
            [("frames[u] = t", "frames[u] = t + 1")],
        ),
        Mutant(
            "greedy",
            "as if the path took the better step at each node, without a look at what comes after it",
            [
                (
                    """    t, u = T - 1, U
    while u > 0:
        if by_label[t, u]:
            u -= 1
            frames[u] = t
        else:
            t -= 1
""",
                    """    t = u = total = 0
    while t < T - 1 or u < U:
        blank = log_probs[t, u, «blank»]
        label = log_probs[t, u, labels[u]] if u < U else -np.inf
        if u < U and (t == T - 1 or label «beats» blank):
            frames[u] = t
            u, total = u + 1, total + label
        else:
            t, total = t + 1, total + blank
    total += log_probs[T - 1, U, «blank»]
""",
                )
            ],
        ),
        Mutant(
            "ties",
            "as if the other step won a tie, where the «winner» must win",
            [("score «beats» best[t, u]", "score «other beats» best[t, u]")],
        ),
    ),
    cases=best_path_cases,
    oracle=best_path_oracle,
    handout=r"""
With max in place of the sum, $\alpha$ becomes the probability of the best path to a node. Keep beside it by which step
this path came. At the end, start at node (T - 1, U) and walk back: by a label to the left, by a blank to the frame
before. What is wanted is the frame in which each label is said. Where both steps reach a node equally well, the
**«winner»** wins, so that in a lattice where everything ties labels are said as «tied said» as possible.
""",
    tests="""
def test_a_lattice_where_everything_ties():
    log_probs = np.full((3, 3, 4), np.log(0.25))  # T = 3 frames, U = 2 labels: the same with axes swapped
    frames, value = best_path(log_probs, np.array([«A», «B»]))
    assert list(frames) == «tied frames»
    assert abs(value - («sign»5 * np.log(0.25))) < 1e-12  # T + U steps


def test_the_path_goes_where_the_probability_is():
    log_probs = np.log(np.full((4, 2, 3), 0.1))  # (T, U + 1, V)
    log_probs[:, :, «blank»] = np.log(0.8)
    log_probs[2, 0] = np.log(0.1)
    log_probs[2, 0, «A»] = np.log(0.8)
    «log_probs as handed out»
    frames, value = best_path(log_probs, np.array([«A»]))
    assert list(frames) == [2] and abs(value - («sign»5 * np.log(0.8))) < 1e-12
""",
    notebook=r"""
# %% [markdown]
# ## Your best path on top of the visits

# %%
logits = np.log(np.full((24, 9, 12), 1.0))
labels = rng.integers(«A», «A» + 11, 8)
for t in range(24):
    for u in range(9):
        logits[t, u, labels[u] if u < 8 and t >= 3 * u else «blank»] += 3
log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
«log_probs as handed out»
alpha, beta = a4.forward_backward(log_probs, labels)
«alpha and beta by frames»
frames, value = a4.best_path(log_probs, labels)
plt.imshow(np.exp(alpha + beta - beta[0, 0]).T, origin="lower", aspect="auto")
plt.step(np.append(frames, 23), np.arange(9), where="pre", color="white")
plt.xlabel("frame t")
plt.ylabel("labels said u")
plt.show()
print("labels are said in frames", frames)
""",
)


# --- 5 --------------------------------------------------------------------------------------------------------------

V_LARGE = 20_000


def large_cases(rng, dialect, solution):
    def case(T, U, scale=1.0, J=6):
        enc, pred = rng.standard_normal((T, J)), rng.standard_normal((U + 1, J))
        table, bias = scale * rng.standard_normal((V_LARGE, J)), scale * rng.standard_normal(V_LARGE)
        return enc, pred, table, bias, draw_labels(rng, dialect, U, V_LARGE)

    return {
        CORE: [case(10, 9), case(15, 39, scale=400.0)],  # 600 nodes: 96 MB of float64
        "no labels": [case(1, 0), case(30, 0)],
        "one frame": [case(1, 20)],
        "scores around -1000": [(*arrays[:3], arrays[3] - 1000, arrays[4]) for arrays in [case(6, 5)]],
    }


def large_oracle(dialect, enc, pred, table, bias, labels):
    log_probs = log_softmax(np.tanh(enc[:, None] + pred) @ table.T + bias)
    blank = log_probs[:, :, 0 if dialect["blank"] == "first" else -1]
    label = np.stack([log_probs[:, u, label] for u, label in enumerate(labels)] or [np.zeros((0, len(enc)))], axis=-1)
    return in_dialect(dialect, blank), in_dialect(dialect, label.reshape(len(enc), len(labels)))


LARGE = Task(
    name="20,000 symbols in little memory",
    points=20,
    hours=2.0,
    function="step_log_probs",
    outputs=(Output("for_blank", "float64", 2), Output("for_label", "float64", 2)),
    tolerance=1e-10,
    memory=32 * 2**20,
    code='''
def step_log_probs(enc, pred, table, bias, labels):
    """Log-probabilities of the steps that paths can take, without the logits of all nodes at once.

    The joint network gives node (t, u) the logits tanh(enc[t] + pred[u]) @ table.T + bias, V of them.

    enc     (T, J) float64: a row for each frame, T >= 1
    pred    (U + 1, J) float64: a row for each number of labels said
    table   (V, J) float64: a row for each symbol, V = 20000; blank is «where blank is»
    bias    (V,) float64
    labels  (U,) int64: the transcript, U >= 0

    Returns (for_blank, for_label), float64: ln P(blank | node) for all nodes, («nodes»), and ln P(next label | node)
    for the nodes that have a next label, («label nodes»).

    The process may take 32 MiB beside numpy and its inputs; a lattice has up to 600 nodes: 96 MB of float64 logits.
    Logits may be as large as 3000 either way.
    """
    chunk = 512
    hidden = np.tanh(enc[:, None] + pred)  # (T, U + 1, J)
    largest = np.full(hidden.shape[:2], -np.inf)
    total = np.zeros(hidden.shape[:2])  # sum of exp(logit - largest) so far
    for start in range(0, len(table), chunk):
        logits = hidden @ table[start : start + chunk].T + bias[start : start + chunk]  # (T, U + 1, chunk)
        before, largest = largest, np.maximum(largest, logits.max(axis=-1))
        total = total * np.exp(before - largest) + np.exp(logits - largest[..., None]).sum(axis=-1)
    normaliser = largest + np.log(total)
    for_blank = hidden @ table[«blank»] + bias[«blank»] - normaliser
    for_label = (hidden[:, :-1] * table[labels]).sum(axis=-1) + bias[labels] - normaliser[:, :-1]
    return «for_blank», «for_label»
''',
    mutants=(
        Mutant(
            "materialised",
            "as if the logits of all nodes were made at once: make them for a few hundred symbols at a time",
            [("chunk = 512", "chunk = len(table)")],
            ends="memory",
        ),
        Mutant(
            "no running maximum",
            "as if nothing were subtracted before exp, which overflows for large scores: keep the largest score so far",
            [
                ("largest = np.full(hidden.shape[:2], -np.inf)", "largest = np.zeros(hidden.shape[:2])"),
                ("before, largest = largest, np.maximum(largest, logits.max(axis=-1))", "before = largest"),
            ],
        ),
        Mutant(
            "float32 sums",
            "as if exponentials were added in float32: with 20,000 of them the last digits are lost",
            [(".sum(axis=-1)\n    normaliser", ".astype(np.float32).sum(axis=-1)\n    normaliser")],
            margin=10.0,
        ),
        Mutant(
            "not rescaled",
            "as if the sum so far kept its old maximum when a larger score came: rescale it",
            [("total * np.exp(before - largest)", "total")],
        ),
    ),
    cases=large_cases,
    oracle=large_oracle,
    handout=r"""
All that alpha and beta need of a node are two log-probabilities, of the blank and of the next label. Their normaliser
$\ln \sum_k e^{z_k}$ runs over all V symbols, but not all at once: go through the vocabulary in chunks, and keep for
each node the largest score so far, $m$, and the sum $s = \sum e^{z_k - m}$ so far. When a chunk brings a larger
maximum $m'$, the old sum is worth $s\,e^{m - m'}$.

The grader gives your process **32 MiB** beside numpy and its inputs; the logits of 600 nodes are 96 MB.
""",
    tests="""
def test_a_small_vocabulary():
    rng = np.random.default_rng(1)
    enc, pred, table, bias = (rng.standard_normal(shape) for shape in ((3, 4), (2, 4), (7, 4), (7,)))
    labels = np.array([3])
    logits = np.tanh(enc[:, None] + pred) @ table.T + bias  # (T, U + 1, V)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    of_label = log_probs[:, 0, 3]  # (T,)
    «log_probs as handed out»
    for_blank, for_label = step_log_probs(enc, pred, table, bias, labels)
    assert for_blank.shape == log_probs.shape[:2]
    assert np.allclose(for_blank, log_probs[:, :, «blank»])
    assert np.allclose(for_label.ravel(), of_label)


def test_large_scores():
    enc, pred, table, bias = np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((5, 2)), np.full(5, 2000.0)
    for_blank, _ = step_log_probs(enc, pred, table, bias, np.array([], dtype=np.int64))
    assert np.allclose(for_blank, -np.log(5))
""",
)


ASSIGNMENT = Assignment(
    name="a4",
    title="The lattice of a transducer",
    conventions=CONVENTIONS,
    tasks=(ENUMERATION, ALPHA_BETA, GRADIENT, BEST_PATH, LARGE),
    package_files=("rnnt_loss.py",),
    given='''
"""Assignment 4: the lattice of a transducer.  Replace each NotImplementedError; numpy is all you need."""

import itertools

import numpy as np
''',
    test_helpers='''
import numpy as np
from a4 import best_path, enumerate_paths, forward_backward, lattice_gradient, step_log_probs


def example():
    """2 frames, 2 labels, 5 symbols, which many implementations test: -ln P = 4.495667."""
    scores = np.array([
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
    ])  # (T, U + 1, V), blank first
    «example blank»
    «example axes»
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)), np.array([«A», «B»])
''',
    motivation=r"""
A recogniser hears T frames and should say U labels, and nobody has told it when. A transducer walks a lattice: at node
(t, u) it is at frame t and has said u labels, and its network gives a distribution over V symbols. **Blank**, which in
this class is **«where blank is»**, leads to the next frame; the transcript's next label leads to the next column of
this drawing, in the same frame. (In the drawing t runs downwards. Your arrays have the axes (`«nodes»`), and in the
notebook's pictures t runs to the right.)

                   u = 0            u = 1            u = 2

        t = 0        o ---- A ------> o ---- B ------> o
                     |                |                |
                   blank            blank            blank
                     v                v                v
        t = 1        o ---- A ------> o ---- B ------> o -- blank --> end

The loss is $-\ln P(\text{transcript})$, summed over every path to the end (Graves 2012, arXiv 1211.3711). You compute
it one path at a time, which shows what is meant, and by recursion, which is fast; and you prepare it in little memory,
because a vocabulary of 20,000 symbols asks for that.

In this class all arrays over nodes have the axes **(«nodes»)**: node (t, u) is `«at (t, u)»`.
""",
    debugging=r"""
- Start with T = 2, U = 1 and all probabilities 1/2: there are two paths of three steps, so P = 2 / 8.
- `enumerate_paths` is the judge of everything else: alpha, beta and the best path must agree with it on small
  lattices.
- $\beta(0, 0)$ and $\alpha(T-1, U)$ + last blank must be the same number. If not, one of the two is wrong; if both
  agree and enumeration says something else, both make the same mistake.
- Test the gradient with central differences (the notebook does), in a random direction, never a sum of all entries:
  each node's gradient sums to zero, whatever it is.
- Try U = 0, T = 1 and U > T. Try a step of probability 0.
""",
    question=r"""
Your loss is a sum over all paths, but a recogniser says one transcript along one path. Explain in at most ten
sentences why training on the best path alone (as `best_path` finds it) is a bad idea at the beginning of training, what
would happen to the frames in which labels are said, and whether the difference matters at its end.
""",
    rubric=r"""
- 2 points: at the beginning all paths have about the same probability, so the best one is arbitrary, and training
  strengthens this accident.
- 2 points: the gradient spreads over all nodes in proportion to how probable it is that a path visits them.
- 1 point: with the best path alone labels freeze in the frames of the first accident (with ties: all at once at the
  beginning or at the end).
- 1 point: at the end one path, or a few close ones, hold nearly all of the probability, and both losses agree.
""",
    notebook=r"""
# %% [markdown]
# # Assignment 4: the lattice of a transducer
# Write your functions in `a4.py`, next to this notebook; the handout has the formulas. Here you see what your functions
# do. A cell that ends in `NotImplementedError` waits for a task that you have not solved yet.

# %%
# %load_ext autoreload
# %autoreload 2
import a4
import matplotlib.pyplot as plt
import numpy as np

# %% [markdown]
# ## How many paths?
# With T frames and U labels there are C(T - 1 + U, U) paths. This is why nobody enumerates them in earnest.

# %%
from math import comb

for T, U in ((2, 1), (5, 3), (20, 8), (200, 50)):
    print(f"T = {T:3d}, U = {U:2d}: {comb(T - 1 + U, U):.3g} paths")

# %% [markdown]
# ## Your own enumeration
# Two frames, one label, two symbols, all probabilities 1/2: two paths of three steps each, P = 2 / 8 and
# ln P = -1.386294.

# %%
print(a4.enumerate_paths(np.log(np.full((2, 2, 2), 0.5)), np.array([«A»])))
""",
)
