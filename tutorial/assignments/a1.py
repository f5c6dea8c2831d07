"""Assignment 1: gradients by hand, from a graph of operations to a checker that finds the wrong ones."""

import numpy as np

from .task import CORE, Assignment, Mutant, Output, Task

ADDED = "node.grad = cotangent.copy() if node.grad is None else node.grad + cotangent"
FRESH = "node.grad = cotangent.copy()"

CONVENTIONS = {
    "axes": {
        "rows": {
            "N, D": "N, D",
            "N, V": "N, V",
            "N, J": "N, J",
            "V, J": "V, J",
            "row": "row",
            "column": "column",
            "drawn": "",
            "x and cotangent by rows": "",
            "x and cotangent as handed out": "",
            "grad and cotangent by rows": "",
            "grad and cotangent as handed out": "",
            "y": "y",
            "dx": "dx",
            "total": "total",
        },
        "columns": {
            "N, D": "D, N",
            "N, V": "V, N",
            "N, J": "J, N",
            "V, J": "J, V",
            "row": "column",
            "column": "row",
            "drawn": ".T",
            "x and cotangent by rows": "x, cotangent = x.T, cotangent.T  # a row for each vector",
            "x and cotangent as handed out": "x, cotangent = x.T, cotangent.T  # a column for each vector",
            "grad and cotangent by rows": "grad, cotangent = grad.T, cotangent.T  # (V, J), (N, J)",
            "grad and cotangent as handed out": "grad, cotangent = grad.T, cotangent.T  # (J, V), (J, N)",
            "y": "y.T",
            "dx": "dx.T",
            "total": "total.T",
        },
    },
    "cotangent": {
        "last": {
            "root, cotangent": "root, cotangent",
            "x, gain, bias, cotangent": "x, gain, bias, cotangent",
            "x, cotangent": "x, cotangent",
            "grad, ids, cotangent": "grad, ids, cotangent",
            "x, w": "x, w",
        },
        "first": {
            "root, cotangent": "cotangent, root",
            "x, gain, bias, cotangent": "cotangent, x, gain, bias",
            "x, cotangent": "cotangent, x",
            "grad, ids, cotangent": "cotangent, grad, ids",
            "x, w": "w, x",
        },
    },
    "second call": {
        "adds": {
            "set the leaf's grad": ADDED,
            "other way to set it": FRESH,
            "what a call does": "adds to what an earlier call has left in `grad`",
            "what the mistake does": "replaced what an earlier call has left in `grad`: it adds to it",
            "after two calls": "12.0",
        },
        "replaces": {
            "set the leaf's grad": FRESH,
            "other way to set it": ADDED,
            "what a call does": "replaces what an earlier call has left in `grad`",
            "what the mistake does": "added to what an earlier call has left in `grad`: it replaces it",
            "after two calls": "6.0",
        },
    },
    "difference": {
        "measured - claimed": {"difference": "measured - claimed", "half too large": "-1 / 3"},
        "claimed - measured": {"difference": "claimed - measured", "half too large": "1 / 3"},
    },
}


# --- inputs ---------------------------------------------------------------------------------------------------------


def in_dialect(dialect, array):
    """An array with a row for each vector, with the axes of the dialect; and back again."""
    return array if dialect["axes"] == "rows" else np.ascontiguousarray(array.T)


def in_order(dialect, *arguments):
    """Arguments, the cotangent last, in the order of the dialect."""
    return arguments if dialect["cotangent"] == "last" else (arguments[-1], *arguments[:-1])


def out_of_order(dialect, *arguments):
    """Arguments of the dialect, the cotangent last."""
    return arguments if dialect["cotangent"] == "last" else (*arguments[1:], arguments[0])


def complex_step(function, x, cotangent):
    """The gradient of sum(cotangent * function(x)), entry by entry: the imaginary part of f(x + ih e) is h df/de.

    Nothing is subtracted, so h may be tiny, and the result is as exact as `function` itself (Squire & Trapp 1998).
    """
    gradient, h = np.zeros(x.shape), 1e-100
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1j * h
        gradient[index] = (cotangent * function(moved).imag).sum() / h
    return gradient


# --- 1 --------------------------------------------------------------------------------------------------------------

NODE = '''
class Node:
    """A value that remembers how it was made.

    value     (n,) float64
    parents   a tuple of the nodes that it was computed from; empty for a leaf.  A node may be in it twice
    backward  a function: for the cotangent (n,) of this value, it returns one array (n,) for each parent, in order:
              what this operation contributes to the parent's cotangent
    grad      None, or for a leaf what an earlier call of `backpropagate` has left there
    """

    def __init__(self, value, parents=(), backward=None):
        self.value, self.parents, self.backward = value, parents, backward
        self.grad = None


def add(x, y):
    return Node(x.value + y.value, (x, y), lambda g: (g, g))  # one array for both: nobody may write into it


def multiply(x, y):
    return Node(x.value * y.value, (x, y), lambda g: (g * y.value, g * x.value))


def sine(x):
    return Node(np.sin(x.value), (x,), lambda g: (g * np.cos(x.value),))
'''


def graph_cases(rng, dialect, solution):
    first = dialect["cotangent"] == "first"

    def case(recipe, leaves=2, n=3):
        """Nodes 0 to leaves - 1 are leaves; then each (operation, parents) is the next node, the last one the root."""
        return rng.uniform(0.5, 1.0, (leaves, n)), recipe, rng.uniform(0.5, 1.5, (2, n)), first

    def random_case(leaves, operations):
        recipe, unused = [], set(range(leaves))
        for node in range(leaves, leaves + operations):
            name = ("add", "multiply", "sine")[rng.integers(3)]
            parents = [int(rng.integers(node)) for _ in range(1 if name == "sine" else 2)]
            recipe.append((name, parents))
            unused = (unused - {*parents}) | {node}
        node, (last, *others) = leaves + operations, sorted(unused)
        for other in others:  # the root needs all of them
            recipe.append(("add", [last, other]))
            last, node = node, node + 1
        return case(recipe, leaves)

    shared = [("add", [0, 1]), ("add", [2, 0])]  # both additions return one array for two parents
    # A value is used directly and through its sine: once directly first, once through the sine first.
    late = [("multiply", [0, 1]), ("sine", [2]), ("add", [2, 3])]
    early = [("multiply", [0, 0]), ("sine", [5]), ("add", [6, 5]), ("add", [4, 7])]
    chain = [("add" if node % 3 == 0 else "sine", [node, 0] if node % 3 == 0 else [node]) for node in range(1, 3000)]
    return {
        CORE: [case(shared), case(late + early), random_case(4, 12)],
        "a leaf alone": [case([], leaves=1)],
        "one value twice": [case([(name, [0, 0])], leaves=1) for name in ("add", "multiply")],
        "leaves that the root does not need": [case([("sine", [1]), ("multiply", [1, 4])], leaves=4)],
        "many operations": [random_case(6, 40)],
        "a chain of 3000 nodes": [case(chain, leaves=2, n=2)],
    }


