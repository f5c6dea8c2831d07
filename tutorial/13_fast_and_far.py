# %% [markdown]
# # 13 Fast and far: the same numbers in less time, and the paper's size
#
# Everything so far ran on a small machine in minutes. Two things made that possible: what is slow has a fast twin that
# is tested against it, and no array is larger than it must be.
#
# You will be able to read a kernel beside its readable partner, to say what the vocabulary costs, and to estimate how
# long the paper's own training would take.

# %%
import time
import tracemalloc

import numba
import numpy as np

from mini_pkd import attention_kernel, convolution_kernel, fused, lattice_kernels, lattice_walk
from mini_pkd.cascade import main as cascade
from mini_pkd.estimate import training_flop
from mini_pkd.lattice_walk import chunk_rows, walk_lattice
from mini_pkd.rnnt_loss import materialised_loss_and_gradients
from mini_pkd.scales import FULL
from tutorial import draw
from tutorial.exercise import check

# %% [markdown]
# ## Every kernel has a partner
#
# **Question.** How can one trust fast code? Each kernel says which readable function computes the same. A test compares
# the two, in value and in gradient. Where no partner exists, a sentence says why.


# %%
def partners(module):
    found = {name: getattr(value, "readable", None) for name, value in vars(module).items()}
    return {name: getattr(partner, "__name__", partner) for name, partner in found.items() if partner}


pairs = {}
for module in (fused, attention_kernel, convolution_kernel, lattice_kernels):
    pairs |= partners(module)
for name, partner in pairs.items():
    print(f"{name:32s} {partner}")
assert len(pairs) > 10

# %% [markdown]
# ## What the vocabulary costs
#
# **Question.** Why not simply hold all logits? The lattice of one utterance has a distribution over $V$ symbols at each
# of $T\,(U+1)$ nodes. At 4 bytes a number:
#
# $$ \text{bytes} = 4\; T\,(U+1)\,V $$
#
# **Exercise 1.** An utterance of 16 s has 200 encoder rows and some 50 labels. With 10,026 symbols, how many MB
# ($10^6$ bytes) are its logits?

# %%
# SOLUTION: megabytes = ...
megabytes = 4 * 200 * 51 * 10_026 / 1e6
# END SOLUTION
logits = np.broadcast_to(np.float32(0), (200, 50 + 1, 10_026))
check(megabytes, lambda mb: abs(mb - logits.nbytes / 1e6) < 1, "50 labels make 51 columns: nothing may have been said.")

# %% [markdown]
# The gradient is as large again. `materialised_loss_and_gradients` holds all of it. `walk_lattice`, which training
# calls, makes the logits a chunk of nodes at a time, and makes them again for the gradient where they were not kept.
# (Training keeps some, where there is room; here `keep_bytes=0` keeps none.)
# The numbers are the same; here is how both grow.


# %%
def problem(V, T=100, U=25, J=128):
    """enc, pred, table, bias of random numbers; labels; the two lengths."""
    rng = np.random.default_rng(V)
    shapes = ((T, J), (U + 1, J), (V, J), (V,))
    arrays = tuple(rng.standard_normal(shape, dtype=np.float32) / 4 for shape in shapes)
    return arrays, rng.integers(1, V, U), np.array([T]), np.array([U])


def all_at_once(arrays, *rest):
    return materialised_loss_and_gradients(*arrays, *rest)


def in_chunks(arrays, *rest, **options):
    losses, _, gradients = walk_lattice(arrays, *rest, **{"keep_bytes": 0} | options)
    return losses, gradients


def milliseconds(function, given, **options):
    """Of the second of two calls: the first may compile."""
    function(*given, **options)
    start = time.perf_counter()
    function(*given, **options)
    return 1000 * (time.perf_counter() - start)


def mebibytes(function, given, **options):
    """At the highest moment of one call.  Timed apart, because tracing is slow."""
    lattice_walk._scratch.clear()  # buffers of earlier calls would hide what this one needs
    tracemalloc.start()
    function(*given, **options)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return peak


def cost(function, V, **options):
    given = problem(V)
    return milliseconds(function, given, **options), mebibytes(function, given, **options)


sizes = (100, 300, 1000, 3000, 10_026)
costs = {
    "all logits at once": [cost(all_at_once, V) for V in sizes],
    "in chunks": [cost(in_chunks, V) for V in sizes],
}
for name, found in costs.items():
    print(f"{name:20s}", "  ".join(f"{ms:5.0f} ms {mib:4.0f} MiB" for ms, mib in found))
draw.show(
    draw.cost_against_vocabulary(sizes, costs),
    "Time and memory of loss and gradients of one utterance of 100 rows and 25 labels, against the number of symbols, "
    "both axes logarithmic. All logits at once grow in proportion to the vocabulary. In chunks, memory levels off: "
    "what is left is a chunk, and the table with its gradient, 5 MB each at the right edge.",
)

# %% [markdown]
# Not all of the speed is the chunks'. The function that holds everything is the readable one: it walks the lattice in
# plain loops, multiplies with `einsum`, and keeps float64. So believe the memory of this comparison, and not its time.

