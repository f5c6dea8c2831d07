# %% [markdown]
# # 07 The lattice: which unit, and when?
#
# A transcript says which words were spoken. It does not say when. To train on it, one would need a mark in the sound
# for every unit. By hand nobody has the time to make these marks, and by machine it takes a recogniser that one has
# already. The transducer's loss does without: it adds up *all* ways
# to place the units in time, and lets the gradient find out which of them are plausible.
#
# You will be able to write down this sum, to compute it without listing its terms, and to see in a picture what the
# model believes about what was said when.

# %%
import inspect
import time
from math import comb

import numpy as np

from mini_pkd import warm_up
from mini_pkd.ragged import BLANK
from mini_pkd.rnnt_loss import (
    backward_variables,
    best_path,
    brute_force,
    forward_variables,
    log_softmax,
    occupancies,
    paths,
    readable,
    rnnt_loss,
)
from mini_pkd.seeds import generator
from mini_pkd.transcribe import Recogniser
from mini_pkd.transducer import Transducer
from tutorial import draw, models, utterance
from tutorial.exercise import check

warm_up.ensure()
spoken = utterance.load()
print(spoken.text)
draw.hear(spoken.path)

# %% [markdown]
# ## All paths
#
# **Question.** How probable is the transcript A B, if nobody says when?
#
# The encoder made $T$ rows of the sound, numbered $t = 0 \ldots T-1$ (06 called them $T'$; they are also called
# *frames*). The transcript has $U$ units, of which $u$ have been said so far. In all pictures $t$ goes to the right,
# and $u$ down, a *line* for each. At every *node* $(t, u)$ the joint network ([notebook
# 06](06_prediction_and_joint.ipynb)) gives one distribution over $V$ symbols. Two of them lead on:
#
# - *blank*, symbol 0, says nothing and moves to the next frame: a step to the right;
# - the transcript's next unit is said, and we stay in the frame: a step down.
#
# Say a blank in the last frame when all units are said, and the path ends. A path's probability is the product of its
# steps, and the transcript's is the sum over its paths:
#
# $$ P(\text{A B}) = \sum_{\text{paths}} \; \prod_{\text{steps}} P(\text{step} \mid t, u) \qquad
#    \text{loss} = -\ln P(\text{A B}) $$
#
# Here is a lattice of 3 frames and 2 units, with scores drawn by lot.

# %%
T, names, labels = 3, ["A", "B"], [1, 2]
logits = 0.6 * generator(0, "tutorial", "lattice").standard_normal((T, len(labels) + 1, 4))  # blank, A, B, C
log_probs = log_softmax(logits)
draw.show(
    draw.toy_arrows(np.exp(log_probs), labels, names),
    "The probability of each step, as a number and as the thickness of its arrow: of a blank to the right, of the next "
    "unit down. At each node the rest up to 1 belongs to symbols that the transcript does not want there.",
)


# %%
def probability(path):
    steps = [log_probs[t, u, labels[u] if says_label else BLANK] for t, u, says_label in path]
    return np.exp(sum(steps))


every = list(paths(T, len(labels)))
each = [probability(path) for path in every]
draw.show(
    draw.toy_paths(every, each, T, names),
    f"The {len(every)} ways to say A B in 3 frames. Blue steps to the right are blanks, orange steps down say a unit. "
    "All end with a blank in the lower right corner. Above each, its probability: the scores were drawn by lot, and so "
    "some paths are better than others for no reason.",
)

# %%
print(f"sum over the paths {sum(each):.6f}, its -ln {-np.log(sum(each)):.6f}")
print(f"brute_force                          {brute_force(log_probs, labels):.6f}")
assert np.isclose(-np.log(sum(each)), brute_force(log_probs, labels))

# %% [markdown]
# **Where does the last blank go?** It ends the utterance, and it counts. Without it the probabilities of all
# transcripts do not add up to 1.
#
# **Break it.** Take a language with one word, A, and a model that says blank with probability 0.6 and A with 0.4,
# wherever it is. In two frames it can say nothing, or A, or A A, and so on. These are all transcripts, so their
# probabilities add up to 1, unless the last blank is forgotten.