def graph_oracle(dialect, leaves, recipe, cotangents, first):
    """The derivative by every number in the leaves, one complex step each."""

    def value(leaves):
        nodes = list(leaves)
        for name, parents in recipe:
            x, y = nodes[parents[0]], nodes[parents[-1]]
            nodes.append({"add": x + y, "multiply": x * y}[name] if name != "sine" else np.sin(x))
        return nodes[-1]

    called = cotangents.sum(axis=0) if dialect["second call"] == "adds" else cotangents[1]
    return complex_step(value, leaves, called) + 1.0, cotangents


GRAPH = Task(
    name="Backward over a graph",
    points=25,
    hours=2.5,
    function="backpropagate",
    outputs=(Output("grad", "float64", 2), Output("the cotangents that were handed in", "float64", 2)),
    tolerance=1e-9,
    drive=f'''
import numpy as np

{NODE}

def drive(student, leaves, recipe, cotangents, cotangent_first):
    """Two calls on one graph; then each leaf's grad is changed in place, as an optimiser would."""
    nodes = [Node(value) for value in leaves]
    for name, parents in recipe:
        make = {{"add": add, "multiply": multiply, "sine": sine}}[name]
        nodes.append(make(*[nodes[parent] for parent in parents]))
    for cotangent in cotangents:
        student.backpropagate(*((cotangent, nodes[-1]) if cotangent_first else (nodes[-1], cotangent)))
    for node in nodes[: len(leaves)]:
        node.grad = np.zeros(leaves.shape[1]) if node.grad is None else node.grad
        node.grad += 1.0
    return np.stack([node.grad for node in nodes[: len(leaves)]]), cotangents
''',
    code='''
def backpropagate(«root, cotangent»):
    """Give each leaf behind `root` its gradient.

    root       Node: the result; a graph of up to 3000 nodes is behind it, in which a node may be used many times
    cotangent  (n,) float64: the gradient of the final number by root.value

    Returns nothing.  The gradient of sum(cotangent * root.value) by a leaf's value, (n,) float64, goes to `grad` of
    each leaf that `root` depends on (`root` itself if it is a leaf): an array of the leaf's own.  A call
    «what a call does».
    No other array is written into: neither `cotangent` nor what a node's `backward` has returned.
    """
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)  # after everything that it was computed from
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    cotangents = {id(root): cotangent}
    for node in reversed(order):
        cotangent = cotangents[id(node)]
        if not node.parents:
            «set the leaf's grad»
            continue
        for parent, part in zip(node.parents, node.backward(cotangent)):
            if id(parent) in cotangents:
                cotangents[id(parent)] = cotangents[id(parent)] + part
            else:
                cotangents[id(parent)] = part
''',
    mutants=(
        Mutant(
            "= for +=",
            "as if a node that is used several times kept the last contribution only: they must be added",
            [("cotangents[id(parent)] = cotangents[id(parent)] + part", "cotangents[id(parent)] = part")],
        ),
        Mutant(
            "depth-first order",
            "as if a node handed its cotangent on before all that use it had contributed to it",
            [("stack.append((node, True))", "order.insert(0, node)")],
        ),
        Mutant(
            "aliasing add",
            "as if an array were added to in place while another node holds the same array: add into a new one",
            [("cotangents[id(parent)] = cotangents[id(parent)] + part", "cotangents[id(parent)] += part")],
        ),
        Mutant(
            "second call",
            "as if a second call «what the mistake does»",
            [("«set the leaf's grad»", "«other way to set it»")],
        ),
    ),
    cases=graph_cases,
    oracle=graph_oracle,
    handout=r"""
A graph of operations is given as `Node` objects. Each knows its parents, and `node.backward(g)` turns the cotangent
$g$ of its value into what this one operation contributes to the cotangent of each parent. If a value $v$ is used by
operations $1, \dots, m$, its cotangent is the sum over all of them,

$$\bar v = \sum_{i=1}^{m} \Bigl(\frac{\partial\, \text{result}_i}{\partial v}\Bigr)^{\!\top} \bar{\text{result}}_i.$$

So a node may hand its cotangent on only when **all** operations that use it have contributed: visit the nodes in an
order in which each node comes before its parents (a reversed topological order). Three things to watch:

- Python ends a recursion after about 1000 calls, and a chain may have 3000 nodes: use a stack of your own.
- `add` returns one array for both of its parents. If you add to an array in place, whoever shares it changes as well.
- Two leaves must not share their `grad`, and a leaf's `grad` must not be the array `cotangent` itself: an optimiser
  will write into it.

A call **«what a call does»**. A leaf that the root does not depend on stays as it is.
""",
    tests="""
def test_a_value_used_twice():
    x, cotangent = Node(np.array([3.0])), np.array([1.0])
    root = multiply(x, x)
    backpropagate(«root, cotangent»)
    assert x.grad == [6.0]  # 2 x


def test_paths_of_different_length():
    x, cotangent = Node(np.array([2.0])), np.array([1.0])
    square = multiply(x, x)
    for root in (add(square, multiply(square, x)), add(multiply(square, x), square)):
        x.grad = None
        backpropagate(«root, cotangent»)
        assert x.grad == [16.0]  # of x^2 + x^3: 2 x + 3 x^2


def test_one_array_for_two_parents():
    a, b, cotangent = Node(np.array([1.0])), Node(np.array([5.0])), np.array([1.0])
    root = add(add(a, b), a)
    backpropagate(«root, cotangent»)
    assert a.grad == [2.0] and b.grad == [1.0] and cotangent == [1.0]
    assert not np.shares_memory(a.grad, b.grad) and not np.shares_memory(b.grad, cotangent)


def test_a_second_call():
    x, cotangent = Node(np.array([3.0])), np.array([1.0])
    root = multiply(x, x)
    backpropagate(«root, cotangent»)
    backpropagate(«root, cotangent»)
    assert x.grad == [«after two calls»]


def test_a_long_chain():
    x, cotangent = Node(np.array([0.5])), np.array([1.0])
    root = x
    for _ in range(2999):
        root = add(root, x)
    backpropagate(«root, cotangent»)
    assert x.grad == [3000.0]
""",
    notebook=r"""
# %% [markdown]
# ## A curve and its slope
# All points of the curve go through the graph at once, as one vector. The slope is your own gradient.

# %%
x = a1.Node(np.linspace(-3, 3, 200))
root, cotangent = a1.multiply(x, a1.sine(a1.multiply(x, x))), np.ones(200)
a1.backpropagate(«root, cotangent»)
plt.plot(x.value, root.value, label="x sin(x^2)")
plt.plot(x.value, x.grad, label="its slope, by your backpropagate")
plt.plot(x.value, np.gradient(root.value, x.value), ":", label="differences of neighbouring points")
plt.legend()
plt.show()
""",
)


