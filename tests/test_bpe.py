"""BPE: the fast trainer against two slow ones, round trips, and the promised speed."""

import random
import time
from collections import Counter

import pytest

from mini_pkd import UserError
from mini_pkd.bpe import BPE, MARKER, learn_merges, learn_merges_readable


def random_counts(seed):
    """Small corpora in which ties, runs such as AAAA, zero counts and one-letter words are common."""
    rng = random.Random(seed)
    alphabet = "ABCDEF"[: rng.randint(1, 6)]
    words = {"".join(rng.choices(alphabet, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 25))}
    highest = rng.choice([1, 3, 50])
    counts = {word: rng.randint(0, highest) for word in sorted(words)}
    counts[min(words)] = 1  # at least one word that counts
    return counts


def oracle(counts, size):
    """An independent trainer: on strings, one glue at a time, ids only to break ties."""
    words = {word: [MARKER, *word] for word, count in counts.items() if count}
    units = sorted({unit for pieces in words.values() for unit in pieces})
    alphabet = len(units)
    while len(units) + 1 < size:
        pairs = Counter()
        for word, pieces in words.items():
            for i in range(len(pieces) - 1):
                pairs[pieces[i], pieces[i + 1]] += counts[word]
        if not pairs:
            break
        most = max(pairs.values())
        tied = [pair for pair, count in pairs.items() if count == most]
        best = min(tied, key=lambda pair: (units.index(pair[0]), units.index(pair[1])))
        for pieces in words.values():
            i = 0
            while i + 1 < len(pieces):
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = ["".join(best)]
                i += 1
        units.append("".join(best))
    return alphabet, units, words


@pytest.mark.parametrize("seed", range(300))
def test_fast_equals_readable_equals_oracle(seed):
    counts = random_counts(seed)
    smallest = len({c for word, n in counts.items() if n for c in word}) + 2  # + marker + blank
    size = smallest + random.Random(seed).choice([0, 1, 5, 30, 1000])
    fast = BPE.train(counts, size, learn=learn_merges)  # of fast_bpe.py
    readable = BPE.train(counts, size, learn=learn_merges_readable)
    assert fast == readable
    assert fast.counts == readable.counts
    alphabet, units, words = oracle(counts, size)
    assert fast.units == ("", *units)
    assert len(fast.characters) == alphabet
    assert fast.size == len(units) + 1 <= size
    assert len(set(fast.units)) == fast.size  # no two units with one spelling
    for word, pieces in words.items():  # encoding a training word gives what training made of it
        assert [fast.units[i] for i in fast.encode(word)] == pieces
    if size == smallest + 1000:  # pairs ran out: each word is one unit
        assert fast.size < size
        assert all(len(fast.encode(word)) == 1 for word in words)


@pytest.mark.parametrize("seed", range(20))
def test_order_of_words_is_irrelevant(seed):
    counts = random_counts(seed)
    words = list(counts)
    random.Random(seed).shuffle(words)
    a, b = BPE.train(counts, 40), BPE.train({word: counts[word] for word in words}, 40)
    assert a == b and a.fingerprint() == b.fingerprint() and hash(a) == hash(b)


