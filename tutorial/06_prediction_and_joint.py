# %% [markdown]
# # 06 Prediction and joint: the half that does not hear
#
# The encoder ([05](05_conformer.ipynb)) hears and cannot write. Beside it stands the *prediction network*, which reads
# what has been written so far and does not hear. Where both meet, in the *joint network*, it is decided what to write
# next, or to write nothing and listen on. The three together are a *transducer*: it reads one sequence, rows of sound,
# and writes another, units, and after each row it may write or wait.
#
# You will be able to count a transducer's parameters, to say what its prediction network may know, and to recognise a
# model that cheats.

# %%
from dataclasses import replace

import numpy as np

from mini_pkd import warm_up
from mini_pkd.features import mfcc
from mini_pkd.optimizer import Adam
from mini_pkd.predictor import Predictor, with_start
from mini_pkd.ragged import Batch
from mini_pkd.rnnt_loss import log_probs, rnnt_loss
from mini_pkd.scales import FULL, Size
from mini_pkd.tensor import Tensor, no_grad
from mini_pkd.transducer import Transducer, count_parameters
from tutorial import draw, models, utterance
from tutorial.exercise import check

warm_up.ensure()
spoken, teacher = utterance.load(), models.load("T1")
bpe, model = teacher.bpe, teacher.model
labels = np.array(bpe.encode(spoken.text))
print(spoken.text, "=", " ".join(bpe.units[i] for i in labels))
draw.hear(spoken.path)

# %% [markdown]
# ## What has been said
#
# **Question.** What does the prediction network know? Row $u$ knows the first $u$ labels, $y_1, \dots, y_u$, and
# nothing else. $E$ is a table with a row for each symbol, and LSTM a network that carries a state from label to label:
#
# $$ g_u, s_u = \mathrm{LSTM}(E_{y_u}, s_{u-1}) \qquad u = 0, \dots, U \qquad y_0 = \text{blank} $$
#
# A text of $U$ labels has $U + 1$ rows: before the first, between, and after the last. Row 0 has seen nothing. Its
# input is the blank, symbol 0, which never occurs in a text, so there it can only mean "a sentence begins".

# %%
network = Predictor(V := 6, 4, layers=1, L=3, rng=np.random.default_rng(0))
said = np.array([3, 1, 4, 1, 5])
print("labels", said, "become inputs", with_start(said, [5]))
print(network(said, [5]).data.shape)

# %% [markdown]
# **Exercise 1.** We replace the third label, `said[2]`, by another. Which is the first of the six rows that changes?

# %%
# SOLUTION: first = ...
first = 3  # rows 0, 1 and 2 have seen no more than two labels
# END SOLUTION
other = np.where(np.arange(5) == 2, 2, said)
changed = np.abs(network(other, [5]).data - network(said, [5]).data).max(axis=1) > 0
check(first, np.flatnonzero(changed)[0], "Row u has seen u labels. How many must a row have seen to know the third?", 0)

# %% [markdown]
# ## Where both halves meet
#
# **Question.** How do $T'$ rows that hear and $U + 1$ rows that read become a decision? Every pair of them is a *node*
# $(t, u)$: "at row $t$, with $u$ labels said". At each node, the joint network scores all $V$ symbols:
#
# $$ \mathrm{logits}(t, u) = \tanh(W_e\,h_t + W_p\,g_u + b)\,E^\top + c $$
#
# $h_t$ is the encoder's row, and $W_e, W_p, b, c$ are learned. $E$ is the table once more: a symbol's score is the
# product with its own row of it (why, comes below: "One table, two uses"). Before the tanh is a *sum*, so each half is
# multiplied once per row, not once per node. `lattice_inputs` returns the two summands, and that is all that is kept of
# an utterance until the loss.

# %%
features = teacher.normaliser(mfcc(spoken.wave))
batch = Batch(["spoken"], features, np.array([len(features)]), labels, np.array([len(labels)]))
(enc, pred, table, bias), _ = model.lattice_inputs(batch, features)
print(f"enc {enc.shape}, pred {pred.shape}, table {table.shape}, bias {bias.shape}")
P = np.exp(log_probs(enc.data, pred.data, table.data, bias.data))
print(f"probabilities {P.shape}: {P.size:,} numbers from {enc.data.size + pred.data.size:,}")
assert np.allclose(P, np.exp(teacher.lattice(spoken.wave, spoken.text)[0]), atol=1e-5)

# %% [markdown]
# **Exercise 2.** How many rows are multiplied by $W_e$ or $W_p$ for this utterance, and how many would it be if both
# were applied at every node? Give the second divided by the first, with `T` and `U`.