# %%
with_end = without_end = 0.0
for said in range(30):
    chance = np.broadcast_to(np.log([0.6, 0.4]), (2, said + 1, 2))
    with_end += np.exp(-brute_force(chance, [1] * said))
    without_end += np.exp(-brute_force(chance, [1] * said) - chance[-1, -1, BLANK])
print(f"with the last blank {with_end:.4f}, without {without_end:.4f}")
assert abs(with_end - 1) < 1e-6 and abs(without_end - 1 / 0.6) < 1e-6

# %% [markdown]
# So the sum is 1.67. A loss without the last blank has nothing against a small probability of it, and the model never
# learns where to stop.
#
# **Exercise 1.** How many paths are there for 4 units in 10 frames? A path has $T - 1$ blanks that are free to move
# (the last one is not) and $U$ units.

# %%
# SOLUTION: number = ...
number = comb(10 - 1 + 4, 4)
# END SOLUTION
check(number, len(list(paths(10, 4))), "Of T - 1 + U steps, choose the U that say a unit: comb(..., U).", 0)

# %% [markdown]
# ## Alpha and beta
#
# **Question.** Two seconds of speech have millions of paths. How can one add them up? All paths to a node
# come from the left or from above, so what is known there need not be computed again. Let $\alpha(t, u)$ be the
# log-probability of coming to a node, and $\beta(t, u)$ that of saying the rest from there. With $\ell$ for a
# log-probability of the joint network:
#
# $$ e^{\alpha(t, u)} = e^{\alpha(t-1, u) + \ell_\text{blank}(t-1, u)} +
#    e^{\alpha(t, u-1) + \ell_\text{label}(t, u-1)} $$
# $$ e^{\beta(t, u)} = e^{\ell_\text{blank}(t, u) + \beta(t+1, u)} + e^{\ell_\text{label}(t, u) + \beta(t, u+1)} $$
#
# They begin with $\alpha(0, 0) = 0$, because all paths start there, and $\beta(T, U) = 0$, because behind the last
# blank nothing is left to say. What lies outside the lattice has probability 0. In the end $\ln P = \alpha(T-1, U) +
# \ell_\text{blank}(T-1, U) = \beta(0, 0)$.
#
# **Why in this order?** Any order will do in which a node comes after its left and its upper neighbour: a
# *topological* order of the graph. Frame by frame is one, diagonal by diagonal another. Every node is visited once,
# instead of every path. These are all the loops there are:

# %%
print(inspect.getsource(forward_variables))

# %% [markdown]
# **Exercise 2.** By hand, from the numbers on the arrows above: with which probability do paths come to the node in the
# middle, $t = 1$ and A said? Two ways lead there. Two digits are enough.

# %%
# SOLUTION: middle = ...
p = np.exp(log_probs)  # (t, u, symbol): A is symbol 1
middle = p[0, 0, 1] * p[0, 1, BLANK] + p[0, 0, BLANK] * p[1, 0, 1]
# END SOLUTION
check(
    middle,
    np.exp(forward_variables(log_probs, labels)[1, 1]),
    "A in frame 0 and then a blank; or a blank and then A in frame 1. Multiply along each way, and add.",
    0.02,
)

# %%
alpha, beta = forward_variables(log_probs, labels), backward_variables(log_probs, labels)
draw.show(
    draw.toy_numbers(
        {r"$e^{\alpha}$: to come here": np.exp(alpha), r"$e^{\beta}$: from here to the end": np.exp(beta[:T])}, names
    ),
    "The same lattice. Left: probability of coming to each node, 1 where all paths begin. Right: probability of saying "
    "the rest from there. So the number in the upper left of the right picture is the probability of the transcript. "
    "The lower right of the left picture gives the same, times its last blank.",
)
total = alpha[-1, -1] + log_probs[-1, -1, BLANK]
print(f"from the front {np.exp(total):.6f}, from the back {np.exp(beta[0, 0]):.6f}")
assert np.isclose(total, beta[0, 0]) and np.isclose(-total, brute_force(log_probs, labels))

