# %% [markdown]
# # 08 Training: from noise to one sentence, in a second
#
# A transducer starts with random numbers and gives every transcript nearly the same, tiny probability. Training moves
# its numbers until the spoken one is likely. Here you train a small model on a single utterance, and look into its
# lattice as it learns. After this notebook you can write the loop, read its curve, and tell a learning rate that is too
# high from a transcript that is wrong.

# %%
from dataclasses import replace
from math import comb

import numpy as np

from mini_pkd import warm_up
from mini_pkd.optimizer import Adam, learning_rate
from mini_pkd.ragged import BLANK
from mini_pkd.rnnt_loss import occupancies, readable, rnnt_loss
from mini_pkd.scales import TINY
from mini_pkd.seeds import generator
from mini_pkd.transcribe import Recogniser
from mini_pkd.transducer import Transducer
from tutorial import draw, models, utterance
from tutorial.exercise import check

warm_up.ensure()
spoken, teacher = utterance.load(), models.load("T1")
bpe, normaliser = teacher.bpe, teacher.normaliser
print(spoken.text)

# %% [markdown]
# ## The loop
#
# **Question.** What happens in one step?
#
# 1. *Forward*: features through the encoder, labels through the predictor, both into the lattice: the loss $L = -\ln
# P(\text{transcript} \mid \text{sound})$. 2. *Backward*: the tape gives $\partial L / \partial w$ for every parameter
# $w$ (notebook 02). 3. *Adam* moves every parameter a little against its gradient. It keeps two running averages for
# each, of its gradient and of the gradient's square, and moves it by rate × mean / root of the mean square. So all
# parameters move at about the same speed: the *learning rate*.
#
# The model is the smallest of the default run. When a corpus is trained on, a batch holds eight utterances; here it
# holds one, again and again.


# %%
def fresh():
    size = TINY.sizes["61"]  # of S2, S3 and B2; named after the paper's size at this place, 61 million
    return Transducer(size.config(bpe.size), generator(0, "tutorial"))


def train(model, batch, steps, rate):
    adam, losses = Adam(model), []
    for _ in range(steps):
        inputs, lengths = model.lattice_inputs(batch, batch.features)
        loss, _ = rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths)
        loss.backward()
        adam.step(rate)
        losses.append(float(loss.data))
    return losses


one = utterance.batch([spoken], teacher)

# %% [markdown]
# ## Into the lattice, along the way
#
# **Question.** What does the model believe about *when* each unit is said, before it can say them?
#
# At each look: the occupancy of every node (notebook 07), the probability that a path of the right transcript comes by.
# And what it hears, with `beam=1`, which takes the most probable symbol at every step: *greedy* search (notebook 09).

# %%
model, curve, looks = fresh(), [], {}
recogniser = Recogniser(model, normaliser, bpe, beam=1)
for until in (0, 5, 10, 20, 40, 80):
    curve += train(model, one, until - len(curve), rate=0.01)
    log_probs, labels = recogniser.lattice(spoken.wave, spoken.text)
    looks[f"{until} steps: loss {readable(log_probs, labels)[0]:.2f}"] = occupancies(log_probs, labels)
    print(f"{until:2d} steps: it hears {recogniser.transcribe(spoken.wave)[:80]!r}")
draw.show(
    draw.strip(looks, [bpe.units[i].replace("▁", "_") for i in labels]),
    "The occupancy of the lattice over time, as training goes on. At first all ways are nearly equal, and paths fill a "
    "broad band. Then they draw together into one line, though nobody told it which. With one utterance to learn, any "
    "line will do; only many utterances make it follow the sound (notebook 07).",
)

# %% [markdown]
# ## The curve
#
# **Question.** How fast does the loss fall?

# %%
draw.show(
    draw.curves({"rate 0.01": curve}),
    "The loss of one utterance over the steps, in powers of ten. It falls by a factor of some hundreds. Each look "
    "starts Adam anew. With empty averages, its first step moves every parameter by the whole rate, however small its "
    "gradient is: that is the jump at 42.",
)
print(f"loss {curve[0]:.1f} at the first step, {curve[-1]:.3f} at the {len(curve)}th")
assert curve[-1] < 0.1 * curve[0]

# %% [markdown]
# **Exercise 1.** What probability did the model give the right transcript at the last step, where its loss was
# `curve[-1]`?

# %%
# SOLUTION: probability = ...
probability = np.exp(-curve[-1])
# END SOLUTION
check(probability, lambda p: abs(np.log(p) + curve[-1]) < 1e-9, "The loss is minus the logarithm of it.")

# %% [markdown]
# More than a half, and yet it heard another text! That text must be less probable. Greedy search takes one step at a
# time and may walk past the best text; notebook 09 searches better.
#
# ## The shelf
#
# **Question.** With more than one utterance to learn, a loss falls quickly, stops, and only later goes on. What is it
# that is learned first?
#
# The cheapest lesson ignores the sound, and even what was said before: the same distribution at every node. Which one
# is best? Every path of an utterance has $T$ blanks and the $U$ labels of its transcript. Of the distributions that do
# not change, the best one gives each symbol its share of these $T + U$ steps, as often as it occurs.
#
# **Exercise 2.** What is the loss of that model on our utterance? All paths have the same probability, and there are
# $\binom{T-1+U}{U}$ of them (notebook 07). Write a function of `T` and of `labels`, an array.