# %%
T, U = len(enc.data), len(labels)
# SOLUTION: saved = ...
saved = 2 * T * (U + 1) / (T + U + 1)
# END SOLUTION
check(
    saved,
    2 * P[..., 0].size / (len(enc.data) + len(pred.data)),
    "T rows of one kind, U + 1 of the other. There are T (U + 1) nodes, and each would need both products.",
)

# %% [markdown]
# **Do both halves matter?** Take one away: give every node the first row of the prediction network, as if nothing had
# been said; or the mean row of the encoder, as if nothing in particular had been heard. The loss is minus the
# log-probability of the right text, which [07](07_lattice.ipynb) is about. Here it is enough that less is better.


# %%
def losses(spoken):
    log_p, labels = teacher.lattice(spoken.wave, spoken.text)
    batch = Batch([""], x := teacher.normaliser(mfcc(spoken.wave)), np.array([len(x)]), labels, np.array([len(labels)]))
    (enc, pred, *joint), T = model.lattice_inputs(batch, x)
    deaf = Tensor(np.repeat(enc.data.mean(axis=0, keepdims=True), len(enc.data), axis=0))
    without_memory = Tensor(np.repeat(pred.data[:1], len(pred.data), axis=0))
    sides = [(enc, pred), (enc, without_memory), (deaf, pred)]
    return [float(rnnt_loss(*pair, *joint, labels, T, batch.label_lengths)[0].data) for pair in sides]


with no_grad():
    both, no_memory, deaf = np.mean([losses(utterance.hear(u)) for u in utterance.part("test-clean")[:30]], axis=0)
print(f"mean loss of 30 utterances: both {both:.1f}, without what was said {no_memory:.1f}, without sound {deaf:.1f}")
assert both < no_memory and both < deaf

# %% [markdown]
# Without memory every node is told that nothing was said yet; without sound it still knows how a word goes on. But the
# numbers say less than they seem to: a half that is taken away
# from a model trained with both leaves a hole. They do not tell us how well a model that never had it would do.
#
# ## Without sound it is a language model
#
# **Question.** What can the prediction network learn on its own? At each node a model writes a unit and stays in its
# row, or says blank and goes to the next. Such a walk is a *path* (07). Give it one row of silence, $h = 0$ and $T' =
# 1$: then there is one path only, all labels, and a blank for the end. The transducer's loss is that of a language
# model,
#
# $$ -\sum_{u=0}^{U-1} \ln P(y_{u+1} \mid y_1 \dots y_u) - \ln P(\mathrm{end} \mid y_1 \dots y_U) $$
#
# and 80 steps on the training texts teach it what usually follows what. The cell below is long and has no idea of its
# own: a small model, a loss without sound, and the training loop of notebook 08. Its picture is what counts.


# %%
def texts(part):
    ids = [bpe.encode(u.text) for u in utterance.part(part)[:500]]
    return np.concatenate(ids), np.array([len(i) for i in ids])


def read(model, inputs, lengths):  # the prediction network, with its inputs as they are
    rows = model.predictor.embedding(inputs)
    for layer in model.predictor.layers:
        rows = layer(rows, lengths + 1)
    return model.predictor_to_joint(rows)


def loss(model, text, cheat=False):
    labels, lengths = text
    inputs = with_start(labels, lengths)
    pred = read(model, np.roll(inputs, -1) if cheat else inputs, lengths)
    silence = Tensor(np.zeros((len(lengths), pred.shape[1]), np.float32))
    joint = model.table, model.output_bias
    mean, _ = rnnt_loss(silence, pred, *joint, labels, np.ones_like(lengths), lengths)
    return mean * (len(lengths) / (lengths + 1).sum())  # per symbol, the end included


train, heldout = texts("train"), texts("test-clean")


def learn(cheat):
    size = Size(3, 16, 2, 4, 4, 2, joint_width=64, lstm_layers=1, lstm_width=64)  # of the encoder, which stays unused
    model = Transducer(size.config(bpe.size), np.random.default_rng(0))
    adam, curve = Adam(model), []
    for _ in range(80):
        with no_grad():
            curve.append([float(loss(model, heldout, seen).data) for seen in (cheat, False)])
        loss(model, train, cheat).backward()
        adam.step(1e-2)
    return model, np.array(curve).T


language_model, (honest, _) = learn(cheat=False)
print(f"loss a symbol on texts not trained on: {honest[0]:.2f} -> {honest[-1]:.2f}, ln V = {np.log(bpe.size):.2f}")
assert honest[-1] < 0.7 * honest[0]

# %%
inputs = with_start(labels, [len(labels)])
with no_grad():
    rows = read(language_model, inputs, np.array([len(labels)]))
