"""Assignment 5: distillation over the lattice, a cascade of two students, and whether one of them is really better."""

import numpy as np

from .task import CORE, Assignment, Mutant, Output, Task

CONVENTIONS = {
    "order": {
        "student first": {"networks": "student, teacher"},
        "teacher first": {"networks": "teacher, student"},
    },
    "axes": {
        "frames first": {
            "nodes": "T, U + 1",
            "at (t, u)": "[t, u]",
            "networks by frames": "",
            "teacher by frames": "",
            "students by frames": "",
            "networks as handed out": "",
            "teacher as handed out": "",
            "back": "",
        },
        "labels first": {
            "nodes": "U + 1, T",
            "at (t, u)": "[u, t]",
            "networks by frames": "student, teacher = student.swapaxes(0, 1), teacher.swapaxes(0, 1)  # (T, U + 1, V)",
            "teacher by frames": "teacher = teacher.swapaxes(0, 1)  # (T, U + 1, V)",
            "students by frames": "first, second = first.swapaxes(0, 1), second.swapaxes(0, 1)  # (T, U + 1, V)",
            "networks as handed out": (
                "student, teacher = student.swapaxes(0, 1), teacher.swapaxes(0, 1)  # (U + 1, T, V)"
            ),
            "teacher as handed out": "teacher = teacher.swapaxes(0, 1)  # (U + 1, T, V)",
            "back": ".swapaxes(0, 1)",
        },
    },
    "unit": {
        "nats": {
            "unit": "nats",
            "per unit": "",
            "per other": " / np.log(2)",
            "other": "bits",
            "log": r"\ln",
            "to unit": "",
        },
        "bits": {
            "unit": "bits",
            "per unit": " / np.log(2)",
            "per other": "",
            "other": "nats",
            "log": r"\log_2",
            "to unit": r"\frac{1}{\ln 2}\,",
        },
    },
    "mixing": {
        "add": {
            "rnnt weight": "",
            "other rnnt weight": "(1 - alpha) * ",
            "mixed loss": r"L_\text{RNN-T} + \alpha\,L_\text{KL}",
            "mixed": "RNN-T loss + alpha * KL",
            "wrong mixture": "the RNN-T loss were weighed by 1 - alpha: here its weight is 1",
        },
        "interpolate": {
            "rnnt weight": "(1 - alpha) * ",
            "other rnnt weight": "",
            "mixed loss": r"(1 - \alpha)\,L_\text{RNN-T} + \alpha\,L_\text{KL}",
            "mixed": "(1 - alpha) * RNN-T loss + alpha * KL",
            "wrong mixture": "the RNN-T loss had the weight 1: here its weight is 1 - alpha",
        },
    },
    "difference": {
        "A - B": {"first": "a", "second": "b", "A": "A", "B": "B", "sign": "", "if A is better": "negative"},
        "B - A": {"first": "b", "second": "a", "A": "B", "B": "A", "sign": "-", "if A is better": "positive"},
    },
    "rates": {
        "fractions": {"scale": "", "rates": "a fraction: one error in four words is 0.25", "axis of rates": "fraction"},
        "per cent": {
            "scale": "100 * ",
            "rates": "in per cent: one error in four words is 25",
            "axis of rates": "per cent",
        },
    },
}


# --- inputs ---------------------------------------------------------------------------------------------------------


def in_dialect(dialect, array):
    """An array of (T, U + 1, ...) with the axes of the dialect, and back again."""
    return array if dialect["axes"] == "frames first" else np.ascontiguousarray(array.swapaxes(0, 1))


def in_order(dialect, student, teacher):
    """Both networks in the order of the dialect, and back again."""
    return (student, teacher) if dialect["order"] == "student first" else (teacher, student)


def in_unit(dialect, nats):
    return nats if dialect["unit"] == "nats" else nats / np.log(2)


def lattices(rng, dialect, T, U, V=6, impossible=False, sure=0.0):
    """Raw scores of student and teacher as they are handed out, and labels; blank is symbol 0.

    impossible: some symbols are impossible for both, in one node all but blank; sure: so much do the student's scores
    of blank and of the next label stand above all others.
    """
    student, teacher = 1.5 * rng.standard_normal((2, T, U + 1, V))
    labels = rng.integers(1, V, U)
    if impossible:
        for scores in student, teacher:
            scores[:, :, V - 1] = scores[0, :, V - 2] = scores[-1, -1, 1:] = -np.inf
    for u in range(U + 1):
        student[:, u, [0, *labels[u : u + 1]]] += sure
    return in_order(dialect, in_dialect(dialect, student), in_dialect(dialect, teacher)), labels


# --- 1 --------------------------------------------------------------------------------------------------------------


def kl_cases(rng, dialect, solution):
    def case(N, V, temperature, teacher_cannot=0, nobody_can=0, student_cannot=0, scale=1.5, offset=0.0):
        student, teacher = scale * rng.standard_normal((2, N, V)) + offset
        cannot, nobody = teacher[:, V - teacher_cannot :], slice(0, nobody_can)
        cannot[:] = student[:, nobody] = teacher[:, nobody] = -np.inf
        student[:1, nobody_can : nobody_can + student_cannot] = -np.inf
        return (*in_order(dialect, student, teacher), temperature)

    return {
        CORE: [case(6, 5, 2.0), case(12, 8, 0.5), case(8, 7, 3.0, teacher_cannot=2, nobody_can=1)],
        "one node": [case(1, 4, 1.0), case(1, 2, 4.0)],
        "impossible symbols": [case(9, 6, 1.0, teacher_cannot=5), case(9, 6, 1.5, nobody_can=3)],
        "what the student cannot say": [case(4, 6, 1.0, student_cannot=1, teacher_cannot=1)],
        "large scores": [case(10, 6, 1.0, scale=300.0), case(10, 6, 2.0, offset=1000.0)],
        "long": [case(1500, 12, 1.25)],
    }


def kl_oracle(dialect, first, second, temperature):
    from mini_pkd.lattice_kl import node_kl

    student, teacher = in_order(dialect, first, second)
    pairs = zip(student / temperature, teacher / temperature, strict=True)
    return in_unit(dialect, sum(node_kl(*pair) for pair in pairs))


