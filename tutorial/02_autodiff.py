# %% [markdown]
# # 02 Autodiff: how a program knows its own derivative
#
# Training needs one thing of a model with half a million numbers: for each of them, how much the loss changes with it.
# Nobody writes that derivative down. The program computes its result, remembers how, and goes back over its memory.
#
# You will be able to follow a gradient by hand, to write an operation with its gradient, and to prove it right.

# %%
import numpy as np

from mini_pkd import ops
from mini_pkd.gradcheck import gradcheck
from mini_pkd.tensor import Tensor, graph, record
from tutorial import draw
from tutorial.exercise import check

# %% [markdown]
# ## The tape
#
# **Question.** What must a number remember, so that the derivative can be found later?
#
# It remembers its *parents*, the numbers that it was computed from, and how to pass a derivative on to them. Here is
# the smallest computation in which something happens: $x$ is used twice, and both ways meet again. A *diamond*.
#
# $$ a = \mathrm{sigmoid}(x) = \frac{1}{1 + e^{-x}} \qquad b = \tanh(x) \qquad z = a\,b $$
#
# The sigmoid has the slope $a(1 - a)$, and tanh has $1 - b^2$.
#
# `Tensor` is an array that remembers. `graph` looks at the memory, which is called the *tape*. It returns the nodes,
# each an operation and the shape of its result (`()` is a single number), and the edges, from a parent to a result. A
# *leaf* was computed from nothing.

# %%
x = Tensor(np.array(0.5), requires_grad=True)
a, b = ops.sigmoid(x), ops.tanh(x)
z = a * b
nodes, edges = graph(z)
print(nodes)
print(edges)

# %% [markdown]
# The *cotangent* of a number is the derivative of the end result with respect to it. Code calls it `.grad`, and most
# books call it the gradient. We write it with a bar: $\bar a = dz/da$. The last one is known: $\bar z = dz/dz = 1$.
# Every other one is the sum of what comes back along the arrows that leave it:
#
# $$ \bar a = \bar z\, b \qquad \bar b = \bar z\, a \qquad
#    \bar x = \bar a\, a(1 - a) + \bar b\, (1 - b^2) $$
#
# That is the chain rule. Its one surprise is the plus: **what was used twice, collects twice**.

# %% [markdown]
# **Exercise 1.** Compute $\bar x$ by these formulas, from the numbers `value_a` and `value_b`.

# %%
value_a, value_b = float(a.data), float(b.data)
# SOLUTION: slope = ...
slope = value_b * value_a * (1 - value_a) + value_a * (1 - value_b**2)
# END SOLUTION
z.backward()
check(slope, x.grad, "a_bar is b, and b_bar is a. Each goes back through the function that made it; then add.")

# %%
values = [0.5, value_a, value_b, value_a * value_b]
cotangents = [float(x.grad), value_b, value_a, 1.0]
notes = [f"{name} = {v:.3f}\nbar {c:.3f}" for name, v, c in zip("xabz", values, cotangents, strict=True)]
draw.show(
    draw.tape(nodes, edges, notes),
    "The tape of the diamond. Values are computed from left to right; then the cotangents (bar), from right to left. "
    "Two arrows leave x, so its cotangent is a sum of two terms.",
)

# %% [markdown]
# **Why not forwards?** One could also carry derivatives along with the values. That costs a pass for every *input*.
# Backwards costs a pass for every *output*. A loss is one number, and a model has half a million: backwards it is.

# %% [markdown]
# ## The order of going back
#
# **Question.** Why do all these programs speak of a *topological order*?
#
# A number may pass on its cotangent only when it has received all of it. So every result must be visited before its
# parents. An order that keeps to such a rule is called *topological*. Sorting by age gives one: a result is always
# younger than what it was made from. `Tensor` counts its births.
#
# **Break it.** Exchange two birth numbers. Nothing complains, and half of the gradient is gone.


# %%
def gradient(swap):
    x = Tensor(np.array(0.5), requires_grad=True)
    y = x * x
    t = ops.tanh(y)  # made from y ...
    z = t * y  # ... and y is used here once more
    if swap:
        y._serial, t._serial = t._serial, y._serial
    z.backward()
    return float(x.grad)


right, wrong = gradient(swap=False), gradient(swap=True)
print(f"in order {right:.4f}, parent before result {wrong:.4f}")
assert right > 1.5 * wrong > 0

# %% [markdown]
# Visiting along every *path* would be right too, without any sorting. It is hopeless: here thirty doublings make a
# tape of 31 nodes and a billion paths. Each node is visited once, and the gradient counts all paths.

# %%
x = y = Tensor(np.array(1.0), requires_grad=True)
for _ in range(30):
    y = y + y
print(f"{len(graph(y)[0])} nodes")
y.backward()
print(f"{x.grad:,.0f} paths")
assert x.grad == 2**30