# --- 2 --------------------------------------------------------------------------------------------------------------

EPSILON = 1e-5


def norm_cases(rng, dialect, solution):
    def case(N, D, offset=0.0, spread=1.0):
        x, cotangent = offset + spread * rng.standard_normal((N, D)), rng.standard_normal((N, D))
        x, cotangent = in_dialect(dialect, x), in_dialect(dialect, cotangent)
        return in_order(dialect, x, rng.uniform(0.5, 1.5, D), rng.standard_normal(D), cotangent)

    return {
        CORE: [case(6, 5), case(3, 8, spread=0.1)],
        "no vectors": [case(0, 4)],
        "one vector": [case(1, 7)],
        "vectors of one number": [case(4, 1)],
        "vectors without spread": [case(3, 6, offset=4.0, spread=0.0)],
        "far from zero": [case(5, 9, offset=1000.0)],
        "many vectors": [case(30, 16)],
    }


def norm_oracle(dialect, *arguments):
    """y by the package; the gradients by complex steps through the formula of y."""
    from mini_pkd.ops import layer_norm_readable
    from mini_pkd.tensor import Tensor

    x, gain, bias, cotangent = out_of_order(dialect, *arguments)
    x, cotangent = in_dialect(dialect, x), in_dialect(dialect, cotangent)

    def value(x, gain=gain, bias=bias):
        centred = x - x.sum(axis=1, keepdims=True) / x.shape[1]
        return gain * centred / np.sqrt((centred**2).sum(axis=1, keepdims=True) / x.shape[1] + EPSILON) + bias

    return (
        in_dialect(dialect, layer_norm_readable(Tensor(x), Tensor(gain), Tensor(bias), epsilon=EPSILON).data),
        in_dialect(dialect, complex_step(value, x, cotangent)),
        complex_step(lambda gain: value(x, gain=gain), gain, cotangent),
        complex_step(lambda bias: value(x, bias=bias), bias, cotangent),
    )