silence = np.zeros((1, rows.shape[1]))
guesses = np.exp(log_probs(silence, rows.data, language_model.table.data, language_model.output_bias.data))[0]
draw.show(
    draw.guesses(guesses, bpe.units, labels),
    "What comes next, if one may only read? A column for each number of labels said, with the last of them below it; "
    "rings mark what did come. Symbols that are nowhere likely are left out. It knows which endings fit which "
    "beginnings, but not which number will be said: for "
    "that one must listen.",
)
assert np.allclose(guesses.sum(axis=1), 1, atol=1e-4)

# %% [markdown]
# ## Break it: row $u$ reads label $u + 1$
#
# **Question.** What if the labels are fed one row too early? The start symbol is forgotten, row $u$ gets the label
# that it should foretell, and it is an easy mistake: the shapes are right, and the loss falls as never before.

# %%
_, (cheating, asked) = learn(cheat=True)
draw.show(
    draw.cheating({"honest": honest, "cheats": cheating, "cheat, honest inputs": asked}, np.log(bpe.size)),
    "Loss a symbol on texts not trained on. The cheat is nearly perfect, on new texts too, since the answer is in its "
    "input. In decoding nobody can give it a label that is not yet said; with honest inputs it is worse "
    "than the dotted line, which is a model that knows nothing.",
)
print(f"honest {honest[-1]:.2f}, cheats {cheating[-1]:.4f}, and when it has to decode {asked[-1]:.2f}")
assert cheating[-1] < 0.2 * honest[-1] and asked[-1] > honest[-1] and asked[-1] > np.log(bpe.size)

# %% [markdown]
# So a loss that is too good is a symptom (the other usual cause is test text that was in training), and held-out data
# does not protect from it. Decoding does: it never receives the text. Exercise 1 is the test for it: *a row must not
# change with a label that it has not seen*.
#
# ## One table, two uses
#
# **Question.** Where are the parameters? The table $E$ gives a label its row on the way in, and scores it on the way
# out. Both are $V \times J$, so one tensor does for both: the weights are *tied*. Its gradient is the sum of what both
# uses send back, which the tape does by itself ([02](02_autodiff.ipynb)).


# %%
def table_gradient(out):
    for parameter in model.named_parameters().values():
        parameter.grad = None
    (enc, pred, _, bias), T = model.lattice_inputs(batch, features)
    rnnt_loss(enc, pred, out, bias, labels, T, batch.label_lengths)[0].backward()
    return model.table.grad


tied, copy = table_gradient(model.table), Tensor(model.table.data.copy(), requires_grad=True)
going_in, coming_out = table_gradient(copy), copy.grad
total = np.abs(going_in + coming_out - tied).max()
print(f"largest gradient: way in {np.abs(going_in).max():.3f}, way out {np.abs(coming_out).max():.3f}")
print(f"their sum and the gradient of the tied table differ by {total:.0e}")
assert np.allclose(tied, going_in + coming_out, atol=1e-4 * np.abs(tied).max())

# %% [markdown]
# **Exercise 3.** How many parameters does tying save in the paper's teacher? $V$ and $J$ are in `config`.

# %%
config = FULL.sizes["T1"].config(symbols=10026)
print(f"V = {config.symbols}, J = {config.joint_width}, {count_parameters(config):,} parameters in all")
# SOLUTION: saved = ...
saved = config.symbols * config.joint_width
# END SOLUTION
no_symbols = count_parameters(replace(config, symbols=0))
check(
    saved,
    count_parameters(config) - no_symbols - config.symbols,  # each symbol has a bias besides
    "One table less: a row for each symbol, as wide as the joint network.",
    0,
)

# %% [markdown]
# ## The number
#
# The table's share. It grows when everything else shrinks, because the vocabulary does not: the paper's smallest
# student, `24` of the full scale, has a fifth of the teacher's parameters and a table two fifths as large as the
# teacher's.

# %%
smallest = Transducer(FULL.sizes["24"].config(10026), np.random.default_rng(0))
built = {"tiny T1": model, "tiny S3": models.load("S3").model, "full 24": smallest}
parts = {name: built[name].parameters_by_part() for name in built}
share = {name: part["table"] / sum(part.values()) for name, part in parts.items()}
share["full T1"] = config.symbols * config.joint_width / count_parameters(config)
draw.show(
    draw.parts(parts),
    f"Parameters by part, each model as a bar of 100 %. In the tiny models, V = {bpe.size}, the table is a sliver. "
    f"With V = 10026 it is {share['full 24']:.0%} of the smallest student (and {share['full T1']:.0%} of "
    "its teacher, not drawn). The output bias is too thin to be seen.",
)
for name, value in share.items():
    print(f"{name}  table {value:6.1%}")
assert share["tiny T1"] < 0.05 < share["full T1"] < share["full 24"]
assert sum(parts["full 24"].values()) == count_parameters(FULL.sizes["24"].config(10026))

# %% [markdown]
# **Next:** [07 the lattice](07_lattice.ipynb), where all nodes come together, and every way to say a sentence is added
# up.