# %% [markdown]
# ## A number that is used in many places
#
# **Question.** A bias is added to every row. What is its gradient?
#
# numpy *broadcasts* it: three numbers are used four times each. Each collects from all its uses, so its cotangent is
# the sum over rows:
#
# $$ Y_n = X_n + b \ \text{ for every row } n \qquad\qquad \bar b = \sum_n \bar Y_n $$
#
# If the result is an array, `backward` must be told where to begin. `Y.backward(C)` starts from $\bar Y = C$, which is
# the gradient of one number, the sum of all $C_{nk} Y_{nk}$.

# %% [markdown]
# **Exercise 2.** `C` (4, 3) is the cotangent of `rows + bias`. What is the gradient of `bias` (3,)?

# %%
rng = np.random.default_rng(0)
rows, bias = (Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((4, 3), (3,)))
C = rng.standard_normal((4, 3))
# SOLUTION: of_bias = ...
of_bias = C.sum(axis=0)
# END SOLUTION
(rows + bias).backward(C)
check(of_bias, bias.grad, "Three numbers. The first of them was used in column 0 of every row.")

# %% [markdown]
# **Break it.** Write into an array that the tape still needs. $d(x^2)/dx = 2x$ is computed from $x$, and at that
# moment there is something else in it.

# %%
x = Tensor(np.array([3.0]), requires_grad=True)
y = x * x
x.data[0] = 100.0  # saves an array, and costs a week
y.backward()
print(f"gradient {x.grad[0]:.0f}, where x was 3: it should be 6")
assert x.grad[0] == 200

# %% [markdown]
# So in this project nobody writes into what an operation read or returned. Large frameworks count the versions of each
# array and complain; ours has a rule of one sentence instead.

# %% [markdown]
# ## An operation of your own
#
# **Question.** What is a new operation? Its value, and one line that turns the cotangent of the value into cotangents
# of its parents. `record(value, parents, backward)` puts both onto the tape. `backward` gets `g`, the cotangent of the
# value and of the same shape, and returns a tuple with a cotangent for each parent. Here is one parent, hence `(...,
# )`.


# %%
def cube(x):
    return record(x.data**3, [x], lambda g: (g * 3 * x.data**2,))


x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
cube(x).backward(np.ones(2))
print(x.grad)

# %% [markdown]
# **Is it right?** Ask the function itself. Move its input a little, in a random direction $v$, and weigh its outputs
# with a random cotangent $w$. $\langle a, b\rangle$ is the sum of elementwise products, and $J$ the matrix of all
# derivatives. Then $Jv$ says how the outputs change when the input moves along $v$, and $J^\top w$ is what
# `backward(w)` leaves in `x.grad`: the chain rule for all inputs at once. All of this is one number:
#
# $$ \frac{\langle w, f(x + hv)\rangle - \langle w, f(x - hv)\rangle}{2h} \;\approx\; \langle w, Jv \rangle
#    \;=\; \langle J^\top w, v \rangle $$
#
# The left side needs no derivative, the right side is what `backward` claims. `gradcheck` returns by how much they
# disagree, relative to the larger. One random pair tests all inputs and all outputs at once; it tries a few.

# %%
inputs = [rng.standard_normal((3, 4))]
print(f"cube               {gradcheck(cube, inputs):.1e}")
slightly = gradcheck(lambda x: record(x.data**3, [x], lambda g: (g * 3.003 * x.data**2,)), inputs)
print(f"cube, 0.1 % wrong  {slightly:.1e}")
assert gradcheck(cube, inputs) < 1e-8 < 1e-4 < slightly

# %% [markdown]
# **How small is "a little"?** Too large, and the function is not straight over the step: the error falls with $h^2$.
# Too small, and the two values agree in nearly all their digits, so rounding is all that is left: that error grows with
# $1/h$. In float64 the best lies between $10^{-6}$ and $10^{-5}$. With float32's 7 digits instead of 16 (not drawn) the
# valley is so shallow that small mistakes pass.

# %%
steps = 10.0 ** np.arange(-11, 0)
apart = [gradcheck(lambda x: ops.tanh(cube(x)), inputs, step=step) for step in steps]
draw.show(
    draw.steps(steps, apart),
    "Disagreement of a right gradient with the measured slope, against the step h. On the right the error falls as "
    "h squared, on the left rounding grows as 1/h. A check has room only in the valley.",
)
assert max(apart[4:7]) < 1e-2 * min(apart[0], apart[-1])

# %% [markdown]
# **Exercise 3.** $\mathrm{softplus}(x) = \ln(1 + e^x)$ is a soft version of $\max(x, 0)$. Its slope is a function that
# you have met in the diamond. Its value is `np.logaddexp(0, x.data)`, which is $\ln(e^0 + e^x)$ without overflow. Write
# `def softplus(x): return record(value, [x], lambda g: (...,))`, with a cotangent of `x` made from `g` and `x.data`.