# %%
losses, gradients = all_at_once(*problem(1000))
same_losses, same_gradients = in_chunks(*problem(1000))
apart = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(gradients, same_gradients, strict=True))
print(f"losses {losses[0]:.4f} and {same_losses[0]:.4f}; gradients differ by at most {apart:.0e} of the largest")
assert abs(losses[0] - same_losses[0]) < 1e-3 * losses[0] and apart < 1e-3

# %% [markdown]
# **Break it.** Smaller chunks need less memory, so why not tiny ones? Every chunk adds a product of the size of the
# table, $V \times J$, to the table's gradient. With fewer nodes in a chunk than $J$, that is more than the logits
# themselves. So `chunk_rows` refuses to go below $J$, whatever it is asked for. The last line takes that floor away.
# (And here the table is narrow, $J = 128$; the paper's is eight times as wide.)

# %%
for size in (2**24, 1):
    rows = chunk_rows(10_026, 128, False, chunk_bytes=size)
    print("{:4d} nodes a chunk: {:5.0f} ms, {:4.0f} MiB".format(rows, *cost(in_chunks, 10_026, chunk_bytes=size)))
assert rows == 128 < chunk_rows(10_026, 128, False)
lattice_walk.chunk_rows = lambda *_: 4
print("{:4d} nodes a chunk: {:5.0f} ms, {:4.0f} MiB".format(4, *cost(in_chunks, 10_026)))
tiny_chunks, _ = in_chunks(*problem(1000))
lattice_walk.chunk_rows = chunk_rows
assert abs(tiny_chunks[0] - losses[0]) < 1e-3 * losses[0]  # right, and slow

# %% [markdown]
# ## Break it: fastmath
#
# **Question.** Compilers offer to compute faster if they may assume that no number is infinite. What if one is? In the
# lattice, $\ln 0 = -\infty$ stands for what cannot be. `log_add` begins by asking for it:
#
# $$ \ln(e^a + e^b), \qquad \ln(e^{-\infty} + e^{b}) = b $$

# %%
plain = numba.njit(error_model="numpy")(lattice_kernels.log_add.py_func)
careless = numba.njit(error_model="numpy", fastmath=True)(lattice_kernels.log_add.py_func)
for a, b in ((-1.0, -2.0), (-np.inf, -2.0), (-np.inf, -np.inf)):
    print(f"{a:5.1f} {b:5.1f}   plain {plain(a, b)[0]:8.4f}   fastmath {careless(a, b)[0]:8.4f}")
assert np.isclose(careless(-1.0, -2.0)[0], plain(-1.0, -2.0)[0])
assert plain(-np.inf, -2.0)[0] == -2 and plain(-np.inf, -np.inf)[0] == -np.inf

# %% [markdown]
# Finite numbers agree. With infinities the compiler may drop the question, because it was told that the answer is no;
# what comes out then depends on its version. The package reorders sums in kernels whose numbers are finite, and nowhere
# tells the compiler that there is no infinity.
#
# ## Far: the paper's own size
#
# **Question.** What would the whole cascade take? `--dry-run` counts parameters exactly, and measures the rest: it
# times steps of each pair of student and teacher. Here for the default run. For the paper's sizes, `--scale full
# --dry-run` takes some minutes, and says years on a machine such as the one that made this page: that is not what small
# machines are for.

# %%
assert cascade(["--dry-run"]) == 0

# %% [markdown]
# Operations can be counted by hand: two for each multiply and add of the forward pass, twice that again for backward.
# How much of a machine's peak a training reaches is its *model FLOP utilisation*, MFU.
#
# **Exercise 2.** T1 needs `flop` operations for one pass over 960 hours. A machine has a peak of $10^{13}$ a second,
# which a good GPU had some years ago in float32, and we assume an MFU of 0.35. How many days do `epochs` passes take?

# %%
utterances, epochs = 281_241, FULL.settings.epochs
config = FULL.sizes["T1"].config(10_026)
nodes = utterances * np.ceil(1229 / config.encoder.reduction) * 42  # 12.3 s and some 41 labels each, on average
flop = training_flop(config, 1229 * utterances, 41 * utterances, nodes)
print(f"{flop:.1e} operations a pass, {epochs} passes")
# SOLUTION: days = ...
days = epochs * flop / (0.35 * 1e13) / 86_400
# END SOLUTION


def takes(days):
    return abs(days * 24 * 3600 * 0.35e13 / flop / epochs - 1) < 0.01


check(days, takes, "Operations over operations a second are seconds; only 35 % of the peak is reached.")

# %% [markdown]
# ## The number
#
# One utterance at the paper's vocabulary, V = 10,026, loss and all gradients, on one thread of the machine that made
# this page.

# %%
for name, found in costs.items():
    print(f"{name:20s} {found[-1][0]:5.0f} ms  {found[-1][1]:4.0f} MiB")
assert costs["in chunks"][-1][1] < 0.5 * costs["all logits at once"][-1][1]

# %% [markdown]
# **Next:** back to [01 the problem](01_problem.ipynb), whose picture you can now make yourself.