KL = Task(
    name="KL over the lattice",
    points=20,
    hours=1.5,
    function="lattice_kl",
    outputs=(Output("KL", "float64", 0),),
    tolerance=1e-9,
    code='''
def lattice_kl(«networks», temperature):
    """KL(teacher || student), summed over all nodes of a lattice and over all symbols.

    «networks»  (N, V) float64 each: raw scores (logits), a row for each of the lattice's N >= 1 nodes; -inf
                      for an impossible symbol, but each row has a finite score
    temperature       a float above 0: both networks' scores are divided by it before the softmax

    Returns the KL in «unit», a float: inf if what the teacher holds possible is impossible for the student; never nan.
    """
    log_S, log_T = _log_probs_at(student, temperature), _log_probs_at(teacher, temperature)
    P_T = np.exp(log_T)
    counts = P_T > 0  # 0 ln 0 is 0
    terms = P_T[counts] * (log_T[counts] - log_S[counts])
    return terms.sum()«per unit»


def _log_probs_at(scores, temperature):
    """Log-softmax of (N, V) at a temperature."""
    shifted = (scores - scores.max(axis=-1, keepdims=True)) / temperature
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
''',
    mutants=(
        Mutant(
            "reversed",
            "as if student and teacher had changed places: the teacher's probabilities are the weights of the sum",
            [
                (
                    "log_S, log_T = _log_probs_at(student, temperature), _log_probs_at(teacher, temperature)",
                    "log_S, log_T = _log_probs_at(teacher, temperature), _log_probs_at(student, temperature)",
                )
            ],
        ),
        Mutant(
            "tau squared",
            "as if the sum were multiplied by the temperature squared: some recipes do this, the formula here does not",
            [("return terms.sum()«per unit»", "return terms.sum() * temperature**2«per unit»")],
        ),
        Mutant(
            "NaN at P = 0",
            "as if 0 ln 0 were computed: where the teacher's probability is 0, so is the term",
            [("counts = P_T > 0", "counts = P_T >= 0")],
        ),
        Mutant(
            "mean over nodes",
            "as if the KL were averaged over the nodes: it is their sum",
            [("return terms.sum()«per unit»", "return terms.sum() / len(P_T)«per unit»")],
        ),
        Mutant(
            "unit",
            "in «other»: «unit» are asked for",
            [("return terms.sum()«per unit»", "return terms.sum()«per other»")],
        ),
    ),
    cases=kl_cases,
    oracle=kl_oracle,
    handout=r"""
With $z^S$ and $z^T$ the raw scores of student and teacher, $\tau$ the temperature, and the sum over all nodes n of the
lattice and all symbols k,

$$P_S(k \mid n) = \frac{e^{z^S_{nk} / \tau}}{\sum_j e^{z^S_{nj} / \tau}}, \quad P_T \text{ likewise}, \qquad
L_\text{KL} = \sum_n \sum_k P_T(k \mid n)\, «log» \frac{P_T(k \mid n)}{P_S(k \mid n)} \quad \text{in «unit»}.$$

Nodes are *summed*, not averaged, and the sum is *not* multiplied by $\tau^2$ (Hinton's recipe does this, to keep
gradients comparable between temperatures). It does not matter in which order the nodes stand, so here they are simply
N rows.

Where $P_T = 0$ the term is 0, whatever the student says. Where $P_T > 0$ and $P_S = 0$ the KL is infinite, but this is
so only where the student's score is -inf: a probability too small for float64 is not 0. So compute with $\ln P$, never
with the logarithm of a P that you have. Scores may be as large as 1000 either way: subtract the largest before `exp`.
""",
    tests="""
def test_one_node_by_hand():
    student, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    expected = 0.25 * np.log(2)«per unit»  # 1/4 ln(1/2) + 1/2 ln 2 + 1/4 ln 1 = (ln 2) / 4 nats = 1/4 bit
    assert np.allclose(lattice_kl(«networks», 1.0), expected)
    student, teacher = np.repeat(student, 6, axis=0), np.repeat(teacher, 6, axis=0)
    assert np.allclose(lattice_kl(«networks», 1.0), 6 * expected)


def test_temperature_divides_scores_and_does_nothing_else():
    student, teacher = 2 * np.log([[0.5, 0.25, 0.25]]), 2 * np.log([[0.25, 0.5, 0.25]])
    assert np.allclose(lattice_kl(«networks», 2.0), 0.25 * np.log(2)«per unit»)


def test_what_the_teacher_thinks_impossible():
    teacher = np.array([[0.0, 0.0, -np.inf]])  # 1/2, 1/2, 0
    student = np.log([[0.25, 0.25, 0.5]])
    assert np.allclose(lattice_kl(«networks», 1.0), np.log(2)«per unit»)
    student = np.array([[-np.log(3), 0.0, -np.inf]])  # 1/4, 3/4, 0
    assert np.allclose(lattice_kl(«networks», 1.0), 0.5 * np.log(4 / 3)«per unit»)


def test_what_only_the_student_thinks_impossible():
    student, teacher = np.array([[0.0, -np.inf]]), np.array([[0.0, 0.0]])
    assert lattice_kl(«networks», 1.0) == np.inf
""",
    notebook=r"""
# %% [markdown]
# ## KL has a direction
# A teacher who believes in two symbols, and students with one peak each, at every place. With your `lattice_kl`: which
# student is best? Exchange the two networks, and it is another one. KL(teacher || student) wants the student to have
# some probability wherever the teacher has; reversed, it wants the student to stay where the teacher is sure.

# %%
symbols = np.arange(41)
teacher = np.logaddexp(-((symbols - 12) ** 2) / 8, -((symbols - 28) ** 2) / 8)[None]  # (1, V): one node
places = np.arange(5, 36)
forward, reverse = [], []
for place in places:
    student = -((symbols - place) ** 2)[None] / 60
    forward.append(a5.lattice_kl(«networks», 1.0))
    student, teacher = teacher, student
    reverse.append(a5.lattice_kl(«networks», 1.0))
    student, teacher = teacher, student
plt.plot(places, forward, label="KL(teacher || student)")
plt.plot(places, reverse, label="reversed")
plt.plot(symbols, 20 * np.exp(teacher[0]) / np.exp(teacher).sum(), "k:", label="teacher (20 P)")
plt.xlabel("place of the student's peak")
plt.ylabel("«unit»")
plt.legend()
plt.show()
""",
)


# --- 2 --------------------------------------------------------------------------------------------------------------


def collapsed_cases(rng, dialect, solution):
    def case(*arguments, offset=0.0, **options):
        networks, labels = lattices(rng, dialect, *arguments, **options)
        return (*(scores + offset for scores in networks), labels)

    rest = case(4, 2, 5)
    student, _ = in_order(dialect, *rest[:2])
    student[..., 1:] = np.where(np.isin(np.arange(1, 5), rest[2]), student[..., 1:], -np.inf)  # no rest at all
    return {
        CORE: [case(4, 3), case(3, 2, 9), case(5, 4, sure=48.0)],
        "no labels": [case(1, 0), case(5, 0, sure=60.0)],
        "one frame": [case(1, 4)],
        "two symbols": [case(4, 3, 2), case(1, 0, 2)],
        "impossible symbols": [case(4, 3, 6, impossible=True), rest],
        "large scores": [case(4, 3, sure=900.0), case(4, 3, offset=1000.0)],
        "long": [case(40, 12, 8)],
    }


def collapsed_oracle(dialect, first, second, labels):
    from mini_pkd.lattice_kl import node_kl

    student, teacher = (in_dialect(dialect, scores) for scores in in_order(dialect, first, second))
    T, U = len(student), len(labels)
    following = [*labels, None]
    nodes = [(t, u) for t in range(T) for u in range(U + 1)]
    return in_unit(dialect, sum(node_kl(student[t, u], teacher[t, u], following[u], "collapsed") for t, u in nodes))