# %%
# SOLUTION: shelf = ...
def shelf(T, labels):
    counts = np.array([T, *np.unique(labels, return_counts=True)[1]])
    logs = np.log(counts / counts.sum())
    return -(counts * logs).sum() - np.log(float(comb(T - 1 + len(labels), len(labels))))


# END SOLUTION
def as_readable(function):
    T, said = len(log_probs), np.array(labels)
    share = np.bincount(said, minlength=bpe.size) + np.where(np.arange(bpe.size) == BLANK, T, 0)
    with np.errstate(divide="ignore"):
        flat = np.broadcast_to(np.log(share / share.sum()), log_probs.shape)
    return np.isclose(function(T, said), readable(flat, said)[0])


check(shelf, as_readable, "Minus the sum of counts times ln of their shares, minus ln of the number of paths.")

# %% [markdown]
# Now 32 utterances at once. The dotted line is the same number for all of them together, with one distribution for all.
# Beside it the same training with all features set to 0: a model that is deaf.

# %%
several = utterance.part("train")
many = utterance.batch([utterance.hear(u) for u in several[:: len(several) // 32][:32]], teacher)
reader = fresh()
rows = reader.encode(many.features, many.lengths)[1]
slow = train(reader, many, 100, rate=0.01)
deaf = train(fresh(), replace(many, features=np.zeros_like(many.features)), 100, rate=0.01)
steps_each = np.array([rows.sum(), *np.unique(many.labels, return_counts=True)[1]])
ways = sum(np.log(float(comb(int(T - 1 + U), int(U)))) for T, U in zip(rows, many.label_lengths, strict=True))
level = (-(steps_each * np.log(steps_each / steps_each.sum())).sum() - ways) / len(rows)
draw.show(
    draw.curves({"hears": slow, "deaf": deaf}, log=False, level=level),
    "Training on 32 utterances. The loss falls to the dotted line, that of the best model that says the same at every "
    "node, and lingers there. Then it leaves the line; but so does the deaf model, which learns the 32 texts by heart. "
    "For some fifty steps the two can hardly be told apart. Only later does the one that hears fall faster.",
)
near = np.mean(np.abs(np.array(slow) / level - 1) < 0.1)
print(f"the shelf is at {level:.1f}; {near:.0%} of the 100 steps are within a tenth of it; in the end {slow[-1]:.1f}")
print(f"the deaf one {deaf[-1]:.1f}")
assert near > 0.1 and slow[-1] < 0.7 * level and slow[-1] < 0.8 * deaf[-1]

# %% [markdown]
# A training that stays on this shelf has not begun. One that leaves it may still be deaf: compare it with a training on
# features of zeros, or look at utterances that it was not trained on. If it is deaf, look first whether features and
# transcripts belong together.
#
# ## Break it: a rate that is a hundred times too high
#
# Each step then leaps over the valley that it wanted to descend into.

# %%
wild = train(fresh(), one, 80, rate=1.0)
draw.show(
    draw.curves({"rate 0.01": curve, "rate 1": wild}),
    "The same training with a rate of 1: the loss leaps and does not come down to where the other one ends.",
)
assert wild[-1] > 10 * curve[-1]

# %% [markdown]
# ## Break it: the wrong transcript
#
# The loss only says how likely the *given* transcript is. Give another one, and it is learned as well, here a little
# later. A falling training loss does not prove that a model hears anything; that takes a *dev set*, utterances kept out
# of training.

# %%
wrong = " ".join(reversed(spoken.text.split()))
liar = fresh()
lied = train(liar, utterance.batch([spoken._replace(text=wrong)], teacher), 120, rate=0.01)
heard = Recogniser(liar, normaliser, bpe, beam=1).transcribe(spoken.wave)
print(f"given {wrong}\nloss {lied[0]:.1f} -> {lied[-1]:.3f}; it hears {heard}")
assert lied[-1] < 0.1 * lied[0]

# %% [markdown]
# ## The learning rate has a shape
#
# In the default run the rate grows for 300 steps, because Adam's averages know nothing yet, and then falls along half a
# cosine to zero, so that the model comes to rest. (The shape is our choice; the paper says only "with decay".)

# %%
steps = np.arange(1, 4001)
rates = [learning_rate(s, 4000, peak=2e-3, warmup=300) for s in steps]
draw.show(
    draw.curves({"learning rate": rates}, label="rate", log=False), "The learning rate over a run of 4,000 steps."
)

# %% [markdown]
# **Exercise 3.** After 300 steps of warm-up, where is the rate half of its peak again? Give the step.

# %%
# SOLUTION: half = ...
half = 300 + (4000 - 300) // 2
# END SOLUTION
check(
    half,
    lambda s: abs(learning_rate(s, 4000, peak=2e-3, warmup=300) - 1e-3) < 1e-6,
    "Half a cosine crosses the middle half way.",
)

# %% [markdown]
# ## The number
#
# How many steps until greedy search reads the utterance without a mistake?

# %%
learner, taken = fresh(), 0
reader = Recogniser(learner, normaliser, bpe, beam=1)
while reader.transcribe(spoken.wave) != spoken.text and taken < 200:
    train(learner, one, 5, rate=0.01)
    taken += 5
print(f"{taken} steps; {learner.num_parameters():,} parameters to remember {len(spoken.text.split())} words")
assert reader.transcribe(spoken.wave) == spoken.text

# %% [markdown]
# It has learned this sentence by heart, and nothing else: it takes 1,600 utterances and 4,000 steps to make a
# recogniser.
#
# **Next:** [09 decoding and WER](09_decoding.ipynb): from probabilities to words.
