# %% [markdown]
# # 10 Distillation: what a teacher says besides the answer
#
# A transcript says SIX. A teacher may say: SIX, almost certainly, but if not, then SIXTY, and never NINE. It also says
# when, and how sure it is. A student that is trained to give the teacher's whole distribution, at every node of the
# lattice, is told far more about one utterance than the words in it.
#
# You will be able to compute what the student is punished for, to say why it is a sum and not a mean, to estimate what
# it costs, and to find out which nodes the lesson is about. Its last answer is not flattering.

# %%
import numpy as np

from mini_pkd import warm_up
from mini_pkd.lattice_kl import kl_map, node_kl
from mini_pkd.optimizer import Adam
from mini_pkd.ragged import BLANK
from mini_pkd.rnnt_loss import best_path, log_softmax, occupancies
from mini_pkd.scales import FULL, TINY
from mini_pkd.seeds import generator
from mini_pkd.train import lattice_loss
from tutorial import draw, models, utterance
from tutorial.exercise import check

warm_up.ensure()
spoken = utterance.load()
recognisers = {name: models.load(name) for name in ("T1", "S1", "B1")}
lattices = {name: recogniser.lattice(spoken.wave, spoken.text)[0] for name, recogniser in recognisers.items()}
teacher = recognisers["T1"]
labels = teacher.bpe.encode(spoken.text)
units = [unit.replace("▁", "_") or "blank" for unit in teacher.bpe.units]
print(spoken.text)
draw.hear(spoken.path)

# %% [markdown]
# ## One node
#
# **Question.** How far is one distribution from another? T1 is the teacher, S1 was taught by it, and B1 has the same
# size as S1 and was taught by nobody. All three have a distribution over the symbols at each node $(t, u)$ of the
# lattice ([notebook 07](07_lattice.ipynb)). Here is the one where T1 is least sure.

# %%
doubt = -np.sum(np.exp(lattices["T1"]) * lattices["T1"], axis=-1)  # entropy of each node
t, u = np.unravel_index(doubt.argmax(), doubt.shape)
at_node = {name: log_probs[t, u] for name, log_probs in lattices.items()}
so_far = " ".join(units[i] for i in labels[:u]) or "nothing yet"
draw.show(
    draw.distributions({name: np.exp(y) for name, y in at_node.items()}, units),
    f"What three models expect at row {t}, after {so_far}: the symbols that any of them finds most probable. The "
    "transcript names one of these at most; the teacher gives each of them its share. Which of S1 and B1 is nearer to "
    "it at a single node says little.",
)

# %% [markdown]
# The *Kullback-Leibler divergence* is the usual measure: how surprised is somebody who expects $P_S$, the student's
# distribution, by symbols that come from $P_T$, the teacher's, beyond what is unavoidable?
#
# $$ \mathrm{KL} = \sum_k P_T(k) \, \ln \frac{P_T(k)}{P_S(k)} $$
#
# It is 0 if the two are equal, and positive otherwise. `node_kl` takes the student's logits or log-probabilities first.

# %%
for name in ("S1", "B1"):
    there, back = node_kl(at_node[name], at_node["T1"]), node_kl(at_node["T1"], at_node[name])
    print(f"{name}: KL from the teacher {there:.3f}, and with the two exchanged {back:.3f}")
    assert there > 0 and back > 0 and node_kl(at_node[name], at_node[name]) < 1e-6

# %% [markdown]
# **Exercise 1.** By hand: the student says 1/2, 1/4, 1/4 and the teacher 1/4, 1/2, 1/4. What is the KL?

# %%
student, wanted = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
# SOLUTION: divergence = ...
divergence = 0.25 * np.log(0.25 / 0.5) + 0.5 * np.log(0.5 / 0.25)  # the third symbol gives ln 1 = 0; (ln 2) / 4
# END SOLUTION
check(divergence, node_kl(np.log(student), np.log(wanted)), "Weights are the teacher's; it stands above the line, too.")

# %% [markdown]
# **Why this measure?** Because of its derivative by the student's logits. A classifier that is trained with $-\ln
# P_S(\text{right})$ has the derivative $P_S$, minus 1 at the right answer; here the teacher's distribution stands in
# the place of that 1. (The cross entropy with the teacher's distribution differs from the KL only by the teacher's own
# entropy, so it has the same gradient.)
#
# **Exercise 2.** Write that derivative, for arrays of logits. The answer has one term of the student and one of the
# teacher. (`log_softmax` is there.)


# %%
# SOLUTION: slope = ...
def slope(student_logits, teacher_logits):
    return np.exp(log_softmax(student_logits)) - np.exp(log_softmax(teacher_logits))


# END SOLUTION
def as_differences(function, step=1e-5):
    s, t = generator(0, "tutorial", "slope").standard_normal((2, 5))
    moved = [(node_kl(s + d, t) - node_kl(s - d, t)) / (2 * step) for d in step * np.eye(5)]
    return np.allclose(function(s, t), moved, atol=1e-8)


