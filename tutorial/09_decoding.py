# %% [markdown]
# # 09 Decoding and WER: which words, and how wrong
#
# A trained transducer gives probabilities, not words. Decoding searches for the words with the highest probability.
# Then somebody must count the mistakes.
#
# You will be able to say what a beam finds that a greedy search misses, why paths to one text must be merged, and to
# compute a word error rate by hand.

# %%
import numpy as np

from mini_pkd.decode import GreedyStream, TableModel, beam_search_readable, greedy
from mini_pkd.features import mfcc
from mini_pkd.wer import align, bootstrap_interval, paired_test, score
from tutorial import draw, models, utterance
from tutorial.exercise import check

spoken = utterance.load()
print(spoken.text)
draw.hear(spoken.path)

# %% [markdown]
# ## Greedy: the best symbol, every time
#
# **Question.** What is the simplest way through the lattice of notebook 07, when the transcript is not given?
#
# At row $t$ of the encoder, after the symbols said so far, take $\hat k = \arg\max_k P(k \mid t, \text{said so far})$.
# If it is blank, go to the next row; else say it and ask again. `emissions` tells in which row each unit was said, and
# how much of the audio had been heard by then.

# %%
recogniser = models.load("T1", beam=1)
emissions = recogniser.emissions(spoken.wave)
for unit, row, seconds in emissions:
    print(f"row {row:2d}  {seconds:4.2f} s  {unit}")
rows = [row for _, row, _ in emissions]
assert rows == sorted(rows)

# %% [markdown]
# **Break it.** How many symbols may one row say? The package allows 12. Allow only one: where a row would have said two
# units, the second comes a row late, or is lost. Fifty utterances show how often that matters. (Some systems allow one
# symbol a row, in training as well, and lose nothing by it. Ours learned without the limit.)


# %%
def rows_of(wave):
    features = recogniser.normaliser(mfcc(wave))
    return recogniser.model.encode(features, np.array([len(features)]))


some = [utterance.hear(u) for u in utterance.part("test-clean")[::12][:50]]
said = {most: [greedy(recogniser.model, *rows_of(u.wave), most)[0] for u in some] for most in (1, 12)}
crowded = sum(len(e) - len({row for _, row, _ in e}) for e in (recogniser.emissions(u.wave) for u in some))
changed = sum(a != b for a, b in zip(said[1], said[12], strict=True))
print(f"units that share a row with an earlier one: {crowded}; utterances whose units change: {changed} of {len(some)}")
assert (changed > 0) <= (crowded > 0)  # where no row is crowded, the limit changes nothing

# %% [markdown]
# ## Many paths spell one text
#
# **Question.** Is the best path the best text? $P(\text{text})$ is the sum over all paths that spell it, and greedy
# search sees only one of them. Here is a model small enough to do by hand. It has two rows and the symbols a and b, and
# after one symbol it is silent.
#
# | | blank | a | b |
# | --- | --- | --- | --- |
# | row 0 | 0.3 | 0.4 | 0.3 |
# | row 1, nothing said yet | 0 | 0.1 | 0.9 |

# %%
silent = [1.0, 0.0, 0.0]
tiny = TableModel([[[0.3, 0.4, 0.3], silent, silent], [[0.0, 0.1, 0.9], silent, silent]])
names = " ab"
print("greedy says", names[GreedyStream(tiny).push(tiny.enc)[0]])

# %% [markdown]
# **Exercise 1.** Compute $P(\text{a})$ and $P(\text{b})$ by hand: the symbol may be said in row 0, or in row 1 after a
# blank.

# %%
# SOLUTION: p_a, p_b = ..., ...
p_a, p_b = 0.4 + 0.3 * 0.1, 0.3 + 0.3 * 0.9
# END SOLUTION
trace = []
found = {h.labels[0]: np.exp(h.log_prob) for h in beam_search_readable(tiny, tiny.enc, n_best=2, trace=trace)}
check(
    (p_a, p_b),
    lambda p: np.allclose(p, (found[1], found[2])),
    "Two paths spell a: one says it in row 0, one in row 1. The same for b.",
)

# %% [markdown]
# **Break it.** Do not merge: let each path stand for itself. The best path of all spells a, although b is more
# probable. The loser wins. `trace` shows which paths the search has added up.

# %%
unmerged = {labels[0]: max(np.exp(way) for _, way in ways) for labels, ways in trace[-1].items() if labels}
for label in (1, 2):
    print(f"{names[label]}: best path {unmerged[label]:.2f}, all its paths {found[label]:.2f}")
