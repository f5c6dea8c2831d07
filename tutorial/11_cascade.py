# %% [markdown]
# # 11 The cascade: who beats whom, and is it luck?
#
# Six models are trained, decoded, and stand in a table. Now comes the part that is most often done badly: saying what
# the table shows. After this notebook you can compare two recognisers, say how sure you are, and know what your test
# set cannot tell.

# %%
import numpy as np
from IPython.display import Markdown, display

from mini_pkd import wer
from mini_pkd.figures import cascade_figure, compression_figure
from mini_pkd.report import table1
from mini_pkd.tables import as_markdown
from mini_pkd.transcript_file import read_transcript
from tutorial import draw, models, utterance
from tutorial.exercise import check

runs = models.runs()

# %% [markdown]
# ## The plan
#
# **Question.** Which models does one need, to know whether a detour pays?
#
# For each size three. The *progressive* student is taught by the student of the stage before, the *direct* one by T1
# itself, and the *baseline* by nobody. Only the difference between the first two is the detour; only the difference to
# the third is teaching. (In the first stage the student before is T1, so the first two are one model.) The detour also
# costs more training: S3 stands on S1's steps as well as on its own.

# %%
draw.show(
    cascade_figure(runs),
    "The cascade of the default run. Each box is a model with its parameters, how much smaller than T1 it is, and its "
    "WER in per cent. Arrows lead from teacher to student. Follow the upper row: that is the detour.",
)
display(Markdown(as_markdown(*table1(runs, compact=True))))

# %% [markdown]
# ## One number for a test set
#
# **Question.** How do we add up the errors of six hundred utterances? They are those of test-clean: new sentences,
# spoken by the voices of training. (test-other has ten voices that were never heard, in noise and rooms.)
#
# Errors over words, both summed first: $\mathrm{WER} = \sum_i e_i \big/ \sum_i w_i$, with $e_i$ the substitutions,
# deletions and insertions of utterance $i$ (notebook 09), and $w_i$ its words.

# %%
references = {u.id: u.text for u in utterance.part("test-clean")}
scores = {name: wer.score(references, read_transcript(models.decoded(name))) for name in runs.names()}
for name, result in scores.items():
    print(f"{name}  {result}")

# %% [markdown]
# **Break it.** Average the WERs of the utterances instead. A wrong word in an utterance of three then weighs more than
# one in an utterance of eight, and the result is a different number: it answers "how wrong is a typical sentence", not
# "how many words are wrong".

# %%
pooled = scores["B2"].wer
averaged = (scores["B2"].errors / scores["B2"].words).mean()
print(f"errors / words: {pooled:.4f}    mean of the utterances' WERs: {averaged:.4f}")
assert pooled != averaged

# %% [markdown]
# **Exercise 1.** A model makes 2 errors in an utterance of 4 words, and none in one of 12. What are the two numbers?
# Give them as (errors over words, mean of WERs).

# %%
# SOLUTION: both = ...
both = (2 / 16, (2 / 4 + 0 / 12) / 2)
# END SOLUTION
two = wer.score({"a": "ONE TWO SIX TEN", "b": " ".join(["ONE"] * 12)}, {"a": "ONE TWO", "b": " ".join(["ONE"] * 12)})
check(both, (two.wer, (two.errors / two.words).mean()), "In the first, 16 words share two errors.")

# %% [markdown]
# ## How sure is one number?
#
# **Question.** Another test set of the same kind would have given another WER. How far away?
#
# We have no other test set, but we can pretend: draw six hundred utterances from ours, with replacement, and compute
# the WER again; ten thousand times. This is the *bootstrap*. The middle 95 % of these WERs are the interval.
# (Utterances of one voice are alike, so the true uncertainty is larger; the careful draw voices.)

# %%
rng = np.random.default_rng(0)
B = len(references)
for _ in range(3):
    drawn = rng.integers(0, B, B)
    print(f"a resample of T1: {scores['T1'].errors[drawn].sum() / scores['T1'].words[drawn].sum():.4f}")
low, high = wer.bootstrap_interval(scores["T1"])
print(f"ten thousand of them: {low:.4f} to {high:.4f}")
assert low < scores["T1"].wer < high

# %% [markdown]
# **Exercise 2.** Four times as many utterances: what happens to the width of the interval? Give the factor.

# %%
# SOLUTION: factor = ...
factor = 1 / 2
# END SOLUTION
many = wer.Score(
    tuple(f"{i:04d}" for i in range(4 * B)), np.tile(scores["T1"].words, 4), np.tile(scores["T1"].edits, (4, 1))
)
narrow = np.subtract(*wer.bootstrap_interval(many)) / np.subtract(low, high)
check(
    factor,
    lambda x: abs(x - narrow) < 0.1,
    "The spread of a sum of n draws grows like the root of n; the WER divides that sum by n.",
)