# %%
# SOLUTION: softplus = ...
def softplus(x):
    return record(np.logaddexp(0, x.data), [x], lambda g: (g / (1 + np.exp(-x.data)),))


# END SOLUTION
check(
    softplus,
    lambda f: np.allclose(f(Tensor(np.zeros(2))).data, np.log(2)) and gradcheck(f, inputs) < 1e-8,
    "def softplus(x): return record(np.logaddexp(0, x.data), [x], lambda g: (...,)). The slope is 1/2 at 0, 1 far to "
    "the right, 0 far to the left; and g must be a factor of it.",
)

# %% [markdown]
# ## Break it: a check that lets anything pass
#
# **Question.** Why a *random* cotangent? A cotangent of ones asks for the gradient of the sum of all outputs, which is
# what many tests do: `f(x).sum().backward()`.
#
# The rows of a softmax, $p_k = e^{x_k} / \sum_j e^{x_j}$, sum to 1, whatever $x$ is. The gradient of a constant is
# zero. So a softmax whose backward returns *nothing but zeros* passes.


# %%
def lazy_softmax(x):
    return record(ops.softmax(x).data, [x], lambda g: (np.zeros_like(g),))


ones, random = gradcheck(lazy_softmax, inputs, cotangent=1), gradcheck(lazy_softmax, inputs)
print(f"gradient of zeros, cotangent of ones:   {ones:.1e}  passes")
print(f"gradient of zeros, random cotangent:    {random:.1e}  does not")
print(f"the right gradient, random cotangent:   {gradcheck(ops.softmax, inputs):.1e}")
assert ones < 1e-5 and random > 0.5 and gradcheck(ops.softmax, inputs) < 1e-7

# %% [markdown]
# Softmax, attention weights, a layer norm before its gain: the sum of each row is fixed, so a cotangent of ones sees
# nothing of their gradients. These are the gradients that are hardest to get right.

# %% [markdown]
# ## A real one
#
# The tape of a feed-forward module, of which a conformer block has two: `ops.feed_forward_readable`. It widens each row
# by a matrix, bends it (swish: $x \cdot \mathrm{sigmoid}(x)$), and narrows it again; *dropout* sets a random tenth to
# 0. It is made of the small operations above, so nobody had to derive its gradient. (Training runs the same as one
# kernel, in `fused.py`, with a gradient that somebody did derive. The tests hold one against the other.)

# %%
shapes = {"x": (5, 4), "norm of x": (5, 4), "wide": (4, 8), "its bias": (8,), "narrow": (8, 4), "its bias ": (4,)}
leaves = [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes.values()]
module = ops.feed_forward_readable(*leaves, 0.5, (0.1, 1), (0.1, 2))  # dropout: its rate, and a seed
nodes, edges = graph(module)
names = iter([*shapes, "mask", "mask", "1/2"])
notes = [" x ".join(map(str, shape)) for _, shape in nodes]
draw.show(
    draw.tape([(next(names) if name == "leaf" else name, shape) for name, shape in nodes], edges, notes, 3.2),
    "The tape of a feed-forward module, with the shape of each array. Green are leaves: inputs, weights, dropout's "
    "masks. The swish is a diamond again: one arrow goes through the sigmoid, one around it. The input x is only added "
    "at the end, so its cotangent arrives undiminished.",
)

# %%
error = gradcheck(lambda *t: ops.feed_forward_readable(*t, 0.5, (0.1, 1), (0.1, 2)), [t.data for t in leaves])
print(f"{len(nodes)} nodes, disagreement {error:.1e}")
assert error < 1e-6

# %% [markdown]
# ## The number
#
# **How long may a tape be?** A program that goes back by recursion, each node calling its parents, ends at Python's
# limit of a thousand calls.


# %%
def depth(tensor):
    return 1 + max(map(depth, tensor._parents), default=0)


def grow(x, factor=1 + 1e-6):
    return record(x.data * factor, [x], lambda g: (g * factor,))


y = x = Tensor(np.array(1.0), requires_grad=True)
for _ in range(5_000):
    y = grow(y)
try:
    recursive = depth(y)
except RecursionError as error:
    recursive = None
    print(error)
assert recursive is None

# %% [markdown]
# Ours sorts and loops. Multiply by $1 + 10^{-6}$, a million times: the result is $(1 + 10^{-6})^{10^6} x$, nearly
# $e\,x$, and its derivative is nearly $e$. That takes some 400 MB, and some seconds. (One training step of the paper's
# teacher is a tape of less than a thousand. But the depth of a model should not depend on a setting of Python.)

# %%
y = x = Tensor(np.array(1.0), requires_grad=True)
for _ in range(1_000_000):
    y = grow(y)
y.backward()
print(f"a chain of a million operations: gradient {x.grad:.6f}, e is {np.e:.6f}")
assert abs(x.grad - (1 + 1e-6) ** 1_000_000) < 1e-6

# %% [markdown]
# **Next:** [03 sound](03_sound.ipynb), where the numbers come from.
