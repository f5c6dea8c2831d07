# %% [markdown]
# # 08 Training: from noise to one sentence, in a second
#
# A transducer starts with random numbers and gives every transcript nearly the same, tiny probability. Training moves
# its numbers until the spoken one is likely. Here you train a small model on a single utterance, and look into its
# lattice on the way. After this notebook you can write the loop, read its curve, and tell a learning rate that is too
# high from a transcript that is wrong.

# %%
import numpy as np

from mini_pkd import warm_up
from mini_pkd.features import mfcc
from mini_pkd.optimizer import Adam, learning_rate
from mini_pkd.ragged import Batch
from mini_pkd.rnnt_loss import occupancies, rnnt_loss
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
# 1. *Forward*: features through the encoder, labels through the predictor, both into the lattice: the loss
#    $L = -\ln P(\text{transcript} \mid \text{sound})$.
# 2. *Backward*: the tape gives $\partial L / \partial w$ for every parameter $w$ (notebook 02).
# 3. *Adam* moves every parameter a little against its gradient. It divides by the recent size of that parameter's
#    gradients, so all parameters move at about the same speed: the *learning rate*.
#
# The model is the smallest of the default run. In training of a corpus a batch holds eight utterances; here it holds
# one, again and again.

# %%
features = normaliser(mfcc(spoken.wave))


def batch_of(text):
    labels = np.array(bpe.encode(text), dtype=np.int64)
    return Batch([spoken.id], features, np.array([len(features)]), labels, np.array([len(labels)]))


def fresh():
    return Transducer(TINY.sizes["61"].config(bpe.size), generator(0, "tutorial"))


def train(model, text, steps, rate):
    batch, adam, losses = batch_of(text), Adam(model), []
    for _ in range(steps):
        inputs, lengths = model.lattice_inputs(batch, features)
        loss, _ = rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths)
        loss.backward()
        adam.step(rate)
        losses.append(float(loss.data))
    return losses


# %% [markdown]
# ## Into the lattice, on the way
#
# **Question.** What does the model believe about *when* each unit is said, before it can say them?
#
# At each look: the occupancy of every node (notebook 07), the probability that a path of the right transcript comes by.

# %%
model, curve, looks = fresh(), [], {}
recogniser = Recogniser(model, normaliser, bpe, beam=1)
for until in (0, 5, 20, 80):
    curve += train(model, spoken.text, until - len(curve), rate=0.01)
    log_probs, labels = recogniser.lattice(spoken.wave, spoken.text)
    looks[f"after {until} steps: it hears {recogniser.transcribe(spoken.wave)[:40]!r}"] = occupancies(log_probs, labels)
names = [bpe.units[i] for i in labels]
draw.show(
    draw.lattices(spoken.wave, looks, names),
    "The occupancy of the lattice under the wave, as training goes on. At first all ways are nearly equal, and paths "
    "fill a broad band. Then they draw together into one line, which nobody had told it. With one utterance to learn, "
    "any line will do; only many utterances make it follow the sound (notebook 07).",
)

# %% [markdown]
# ## The curve
#
# **Question.** How fast does the loss fall?

# %%
draw.show(
    draw.curves({"rate 0.01": curve}),
    "The loss of one utterance over the steps, in powers of ten. It falls by a factor of more than ten. "
    "Where it jumps a little, a look has interrupted Adam, which then starts with empty averages.",
)
print(f"loss {curve[0]:.1f} before, {curve[-1]:.3f} after {len(curve)} steps")
assert curve[-1] < 0.1 * curve[0]

# %% [markdown]
# **Exercise 1.** With which probability does the model give the right transcript now, if its loss is `curve[-1]`?

# %%
# SOLUTION: probability = ...
probability = np.exp(-curve[-1])
# END SOLUTION
check(probability, lambda p: abs(np.log(p) + curve[-1]) < 1e-9, "The loss is minus the logarithm of it.")

# %% [markdown]
# ## Break it: a rate that is a hundred times too high
#
# Each step then leaps over the valley that it wanted to descend into.

# %%
wild = train(fresh(), spoken.text, 80, rate=1.0)
draw.show(
    draw.curves({"rate 0.01": curve, "rate 1": wild}),
    "The same training with a rate of 1: the loss leaps and does not come down to where the other one ends.",
)
assert wild[-1] > 10 * curve[-1]

# %% [markdown]
# ## Break it: the wrong transcript
#
# The loss only says how likely the *given* transcript is. Give another one, and it is learned just as willingly. A
# falling training loss does not prove that a model hears anything; that takes a dev set.

# %%
wrong = " ".join(reversed(spoken.text.split()))
liar = fresh()
lied = train(liar, wrong, 80, rate=0.01)
heard = Recogniser(liar, normaliser, bpe, beam=1).transcribe(spoken.wave)
print(f"loss {lied[0]:.1f} -> {lied[-1]:.3f}; it hears {heard}")
assert lied[-1] < 0.1 * lied[0]

# %% [markdown]
# ## The learning rate has a shape
#
# In real training the rate grows for some hundred steps, because Adam's averages know nothing yet, and then falls along
# half a cosine to zero, so that the model comes to rest.

# %%
steps = np.arange(1, 4001)
rates = [learning_rate(s, 4000, peak=2e-3, warmup=300) for s in steps]
draw.show(
    draw.curves({"learning rate": rates}, label="rate", log=False), "The learning rate over a run of 4,000 steps."
)

# %% [markdown]
# **Exercise 2.** After 300 steps of warm-up, where is the rate half of its peak again? Give the step.

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
    train(learner, spoken.text, 5, rate=0.01)
    taken += 5
print(f"{taken} steps; {learner.num_parameters():,} parameters to remember {len(spoken.text.split())} words")
assert reader.transcribe(spoken.wave) == spoken.text

# %% [markdown]
# It has learned this sentence by heart, and nothing else: 1,600 utterances and 4,000 steps later it is a recogniser.
#
# **Next:** [09 decoding and WER](09_decoding.ipynb): from probabilities to words.