@pytest.mark.parametrize("seed", range(50))
def test_round_trip(seed):
    rng = random.Random(seed)
    counts = random_counts(seed)
    bpe = BPE.train(counts, 30)
    letters = sorted(set(bpe.characters) - {MARKER})
    for _ in range(20):
        words = ["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(rng.randint(0, 5))]
        text = " ".join(words)
        ids = bpe.encode(text)
        assert all(type(i) is int and 0 < i < bpe.size for i in ids)
        assert bpe.decode(ids) == text
        assert bpe.encode(text) == ids  # from the cache
        assert bpe.encode("  " + text.replace(" ", " \t\n") + " ") == ids
        assert [i for word in words for i in bpe.encode(word)] == ids


def test_cache_cannot_be_spoiled_by_the_caller():
    bpe = BPE.train({"AB": 1}, 10)
    first = bpe.encode("AB")
    first.append(99)
    assert bpe.encode("AB") == first[:-1]


def test_hand_case():
    # Positions: (A, A) 3 + 2 = 5, (▁, A) 4, (A, B) 1.  AA first: ▁ AA AA, ▁ AA (twice), ▁ A B.
    # Then (▁, AA) 3: ▁AA AA, ▁AA (twice), ▁ A B.  Now a tie of (▁AA, AA), (▁, A) and (A, B), 1 each,
    # with ids (5, 4), (3, 1) and (1, 2): the smallest wins.
    bpe = BPE.train({"AAAA": 1, "AA": 2, "AB": 1}, 7)
    assert bpe.characters == "AB▁"
    assert bpe.merges == ((1, 1), (3, 4), (1, 2))
    assert bpe.units[4:] == ("AA", "▁AA", "AB")
    assert bpe.counts == (5, 3, 1)


def test_decodes_what_no_text_encodes_to():
    bpe = BPE.train({"AB": 3, "C": 1}, 6)
    a, marker = bpe.characters.index("A") + 1, bpe.characters.index(MARKER) + 1
    assert bpe.decode([]) == ""
    assert bpe.decode([a]) == "A"  # no marker in front
    assert bpe.decode([marker, marker, a, marker]) == "A"  # markers without a word
    for wrong in [0, bpe.size, -1]:
        with pytest.raises(UserError, match=f"id {wrong} is not a unit"):
            bpe.decode([a, wrong])


def test_unknown_characters_are_named():
    bpe = BPE.train({"ONE": 1, "TWO'S": 1}, 20)
    with pytest.raises(UserError) as caught:
        bpe.encode("ONE two É 2 TWO'S")
    sentence = str(caught.value)
    for part in ["'2'", "'o'", "'t'", "'w'", "'É'", "ONE two É 2", "'ENOSTW"]:
        assert part in sentence
    assert "\n" not in sentence
    with pytest.raises(UserError, match="character '▁' in 'ONE▁TWO'"):
        bpe.encode("ONE▁TWO")
    with pytest.raises(UserError, match="'x'"):
        bpe.encode("x" * 1000)
    assert len(bpe.encode("ONE")) > 0  # still works


def test_bad_training_input():
    for counts, size, sentence in [
        ({}, 10, "no words"),
        ({"A": 0}, 10, "no words"),
        ({"ABC": 1}, 4, "too small .* at least 5"),
        ({"A B": 1}, 10, "not one word"),
        ({"": 1}, 10, "not one word"),
        ({"A▁": 1}, 10, "not one word"),
        ({"A": -1}, 10, "count -1"),
    ]:
        with pytest.raises(UserError, match=sentence):
            BPE.train(counts, size)
    assert BPE.train({"ABC": 1}, 5).size == 5


def test_listing_says_when_pairs_ran_out():
    bpe = BPE.train({"AB": 3}, 100)
    assert bpe.size == 6
    lines = bpe.listing().splitlines()
    assert "V = 6" in lines[0] and "asked for 100" in lines[0]
    assert len(lines) == 1 + bpe.size
    for i, line in enumerate(lines[1:]):
        assert int(line.split()[0]) == i
    assert "asked" not in BPE.train({"AB": 3}, 6).listing()


def test_equality_and_fingerprint_tell_vocabularies_apart():
    vocabularies = [
        BPE.train({"AB": 3, "BC": 2}, 7),
        BPE.train({"AB": 3, "BC": 2}, 8),
        BPE.train({"AB": 2, "BC": 3}, 7),
        BPE.train({"AB": 3, "BD": 2}, 7),
    ]
    assert len({bpe.fingerprint() for bpe in vocabularies}) == 4
    for i, a in enumerate(vocabularies):
        for j, b in enumerate(vocabularies):
            assert (a == b) == (i == j)
    assert vocabularies[0] != "something else"


# --- speed -----------------------------------------------------------------------------------------


def zipf_counts(distinct, running, seed=0):
    """Words of random syllables, short ones more frequent, with Zipf's law for the counts."""
    rng = random.Random(seed)
    onsets = [*"BCDFGHJKLMNPRSTVWZ", "BR", "CH", "FL", "GR", "PL", "SH", "ST", "STR", "TH", "", "", ""]
    vowels = [*"AEIOU", "EA", "OU", "AI", "EE", "Y"]
    codas = ["", "", "", *"NSRTDL", "NG", "ND", "ST", "CK", "'S"]
    words: dict[str, None] = {}
    while len(words) < distinct:
        length = rng.choice([1, 1, 2, 2, 3] if len(words) < distinct // 20 else [2, 2, 3, 3, 4, 5])
        word = "".join(rng.choice(part) for _ in range(length) for part in (onsets, vowels, codas))
        words[word] = None
    weights = [1 / (rank + 2.7) for rank in range(1, distinct + 1)]
    scale = running / sum(weights)
    return {word: max(1, round(scale * weight)) for word, weight in zip(words, weights, strict=True)}


def test_trains_a_tenth_of_the_full_task_quickly():
    """The full task (90,000 words, V = 10026) took 16 s on one core; a tenth of it must stay linear."""
    counts = zipf_counts(9_000, 940_000)
    start = time.perf_counter()
    bpe = BPE.train(counts, 1003)
    seconds = time.perf_counter() - start
    assert bpe.size == 1003
    assert seconds < 12, seconds  # about 1 s on a quiet core; the issue allows 12 for this share
    assert list(bpe.counts) == sorted(bpe.counts, reverse=True)  # greedy: counts can only fall


@pytest.mark.slow
def test_readable_agrees_on_realistic_words():
    counts = zipf_counts(1_500, 100_000, seed=1)
    assert BPE.train(counts, 200) == BPE.train(counts, 200, learn=learn_merges_readable)