check(
    slope, as_differences, "It must be 0 where the two agree, and positive where the student says a symbol too often."
)

# %% [markdown]
# ## The whole lattice
#
# **Question.** At which nodes does the student follow? At all of them: the paper adds up the KL of every node $(t, u)$
# of the transcript's lattice, also of those where no sensible path goes.
#
# $$ L = L_\text{RNN-T} + \alpha\, L_\text{KD} \qquad
#    L_\text{KD} = \sum_{t, u} \sum_k P_T(k \mid t, u) \ln \frac{P_T(k \mid t, u)}{P_S(k \mid t, u)} $$
#
# with $\alpha = 0.02$ (a weight, not notebook 07's $\alpha$). Others divide both networks' logits by a *temperature*,
# to soften them; the paper does not, and neither do we. `kl_map` gives the KL of each node.

# %%
said = [units[i] for i in labels]
maps = {name: kl_map(lattices[name], lattices["T1"], labels) for name in ("S1", "B1")}
path, _ = best_path(lattices["T1"], labels)
beside = {"T1, the teacher": (np.exp(lattices["T1"][:, :, BLANK]), None)}
for name, role in (("S1", "taught by T1"), ("B1", "taught by nobody")):
    beside[f"{name}, {role}"] = (np.exp(lattices[name][:, :, BLANK]), maps[name])
draw.show(
    draw.blanks(beside, said, path),
    "Above: how probable each model finds blank, at every node, with T1's best path. Below: KL to the teacher, darker "
    "is farther. Along the path all three are mostly alike, because the transcript teaches this to everybody. Away "
    "from it the taught student has taken over many of the teacher's opinions, and the untaught one has its own.",
)

# %% [markdown]
# One utterance may mislead, and one node even more. Here is the average over some thirty test utterances.

# %%
some = [utterance.hear(u) for u in utterance.part("test-clean")[::20]]


def compared(name, heard):
    """For one model and one utterance: KL of each node, and how probably one of the model's paths comes by."""
    (ours, said), (theirs, _) = (recognisers[who].lattice(heard.wave, heard.text) for who in (name, "T1"))
    return kl_map(ours, theirs, said).ravel(), occupancies(ours, said).ravel()


found = {name: [compared(name, heard) for heard in some] for name in ("S1", "B1")}
mean_kl = {name: np.mean([kl.sum() for kl, _ in pairs]) for name, pairs in found.items()}
nearer = np.mean([np.mean(a > b) for (a, _), (b, _) in zip(found["S1"], found["B1"], strict=True)])
print(f"KL to T1, mean of {len(some)} utterances:", *(f"{name} {kl:.1f}" for name, kl in mean_kl.items()), sep="  ")
print(f"but at {nearer:.0%} of the nodes the untaught model is nearer to the teacher than the taught one")
assert mean_kl["S1"] < 0.7 * mean_kl["B1"]

# %% [markdown]
# That is why a picture of one node, such as the first one above, proves nothing.
#
# ## Sum or mean
#
# **Question.** $\alpha = 0.02$ looks small. Is it? The KL is a sum over all nodes of an utterance, which are hundreds.
# So 0.02 is the weight of a single node. If one took the mean over the nodes, the same loss would need an $\alpha$ of
# about 5. Mind that the sum grows with length times length, and the transducer's loss only with length: long utterances
# are taught more. The paper's have thousands of nodes, so the same 0.02 weighs there some twenty times more than here.
#
# **Break it.** Frameworks like to average. Take the mean over the nodes with the same $\alpha$, and see what is left of
# the teaching. Three students start from B1, which has finished its training, and get 40 steps more on eight
# utterances: without a teacher, with the sum, with the mean.

