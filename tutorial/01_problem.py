# %% [markdown]
# # 01 The problem: a recogniser that fits into a pocket
#
# A speech recogniser that runs on a phone must be small. Small recognisers make more mistakes. The paper that this
# project rebuilds (Rathod et al., Interspeech 2022, arXiv 2210.00169) asks how to shrink one without losing much: let a
# large model, the *teacher*, show a smaller one, the *student*, what it thinks at every moment, let that student teach
# a smaller one still, and so on.
#
# The paper has 960 hours of people reading books. We have 49 minutes of synthetic voices that say number words, 34
# different ones, so that everything can be trained in minutes.
#
# This notebook shows what goes in, what comes out, and the picture that all of it is about. The twelve after it build
# every part, and in 11 you will judge the idea yourself.
#
# Once per machine, the kernels are compiled, which takes about 40 seconds of the first cell. After that every notebook
# takes less than a minute.

# %%
import numpy as np
from IPython.display import Markdown, display

from mini_pkd import warm_up
from mini_pkd.report import table1
from mini_pkd.scales import FULL
from mini_pkd.tables import as_markdown
from mini_pkd.transducer import count_parameters
from tutorial import draw, models, utterance
from tutorial.exercise import check

warm_up.ensure()
spoken = utterance.load()
print(spoken.text)
draw.hear(spoken.path)

# %% [markdown]
# ## In: sound. Out: words
#
# **Question.** What does a trained model do with this? One call: 16,000 samples a second go in, text comes out.
# T1 is the teacher. S3 was taught by a student of T1. B2 is as small as S3, and nobody taught it.
#
# You will follow this one utterance through all notebooks.

# %%
for name in ("T1", "S3", "B2"):
    recogniser = models.load(name)
    print(f"{name}  {models.megabytes(name):4.1f} MB  {recogniser.transcribe(spoken.wave)}")

# %% [markdown]
# One utterance proves nothing: a model may be lucky. The test set has some six hundred. The *word error rate* (WER) is
# the number of wrong, missing and superfluous words over all of them, divided by the number of words.
#
# ## The trade
#
# **Question.** What does a megabyte buy? Here are all six models of the default run, `python -m mini_pkd.cascade`. A
# *progressive* student was taught by the student before it: T1 taught S1, and S1 taught S3. A *direct* one was taught
# by T1 itself: S2. S1 is both, because it is the first. A *baseline* was taught by nobody: B1 and B2.
#
# Two numbers a / b belong to test-clean and test-other, an easier and a harder test set. SER is the share of
# utterances with at least one error. "vs T1" is how the WER changed from T1's, "vs B" from that of the baseline of the
# same size, both relative. Whether the progressive student beats the direct one is the question of notebook 11; do not
# answer it from one run.

# %%
runs = models.runs()
display(Markdown(as_markdown(*table1(runs, compact=True))))
draw.show(
    draw.wer_against_size(runs),
    "Word error rate against size. To the left is smaller, down is better. Bars are 95 % intervals: of a "
    "hundred made in this way, some 95 hold the rate of an endless test set of this kind. Compare models of one size: "
    "are the taught ones (circle, square) below the one that nobody taught (triangle)? Where bars overlap "
    "much, it may be luck.",
)

# %% [markdown]
# **A model's size** is a product: the number of parameters times the bytes of one. Ours have 4 bytes each. The file
# also holds the units and the scale of the features, some 0.04 MB: nothing for T1, but a fifth of S3's file.

# %%
size = models.load("T1").model.num_parameters()
print(f"T1 has {size:,} parameters: {4 * size / 1e6:.2f} MB, and its file has {models.megabytes('T1'):.2f} MB")
assert abs(models.megabytes("T1") - 4 * size / 1e6) < 0.1

# %% [markdown]
# **Exercise 1.** The paper's own T1 has 128 million parameters. How many MB is that, at 4 bytes each?

# %%
# SOLUTION: megabytes = ...
megabytes = 128 * 4
# END SOLUTION
t1 = count_parameters(FULL.sizes["T1"].config(10026))
check(megabytes, lambda mb: abs(mb - 4 * t1 / 1e6) < 2, "A million parameters of 4 bytes are 4 MB.")

# %% [markdown]
# **Exercise 2.** And the smallest student, S8, which the paper makes 81 % smaller than T1?

# %%
# SOLUTION: megabytes = ...
megabytes = (1 - 0.81) * 128 * 4
# END SOLUTION
s8 = count_parameters(FULL.sizes["24"].config(10026))  # "24" is S8: 24 million parameters
check(megabytes, lambda mb: abs(mb - 4 * s8 / 1e6) < 3, "81 % smaller leaves 19 % of it.")

# %% [markdown]
# ## Break it: noise
#
# **Question.** How robust is what was learned? Add white noise to the same utterance, louder and louder. SNR is how
# much stronger the speech is than the noise, in decibels: at 0 they are equally strong, and 20 dB are a factor of 10
# in amplitude.

# %%
rng = np.random.default_rng(0)
noise = rng.standard_normal(len(spoken.wave)) * np.sqrt(np.mean(spoken.wave**2))
teacher = models.load("T1")
heard = {}
for snr in (40, 20, 10, 0, -10):
    heard[snr] = teacher.transcribe(np.clip(spoken.wave + noise * 10 ** (-snr / 20), -1, 1))
    print(f"{snr:4d} dB  {heard[snr]}")
assert heard[-10] != heard[40]

# %% [markdown]
# It does not say "I do not know". It was trained on number words alone and has no way to say "this is no speech", so
# noise becomes number words, too.
#
# ## Break it: a word that it cannot know
#
# The output is made of *units*, pieces of words (notebook 04), learned from the training text. A word with a letter
# that never occurred there cannot be written at all; one with known letters can be written, but was never heard.

# %%
letters = {unit for unit in teacher.bpe.units if len(unit) == 1}
for word in ("SEVENTEEN", "NINETYTHREE", "JAZZ"):
    missing = sorted(set(word) - letters)
    print(f"{word:12s}", f"cannot be written: no unit for {', '.join(missing)}" if missing else "can be written")
assert set("JAZZ") - letters

# %% [markdown]
# **Exercise 3.** Which letters of the alphabet can this model never write? Give them as a sorted string.

# %%
alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# SOLUTION: never = ...
never = "".join(letter for letter in alphabet if letter not in letters)
# END SOLUTION
check(
    never, lambda s: set(s) == set(alphabet) - letters and s == "".join(sorted(s)), "Go through the alphabet in order."
)

# %% [markdown]
# ## The number
#
# Teacher and smallest student on the whole test set: what was saved, and what it cost.

# %%
teacher_wer, student_wer = (100 * runs.mean(name, "wer", "test-clean") for name in ("T1", "S3"))
low, high = (100 * bound for bound in runs.get("S3", "wer_ci95", "test-clean")[0])
print(f"T1  {models.megabytes('T1'):.2f} MB  WER {teacher_wer:.1f} %")
print(f"S3  {models.megabytes('S3'):.2f} MB  WER {student_wer:.1f} % [{low:.1f}, {high:.1f}]")
assert models.megabytes("S3") < 0.25 * models.megabytes("T1") and low <= student_wer <= high

# %% [markdown]
# **Next:** [02 autodiff](02_autodiff.ipynb): how a program learns the derivative of what it has just computed.
