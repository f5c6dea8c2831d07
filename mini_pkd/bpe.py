"""Byte pair encoding: subword units learned from word counts (Sennrich, Haddow & Birch 2016).

The units are what the model writes.  To find them, write every word as its characters with the word marker "▁" in
front, THE -> ▁ T H E.  Then, again and again, find the pair of neighbouring units that occurs most often in the whole
text, and glue it together everywhere:

    ▁ T H E  ->  ▁T H E  ->  ▁TH E  ->  ▁THE

until there are enough units.  Frequent words become one unit, rare ones stay a few pieces, and every word of known
characters can be written.  Pairs never reach across two words.  Decoding joins the units and turns "▁" into a space.

What we decide:
- Ids 1 .. V-1 are the units, first the characters in code-point order, then the merges in the order in which they
  were learned.  Id 0 is the blank (ragged.py); it has no spelling, and V counts it.
- Ties: of the pairs with the highest count, the one with the smallest (left id, right id) wins.  So a vocabulary
  depends on the counts alone, not on the order of the words nor on the machine.
- Counts are counts of positions: AAA holds the pair (A, A) twice.  Merging goes from left to right.
- When every word has become one unit, nothing is left to merge: V is then smaller than asked for.
- No two units share a spelling (a test checks it), so vocabulary_file.py can name a unit by it.

Left out: bytes instead of characters, BPE dropout, unigram language models.  Files: vocabulary_file.py.
"""

import hashlib
import json
from collections import Counter
from functools import partial
from itertools import pairwise

from . import UserError, fast_bpe

MARKER = "▁"  # U+2581, stands in front of every word


def word_counts(texts):
    """{word: how often it occurs}, which is all that training needs; words that contain "▁" are left out.

    >>> word_counts(["ONE TWO ONE", "TWO ONE"])
    {'ONE': 3, 'TWO': 2}
    """
    counts = Counter()
    for text in texts:
        counts.update(text.split())
    return {word: count for word, count in counts.items() if MARKER not in word}


# --- learning the merges --------------------------------------------------------------------------


