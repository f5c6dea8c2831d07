# %% [markdown]
# # 04 Words: what the model writes
#
# [03](03_sound.ipynb) made rows of numbers of a sound. At the other end of the model stands text. A network does not
# write words: it chooses among a fixed list of *units*. This notebook learns the list.
#
# You will be able to do the first merges of byte pair encoding by hand, and to say what a larger vocabulary buys and
# costs.

# %%
from mini_pkd import UserError
from mini_pkd.bpe import BPE, MARKER, learn_merges, learn_merges_readable, word_counts
from tutorial import draw, models, utterance
from tutorial.exercise import check

spoken, teacher = utterance.load(), models.load("T1")
texts = [u.text for u in utterance.part("train")]
counts = word_counts(texts)
print(spoken.text)
print(f"{sum(counts.values())} words of training text, {len(counts)} different ones")

# %% [markdown]
# ## Letters or words?
#
# **Question.** What should the units be?
#
# - *Words*: few steps for a sentence, but a list without end, and a word that is not in it can never be written.
# - *Letters*: a short list that can write anything, but many steps, and a letter is often no sound. The O of ONE and
#   the O of FOUR have little in common.
#
# Byte pair encoding (BPE) starts with letters and glues what often stands together, until the list is as long as we
# like. Frequent words become one unit. Rare ones stay in pieces.

# %%
print(" ".join(teacher.bpe.units[i] for i in teacher.bpe.encode(spoken.text)))
letters = BPE.train(counts, len(set("".join(counts))) + 2)  # room for letters, marker and blank alone: no merges
print(" ".join(letters.units[i] for i in letters.encode(spoken.text)))

# %% [markdown]
# The `▁` marks the beginning of a word. With it, units joined are the text again, spaces included.
#
# ## Gluing
#
# **Question.** Which pair is next? The most frequent one. With $n(w)$ how often word $w$ occurs:
#
# $$ (l, r) = \arg\max_{(l, r)} \sum_{w} n(w) \cdot \#\{\text{places in } w \text{ where } r \text{ follows } l\} $$
#
# Glue it everywhere, count again. If two pairs are equally frequent, the one whose ids are smaller goes first. Any rule
# would do, but there must be one: otherwise two machines make two vocabularies, and a model reads gibberish.

# %%
text = "SHE SELLS SEA SHELLS"
tiny = BPE.train(word_counts([text]), vocab_size=10)
print(tiny.listing())  # symbol 0 spells nothing: the blank, which notebook 06 needs
print("first merge: ▁ before S, four times, once in each word")
assert tiny.units[7] == MARKER + "S"

# %% [markdown]
# A vocabulary of $V$ symbols is the beginning of every larger one, so the merges can be watched as they grow:

# %%
words = sorted(set(spoken.text.split()), key=spoken.text.split().index)
grown, last = {}, len(teacher.bpe.merges)
for merges in (0, last // 8, last // 4, last // 2, 3 * last // 4, last):
    bpe = BPE.train(counts, letters.size + merges)
    assert bpe.units == teacher.bpe.units[: bpe.size]
    grown[merges] = [[bpe.units[i] for i in bpe.encode(word)] for word in words]
draw.show(
    draw.growing(grown),
    "The words of the utterance, after more and more merges. A coloured box is a unit of more than one character; the "
    "colours only set neighbours apart. Words that are frequent in the training text are whole at the end, and others "
    "share pieces.",
)

# %% [markdown]
# **Exercise 1.** Do three merges by hand on a tongue twister. Which unit is the *third* one? Write it with its marker,
# if it has one. Count places in words, not words. Of equally frequent pairs the one that comes first in the alphabet is
# glued first: compare the left parts, then the right ones. `▁` comes after all letters.

# %%
twister = "HOW MUCH WOOD WOULD A WOODCHUCK CHUCK IF A WOODCHUCK COULD CHUCK WOOD"
# SOLUTION: third = ...
third = "▁WO"  # of four pairs that stand 5 times, C H is first and takes one U C (MUCH); W O; then ▁ + WO, 5 times
# END SOLUTION
learned = BPE.train(word_counts([twister]), vocab_size=32)
check(
    third,
    lambda unit: unit == learned.units[len(learned.characters) + 3],
    "Four pairs stand 5 times each at first: C H, U C, W O, ▁ W. Gluing C H takes one U C away, in MUCH. Then W O; "
    "and look what ▁ W has become.",
)

# %% [markdown]
# **Exercise 2.** T1's vocabulary has `V` symbols, and the training text `characters` different characters, `▁`
# included. How many merges were learned?

# %%
V, characters = teacher.bpe.size, len(teacher.bpe.characters)
# SOLUTION: merges = ...
merges = V - characters - 1
# END SOLUTION
check(merges, len(teacher.bpe.merges), "One symbol spells nothing: the blank, number 0. Notebook 06 needs it.", 0)

# %% [markdown]
# **Counting again** after every merge is the whole idea, ten lines, and slow: it goes through all words each time.
# `learn_merges` touches only words that hold the pair. Both must learn the same.

# %%
slow, fast = (BPE.train(counts, V, learn=learn) for learn in (learn_merges_readable, learn_merges))
print(slow == fast == teacher.bpe)
assert slow == fast == teacher.bpe

# %% [markdown]
# ## Writing a word
#
# **Question.** How is a new word cut? Replay the merges in the order in which they were learned. That gives one cut of
# the many that spell the same word:

# %%
word = max(words, key=len)
merged, spelled = teacher.bpe.encode(word), [teacher.bpe.units.index(c) for c in MARKER + word]
for ids in (merged, spelled):
    print(f"{' '.join(teacher.bpe.units[i] for i in ids):24s} -> {teacher.bpe.decode(ids)}")
assert teacher.bpe.decode(merged) == teacher.bpe.decode(spelled) == word and len(merged) < len(spelled)

# %% [markdown]
# The loss of [07](07_lattice.ipynb) counts only the first as right. The search of [09](09_decoding.ipynb) may find the
# other, which reads the same.
#
# ## Break it: a letter that it has never seen
#
# **Question.** What happens to MILLION, if no training word has an M? We make sure that none has.

# %%
without_m = BPE.train({word: count for word, count in counts.items() if "M" not in word}, vocab_size=40)
try:
    refused = without_m.encode("ONE MILLION")
except UserError as error:
    refused = None
    print(error)
assert refused is None

# %% [markdown]
# It refuses, with a sentence. The alternatives are worse: an *unknown* unit teaches the model to write "unknown", and
# leaving the word out teaches it to ignore a part of the sound. Some vocabularies start from the 256 bytes and can
# write everything. Ours starts from characters, because a speech corpus has 26 of them and an apostrophe.
#
# A word that was never heard, but whose letters are known, is another matter: it could be written, but the model will
# hardly come up with it.

# %% [markdown]
# ## How many units?
#
# **Question.** What does a larger $V$ buy, and what does it cost? It buys shorter sequences. It costs a wider output.
# Notebooks 05 to 07 build a table, the *lattice*. It has a place for each of the $T'$ rows that the encoder makes of
# the sound (one every 80 ms), times each number of units said so far, 0 to $U$. At each place, a *node*, stands a score
# for every symbol:
#
# $$ T' \times (U + 1) \times V \ \text{ numbers} $$

# %%
heldout = [u.text for u in utterance.part("test-clean")]
sizes = [letters.size + merges for merges in (0, 2, 4, 8, 12, 16, 24, 32, 40, 52, 64, 76, 88, 400)]
vocabularies = {(bpe := BPE.train(counts, size)).size: bpe for size in sizes}  # the last stops when nothing is left
curves = {}
for name, part in (("training text", texts), ("test-clean", heldout)):
    n = sum(len(text.split()) for text in part)
    curves[name] = [sum(len(bpe.encode(text)) for text in part) / n for bpe in vocabularies.values()]
rows = len(teacher.lattice(spoken.wave, spoken.text)[0])
lattice = [rows * (len(bpe.encode(spoken.text)) + 1) * V for V, bpe in vocabularies.items()]
draw.show(
    draw.units_per_word(list(vocabularies), curves, lattice),
    "Left: units a word against the vocabulary's size; the two curves nearly coincide, and end at 1, when every word "
    "is one unit. Right: numbers in the lattice of the utterance. It goes up with V and falls when the utterance loses "
    "a unit; here neither wins.",
)
assert max(lattice) < 2 * min(lattice)
assert curves["test-clean"][0] > 1.5 * curves["test-clean"][-1] >= 1.5

# %% [markdown]
# The corpus has only a few words, so its curve ends soon, and a model whose units are whole words has learned nothing
# about a word that it has not heard. The real LibriSpeech has 90,000 different words; the paper takes
# $V = 10026$, so most of them are still in pieces.

# %% [markdown]
# **Exercise 3.** How many numbers has the lattice of our utterance, with T1's vocabulary? `rows` are the encoder's;
# get $U$ from `teacher.bpe`.

# %%
# SOLUTION: numbers = ...
numbers = rows * (len(teacher.bpe.encode(spoken.text)) + 1) * teacher.bpe.size
# END SOLUTION
check(
    numbers,
    teacher.lattice(spoken.wave, spoken.text)[0].size,
    "U labels make U + 1 columns: before, between, after.",
    0,
)

# %% [markdown]
# ## The number

# %%
n = sum(len(text.split()) for text in heldout)
per_word = sum(len(teacher.bpe.encode(text)) for text in heldout) / n
per_letter = sum(len(letters.encode(text)) for text in heldout) / n
print(f"{per_word:.2f} units a word with V = {teacher.bpe.size}, {per_letter:.2f} with letters (V = {letters.size})")
assert 1 <= per_word < 0.7 * per_letter

# %% [markdown]
# **Next:** [05 the conformer](05_conformer.ipynb), which turns rows of sound into rows that know their past.