COLLAPSED = Task(
    name="Three classes a node",
    points=20,
    hours=1.5,
    function="collapsed_kl",
    outputs=(Output("KL", "float64", 0),),
    tolerance=1e-9,
    code='''
def collapsed_kl(«networks», labels):
    """KL(teacher || student) of three classes a node (blank, the next label, the rest), summed over the lattice.

    «networks»  («nodes», V) float64 each: raw scores of node (t, u) at «at (t, u)»; V >= 2, blank is symbol 0;
                      -inf for an impossible symbol, but each node has a finite score
    labels            (U,) int64: the transcript, each 1 to V - 1; T >= 1, U >= 0.  The next label of column u is
                      labels[u]; the last column, u = U, has none and so only two classes, blank and the rest

    Returns the KL in «unit», a float: inf if what the teacher holds possible is impossible for the student; never nan.
    """
    «networks by frames»
    T, U = len(student), len(labels)
    total = 0.0
    for u in range(U + 1):
        classes = [0, labels[u]] if u < U else [0]
        for t in range(T):
            pairs = zip(_collapse(student[t, u], classes), _collapse(teacher[t, u], classes))
            total += sum(np.exp(ln_T) * (ln_T - ln_S) for ln_S, ln_T in pairs if ln_T > -np.inf)
    return total«per unit»


def _collapse(scores, classes):
    """Raw scores (V,) of a node -> ln P of each symbol in classes, and of all the others together."""
    log_probs = scores - _log_sum_exp(scores)
    rest = np.delete(log_probs, classes)
    return [*log_probs[classes], _log_sum_exp(rest)]


def _log_sum_exp(terms):
    """ln of the sum of exp(terms); -inf where there is nothing to add."""
    largest = terms.max(initial=-np.inf)
    return largest if largest == -np.inf else largest + np.log(np.exp(terms - largest).sum())
''',
    mutants=(
        Mutant(
            "1 - p - q",
            "as if the rest were 1 - P(blank) - P(label), which has no digit left where the two take nearly all: add up"
            " the rest itself, in log space",
            [("_log_sum_exp(rest)]", "np.log(1 - np.exp(log_probs[classes]).sum())]")],
        ),
        Mutant(
            "last column",
            "as if the last column still had a next label: it has two classes only",
            [("if u < U else [0]", "if u < U else [0, labels[U - 1]]")],
        ),
        Mutant(
            "mean of the rest",
            "as if the rest had the mean of its symbols' probabilities: it has their sum",
            [("_log_sum_exp(rest)]", "_log_sum_exp(rest) - np.log(max(len(rest), 1))]")],
        ),
        Mutant(
            "no rest",
            "as if blank and the next label were all: the rest is a class, too",
            [("return [*log_probs[classes], _log_sum_exp(rest)]", "return log_probs[classes]")],
        ),
    ),
    cases=collapsed_cases,
    oracle=collapsed_oracle,
    handout=r"""
A teacher's V probabilities at each node are much to store and to compare. A path only ever uses two of them, so
Panchapagesan et al. (arXiv 2011.06110) keep three classes c at node (t, u): blank, the transcript's next label, and the
rest, whose probability is the **sum** of all the others':

$$L_\text{KL} = \sum_{t, u} \sum_{c} P_T(c \mid t, u)\, «log» \frac{P_T(c \mid t, u)}{P_S(c \mid t, u)}, \qquad
P(\text{rest}) = \sum_{k \ne \text{blank},\, k \ne \text{label}} P(k).$$

In the last column, u = U, all labels are said: there is no next one, and every symbol but blank belongs to the rest.
With V = 2 a node that has a next label has an empty rest, whose probability is 0 for both networks: its term is 0.

A student that has learned well gives the rest $10^{-20}$ or less. In float64, $1 - P(\text{blank}) - P(\text{label})$
is then rounding error, or below zero. Stay in log space and add up the rest: with $m = \max_k a_k$,
$\ln \sum_k e^{a_k} = m + \ln \sum_k e^{a_k - m}$.
""",
    tests="""
def test_two_nodes_by_hand():
    student = np.log([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]])  # (T, U + 1, V): one frame, one label
    teacher = np.log([[[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]])
    «networks as handed out»
    first = 0.25 * np.log(2)  # blank, label, rest: 1/4 ln(1/2) + 1/2 ln 2 + 1/4 ln 1
    last = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)  # blank, rest: 1/4 ln(1/2) + 3/4 ln(3/2)
    assert np.allclose(collapsed_kl(«networks», np.array([1])), (first + last)«per unit»)


def test_a_sure_student():
    student, teacher = np.array([[[60.0, 0.0, 0.0, 0.0]]]), np.zeros((1, 1, 4))  # ln P_S(rest) = (ln 3) - 60
    expected = 45 - np.log(4)  # 1/4 ln(1/4) + 3/4 (ln(3/4) - (ln 3) + 60)
    assert np.allclose(collapsed_kl(«networks», np.array([], dtype=np.int64)), expected«per unit»)


def test_an_empty_rest():
    student = np.log([[[0.5, 0.5], [0.5, 0.5]]])
    teacher = np.log([[[0.5, 0.5], [0.25, 0.75]]])
    «networks as handed out»
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert np.allclose(collapsed_kl(«networks», np.array([1])), expected«per unit»)
""",
    notebook=r"""
# %% [markdown]
# ## What is lost inside the rest
# Random lattices: the collapsed KL is never above the full one, because what the teacher thinks inside the rest is
# forgotten. With few symbols there is little to forget.

# %%
rng = np.random.default_rng(0)
for V in (3, 6, 30):
    full, collapsed = [], []
    for _ in range(40):
        student, teacher = rng.uniform(0.2, 1.5) * rng.standard_normal((2, 6, 4, V))
        full.append(a5.lattice_kl(*(scores.reshape(-1, V) for scores in («networks»)), 1.0))
        «networks as handed out»
        collapsed.append(a5.collapsed_kl(«networks», rng.integers(1, V, 3)))
    plt.plot(full, collapsed, ".", label=f"V = {V}")
plt.plot([0, max(full)], [0, max(full)], "k", linewidth=0.5)  # equal
plt.xlabel("full KL in «unit»")
plt.ylabel("collapsed KL in «unit»")
plt.legend()
plt.show()
""",
)


# --- 3 --------------------------------------------------------------------------------------------------------------


def gradient_cases(rng, dialect, solution):
    def case(kind, alpha, temperature, *arguments, **options):
        networks, labels = lattices(rng, dialect, *arguments, **options)
        by_rnnt = rng.standard_normal(networks[0].shape)
        by_rnnt[np.isinf(networks[0])] = 0.0
        return by_rnnt - by_rnnt.mean(axis=-1, keepdims=True), *networks, labels, alpha, temperature, kind

    return {
        CORE: [
            case("full", 0.02, 1.0, 4, 3),
            case("full", 0.5, 2.0, 3, 2, 9),
            case("collapsed", 0.2, 1.0, 4, 3),
            case("collapsed", 0.75, 0.5, 5, 2, 9),
        ],
        "no labels": [
            case("collapsed", 0.3, 1.0, 1, 0),
            case("full", 0.3, 1.5, 5, 0),
            case("collapsed", 0.3, 3.0, 4, 0),
        ],
        "one frame": [case("collapsed", 0.6, 1.0, 1, 4), case("full", 0.6, 1.0, 1, 4)],
        "two symbols": [case("collapsed", 0.6, 1.5, 3, 2, 2)],
        "impossible symbols": [case(kind, 0.4, 1.5, 4, 3, impossible=True) for kind in ("full", "collapsed")],
        "a sure student": [case(kind, 0.4, 1.0, 4, 3, sure=sure) for kind, sure in (("full", 50), ("collapsed", 900))],
        "long": [case(kind, 0.02, 1.0, 40, 12, 8) for kind in ("full", "collapsed")],
    }