# %%
training = utterance.part("train")
lesson = [utterance.hear(u) for u in training[:: len(training) // 8][:8]]


def go_on(alpha, steps=40, rate=5e-4):
    pupil, kl = models.load("B1"), []
    adam, batch = Adam(pupil.model), utterance.batch(lesson, pupil)
    settings = TINY.override([f"alpha={alpha}"]).settings
    for _ in range(steps):
        loss, _, apart = lattice_loss(pupil.model, teacher.model, batch, batch.features, settings)
        loss.backward()
        adam.step(rate)
        kl.append(apart.mean())
    return kl


# %%
nodes = np.mean([np.prod(teacher.lattice(heard.wave, heard.text)[0].shape[:2]) for heard in lesson])
alphas = {"no teacher": 0, "sum": 0.02, "mean": 0.02 / nodes}
curves = {name: go_on(f"{alpha:.8f}") for name, alpha in alphas.items()}
draw.show(
    draw.curves(curves, label="KL to the teacher", log=False),
    "KL to T1, summed over the lattice, while B1 is trained further. With the sum it falls quickly. With the mean "
    "little is left of the teaching.",
)
print(
    f"{nodes:.0f} nodes an utterance;",
    *(f"{name}: {kl[0]:.0f} -> {kl[-1]:.0f}" for name, kl in curves.items()),
    sep="  ",
)
assert curves["sum"][-1] < 0.6 * curves["sum"][0] and curves["mean"][-1] > 0.7 * curves["no teacher"][-1]

# %% [markdown]
# These eight utterances are training data. Whether the student also *hears* better takes a test set and whole
# trainings: [notebook 11](11_cascade.ipynb). What a notebook cannot show is distillation from scratch: in the first
# hundred steps the transducer losses of a taught and an untaught student look the same, and only the KL moves apart.
#
# ## What it costs
#
# **Question.** Why is the teacher asked anew at every step? It does not change, so one could store its answers.
#
# **Exercise 3.** LibriSpeech has 281,241 training utterances, of 12.3 s on average: 154 rows of 80 ms, and 33 words. If
# each word were one unit of the paper's 10,026 (it is some 41 units in truth), how many terabytes would the teacher's
# distributions be, at 2 bytes a number? (A terabyte is $10^{12}$ bytes. Mind that 33 labels make more than 33 columns.)

# %%
utterances, rows, U, V = 281_241, 154, 33, FULL.settings.vocab_size
# SOLUTION: terabytes = ...
terabytes = utterances * rows * (U + 1) * V * 2 / 1e12
# END SOLUTION
one = np.empty((rows, U + 1, V), np.float16)  # reserved, never filled
check(terabytes, utterances * one.nbytes / 1e12, "Utterances, times nodes, times symbols, times bytes.")

# %% [markdown]
# So nobody stores them. (SpecAugment would forbid it anyway: the features are hidden in other places in every epoch.)
# Two ways out are known. This project asks the teacher during training, for a chunk of nodes at a time, alongside the
# student, and throws the answers away. Panchapagesan et al. (2011.06110) *collapse* each distribution to three numbers,
# blank, next label, and the rest.

# %%
print(f"collapsed: {utterances * rows * (U + 1) * 3 * 2 / 1e9:.1f} GB")
whole, collapsed = (kl_map(lattices["S1"], lattices["T1"], labels, kind).sum() for kind in ("full", "collapsed"))
print(f"KL of S1 on our utterance: full {whole:.1f}, collapsed {collapsed:.1f}")
assert collapsed <= whole + 1e-6

# %% [markdown]
# What is lost is what the teacher thinks within the rest, for instance that SIXTY is likelier than NINE.
#
# ## Which nodes is the lesson about?
#
# **Question.** The student will walk along a narrow path. How much of the KL lies there? The occupancy $w(t, u)$ of
# notebook 07 is the probability that one of its paths comes by, given the transcript. So $\sum w \cdot \mathrm{KL}$ is
# what a path collects on its way.

# %%
occupied = occupancies(lattices["S1"], labels)
draw.show(
    draw.where_kl_lies(maps["S1"], occupied, said),
    "S1 on our utterance. Left: the KL of each node. Middle: where its paths go. Right: the product, in the colours of "
    "the left picture. Little is left: student and teacher disagree mostly where no likely path of the right text "
    "goes.",
)
print(f"sum of KL {maps['S1'].sum():.1f}, of w KL {(occupied * maps['S1']).sum():.1f}")
assert (occupied * maps["S1"]).sum() < 0.5 * maps["S1"].sum()

# %% [markdown]
# Is the rest wasted? It moves layers that all nodes share, so it need not be. The table of
# [notebook 11](11_cascade.ipynb) cannot say, because it compares the whole sum with no teacher at all. So weight each
# node with $w$ and see. `kl_weighting=paths` does this, with a larger $\alpha$ because the sum is smaller; it is not in
# the paper. On the default corpus, with three seeds, the smallest students came out better, and the larger one about
# equal. Weights and $\alpha$ changed together, so which of them did it is open. The numbers, and what else was tried,
# are in `docs/distillation.md`.
#
# ## The number
#
# The share of the KL at nodes where a path comes by with less than 1 %, over the test utterances from above. Beside it
# the share of such nodes. Were the KL spread evenly, the two would be equal; if the first is larger, then the models
# agree better where the paths go than elsewhere.

# %%
for name, pairs in found.items():
    kl, occupied = (np.concatenate(column) for column in zip(*pairs, strict=True))
    rare = occupied < 0.01
    print(f"{name}: {kl[rare].sum() / kl.sum():.0%} of its KL to T1, at {rare.mean():.0%} of the nodes")
    assert kl[rare].sum() > 0.5 * kl.sum() and rare.mean() > 0.5

# %% [markdown]
# So what is left to learn lies mostly where no likely path of the right text goes. (It is what is *left*: a taught
# student may have learned the visited nodes first. And what to do after a wrong unit, this lattice does not teach at
# all.)
#
# **Next:** [11 the cascade](11_cascade.ipynb): does it help, and is a chain of teachers better than one?