NORM = Task(
    name="Layer norm",
    points=20,
    hours=2.0,
    function="layer_norm",
    outputs=(
        Output("y", "float64", 2),
        Output("dx", "float64", 2),
        Output("dgain", "float64", 1),
        Output("dbias", "float64", 1),
    ),
    tolerance=1e-9,
    code='''
def layer_norm(«x, gain, bias, cotangent»):
    """Layer norm of each vector, and its gradients.

    x          («N, D») float64: N vectors of D numbers, a «row» each; N >= 0, D >= 1
    gain       (D,) float64
    bias       (D,) float64
    cotangent  («N, D») float64: the gradient of the final number by y

    Returns (y, dx, dgain, dbias), float64: the value («N, D»), and the gradients by x («N, D»), by gain (D,) and by
    bias (D,).
    """
    «x and cotangent by rows»
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    r = 1 / np.sqrt(variance + EPSILON)  # (N, 1)
    h = centred * r
    y = gain * h + bias
    a = cotangent * gain
    dx = r * (a - a.mean(axis=1, keepdims=True) - h * (a * h).mean(axis=1, keepdims=True))
    return «y», «dx», (cotangent * h).sum(axis=0), cotangent.sum(axis=0)
''',
    mutants=(
        Mutant(
            "ddof 1",
            "as if the variance were divided by D - 1 instead of D",
            [
                (
                    "(centred**2).mean(axis=1, keepdims=True)",
                    "(centred**2).sum(axis=1, keepdims=True) / (x.shape[1] - 1)",
                )
            ],
        ),
        Mutant(
            "mean term lost",
            "as if the mean did not depend on x: subtracting it has a gradient, too",
            [(" - a.mean(axis=1, keepdims=True)", "")],
        ),
        Mutant(
            "epsilon outside the root",
            "as if epsilon were added to the deviation, outside of the root",
            [("1 / np.sqrt(variance + EPSILON)", "1 / (np.sqrt(variance) + EPSILON)")],
        ),
        Mutant(
            "deviation term lost",
            "as if the deviation did not depend on x: dividing by it has a gradient, too",
            [(" - h * (a * h).mean(axis=1, keepdims=True)", "")],
        ),
        Mutant(
            "gain",
            "as if the gain were forgotten on the way back to x",
            [("a = cotangent * gain", "a = cotangent")],
        ),
    ),
    cases=norm_cases,
    oracle=norm_oracle,
    handout=r"""
Each vector is shifted to mean 0 and divided by its deviation, then each coordinate gets a gain and a bias (Ba et al.
2016, arXiv 1607.06450):

$$\mu = \frac1D \sum_d x_d, \quad \sigma^2 = \frac1D \sum_d (x_d - \mu)^2, \quad
h_d = \frac{x_d - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \quad y_d = \gamma_d h_d + \beta_d,$$

with $\varepsilon = 10^{-5}$, `EPSILON` in your file: inside of the root, so that a vector without spread divides by
$\sqrt\varepsilon$. With the cotangent $g$ of $y$ and $a_d = g_d \gamma_d$, the gradient by $x$ is

$$\bar x_d = \frac{1}{\sqrt{\sigma^2 + \varepsilon}}
\Bigl(a_d - \frac1D \sum_j a_j - h_d\, \frac1D \sum_j a_j h_j\Bigr).$$

The second term comes from $\mu$, the third from $\sigma^2$. Derive them once: adding a constant to all of $x$ changes
nothing, so the gradient sums to zero. The gradients by $\gamma$ and $\beta$ add up over all N vectors.

In this class a vector is a **«row»** of x, («N, D»).
""",
    tests='''
def vectors():
    """One vector, 1 2 3, and a cotangent that asks for its first coordinate."""
    x, cotangent = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 0.0, 0.0]])
    «x and cotangent as handed out»
    return x, cotangent


def test_the_value():
    x, cotangent = vectors()
    gain, bias = np.ones(3), np.array([0.0, 5.0, 0.0])
    y, _, _, _ = layer_norm(«x, gain, bias, cotangent»)
    assert y.shape == x.shape
    scale = np.sqrt(2 / 3 + 1e-5)  # the squares are 1 0 1, their mean is 2/3
    assert np.allclose(y.ravel(), [-1 / scale, 5.0, 1 / scale], rtol=0, atol=1e-12)


def test_the_gradients():
    x, cotangent = vectors()
    gain, bias = np.array([2.0, 1.0, 1.0]), np.zeros(3)
    _, dx, dgain, dbias = layer_norm(«x, gain, bias, cotangent»)
    assert dx.shape == x.shape
    # a = 2 0 0, its mean is 2/3; h = -1.2247 0 1.2247, the mean of a h is -0.8165
    assert np.allclose(dx.ravel(), [0.408257, -0.816490, 0.408233], rtol=0, atol=1e-5)
    assert np.allclose(dgain, [-1.224736, 0, 0], rtol=0, atol=1e-5) and np.allclose(dbias, [1, 0, 0])


def test_a_shift_changes_nothing():
    x, cotangent = vectors()
    gain, bias = np.array([2.0, 1.0, 3.0]), np.zeros(3)
    _, dx, _, _ = layer_norm(«x, gain, bias, cotangent»)
    assert abs(dx.sum()) < 1e-12
''',
    notebook=r"""
# %% [markdown]
# ## Your layer norm at work
# Vectors that were anywhere come out with mean 0 and deviation 1.

# %%
x, cotangent = rng.normal(rng.uniform(-5, 5, (40, 1)), rng.uniform(0.2, 3, (40, 1)), (40, 64)), np.zeros((40, 64))
«x and cotangent as handed out»
gain, bias = np.ones(64), np.zeros(64)
y = a1.layer_norm(«x, gain, bias, cotangent»)[0]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
for axis, values, title in ((left, x, "x"), (right, y, "y")):
    axis.imshow(values, vmin=-5, vmax=5, cmap="coolwarm", aspect="auto")
    axis.set_title(title + ", («N, D»): each «row» is a vector")
plt.show()
""",
)


# --- 3 --------------------------------------------------------------------------------------------------------------


def softmax_cases(rng, dialect, solution):
    def case(N, V, scale=1.0, shifts=0.0, impossible=()):
        x = scale * rng.standard_normal((N, V)) + np.reshape(shifts, (-1, 1))
        for n, k in impossible:
            x[n, k] = -np.inf
        cotangent = rng.uniform(0.2, 1.0, (N, V))  # no row sums to 0 or to 1
        return in_order(dialect, in_dialect(dialect, x), in_dialect(dialect, cotangent))

    return {
        CORE: [case(3, 5), case(4, 6, shifts=[1000.0, 0.0, -1000.0, 3.0])],
        "no vectors": [case(0, 4)],
        "one vector": [case(1, 6)],
        "one symbol": [case(5, 1)],
        "impossible symbols": [case(4, 5, impossible=[(0, 0), (1, 2), (1, 4), (3, 3)])],
        "large scores": [case(3, 7, scale=2000.0)],
        "many symbols": [case(8, 200)],
    }


def softmax_oracle(dialect, *arguments):
    """y by numpy's logaddexp, one symbol after the other; its gradient by complex steps."""
    x, cotangent = (in_dialect(dialect, array) for array in out_of_order(dialect, *arguments))

    def value(x):
        largest = x.real.max(axis=1, keepdims=True)
        return x - largest - np.log(np.exp(x - largest).sum(axis=1, keepdims=True))

    y = x - np.logaddexp.reduce(x, axis=1, keepdims=True)
    return in_dialect(dialect, y), in_dialect(dialect, complex_step(value, x, cotangent))