def gradient_oracle(dialect, by_rnnt, first, second, labels, alpha, temperature, kind):
    """By the chain rule through the classes c: dKL/dz = -sum over c of P_T(c) d ln P_S(c) / dz, in long double."""
    student, teacher = (in_dialect(dialect, scores) for scores in in_order(dialect, first, second))

    def softmax(scores):
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    V = student.shape[-1]
    by_kl = np.zeros(student.shape, dtype=np.longdouble)
    for t, u in np.ndindex(by_kl.shape[:2]):
        alone = range(V) if kind == "full" else [0, *labels[u : u + 1]]
        classes = [[k] for k in alone] + [[k for k in range(V) if k not in alone]]
        z = student[t, u].astype(np.longdouble) / temperature
        P_S, P_T = softmax(z), softmax(teacher[t, u].astype(np.longdouble) / temperature)
        for members in classes:
            if np.isfinite(z[members]).any():
                d_ln_P = -P_S  # ln P_S(c) = ln sum of e^z over c - ln sum of e^z over all
                d_ln_P[members] += softmax(z[members])
                by_kl[t, u] -= P_T[members].sum() * d_ln_P / temperature
    by_kl = in_dialect(dialect, in_unit(dialect, by_kl).astype(np.float64))
    return ((1 if dialect["mixing"] == "add" else 1 - alpha) * by_rnnt + alpha * by_kl,)


GRADIENT = Task(
    name="The gradient of both losses",
    points=20,
    hours=2.5,
    function="mixed_gradient",
    outputs=(Output("gradient", "float64", 3),),
    tolerance=1e-9,
    code='''
def mixed_gradient(rnnt_gradient, «networks», labels, alpha, temperature, kind):
    """The derivative of «mixed» by the student's raw scores.

    rnnt_gradient     («nodes», V) float64: the derivative of the RNN-T loss, in «unit», by the student's raw scores
    «networks»  («nodes», V) float64 each: raw scores of node (t, u) at «at (t, u)»; V >= 2, blank is symbol 0;
                      -inf for an impossible symbol, which is so for both networks; each node has a finite score
    labels            (U,) int64: the transcript, each 1 to V - 1; T >= 1, U >= 0
    alpha             a float, 0 to 1
    temperature       a float above 0, of the KL only: both networks' scores are divided by it before the softmax
    kind              "full": KL(teacher || student) of all symbols; "collapsed": of blank, the next label (none in
                      the last column) and the rest.  Either is in «unit» and summed over the nodes

    Returns («nodes», V) float64; what KL adds to the derivative by the score of an impossible symbol is 0.
    """
    «networks by frames»
    U, V = len(labels), student.shape[-1]
    P_S, wanted = _softmax(student / temperature), _softmax(teacher / temperature)
    if kind == "collapsed":
        for u in range(U + 1):
            rest = np.delete(np.arange(V), [0, labels[u]] if u < U else [0])
            shares = _softmax(student[:, u, rest] / temperature)  # (T, len(rest)): P_S(k | rest)
            wanted[:, u, rest] = wanted[:, u, rest].sum(axis=-1, keepdims=True) * shares
    kl_gradient = (P_S - wanted) / temperature«per unit»
    return «rnnt weight»rnnt_gradient + alpha * kl_gradient«back»


def _softmax(scores):
    """Probabilities over the last axis; zeros where every score is -inf."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e300))
    return weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1.0)  # the largest weight is 1, if there is any
''',
    mutants=(
        Mutant(
            "sign",
            "as if the student were to move away from the teacher: the sign of the KL's derivative is wrong",
            [("(P_S - wanted)", "(wanted - P_S)")],
        ),
        Mutant(
            "1 - alpha",
            "as if «wrong mixture»",
            [("return «rnnt weight»rnnt_gradient", "return «other rnnt weight»rnnt_gradient")],
        ),
        Mutant(
            "rest shared evenly",
            "as if the symbols of the rest shared its derivative evenly: each has its part in proportion to the"
            " student's probabilities",
            [
                (
                    "shares = _softmax(student[:, u, rest] / temperature)",
                    "shares = np.full((len(student), len(rest)), 1 / max(len(rest), 1))",
                )
            ],
        ),
        Mutant(
            "teacher's shares",
            "as if `collapsed` were `full`: what the teacher thinks inside the rest must not matter",
            [("shares = _softmax(student[:", "shares = _softmax(teacher[:")],
        ),
        Mutant(
            "1 / tau",
            "as if the derivative of z / temperature by z were 1",
            [("(P_S - wanted) / temperature", "(P_S - wanted)")],
        ),
    ),
    cases=gradient_cases,
    oracle=gradient_oracle,
    handout=r"""
The student is trained on both losses,

$$L = «mixed loss»,$$

all in «unit». The derivative of the RNN-T loss by the student's raw scores is given to you; add that of the KL. Write
$P_S$ and $P_T$ for the softmax of $z^S / \tau$ and $z^T / \tau$. For the full KL, of all symbols, and one node,

$$\frac{\partial L_\text{KL}}{\partial z^S_k} = «to unit»\frac{P_S(k) - P_T(k)}{\tau}.$$

The collapsed KL knows blank, the next label (not in the last column) and the rest (see a5.2). Derive its gradient
yourself. A hint: $\ln P_S(\text{rest})$ depends on the score of a symbol k of the rest through
$\partial \ln P_S(\text{rest}) / \partial z^S_k = \bigl(P_S(k \mid \text{rest}) - P_S(k)\bigr) / \tau$, where
$P_S(k \mid \text{rest}) = P_S(k) / P_S(\text{rest})$. The teacher fixes how much the rest has in all; how it is divided
inside the rest is left to the student.

The rest may have so little probability that $P_S(\text{rest})$ is 0 in float64: scores may differ by 1000. Then
$P_S(k \mid \text{rest})$ is still well defined; compute it from the scores of the rest alone. Where all symbols of the
rest are impossible, or there are none (V = 2), nothing is to be done.
""",
    tests="""
def node(P):
    \"\"\"Raw scores of the only node of a lattice, one frame and no labels: (1, 1, V).\"\"\"
    return np.log(P)[None, None] + 7.0  # raw scores are not normalised


NO_LABELS = np.array([], dtype=np.int64)


def test_full_by_hand():
    student, teacher = node([0.5, 0.25, 0.125, 0.125]), node([0.25, 0.25, 0.25, 0.25])
    given = np.array([[[0.4, -0.4, 0.0, 0.0]]])
    alpha = 0.75
    found = mixed_gradient(given, «networks», NO_LABELS, alpha, 1.0, "full")
    by_kl = np.array([0.25, 0.0, -0.125, -0.125])«per unit»
    assert found.shape == (1, 1, 4)
    assert np.allclose(found.ravel(), «rnnt weight»given.ravel() + alpha * by_kl)


def test_collapsed_by_hand():
    # Blank has 1/2 and should have 1/4.  The rest has 1/2 and should have 3/4: each symbol half as much again.
    student, teacher = node([0.5, 0.25, 0.125, 0.125]), node([0.25, 0.25, 0.25, 0.25])
    found = mixed_gradient(np.zeros((1, 1, 4)), «networks», NO_LABELS, 1.0, 1.0, "collapsed")
    assert np.allclose(found.ravel(), np.array([0.25, -0.125, -0.0625, -0.0625])«per unit»)


def test_temperature():
    student, teacher = 2 * node([0.5, 0.25, 0.25]), 2 * node([0.25, 0.5, 0.25])
    found = mixed_gradient(np.zeros((1, 1, 3)), «networks», NO_LABELS, 1.0, 2.0, "full")
    assert np.allclose(found.ravel(), np.array([0.125, -0.125, 0.0])«per unit»)


def test_each_node_sums_to_zero():
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 3, 4, 5))  # (T, U + 1, V)
    «networks as handed out»
    given = np.zeros(student.shape)
    for kind in ("full", "collapsed"):
        found = mixed_gradient(given, «networks», np.array([1, 4, 2]), 0.3, 2.0, kind)
        assert found.shape == student.shape and abs(found).max() > 0.01 and np.allclose(found.sum(axis=-1), 0)
""",
    notebook=r"""
# %% [markdown]
# ## Is your gradient right?
# Central differences of your own `lattice_kl` and `collapsed_kl`, on one random direction.

# %%
student, teacher = rng.standard_normal((2, 5, 4, 6))
«networks as handed out»
labels = np.array([1, 3, 2])
start, nothing, direction = student, np.zeros(student.shape), rng.standard_normal(student.shape)
for kind in ("full", "collapsed"):
    student = start
    gradient = a5.mixed_gradient(nothing, «networks», labels, 1.0, 1.0, kind)
    ends = []
    for step in (1e-5, -1e-5):
        student = start + step * direction
        if kind == "full":
            ends.append(a5.lattice_kl(*(scores.reshape(-1, 6) for scores in («networks»)), 1.0))
        else:
            ends.append(a5.collapsed_kl(«networks», labels))
    measured = (ends[0] - ends[1]) / 2e-5
    print(f"{kind:9s}  central difference {measured:.7f}   your gradient {(gradient * direction).sum():.7f}")

# %% [markdown]
# ## Where full and collapsed pull
# One node in the last column, blank and seven other symbols. Gradient descent goes against the bars. The full KL pulls
# at each symbol; the collapsed one moves all of the rest in the same direction.

# %%
student, teacher = rng.standard_normal((2, 1, 1, 8))
nothing, none = np.zeros((1, 1, 8)), np.array([], dtype=np.int64)
for k, kind in enumerate(("full", "collapsed")):
    gradient = a5.mixed_gradient(nothing, «networks», none, 1.0, 1.0, kind)
    plt.bar(np.arange(8) + 0.4 * k, gradient.ravel(), width=0.4, label=kind)
plt.axhline(0, color="k", linewidth=0.5)
plt.xlabel("symbol (0 is blank)")
plt.ylabel("dKL / dz")
plt.legend()
plt.show()
""",
)