# %% [markdown]
# **Exercise 3.** A model that has learned nothing gives each of $V$ symbols the same probability $1/V$, at every node.
# What is its loss? Every path has the same number of steps, and you know how many paths there are. Write
# `def ignorance(T, U, V): return ...`.


# %%
# SOLUTION: ignorance = ...
def ignorance(T, U, V):
    return (T + U) * np.log(V) - np.log(comb(T - 1 + U, U))


# END SOLUTION
def as_brute_force(function):
    flat = {(T, U, V): np.full((T, U + 1, V), -np.log(V)) for T, U, V in ((1, 0, 2), (4, 3, 5), (7, 2, 64))}
    return all(np.isclose(function(*size), brute_force(y, [1] * size[1])) for size, y in flat.items())


check(ignorance, as_brute_force, "A path has T + U steps of probability 1/V; multiply by the number of paths.")

# %% [markdown]
# You will meet that number as the first loss of a training, in [notebook 08](08_training.ipynb). It answers another
# question, too.
#
# **Why does the loss rise with the length?** Because it is a sum over the steps, not a mean: a longer utterance has
# more decisions in it. Do not compare losses of utterances of different lengths, or of vocabularies of different sizes.

# %%
for rows, units in ((15, 5), (30, 10), (60, 20)):
    flat = np.full((rows, units + 1, 64), -np.log(64.0))
    print(f"{rows} frames, {units} units: a loss of {readable(flat, [1] * units)[0]:.1f} means knowing nothing")

# %% [markdown]
# **Break it: probabilities instead of their logarithms.** A path of our utterance has dozens of steps. Take the most
# probable one of an untrained model, and multiply its steps in float32, as training would.

# %%
teacher = models.load("T1")
untrained = Recogniser(
    Transducer(teacher.model.config, generator(0, "tutorial", "untrained")), teacher.normaliser, teacher.bpe
)
blind, units = untrained.lattice(spoken.wave, spoken.text)
path, score = best_path(blind, units)
steps = [blind[t, u, units[u] if says_label else BLANK] for t, u, says_label in path]
product = np.prod(np.exp(np.float32(steps)))
with np.errstate(divide="ignore"):
    print(f"product of {len(steps)} probabilities: {product}, its -ln: {-np.log(product)}")
print(f"minus the sum of their logarithms: {-score:.1f}")
assert product == 0 and np.isfinite(score)

# %% [markdown]
# The smallest number that float32 knows is about $10^{-45}$. Its $-\ln$ is 103: a path with a larger loss becomes 0. A
# logarithm can be $-1000$ as easily as $-10$. So the recursions add in log space, and for the sums they keep 64 bits.
#
# ## The gradient is a belief
#
# **Question.** In which direction should the network change? The derivative of the loss by the log-probability of a
# step has a meaning: it is minus the probability that a path takes this step, *given the transcript*.
#
# Why? $P$ is a sum of products, and those of the paths that take this step contain its factor $e^\ell$ once. So
# $\partial P / \partial \ell$ is the sum of these paths, and $\partial(-\ln P)/\partial \ell$ is minus their share of
# $P$:
#
# $$ \frac{\partial\,\text{loss}}{\partial\, \ell_\text{blank}(t, u)} =
#    -e^{\alpha(t, u) + \ell_\text{blank}(t, u) + \beta(t+1, u) - \ln P} $$
#
# What is before the step, the step, what is after it, and all of it divided by the total. For a label it is
# $\beta(t, u+1)$ at the end. `readable` returns the loss and this gradient.

# %%
loss, gradient = readable(log_probs, labels)
draw.show(
    draw.toy_arrows(-gradient, labels, names),
    "Arrows as thick as the gradient: if A B was said, a path takes this step with this probability. Whatever flows "
    "into a node flows out of it. The blue numbers of a frame add up to 1, because each frame is left once. So do the "
    "orange numbers between two lines, because each label is said once.",
)
blanks, says_A = -gradient[:, :, BLANK], -gradient[:, 0, labels[0]]
print("blanks of each frame:", blanks.sum(axis=1), " label A over all frames:", says_A.sum().round(6))
assert np.allclose(blanks.sum(axis=1), 1) and np.isclose(says_A.sum(), 1)