SOFTMAX = Task(
    name="Log-softmax",
    points=20,
    hours=1.5,
    function="log_softmax",
    outputs=(Output("y", "float64", 2), Output("dx", "float64", 2)),
    tolerance=1e-9,
    code='''
def log_softmax(«x, cotangent»):
    """Log-probabilities from raw scores, and their gradient.

    x          («N, V») float64: the scores of V symbols, a «row» for each of N vectors; N >= 0, V >= 1.  They may be as
               large as 10000 either way, and some may be -inf (never all of a vector): such a symbol is impossible
    cotangent  («N, V») float64: the gradient of the final number by y, finite

    Returns (y, dx), both («N, V») float64: y = ln softmax(x), -inf for impossible symbols; the gradient by x, finite.
    """
    «x and cotangent by rows»
    shifted = x - x.max(axis=1, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dx = cotangent - np.exp(y) * cotangent.sum(axis=1, keepdims=True)
    return «y», «dx»
''',
    mutants=(
        Mutant(
            "sum of g lost",
            "as if the cotangent of each vector summed to one: the probabilities must be multiplied by its sum",
            [("np.exp(y) * cotangent.sum(axis=1, keepdims=True)", "np.exp(y)")],
        ),
        Mutant(
            "no maximum",
            "as if nothing were subtracted before exp, which overflows for large scores and vanishes for small ones",
            [("shifted = x - x.max(axis=1, keepdims=True)", "shifted = x")],
        ),
        Mutant(
            "wrong axis",
            "as if each «column» were a vector: the symbols of one vector stand in one «row»",
            [
                ("x.max(axis=1, keepdims=True)", "x.max(axis=0, keepdims=True)"),
                ("np.exp(shifted).sum(axis=1, keepdims=True)", "np.exp(shifted).sum(axis=0, keepdims=True)"),
                ("cotangent.sum(axis=1, keepdims=True)", "cotangent.sum(axis=0, keepdims=True)"),
            ],
        ),
        Mutant(
            "one maximum",
            "as if one maximum were subtracted from all vectors: each needs its own, or all of its exponentials vanish",
            [("x.max(axis=1, keepdims=True)", "x.max()")],
        ),
        Mutant(
            "gradient of softmax",
            "as if the gradient were that of softmax, not of its logarithm",
            [
                (
                    "cotangent - np.exp(y) * cotangent.sum(axis=1, keepdims=True)",
                    "np.exp(y) * (cotangent - (np.exp(y) * cotangent).sum(axis=1, keepdims=True))",
                )
            ],
        ),
    ),
    cases=softmax_cases,
    oracle=softmax_oracle,
    handout=r"""
A network gives scores $x_k$; the log-probability of symbol k is

$$y_k = x_k - \ln \sum_j e^{x_j}.$$

$e^{1000}$ is too large for a float and $e^{-1000}$ too small; subtract the largest score of the vector first, which
changes nothing in exact arithmetic. Each score moves all log-probabilities, through the sum. With the cotangent $g$,

$$\bar x_k = g_k - p_k \sum_j g_j, \qquad p_k = e^{y_k}.$$

In cross entropy $-y_c$ of the correct symbol c, $g$ is $-1$ at c and 0 elsewhere, and this becomes the well-known
$p_k - [k = c]$. But $g$ need not sum to $-1$, nor to anything else.

In this class the symbols of one vector stand in a **«row»** of x, («N, V»).
""",
    tests='''
def scores():
    """Two vectors: probabilities 1/4 and 3/4, and the same with scores that are larger by 1000."""
    x = np.log([[1.0, 3.0], [1.0, 3.0]]) + [[0.0], [1000.0]]
    cotangent = np.array([[1.0, 1.0], [0.0, 4.0]])
    «x and cotangent as handed out»
    return x, cotangent


def test_log_probabilities():
    x, cotangent = scores()
    y, _ = log_softmax(«x, cotangent»)
    assert np.allclose(np.exp(y)«drawn», [[0.25, 0.75], [0.25, 0.75]], rtol=0, atol=1e-9)


def test_the_gradient_by_the_scores():
    x, cotangent = scores()
    _, dx = log_softmax(«x, cotangent»)
    # g - p * (sum of g), with sums 2 and 4
    assert np.allclose(dx«drawn», [[0.5, -0.5], [-1.0, 1.0]], rtol=0, atol=1e-9)


def test_an_impossible_symbol():
    x, cotangent = np.array([[0.0, -np.inf, 0.0]]), np.array([[1.0, 1.0, 1.0]])
    «x and cotangent as handed out»
    y, dx = log_softmax(«x, cotangent»)
    assert np.allclose(np.exp(y).ravel(), [0.5, 0, 0.5]) and np.allclose(dx.ravel(), [-0.5, 1, -0.5])
''',
    notebook=r"""
# %% [markdown]
# ## What training does to scores
# Cross entropy asks for the correct symbol, here number 2. The gradient of the loss, yours, says where each score
# should go: down where the bar is positive, up where it is negative.

# %%
x, cotangent = rng.standard_normal((1, 6)), -np.eye(6)[[2]]
«x and cotangent as handed out»
y, dx = a1.log_softmax(«x, cotangent»)
plt.bar(np.arange(6) - 0.2, np.exp(y).ravel(), width=0.4, label="probability")
plt.bar(np.arange(6) + 0.2, dx.ravel(), width=0.4, label="gradient of the loss")
plt.xlabel("symbol")
plt.legend()
plt.show()
""",
)


# --- 4 --------------------------------------------------------------------------------------------------------------


def embedding_cases(rng, dialect, solution):
    def case(V, ids, J=3):
        ids = np.array(ids, dtype=np.int64)
        grad, cotangent = rng.standard_normal((V, J)), rng.standard_normal((len(ids), J))
        return in_order(dialect, in_dialect(dialect, grad), ids, in_dialect(dialect, cotangent))

    def repeats(V, N):
        """N ids of V < N - 2, so that one of them occurs twice at least; two places are padding."""
        ids = rng.integers(0, V, N)
        ids[rng.choice(N, 2, replace=False)] = -1
        return ids

    return {
        CORE: [case(4, repeats(4, 12)), case(7, repeats(7, 30), J=5)],
        "no ids": [case(5, [])],
        "one id": [case(5, [rng.integers(5)])],
        "every id once": [case(6, rng.permutation(6))],
        "one id always": [case(6, [rng.integers(6)] * 9)],
        "padding only": [case(4, [-1, -1, -1])],
        "many ids": [case(50, repeats(50, 400))],
    }


def embedding_oracle(dialect, *arguments):
    """The embedding as a matrix product with rows of a single 1; its gradient by the tape."""
    from mini_pkd.tensor import Tensor

    grad, ids, cotangent = out_of_order(dialect, *arguments)
    rows = (ids[:, None] == np.arange(in_dialect(dialect, grad).shape[0])).astype(np.float64)  # (N, V)
    table = Tensor(np.zeros(in_dialect(dialect, grad).shape), requires_grad=True)
    (Tensor(rows) @ table).backward(in_dialect(dialect, cotangent))
    return grad + in_dialect(dialect, table.grad), grad