def glue(ids, pair, new):
    """Replace `pair` by `new`, from left to right.

    >>> glue([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    left, right = pair
    glued = []
    for unit in ids:
        if unit == right and glued and glued[-1] == left:
            glued[-1] = new  # which is neither left nor right, so it will not be glued again
        else:
            glued.append(unit)
    return glued


def learn_merges_readable(words, counts, wanted, new, progress=False):
    """The whole idea: count every pair, glue the most frequent one, and again -> [(pair, its count)].

    `words` are lists of ids, `counts` says how often each word occurs; `wanted` is the number of merges, `new` the id
    of the first.
    """
    merges = []
    for _ in range(wanted):
        total = Counter()
        for word, count in zip(words, counts, strict=True):
            for pair in pairwise(word):
                total[pair] += count
        if not total:
            break
        best = min(total, key=lambda pair: (-total[pair], pair))
        merges.append((best, total[best]))
        words = [glue(word, best, new) for word in words]
        new += 1
    return merges


learn_merges = partial(fast_bpe.learn_merges, glue=glue)  # the same merges, without counting all words again


# --- the vocabulary -------------------------------------------------------------------------------


class BPE:
    """A vocabulary: characters and merges, and with them encode() and decode().

    >>> bpe = BPE.train({"ONE": 5, "TONE": 2}, vocab_size=8)
    >>> print(bpe.listing())
    V = 8: blank, 5 characters, 2 merges
       0  (blank)
       1  E
       2  N
       3  O
       4  T
       5  ▁
       6  NE            N + E, 7 times
       7  ONE           O + NE, 7 times
    >>> bpe.encode("TONE ONE")
    [5, 4, 7, 5, 7]
    >>> bpe.decode([5, 4, 7, 5, 7])
    'TONE ONE'

    Asked for more than there is to learn, it stops when each word is one unit:

    >>> bigger = BPE.train({"ONE": 5, "TONE": 2}, vocab_size=1000)
    >>> bigger.size, bigger.units[-2:]
    (11, ('TONE', '▁TONE'))
    """

    def __init__(self, characters, merges, counts, asked):
        """`merges[m]` is the pair of ids that became unit len(characters) + 1 + m, `counts[m]` how often
        it stood in the text at that moment, `asked` the V that the user asked for."""
        self.characters, self.asked = characters, asked
        self.merges, self.counts = tuple(merges), tuple(counts)
        units = ["", *characters]  # id 0, the blank, spells nothing
        for left, right in self.merges:
            units.append(units[left] + units[right])
        self.units = tuple(units)
        self._id_of_character = {character: i for i, character in enumerate(characters, start=1)}
        self._id_of_pair = {pair: i for i, pair in enumerate(self.merges, start=len(characters) + 1)}
        self._cache = {}  # word -> ids

    @classmethod
    def train(cls, word_counts, vocab_size, progress=False, learn=learn_merges):
        """Learn `vocab_size` symbols (blank included) from {word: how often it occurs}."""
        words, counts, characters = _split_words(word_counts, vocab_size)
        new = len(characters) + 1
        merges = learn(words, counts, vocab_size - new, new, progress)
        return cls(characters, [pair for pair, _ in merges], [count for _, count in merges], vocab_size)

    @property
    def size(self):
        """V: the blank, the characters and the merges."""
        return len(self.units)

    def encode(self, text):
        """Text -> ids.  Any white space separates words; an unknown character is a UserError."""
        ids = []
        for word in text.split():
            known = self._cache.get(word)
            if known is None:
                if MARKER in word or not self._id_of_character.keys() >= set(word):
                    self._refuse(text)
                known = self._cache[word] = tuple(self._encode_word(word))
            ids.extend(known)
        return ids

    def _encode_word(self, word):
        """Replay training: of all pairs in the word, the one that was learned first is glued first."""
        ids = [self._id_of_character[character] for character in MARKER + word]
        while known := [pair for pair in pairwise(ids) if pair in self._id_of_pair]:
            first = min(known, key=self._id_of_pair.__getitem__)
            ids = glue(ids, first, self._id_of_pair[first])
        return ids

    def _refuse(self, text):
        known = set(self.characters) - {MARKER}
        unknown = sorted({c for c in text if not c.isspace() and c not in known})
        shown, alphabet = (s if len(s) <= 80 else s[:77] + "..." for s in (text, "".join(sorted(known))))
        raise UserError(
            f"the vocabulary does not know the character{'s' * (len(unknown) > 1)} "
            f"{', '.join(map(repr, unknown))} in {shown!r}; write the text with {alphabet} only"
        )

    def decode(self, ids):
        """Ids -> text.  Any sequence of units decodes, also one that no text encodes to."""
        for i in ids:
            if not 0 < i < self.size:
                raise UserError(f"id {i} is not a unit of this vocabulary; its units are 1 to {self.size - 1}")
        return " ".join("".join(self.units[i] for i in ids).replace(MARKER, " ").split())

    def listing(self):
        """The vocabulary for a reader: one line per id."""
        head = f"V = {self.size}: blank, {len(self.characters)} characters, {len(self.merges)} merges"
        if self.size < self.asked:
            head += f" (asked for {self.asked}; every word is one unit, so no pairs are left)"
        lines = [head, "   0  (blank)"]
        lines += [f"{i:4d}  {character}" for i, character in enumerate(self.characters, start=1)]
        pairs = zip(self.merges, self.counts, strict=True)
        for i, ((left, right), count) in enumerate(pairs, start=len(self.characters) + 1):
            parts = f"{self.units[left]} + {self.units[right]}"
            lines.append(f"{i:4d}  {self.units[i]:12s}  {parts}, {count} time{'s' * (count != 1)}")
        return "\n".join(lines)

    def fingerprint(self):
        """Twelve hex digits that change when any unit does: a checkpoint remembers its vocabulary by it.

        >>> BPE.train({"ONE": 5, "TONE": 2}, 8).fingerprint()
        '2f788dfca24c'
        """
        text = json.dumps([self.characters, self.merges])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]

    def __eq__(self, other):
        return isinstance(other, BPE) and (self.characters, self.merges) == (other.characters, other.merges)

    def __hash__(self):
        return hash((self.characters, self.merges))


def _split_words(word_counts, vocab_size):
    """Words as lists of character ids, their counts, and the alphabet in code-point order."""
    for word, count in word_counts.items():
        if word.split() != [word] or MARKER in word:
            raise UserError(f"{word!r} is not one word; BPE takes words without white space and {MARKER!r}")
        if count < 0:
            raise UserError(f"the word {word!r} has the count {count}; counts are 0 or more")
    kept = {word: int(count) for word, count in word_counts.items() if count > 0}
    if not kept:
        raise UserError("there are no words to train BPE on; check that the transcripts are not empty")
    characters = "".join(sorted({MARKER}.union(*kept)))
    if vocab_size < len(characters) + 1:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for the text's {len(characters)} characters "
            f"({characters}) and the blank; ask for at least {len(characters) + 1}"
        )
    id_of = {character: i for i, character in enumerate(characters, start=1)}
    words = [[id_of[character] for character in MARKER + word] for word in kept]
    return words, list(kept.values()), characters


def demo():
    """A tongue twister: count the first merges in the text by hand."""
    text = "SHE SELLS SEA SHELLS BY THE SEA SHORE THE SHELLS SHE SELLS ARE SEA SHELLS I AM SURE"
    bpe = BPE.train(word_counts([text]), vocab_size=30)
    print(bpe.listing())
    ids = bpe.encode("SHE SHARES SEASHELLS")
    print("encode", ids, "=", " ".join(bpe.units[i] for i in ids))
    print("decode", bpe.decode(ids))
    try:
        bpe.encode("SHE SELLS 2 SEA-SHELLS")
    except UserError as error:
        print("refused:", error)


if __name__ == "__main__":
    demo()