# %% [markdown]
# **Exercise 4.** What do *all* entries of the gradient add up to, in a lattice of $T$ frames and $U$ units? Use `T` and
# `labels`.

# %%
# SOLUTION: everything = ...
everything = -(T + len(labels))
# END SOLUTION
check(everything, gradient.sum(), "Every path has the same number of steps. Mind the sign.")

# %% [markdown]
# **Logits or log-probabilities?** The formulas above want log-probabilities. Network outputs are *logits*, raw scores,
# and `log_softmax` comes in between. It is the most common mistake with this loss, and nothing crashes.
#
# **Break it.** Forget the softmax. Add 1 to all scores, which changes no probability.

# %%
for name, ready in (("log_softmax", log_softmax), ("forgotten", np.array)):
    before, after = (readable(ready(scores), labels)[0] for scores in (logits, logits + 1))
    print(f"{name:12s} loss {before:6.3f}, all scores raised by one: {after:6.3f}")
assert np.isclose(before - after, T + len(labels))

# %% [markdown]
# Without the softmax, the loss falls by one for each step, as often as one likes, and soon below zero. A negative
# transducer loss means that what came in were no log-probabilities, and most often this is why: a probability is at
# most 1, so its $-\ln$ is at least 0. `rnnt_loss`, which
# training calls, takes what comes before the logits and does the softmax itself, so this cannot happen there.
#
# ## What a model believes about our utterance
#
# **Question.** When does the model think that each unit was said? Add up the steps out of a node, and you have its
# *occupancy*: the probability that a path comes by, given the transcript. `Recogniser.lattice` gives a model's
# log-probabilities, `occupancies` the beliefs, and `best_path` the most probable path.

# %%
seen, _ = teacher.lattice(spoken.wave, spoken.text)
said = [teacher.bpe.units[i].replace("▁", "_") for i in units]
beliefs = {"untrained": occupancies(blind, units), "T1, trained": occupancies(seen, units)}
draw.show(
    draw.lattices(spoken.wave, beliefs, said, [None, best_path(seen, units)[0]]),
    "The wave, and below it two lattices over the same time. Downwards: the units said so far. Untrained: a broad "
    "band, because nearly all ways through are equally good. Trained: a narrow staircase, and over it the best path, "
    "white with a red edge. It waits while nothing new is heard, and steps down where a unit was understood.",
)
spread = {name: (belief > 0.01).mean() for name, belief in beliefs.items()}
print(*(f"{name}: {share:.0%} of the nodes have an occupancy above 1 %" for name, share in spread.items()), sep="\n")
assert spread["T1, trained"] < spread["untrained"]

# %% [markdown]
# Nobody told it where a word begins. The sum over all paths was enough. Compare the steps with the wave: a unit is
# said once it is certain enough, which may be before its sound ends, or after. Several may be said in one frame. The
# model cannot look ahead, so waiting is the only way to hear more, and nothing in this loss punishes it.
#
# ## The number
#
# How many paths has this utterance, and how long do they take: in the loops that you have just read, and in the kernel
# that training calls? The latter also computes the joint network, and the gradients by its inputs.

# %%
rows, columns, _ = seen.shape
batch = utterance.batch([spoken], teacher)
inputs, lengths = teacher.model.lattice_inputs(batch, batch.features)


def milliseconds(function, times=5):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(1e3 * (time.perf_counter() - start))
    return min(taken)


loops = milliseconds(lambda: readable(seen, units))
kernel = milliseconds(lambda: rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths))
print(f"{comb(rows + columns - 2, columns - 1):,} paths over {rows * columns} nodes")
print(f"loops {loops:.1f} ms, the whole training loss with its gradients {kernel:.1f} ms")
assert comb(rows + columns - 2, columns - 1) > 1e6
_, losses = rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths)
print(f"loss: loops {readable(seen, units)[0]:.4f}, kernel {losses[0]:.4f}")
assert np.isclose(readable(seen, units)[0], losses[0], rtol=1e-3, atol=1e-3)

# %% [markdown]
# **Next:** [08 training](08_training.ipynb): the belief moves.