EMBEDDING = Task(
    name="Embedding",
    points=15,
    hours=1.0,
    function="embedding_backward",
    outputs=(Output("total", "float64", 2), Output("the grad that was handed in", "float64", 2)),
    tolerance=1e-9,
    drive='''
def drive(student, *inputs):
    """The answer, and grad as it is afterwards: of the inputs it is the one before ids, which is the only 1-D one."""
    ids = [array.ndim for array in inputs].index(1)
    return student.embedding_backward(*inputs), inputs[ids - 1]
''',
    code='''
def embedding_backward(«grad, ids, cotangent»):
    """Add the gradient of an embedding to the gradient of its table.

    The embedding took vector ids[n] of a table of V vectors, for n = 0 to N - 1.

    grad       («V, J») float64: what other operations have contributed to the table's gradient, a «row» for each symbol
    ids        (N,) int64: symbols 0 to V - 1, or -1 for padding, which takes no vector; N >= 0
    cotangent  («N, J») float64: the gradient of the final number by the vectors taken, a «row» each

    Returns a new array («V, J») float64: grad and what this embedding contributes.  grad itself stays as it was.
    """
    «grad and cotangent by rows»
    taken = ids != -1
    total = grad.copy()
    np.add.at(total, ids[taken], cotangent[taken])
    return «total»
''',
    mutants=(
        Mutant(
            "grad[ids] = g",
            "as if a vector's gradient were replaced, not added to",
            [("np.add.at(total, ids[taken], cotangent[taken])", "total[ids[taken]] = cotangent[taken]")],
        ),
        Mutant(
            "+= on repeats",
            "as if only the last place counted where a symbol occurs several times, as in numpy's += with an index",
            [("np.add.at(total, ids[taken], cotangent[taken])", "total[ids[taken]] += cotangent[taken]")],
        ),
        Mutant(
            "unique only",
            "as if only the first place counted where a symbol occurs several times",
            [
                (
                    "    np.add.at(total, ids[taken], cotangent[taken])",
                    "    symbols, first = np.unique(ids[taken], return_index=True)\n"
                    "    total[symbols] += cotangent[taken][first]",
                )
            ],
        ),
        Mutant(
            "padding",
            "as if padding were the last symbol: in numpy, -1 is the last place",
            [("taken = ids != -1", "taken = ids < len(grad)")],
        ),
        Mutant(
            "in place",
            "as if grad itself were to be changed: return a new array, because others may hold this one",
            [("total = grad.copy()", "total = grad")],
        ),
    ),
    cases=embedding_cases,
    oracle=embedding_oracle,
    handout=r"""
An embedding looks up vectors in a table $E$: $y_n = E_{\text{ids}_n}$. A symbol that was looked up several times
collects the cotangents $g_n$ of all its places,

$$\bar E_v \mathrel{+}= \sum_{n:\ \text{ids}_n = v} g_n.$$

The table may be used elsewhere, too (as the output layer, for instance), so `grad` holds a gradient already: yours is
added to it, in a new array. A batch of texts of different lengths is filled up with **padding**, the id -1, which
looks nothing up and contributes nothing. Think about what `total[ids] += cotangent` does in numpy when an id repeats.

In this class a vector is a **«row»**: grad is («V, J»), the cotangent («N, J»).
""",
    tests="""
def test_a_symbol_that_occurs_twice():
    grad, ids = np.zeros((3, 2)), np.array([2, 0, 2])
    cotangent = np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    «grad and cotangent as handed out»
    total = embedding_backward(«grad, ids, cotangent»)
    assert np.allclose(total«drawn», [[3, 4], [0, 0], [11, 22]])


def test_what_is_there_already():
    grad, ids, cotangent = np.full((3, 2), 100.0), np.array([1]), np.array([[1.0, 2.0]])
    «grad and cotangent as handed out»
    total = embedding_backward(«grad, ids, cotangent»)
    assert np.allclose(total«drawn», [[100, 100], [101, 102], [100, 100]])
    assert (grad == 100.0).all()  # itself it stays as it was


def test_padding():
    grad, ids, cotangent = np.zeros((2, 1)), np.array([-1, 0, -1]), np.array([[1.0], [5.0], [7.0]])
    «grad and cotangent as handed out»
    total = embedding_backward(«grad, ids, cotangent»)
    assert np.allclose(total.ravel(), [5, 0])
""",
    notebook=r"""
# %% [markdown]
# ## Frequent symbols learn more
# Symbols of a text are very unequally frequent (Zipf's law): how far each vector moves, by your gradient.

# %%
ids = np.minimum(rng.zipf(1.5, 2000), 50) - 1
grad, cotangent = np.zeros((50, 8)), rng.standard_normal((2000, 8))
«grad and cotangent as handed out»
total = a1.embedding_backward(«grad, ids, cotangent»)
plt.scatter(np.bincount(ids, minlength=50), np.sqrt((total«drawn» ** 2).sum(axis=1)))
plt.xlabel("how often a symbol occurs")
plt.ylabel("length of its gradient")
plt.show()
""",
)


# --- 5 --------------------------------------------------------------------------------------------------------------


def checker_cases(rng, dialect, solution):
    first = dialect["cotangent"] == "first"

    def case(name, factor, N=3, D=4, K=4, step=1e-3):
        x, outputs = rng.standard_normal((N, D)), {"products": (D, D), "constant": (2,)}.get(name, (N, D))
        directions, cotangents = rng.standard_normal((K, N, D)), rng.standard_normal((K, *outputs))
        return name, factor, x, directions, cotangents, step, first

    return {
        CORE: [case("tanh", 1.5), case("softmax", 0.5), case("products", 1.2)],
        "right gradients": [case(name, 1.0) for name in ("tanh", "softmax", "products")],
        "a gradient of zeros": [case("softmax", 0.0, N=1), case("tanh", 0.0, N=1)],
        "nothing to find": [case("constant", 1.0)],
        "no directions": [case("tanh", 1.5, K=0)],
        "one number": [case("tanh", 1.1, N=1, D=1)],
        "a larger step": [case("tanh", 1.1, step=0.1)],
    }