# %% [markdown]
# ## Two models on one test set
#
# **Question.** The intervals of two models overlap. Are they equal?
#
# Not so fast. Both have heard the *same* utterances: what is hard for one is hard for the other, and that luck they
# share. So resample the utterances once and compute both WERs on the same draw; look at the difference. This is the
# *paired* test. $p$ says in what share of the resamples the difference has the other sign, times two, because either
# model might have been better. With ten thousand of them it cannot be below 0.0002: read that as "never".

# %%
test = wer.paired_test(scores["S1"], scores["B1"])
print(f"{100 * test.difference:+.2f} points [{100 * test.low:+.2f}, {100 * test.high:+.2f}]; p = {test.p_value:.4f}")

# %% [markdown]
# **Break it.** Draw for each model by itself, as if they had had two different test sets. The difference stays, its
# interval grows.

# %%
rng = np.random.default_rng(0)
apart = []
for _ in range(2000):
    a, b = (rng.integers(0, B, B) for _ in range(2))
    first, second = scores["S1"], scores["B1"]
    apart.append(first.errors[a].sum() / first.words[a].sum() - second.errors[b].sum() / second.words[b].sum())
unpaired = np.quantile(apart, [0.025, 0.975])
draw.show(
    draw.differences(
        {
            "paired": (test.difference, test.low, test.high),
            "each by itself": (test.difference, *unpaired),
        }
    ),
    "WER of S1 minus WER of B1 on test-clean, with 95 % intervals: resampled together, and each by itself. The "
    "difference is the same; what is shared cancels only in the first.",
)
assert test.high - test.low < unpaired[1] - unpaired[0]

# %% [markdown]
# ## What one seed cannot tell
#
# All of these intervals are about the luck of the *test set*. Train the same model with another seed, and it is another
# model. `python -m mini_pkd.cascade --seeds 3` trains all of them three times, and the report resamples seeds as well
# as utterances. The project keeps the result in `results/`. With three seeds the spread itself is known only roughly;
# with one, not at all. So a sentence that begins with "our method" needs at least three.

# %%
several = models.seeds()
draw.show(
    compression_figure(several),
    "WER against compression on both test sets, three seeds. A dot is a model of one seed, a bar the 95 % interval "
    "over seeds and utterances together. S1 belongs to both curves. Look at how far apart the dots of one model are "
    "before you believe a difference.",
)
for name in several.names():
    each = 100 * np.array(several.get(name, "wer", "test-clean"))
    print(f"{name}  {each.mean():4.1f} %  seeds", *(f"{rate:.1f}" for rate in each))
assert len(several.seeds) >= 3 and np.ptp(several.get("B2", "wer", "test-clean")) > 0

# %% [markdown]
# **Exercise 3.** Is the progressive S3 better than the direct S2, on this run and test-clean? Answer "better", "worse"
# or "within noise".

# %%
detour = wer.paired_test(scores["S3"], scores["S2"])
print(f"S3 - S2: {100 * detour.difference:+.2f} points [{100 * detour.low:+.2f}, {100 * detour.high:+.2f}]")
# SOLUTION: verdict = ...
verdict = "within noise" if detour.low <= 0 <= detour.high else "better" if detour.high < 0 else "worse"
# END SOLUTION
check(
    verdict,
    lambda v: v == ("better" if detour.high < 0 else "worse" if detour.low > 0 else "within noise"),
    "Does the interval hold zero?",
)

# %% [markdown]
# "Within noise" does not say that two models are equal: anything inside the interval may be true.
#
# ## The number
#
# Every taught model against the untaught one of its size: what teaching is worth, on this run, and as the mean of three
# seeds.

# %%
found = {}
for student, baseline in (("S1", "B1"), ("S2", "B2"), ("S3", "B2")):
    found[f"{student} - {baseline}"] = result = wer.paired_test(scores[student], scores[baseline])
    pooled = several.mean(student, "wer", "test-clean") / several.mean(baseline, "wer", "test-clean") - 1
    print(
        f"{student} - {baseline}: {100 * result.relative[0]:+.0f} % of its errors, p = {result.p_value:.4f};", end=" "
    )
    print(f"three seeds {100 * pooled:+.0f} %")
draw.show(
    draw.differences({name: (r.difference, r.low, r.high) for name, r in found.items()}),
    "WER of each student minus that of the baseline of its size, on test-clean, with paired 95 % intervals. Left of "
    "zero the taught one is better.",
)
assert found["S2 - B2"].high < 0 and found["S3 - B2"].high < 0

# %% [markdown]
# **Next:** [12 streaming and the device](12_streaming.ipynb): the same model while somebody is still speaking.