assert max(unmerged, key=unmerged.get) == 1 and max(found, key=found.get) == 2

# %% [markdown]
# ## The beam as a tree
#
# **Question.** Summing over everything is too much. What can be left out? *Beam search* keeps, after every row, the few
# texts that have the most probability so far, each with the sum over its paths that the search kept. Texts that begin
# alike share a trunk. (Strictly, it is sequences of units that are merged. Two cuts of one word stay rivals, as in
# nearly every transducer decoder.)

# %%
beam = models.load("T1")
enc, _ = rows_of(spoken.wave)
trace = []
best = beam_search_readable(beam.model, enc, beam=4, trace=trace)[0]
draw.show(
    draw.beam_tree(trace, beam.bpe.units, tuple(best.labels)),
    "Beam search with 4 hypotheses. Each line is a text that was among the best four, from its first row to its last; "
    "the units at its beginning are what it adds to the text that it grew from. A line begins where its text first "
    "came among the four, often as an unlikely guess, before it has been "
    "heard. Thick is the winner and what it grew from. "
    "Where do rivals live long, and where is there no doubt?",
)
print(beam.bpe.decode(best.labels))
assert all(len(row) <= 4 for row in trace) and tuple(best.labels) in trace[-1]

# %% [markdown]
# A wider beam costs more, and need not hear better: it finds texts of higher probability, and the model may be wrong
# about those.
#
# ## Counting mistakes
#
# **Question.** One word too many shifts all that follow. How many mistakes is that? The fewest edits that turn the
# reference into what was recognised: *substitutions* S, *deletions* D and *insertions* I, summed over the whole test
# set, and only then divided by its N words:
#
# $$ \mathrm{WER} = (S + D + I) \,/\, N $$
#
# Both texts must be written alike first: 63 against SIXTY THREE would be an error though nobody misheard. Real scoring
# tools normalise both sides; our transcripts need none.

# %%
pairs = align("ONE TWO THREE FOUR FIVE".split(), "OH ONE TWO TREE FOUR".split())
for said_word, heard_word in pairs:
    print(f"{said_word or '-':8s}{heard_word or '-'}")
assert sum(a != b for a, b in pairs) == 3

# %% [markdown]
# **Break it.** Average the error rates of utterances instead. A short utterance then counts as much as a long one.

# %%
references = {"short": "NINE", "long": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE"}
result = score(references, {"short": "FIVE", "long": references["long"]})
mean_of_rates = np.mean(result.errors / result.words)
print(f"errors over words: {result.wer:.0%}   mean of the two rates: {mean_of_rates:.0%}")
assert mean_of_rates > 4 * result.wer

# %% [markdown]
# **Exercise 2.** The reference is ONE TWO. Write a hypothesis whose word error rate is 200 %.

# %%
# SOLUTION: hypothesis = ...
hypothesis = "ONE TWO SIX SIX SIX SIX"
# END SOLUTION
check(
    hypothesis,
    lambda text: score({"x": "ONE TWO"}, {"x": text}).wer == 2,
    "Insertions have no limit: 4 errors, 2 words.",
)

# %% [markdown]
# ## The number
#
# Greedy against a beam of 8, with the smallest taught student, on every sixth utterance of the test set, so that all
# voices are in it. The intervals say how much the rate would change with other utterances (notebook 11).

# %%
some = [utterance.hear(u) for u in utterance.part("test-clean")[::6]]
references, rates = {u.id: u.text for u in some}, {}
for width in (1, 8):
    student = models.load("S3", beam=width)
    rates[width] = score(references, {u.id: student.transcribe(u.wave) for u in some})
    low, high = bootstrap_interval(rates[width])
    print(f"beam {width}: WER {100 * rates[width].wer:4.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
both = paired_test(rates[8], rates[1])
print(f"difference {100 * both.difference:+.1f} points [{100 * both.low:+.1f}, {100 * both.high:+.1f}]")
assert rates[8].wer < rates[1].wer + 0.05

# %% [markdown]
# Do not compare the two intervals: both widths heard the same utterances, so the difference has a narrower interval of
# its own. If that is all on one side of zero, the beam helps, even where the two overlap (notebook 11).
#
# **Next:** [10 distillation](10_distillation.ipynb): the probabilities themselves are what a teacher passes on.