# --- 4 --------------------------------------------------------------------------------------------------------------


def cascade_cases(rng, dialect, solution):
    def case(T, U, V, shares, steps, impossible=False):
        teacher = 2.0 * rng.standard_normal((T, U + 1, V))
        if impossible:
            teacher[:, :, -1] = teacher[0, 0, 1:] = -np.inf
        rate = 0.5 / (T + max(shares) * (U + 1))  # steps of twice this size would still go down
        return in_dialect(dialect, teacher), shares, rate, steps

    return {
        CORE: [case(6, 2, 4, (2, 2), 8), case(8, 3, 5, (2, 4), 20), case(7, 4, 3, (1, 3), 5)],
        "no labels": [case(1, 0, 3, (1, 1), 4), case(6, 0, 4, (2, 6), 10)],
        "one frame": [case(1, 3, 4, (1, 1), 10)],
        "more frames to share than there are": [case(3, 2, 4, (2, 8), 10)],
        "no steps": [case(4, 2, 3, (1, 2), 0)],
        "impossible symbols": [case(6, 2, 4, (1, 2), 30, impossible=True)],
        "long": [case(30, 9, 8, (2, 4), 60)],
    }


def cascade_oracle(dialect, teacher, shares, rate, steps):
    """One matrix says which nodes have which parameters: scores = uses @ parameters."""
    from mini_pkd.lattice_kl import node_kl
    from mini_pkd.rnnt_loss import log_softmax

    given, (T, columns, V) = teacher, in_dialect(dialect, teacher).shape
    target = in_dialect(dialect, teacher).reshape(-1, V)
    students, losses = [], []
    for share in shares:
        uses = np.zeros((T, columns, T + columns))
        for t, u in np.ndindex(T, columns):
            uses[t, u, [t // share, T + u]] = 1
        uses = uses.reshape(T * columns, -1)
        parameters, P_T = np.zeros((T + columns, V)), np.exp(log_softmax(target))
        for _ in range(steps):
            parameters -= rate * in_unit(dialect, uses.T @ (np.exp(log_softmax(uses @ parameters)) - P_T))
        student = uses @ parameters
        losses.append(in_unit(dialect, sum(map(node_kl, student, target))))
        students.append(in_dialect(dialect, student.reshape(T, columns, V)))
        target = student
    return *students, np.array(losses), given


CASCADE = Task(
    name="A cascade of two students",
    points=20,
    hours=2.5,
    function="two_stage_cascade",
    outputs=(
        Output("first", "float64", 3),
        Output("second", "float64", 3),
        Output("losses", "float64", 1),
        Output("teacher (which must stay as it was)", "float64", 3),
    ),
    tolerance=1e-9,
    drive='''
def drive(student, teacher, shares, rate, steps):
    """The two students, their losses, and what is left of T1."""
    return (*student.two_stage_cascade(teacher, shares, rate, steps), teacher)
''',
    code='''
def two_stage_cascade(teacher, shares, rate, steps):
    """T1 teaches S1, then S1 teaches S2.

    A student is two tables, enc and pred, all zeros at first; its raw scores at node (t, u) are
    enc[t // share] + pred[u]: `share` consecutive frames have one row of enc.  It is trained by plain gradient
    descent on KL(its teacher || student), in «unit» and summed over all nodes and symbols.

    teacher  («nodes», V) float64: raw scores of T1 at node (t, u): teacher«at (t, u)»; -inf for an impossible symbol,
             but each node has a finite score; T >= 1, U >= 0.  Do not write into it
    shares   (share of S1, share of S2): two ints >= 1, which need not divide T
    rate     a float: each step takes rate * derivative from both tables at the same time
    steps    an int >= 0: how many steps each student takes

    Returns (first, second, losses): raw scores of S1 and S2, («nodes», V) float64 each, and (2,) float64, the KL in
    «unit» of S1 from T1 and of S2 from S1, after the last step.
    """
    «teacher by frames»
    students, losses = [], []
    for share in shares:
        student, loss = _fit(teacher, share, rate, steps)
        students.append(student«back»)
        losses.append(loss)
        teacher = student
    return *students, np.array(losses)


def _fit(teacher, share, rate, steps):
    """Raw scores (T, U + 1, V) of a student after its training, and its loss."""
    T, columns, V = teacher.shape
    rows = np.arange(T) // share  # (T,) the row of enc that a frame has
    enc, pred = np.zeros((rows[-1] + 1, V)), np.zeros((columns, V))
    for _ in range(steps):
        P_S, P_T = np.exp(_log_probs_of(enc[rows][:, None] + pred)), np.exp(_log_probs_of(teacher))
        by_scores = (P_S - P_T)«per unit»  # (T, U + 1, V)
        d_enc = np.zeros_like(enc)
        np.add.at(d_enc, rows, by_scores.sum(axis=1))
        enc, pred = enc - rate * d_enc, pred - rate * by_scores.sum(axis=0)
    student = enc[rows][:, None] + pred
    log_S, log_T = _log_probs_of(student), _log_probs_of(teacher)
    possible = log_T > -np.inf
    return student, (np.exp(log_T[possible]) * (log_T[possible] - log_S[possible])).sum()«per unit»


def _log_probs_of(scores):
    """Log-softmax over the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
''',
    mutants=(
        Mutant(
            "teacher moves",
            "as if the teacher took a step towards the student with each of the student's: it must not move",
            [
                (
                    "        d_enc = np.zeros_like(enc)\n",
                    "        teacher = teacher + rate * by_scores\n        d_enc = np.zeros_like(enc)\n",
                )
            ],
        ),
        Mutant(
            "mean over nodes",
            "as if the loss that is trained on were averaged over the nodes: it is their sum",
            [("by_scores = (P_S - P_T)«per unit»", "by_scores = (P_S - P_T)«per unit» / (T * columns)")],
        ),
        Mutant(
            "stage 2 keeps T1",
            "as if the second student still learned from T1: its teacher is the first student",
            [("        teacher = student\n", "")],
        ),
        Mutant(
            "one of the sharers",
            "as if only one of the frames that share a row of enc moved it: their derivatives add up",
            [("np.add.at(d_enc, rows, by_scores.sum(axis=1))", "d_enc[rows] += by_scores.sum(axis=1)")],
        ),
    ),
    cases=cascade_cases,
    oracle=cascade_oracle,
    handout=r"""
The paper's cascade makes small models by way of middle-sized ones: T1 teaches S1, and when S1 has learned, it becomes
the teacher of S2. Here a model is nothing but a table of raw scores over one utterance's nodes. A student has fewer
parameters than the table has entries, because rows are shared: one row of `enc` for each `share` consecutive frames,
one row of `pred` for each number of labels said, all of V numbers,

$$z^S(t, u) = \text{enc}[\lfloor t / \text{share} \rfloor] + \text{pred}[u].$$

The derivative of the KL in «unit», summed over all nodes, by the student's raw scores is
$d(t, u) = «to unit»\bigl(P_S(\cdot \mid t, u) - P_T(\cdot \mid t, u)\bigr)$, and by the tables

$$\frac{\partial L}{\partial\,\text{enc}[g]} = \sum_{t:\ \lfloor t / \text{share} \rfloor = g}\ \sum_u d(t, u), \qquad
\frac{\partial L}{\partial\,\text{pred}[u]} = \sum_t d(t, u).$$

A step takes `rate` times these from both tables: compute both derivatives first, then move both. Both students start
from zeros and take the same number of steps with the same rate. A teacher stays as it is while it teaches. Return the
raw scores as the sum of the two tables, not normalised, and the KL that each stage ends with (0 ln 0 is 0 here, too).
""",
    tests="""
def test_one_step_by_hand():
    teacher = np.array([[[np.log(3), 0.0]]])  # one node: P = 3/4, 1/4
    first, second, losses = two_stage_cascade(teacher, (1, 1), 1.0, 1)
    k = 1.0«per unit»
    # Zeros say 1/2, 1/2: the derivative is -1/4, 1/4 (in nats), and both tables move by 1/4, -1/4.
    assert np.allclose(first, k * np.array([[[0.5, -0.5]]]))
    # S1 says sigmoid(k) for symbol 0, and 2 (sigmoid(k) - 1/2) = tanh(k / 2).
    assert np.allclose(second, k * np.tanh(k / 2) * np.array([[[1.0, -1.0]]]))
    assert losses.shape == (2,) and (losses > 0).all()


def test_frames_that_share():
    teacher = np.random.default_rng(0).standard_normal((5, 3, 4))  # (T, U + 1, V)
    «teacher as handed out»
    before = teacher.copy()
    first, second, _ = two_stage_cascade(teacher, (2, 3), 0.05, 10)
    assert np.array_equal(teacher, before)  # nobody writes into a teacher
    assert first.shape == second.shape == teacher.shape
    «students by frames»
    assert np.allclose(first[0], first[1]) and np.allclose(first[2], first[3]) and not np.allclose(first[1], first[2])
    assert np.allclose(second[0], second[2]) and np.allclose(second[3], second[4])


def test_a_teacher_that_a_student_can_become():
    rng = np.random.default_rng(1)
    teacher = rng.standard_normal((4, 1, 3)) + rng.standard_normal((2, 3))  # (T, U + 1, V): a sum of two tables
    «teacher as handed out»
    _, _, few = two_stage_cascade(teacher, (1, 1), 0.1, 10)
    _, _, many = two_stage_cascade(teacher, (1, 1), 0.1, 1000)
    assert (many < 1e-6).all() and (few > 1e-3).all()
""",
    notebook=r"""
# %% [markdown]
# ## Taught by T1 or by S1?
# A teacher of 24 frames. S2 has one row of enc for 4 frames; it learns from S1, which has one for 2, or from T1 itself
# (a cascade whose first student has S2's size). The curves show how far S2 is from T1, in «unit».

# %%
teacher = rng.standard_normal((24, 5, 6)) + 2 * rng.standard_normal((24, 1, 6)) + 2 * rng.standard_normal((5, 6))
«teacher as handed out»
steps = (0, 5, 10, 20, 40, 80, 160, 320)
by_S1, by_T1 = [], []
for n in steps:
    _, student, _ = a5.two_stage_cascade(teacher, (2, 4), 0.01, n)
    by_S1.append(a5.lattice_kl(*(scores.reshape(-1, 6) for scores in («networks»)), 1.0))
    student, _, _ = a5.two_stage_cascade(teacher, (4, 4), 0.01, n)
    by_T1.append(a5.lattice_kl(*(scores.reshape(-1, 6) for scores in («networks»)), 1.0))
plt.plot(steps, by_S1, "o-", label="S2 taught by S1")
plt.plot(steps, by_T1, "s--", label="S2 taught by T1")
plt.xlabel("steps of each student")
plt.ylabel("KL(T1 || S2) in «unit»")
plt.legend()
plt.show()
""",
)


# --- 5 --------------------------------------------------------------------------------------------------------------


def bootstrap_cases(rng, dialect, solution):
    """R + 1 is a multiple of 200: (1 - level) / 2 of R is then never a whole number, and no rounding decides."""

    def case(n, R, level, words=None, gain=0.5, wrong=0.2):
        words = rng.integers(1, 30, n) if words is None else words
        errors_b = rng.binomial(words + 1, wrong * rng.uniform(0, 2, n))  # utterances differ in difficulty
        errors_a = rng.binomial(errors_b, 1 - gain) + (rng.random(n) < 0.2) * (gain > 0)
        draws = rng.integers(0, n, (R, n))
        draws[:, 0] = rng.choice(np.flatnonzero(words), R)  # some word is in each draw
        return errors_a, errors_b, words, draws, level

    holes = rng.integers(1, 12, 15) * (np.arange(15) % 5 > 0)
    return {
        CORE: [case(30, 999, 0.95), case(50, 399, 0.9), case(12, 199, 0.8, gain=0.2), case(20, 199, 0.95)],
        "one utterance": [case(1, 199, 0.95), case(1, 1, 0.5)],
        "empty references": [case(15, 399, 0.95, words=holes)],
        "equal systems": [case(20, 199, 0.95, gain=0), case(10, 199, 0.9, wrong=0, gain=0)],
        "one is always better": [case(25, 199, 0.99, gain=1.0, wrong=0.4), case(25, 199, 0.9, gain=0.9, wrong=0.4)],
        "long": [case(400, 399, 0.95)],
    }


def bootstrap_oracle(dialect, errors_a, errors_b, words, draws, level):
    """The package's own test, which draws by itself: here it is given the draws."""
    from unittest import mock

    from mini_pkd.wer import Score, paired_test

    ids = tuple(map(str, range(len(words))))
    scores = [Score(ids, words, np.stack([e, 0 * e, 0 * e], axis=1)) for e in (errors_a, errors_b)]

    def of_these_draws(counts, resamples, seed):  # of one seed: (1, k, B) -> (resamples, k)
        return counts[0][:, draws].sum(axis=2).T

    with mock.patch("mini_pkd.wer.resampled_sums", of_these_draws):
        result = paired_test(*scores, level, len(draws))
    scale = 100 if dialect["rates"] == "per cent" else 1
    interval = scale * np.array([result.low, result.high])
    if dialect["difference"] == "A - B":
        return scale * result.difference, interval, result.p_value
    return -scale * result.difference, -interval[::-1], result.p_value


BOOTSTRAP = Task(
    name="Is it better? The paired bootstrap",
    points=20,
    hours=1.5,
    function="paired_bootstrap",
    outputs=(Output("difference", "float64", 0), Output("interval", "float64", 1), Output("p", "float64", 0)),
    tolerance=1e-9,
    code='''
def paired_bootstrap(errors_a, errors_b, words, draws, level):
    """How different are the word error rates of two systems on the same n utterances?

    errors_a, errors_b  (n,) int64: word errors of systems A and B in each utterance; n >= 1
    words               (n,) int64: words of each reference, 0 where it is empty; each row of draws has some words
    draws               (R, n) int64: R test sets of n utterances each, as indices from 0; R >= 1
    level               a float between 0 and 1, such as 0.95

    Returns (difference, interval, p): the WER of «A» minus that of «B» on the n utterances, a float; (2,) float64, the
    low and the high end of the middle `level` of the R resampled differences, values that occur; the two-sided p, a
    float.  WER is «rates».
    """
    lead = errors_«first» - errors_«second»
    difference = _pooled(lead, words)
    resampled = _pooled(lead[draws], words[draws])  # (R,)
    tail = (1 - level) / 2
    interval = np.quantile(resampled, [tail, 1 - tail], method="inverted_cdf")
    at_most = (1 + np.count_nonzero(resampled <= 0)) / (1 + len(draws))
    at_least = (1 + np.count_nonzero(resampled >= 0)) / (1 + len(draws))
    return difference, interval, min(1.0, 2 * at_most, 2 * at_least)


def _pooled(errors, words):
    """The rate of all utterances along the last axis together."""
    return «scale»errors.sum(axis=-1) / words.sum(axis=-1)
''',
    mutants=(
        Mutant(
            "mean of WERs",
            "as if the WER were the mean of the utterances' own: add up errors and words, then divide",
            [("«scale»errors.sum(axis=-1) / words.sum(axis=-1)", "(«scale»errors / words).mean(axis=-1)")],
        ),
        Mutant(
            "unpaired",
            "as if A and B were not resampled together: one row of draws is the same test set for both",
            [
                (
                    "resampled = _pooled(lead[draws], words[draws])",
                    "other = draws[::-1]\n"
                    "    resampled = _pooled(errors_«first»[draws], words[draws])\n"
                    "    resampled = resampled - _pooled(errors_«second»[other], words[other])",
                )
            ],
        ),
        Mutant(
            "normal interval",
            "as if the differences were normally distributed: take percentiles of the resampled ones, no multiple of"
            " their standard deviation",
            [
                (
                    'interval = np.quantile(resampled, [tail, 1 - tail], method="inverted_cdf")',
                    "from statistics import NormalDist\n\n"
                    "    half = NormalDist().inv_cdf(1 - tail) * resampled.std()\n"
                    "    interval = np.array([difference - half, difference + half])",
                )
            ],
        ),
        Mutant(
            "interpolated",
            "as if percentiles were interpolated between two resampled differences: take one that occurs",
            [(', method="inverted_cdf"', "")],
        ),
        Mutant(
            "p may be zero",
            "as if p could be 0: the utterances themselves count as one more resample, on both sides",
            [
                ("(1 + np.count_nonzero(resampled <= 0)) / (1 + len(draws))", "(resampled <= 0).mean()"),
                ("(1 + np.count_nonzero(resampled >= 0)) / (1 + len(draws))", "(resampled >= 0).mean()"),
            ],
        ),
    ),
    cases=bootstrap_cases,
    oracle=bootstrap_oracle,
    handout=r"""
S2 has fewer errors than its baseline: would it have fewer on another test set, too? Nobody has another one, so the
bootstrap draws n utterances from our n, with replacement, R times (Bisani & Ney, ICASSP 2004). The draws are given:
row r of `draws` is test set r. On a test set D the WER is **pooled**,

$$\text{WER}_A(D) = \frac{\sum_{i \in D} \text{errors}_A[i]}{\sum_{i \in D} \text{words}[i]}, \qquad
\Delta(D) = \text{WER}_«A»(D) - \text{WER}_«B»(D),$$

an utterance counts as often as it is drawn, and **both** systems see the same D: what is hard for both cancels. In this
class the difference is «if A is better» when A is the better one, and WER is «rates».

- `difference` is $\Delta$ of the n utterances themselves, each once.
- `interval` is the middle `level` of the R resampled differences. With tail = (1 - level) / 2, sort them; the low end
  is the $\lceil \text{tail} \cdot R \rceil$-th smallest and the high end the $\lceil (1 - \text{tail}) R \rceil$-th,
  counted from 1. This is `np.quantile(..., method="inverted_cdf")`: no interpolation. (The grader's R and level leave
  no doubt about rounding.)
- `p`: were both equally good, each would win about half of the test sets. With #(...) the number of resamples,

$$p = \min\Bigl(1,\ 2 \cdot \frac{1 + \#(\Delta \le 0)}{1 + R},\ 2 \cdot \frac{1 + \#(\Delta \ge 0)}{1 + R}\Bigr).$$

The ones count the utterances themselves as one more resample: R draws cannot show that p is 0.
""",
    tests="""
def test_three_draws_of_two_utterances():
    errors_a, errors_b, words = np.array([1, 0]), np.array([0, 0]), np.array([1, 3])
    draws = np.array([[0, 0], [0, 1], [1, 1]])  # A has 2 errors in 2 words, 1 in 4, 0 in 6; B has none
    difference, interval, p = paired_bootstrap(errors_a, errors_b, words, draws, 0.5)
    assert np.isclose(difference, «sign»«scale»0.25)
    assert interval.shape == (2,) and np.allclose(interval, np.sort([0, «sign»«scale»1]))  # the 1st and 3rd of three
    assert p == 1.0  # A wins or ties in one of them, B in all three: min(1, 2 * 2/4, 2 * 4/4)


def test_utterances_that_are_hard_for_both():
    words, errors_b = np.full(4, 10), np.array([0, 0, 9, 9])
    draws = np.random.default_rng(0).integers(0, 4, (199, 4))
    difference, interval, p = paired_bootstrap(errors_b + 1, errors_b, words, draws, 0.95)
    assert np.allclose([difference, *interval], «sign»«scale»0.1)  # A has one error more in each utterance
    assert np.isclose(p, 2 / 200)


def test_the_same_system_twice():
    errors, words = np.array([2, 0, 1]), np.array([5, 0, 2])
    difference, interval, p = paired_bootstrap(errors, errors, words, np.array([[0, 1, 2], [2, 2, 0]]), 0.9)
    assert difference == 0 and np.array_equal(interval, [0, 0]) and p == 1
""",
    notebook=r"""
# %% [markdown]
# ## How many utterances does it take?
# B makes an error in every fifth word or so, and A a tenth fewer: the intervals of your paired bootstrap, and p, as the
# test set grows. Where the interval no longer crosses zero, p falls below 0.05.

# %%
for n in (10, 30, 100, 300, 1000):
    words = rng.integers(3, 25, n)
    hard = rng.uniform(0, 0.4, n)  # what is hard for B is hard for A
    errors_b = rng.binomial(words, hard)
    errors_a = rng.binomial(words, 0.9 * hard)
    draws = rng.integers(0, n, (999, n))
    difference, (low, high), p = a5.paired_bootstrap(errors_a, errors_b, words, draws, 0.95)
    plt.errorbar([n], [difference], yerr=[[difference - low], [high - difference]], fmt="o", capsize=4, color="C0")
    plt.annotate(f"  p = {p:.3f}", (n, difference))
plt.axhline(0, color="k", linewidth=0.5)
plt.xscale("log")
plt.xlim(7, 2500)
plt.xlabel("utterances")
plt.ylabel("WER of «A» minus WER of «B» («axis of rates»)")
plt.show()
""",
)


ASSIGNMENT = Assignment(
    name="a5",
    title="Distillation and the cascade",
    conventions=CONVENTIONS,
    tasks=(KL, COLLAPSED, GRADIENT, CASCADE, BOOTSTRAP),
    package_files=("lattice_kl.py", "rnnt_loss.py", "resampling.py", "wer.py"),
    given='''
"""Assignment 5: distillation and the cascade.  Replace each NotImplementedError; numpy is all you need."""

import numpy as np
''',
    test_helpers="""
import numpy as np
from a5 import collapsed_kl, lattice_kl, mixed_gradient, paired_bootstrap, two_stage_cascade
""",
    motivation=r"""
A transcript tells a student the right symbols; a trained teacher tells it at each node (t, u) of the lattice, at frame
t with u labels said, how probable *all* V symbols are. **Knowledge distillation** adds to the student's RNN-T loss the
Kullback-Leibler divergence (KL) of the two networks' distributions, summed over all nodes; a small weight, alpha = 0.02
say, is enough because there are thousands of nodes. **Progressive** distillation (arXiv 2210.00169) goes to a small
model by way of a middle-sized one: T1 teaches S1, S1 teaches S2.

You write the loss, its cheaper collapsed form and the gradient of the whole; you let two students follow one another in
a cascade so small that its outcome can be understood; and then you ask of two systems whether one is better or was only
lucky.

In this class:

- functions of both networks take them in the order **`«networks»`**;
- arrays over nodes have the axes **(«nodes»)**, and node (t, u) is `«at (t, u)»`;
- losses are in **«unit»** (1 bit is ln 2 = 0.693147 nats), and so are their gradients;
- blank is symbol 0;
- raw scores (logits) are not normalised, and -inf marks an impossible symbol.
""",
    debugging=r"""
- Student = teacher: the KL is 0, and so is its gradient. Then change one score by hand.
- P = 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4 has a KL of (ln 2) / 4 nats, 1/4 bit: which of the two is the teacher does not
  show here, so try P = 1/2, 1/2 against 1/4, 3/4 as well, both ways round.
- `collapsed_kl` is never above `lattice_kl`, and equal to it where the rest is one symbol (V = 3, U = 1, first
  column).
- Test the gradient with central differences (the notebook does), in a random direction, never a sum of all entries:
  each node's gradient sums to zero, whatever it is.
- Print the loss of the cascade after each step: with a small rate it goes down each time.
- Resample two copies of one system: difference 0, interval (0, 0), p = 1.
- Try U = 0, T = 1, V = 2. Try a symbol that is impossible for the teacher, for the student, for both.
""",
    question=r"""
In the notebook's picture of a5.4 both curves come to the same end: with enough steps, S2 is the same whether S1 or T1
has taught it. Show with the derivatives of a5.4 why this must be so when S1 has converged and the share of S2 is a
multiple of that of S1. Then say why it need not be so for the paper's networks. Ten sentences at most.
""",
    rubric=r"""
- 1 point: S2's derivatives depend on its teacher only through sums of the teacher's probabilities: over the frames of
  each of S2's groups and all u (enc), and over all frames for each u (pred).
- 2 points: at S1's optimum its derivatives are zero, so that these sums, for S1's own groups, are the same for S1 as
  for T1; groups of S2 are unions of groups of S1, so the sums agree for S2's groups, too. Hence the same gradient at
  every point, and the same path of descent.
- 1 point: the loss is convex in the tables, so there is one best distribution, and descent finds it.
- 2 points, for two good reasons out of: real networks are not linear in their parameters, so S1's sums need not agree
  with T1's and there are many local optima; S1 is trained on the RNN-T loss as well and not to convergence; students
  are scored on utterances that none of them has seen, and a teacher nearer in size may be easier to follow there.
""",
    notebook=r"""
# %% [markdown]
# # Assignment 5: distillation and the cascade
# Write your functions in `a5.py`, next to this notebook; the handout has the formulas. Here you see what your functions
# do. A cell that ends in `NotImplementedError` waits for a task that you have not solved yet.

# %%
# %load_ext autoreload
# %autoreload 2
import a5
import matplotlib.pyplot as plt
import numpy as np
""",
)