def checker_oracle(dialect, name, factor, x, directions, cotangents, step, first):
    """In long doubles, with the Jacobian written out: (outputs, inputs)."""
    size = x.size

    def function(x):
        x = x.astype(np.longdouble)
        if name == "tanh":
            return np.tanh(x)
        if name == "softmax":
            return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        return np.einsum("nd,ne->de", x, x) if name == "products" else np.ones(2, dtype=np.longdouble)

    if name == "products":
        eye = np.eye(x.shape[1])
        jacobian = np.einsum("df,ne->defn", eye, x) + np.einsum("ef,nd->defn", eye, x)
        jacobian = jacobian.swapaxes(2, 3).reshape(-1, size)
    else:
        basis = np.eye(size).reshape(size, *x.shape)
        moved = [function(x).astype(complex) * 0 for _ in basis]
        if name != "constant":
            by_hand = {"tanh": np.tanh, "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)}[name]
            moved = [by_hand(x + 1e-100j * unit) for unit in basis]
        jacobian = np.stack([m.imag.ravel() / 1e-100 for m in moved], axis=1)
    first_row = np.where(np.arange(size) < x.shape[1], factor, 1.0)
    errors = []
    for v, w in zip(directions, cotangents, strict=True):
        measured = np.vdot(
            w, function(x + step * v.astype(np.longdouble)) - function(x - step * v.astype(np.longdouble))
        )
        measured, claimed = float(measured / (2 * step)), w.ravel() @ jacobian @ (first_row * v.ravel())
        error = (measured - claimed) / (max(abs(measured), abs(claimed)) or 1.0)
        errors.append(error if dialect["difference"] == "measured - claimed" else -error)
    return np.array(errors), x


CHECKER = Task(
    name="A gradient checker",
    points=20,
    hours=1.5,
    function="disagreements",
    outputs=(Output("disagreements", "float64", 1), Output("the x that was handed in", "float64", 2)),
    tolerance=1e-8,  # errors of rounding are divided by steps and by small slopes
    drive='''
import numpy as np


def softmax(x):
    p = np.exp(x - x.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


FUNCTIONS = {
    "tanh": (np.tanh, lambda x, w: w * (1 - np.tanh(x) ** 2)),
    "softmax": (softmax, lambda x, w: softmax(x) * (w - (w * softmax(x)).sum(axis=1, keepdims=True))),
    "products": (lambda x: x.T @ x, lambda x, w: x @ (w + w.T)),
    "constant": (lambda x: np.ones(2), lambda x, w: np.zeros(x.shape)),
}


def drive(student, name, factor, x, directions, cotangents, step, cotangent_first):
    """The gradient of the first row is wrong by this factor."""
    function, right = FUNCTIONS[name]

    def gradient(*arguments):
        at, w = reversed(arguments) if cotangent_first else arguments
        claimed = right(at, w)
        claimed[0] *= factor
        return claimed

    return student.disagreements(function, gradient, x, directions, cotangents, step), x
''',
    code='''
def disagreements(function, gradient, x, directions, cotangents, step):
    """Does a gradient agree with what its function really does?  One number for each direction.

    function    function(x) returns an array of any shape, the value
    gradient    gradient(«x, w»), called with both by position, returns an array of x's shape: it claims to be the
                gradient of sum(w * function(x)) by x, for a cotangent w of the value's shape
    x           (N, D) float64; it stays as it was
    directions  (K, N, D) float64: a direction v to move x in, for each of K tests; K >= 0
    cotangents  (K, ...) float64: a cotangent w of the value, for each test
    step        a float: x is moved by step * v, and by -step * v

    Returns (K,) float64: for each test («difference») / max(|measured|, |claimed|), with its sign, or 0
    where both are 0.  measured is the slope of sum(w * function) along v, by central differences; claimed is what
    `gradient` says.
    """
    found = []
    for v, w in zip(directions, cotangents):
        difference = function(x + step * v) - function(x - step * v)
        measured = (w * difference).sum() / (2 * step)
        claimed = (gradient(«x, w») * v).sum()
        scale = max(abs(measured), abs(claimed))
        found.append((«difference») / scale if scale > 0 else 0.0)
    return np.array(found)
''',
    mutants=(
        Mutant(
            "all ones",
            "as if each cotangent were all ones: a wrong gradient can hide behind a sum",
            [("zip(directions, cotangents)", "zip(directions, np.ones_like(cotangents))")],
        ),
        Mutant(
            "one direction",
            "as if x were moved in the first direction only",
            [("zip(directions, cotangents)", "zip(directions[:1].repeat(len(directions), axis=0), cotangents)")],
        ),
        Mutant(
            "forward difference",
            "as if x were moved forward only, which leaves an error of the order of the step, not of its square",
            [("function(x - step * v)", "function(x)"), ("/ (2 * step)", "/ step")],
        ),
        Mutant(
            "one step",
            "as if the two ends of a central difference were one step apart, not two",
            [("/ (2 * step)", "/ step")],
        ),
    ),
    cases=checker_cases,
    oracle=checker_oracle,
    handout=r"""
Let $f$ be a function of x, $J$ the matrix of all its derivatives, $v$ a direction in which x moves and $w$ a cotangent
of the value. A gradient claims $J^\top w$. Then these two numbers must agree, with $\langle a, b\rangle$ the sum of all
entries of $a \cdot b$:

$$\text{measured} = \frac{\langle w, f(x + hv)\rangle - \langle w, f(x - hv)\rangle}{2h}
\approx \langle w, Jv\rangle, \qquad \text{claimed} = \langle J^\top w, v\rangle.$$

Return («difference») / max(|measured|, |claimed|) for each pair $(v, w)$, with its sign. A right
gradient gives about $h^2$, because what a central difference leaves out is $\frac{h^2}{6} f'''$. If both numbers are
0, so is the disagreement.

Why random $w$? The softmax of a vector sums to one, whatever its input, so with $w$ all ones the right gradient is
zero, and so is a wrong one that returns zeros. Directions and cotangents are inputs here, so that everybody gets the
same numbers.
""",
    tests="""
def square(x):
    return x**2


def test_a_right_gradient():
    x, directions, cotangents = np.array([[1.0, 2.0]]), np.array([[[1.0, -1.0]]]), np.array([[[5.0, 1.0]]])

    def gradient(«x, w»):
        return 2 * x * w

    found = disagreements(square, gradient, x, directions, cotangents, 1e-3)
    assert found.shape == (1,) and abs(found[0]) < 1e-9  # no third derivative: 6 and 6


def test_one_that_is_too_large_by_half():
    x, directions, cotangents = np.array([[1.0, 2.0]]), np.array([[[1.0, -1.0]]]), np.array([[[5.0, 1.0]]])

    def gradient(«x, w»):
        return 3 * x * w

    found = disagreements(square, gradient, x, directions, cotangents, 1e-3)
    assert abs(found[0] - («half too large»)) < 1e-9  # measured 6, claimed 9


def test_each_direction_with_its_cotangent():
    x, directions = np.array([[1.0, 2.0]]), np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    cotangents = np.array([[[2.0, 0.0]], [[0.0, 3.0]]])

    def gradient(«x, w»):
        return x * w * [2.0, 3.0]  # right for the first number only

    found = disagreements(square, gradient, x, directions, cotangents, 1e-3)
    assert abs(found[0]) < 1e-9 and abs(found[1] - («half too large»)) < 1e-9


def test_both_zero():
    def gradient(«x, w»):
        return np.zeros((1, 2))

    found = disagreements(np.ones_like, gradient, np.ones((1, 2)), np.ones((1, 1, 2)), np.ones((1, 1, 2)), 1e-3)
    assert found == [0.0]
""",
    notebook=r"""
# %% [markdown]
# ## How long should a step be?
# The right gradient of tanh, judged by your checker. From the right, the error falls with the square of the step;
# then rounding takes over, because the two values that are subtracted have almost all digits in common.

# %%
x = rng.standard_normal((3, 4))
directions, cotangents = rng.standard_normal((2, 20, 3, 4))


def gradient(«x, w»):
    return w * (1 - np.tanh(x) ** 2)


steps = 10.0 ** np.arange(-12, 0)
errors = [np.abs(a1.disagreements(np.tanh, gradient, x, directions, cotangents, step)).max() for step in steps]
plt.loglog(steps, errors, "o-", label="your checker")
plt.loglog(steps, steps**2, ":", label="step^2")
plt.loglog(steps, 1e-16 / steps, ":", label="rounding / step")
plt.xlabel("step")
plt.ylabel("largest disagreement")
plt.legend()
plt.show()
""",
)


ASSIGNMENT = Assignment(
    name="a1",
    title="Gradients by hand",
    conventions=CONVENTIONS,
    tasks=(GRAPH, NORM, SOFTMAX, EMBEDDING, CHECKER),
    package_files=("tensor.py", "ops.py", "gradcheck.py"),
    given=f'''
"""Assignment 1: gradients by hand.  Replace each NotImplementedError; numpy is all you need."""

import numpy as np

EPSILON = 1e-5  # of layer norm

{NODE}
''',
    test_helpers="""
import numpy as np
from a1 import Node, add, backpropagate, disagreements, embedding_backward, layer_norm, log_softmax, multiply
""",
    motivation=r"""
A network has millions of parameters, and training asks of each how the loss would change if it changed a little.
Reverse-mode differentiation answers for all of them in one pass: every operation knows how to turn the **cotangent** of
its result, the gradient of the loss by it, into the cotangents of its inputs.

            x ----+----> multiply ----> + ----> loss          values go to the right,
                  |                     ^                     cotangents go to the left;
                  +----> sine ----------+                     where a value forks, cotangents add up

You write the pass itself, then three operations of a speech recogniser with their gradients (layer norm, log-softmax,
embedding), and a checker that finds wrong gradients, yours and those of others.

In this class N vectors stand in an array as its **«row»s**. Where a function takes a cotangent, look at its
signature for the order of the arguments.
""",
    debugging=r"""
- Write the checker (task 5) first, if you like: then it judges tasks 2 and 3 for you. Keep the cotangent random.
- Try sizes of one by hand: x = 3, f = x times x, cotangent 1. Everything should be a whole number.
- Give each size another value (N = 2, D = 3): with N = D a wrong axis raises no error.
- A gradient that is right for a chain and wrong for a fork: contributions are lost, or come too late. One that is right
  the first time and wrong the second: an array was changed in place.
- Layer norm: dx must sum to zero for each vector. Log-softmax: so must dx. If they do not, a term is missing.
- Look at the edges: no vectors, one vector, vectors of one number, an id that occurs twice.
""",
    question=r"""
A classmate checks gradients by comparing the sum of all entries of the claimed gradient with a forward difference of
the sum of all outputs, moving all inputs by the same step. Explain in at most ten sentences which mistakes in a layer
norm and in a softmax this cannot find, why, and what you would change. Which step would you choose in float64, which
one in float32?
""",
    rubric=r"""
- 2 points: moving all inputs of a layer norm or a softmax by the same amount changes nothing, so measured is 0, and
  everything whose entries sum to zero passes, zeros among them.
- 2 points: with a cotangent of all ones a softmax has gradient zero; mistakes hide in what the sum cancels. Random
  directions and random cotangents find a wrong gradient almost surely.
- 1 point: central differences, whose error is of the order of the step's square.
- 1 point: rounding against truncation: about the cube root of the machine's precision, 1e-5 in float64, 5e-3 in
  float32; or better, check in float64 always.
""",
    notebook=r"""
# %% [markdown]
# # Assignment 1: gradients by hand
# Write your functions in `a1.py`, next to this notebook; the handout has the formulas. Here you see what your functions
# do. A cell that ends in `NotImplementedError` waits for a task that you have not solved yet.

# %%
# %load_ext autoreload
# %autoreload 2
import a1
import matplotlib.pyplot as plt
import numpy as np

rng = np.random.default_rng(1)

# %% [markdown]
# ## Cotangents
# Let the final number be $L = \langle w, f(x)\rangle$. The cotangent of $f(x)$ is $w$; that of $x$ is $J^\top w$, with
# the matrix $J$ of all derivatives, which nobody ever writes down: an operation only needs to know how to multiply by
# $J^\top$. For `multiply` this is a product with the other factor. Nudge x and see.

# %%
x, y, w = 3.0, 5.0, 2.0
node = a1.multiply(a1.Node(np.array([x])), a1.Node(np.array([y])))
print("contributions to x and to y:", node.backward(np.array([w])))
print("by hand:", (w * (x + 1e-6) * y - w * x * y) / 1e-6, (w * x * (y + 1e-6) - w * x * y) / 1e-6)
""",
)
