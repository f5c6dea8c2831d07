"""The corpora that ship with the project: complete, disjoint, readable, small.

Everything here reads what lies in data_small/; nothing is synthesised. The full reading of every
file is `python data_small/make_corpus.py --check`; these tests sample.
"""

import doctest
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

DATA = Path(__file__).resolve().parent.parent / "data_small"
COUNTS = {
    "numbers": {"train": 1600, "dev": 230, "dev-other": 120, "test-clean": 630, "test-other": 630},
    "sentences": {"train": 3250, "dev": 210, "dev-other": 120, "test-clean": 470, "test-other": 480},
}
PARTS = tuple(COUNTS["numbers"])
CORPORA = ("numbers", "sentences")
pytestmark = pytest.mark.parametrize("corpus", CORPORA)


def transcripts(corpus, part):
    """{utterance id: (path of its audio, text)}"""
    rows = {}
    for file in sorted((DATA / corpus / part).glob("*/*/*.trans.txt")):
        for row in file.read_text(encoding="ascii").splitlines():
            name, _, text = row.partition(" ")
            assert name not in rows, f"{name} stands twice"
            rows[name] = (file.parent / f"{name}.ogg", text)
    return rows


def speakers(corpus):
    """{speaker id: (engine and voice, parts)}, from SPEAKERS.TXT"""
    rows = (DATA / corpus / "SPEAKERS.TXT").read_text().splitlines()
    table = [[field.strip() for field in row.split("|")] for row in rows if not row.startswith(";")]
    return {speaker: (voice, parts.split()) for speaker, voice, parts in table}


def test_examples_in_the_grammar_hold_and_its_rules_too(corpus):
    spec = importlib.util.spec_from_file_location("grammars", DATA / "grammars.py")
    grammars = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grammars)
    done = doctest.testmod(grammars)
    assert done.attempted >= 3 and done.failed == 0
    draw = grammars.GRAMMARS[corpus](np.random.default_rng(7))
    for words in (draw() for _ in range(500)):
        text = " ".join(words)
        assert re.search(r"\bA [AEIOU]|\bAN [^AEIOU]", text) is None, text
        assert re.fullmatch(r"[A-Z' ]+", text), f"a slot without a list: {text}"


@pytest.mark.parametrize("part", PARTS)
def test_layout_and_every_transcript_has_audio_and_vice_versa(corpus, part):
    rows = transcripts(corpus, part)
    assert bool(rows) == (part in COUNTS[corpus])
    audio = set((DATA / corpus / part).rglob("*.ogg"))
    assert {path for path, _ in rows.values()} == audio
    for name, (path, _) in rows.items():
        speaker, chapter, number = name.split("-")
        assert path.relative_to(DATA / corpus / part).parts[:2] == (speaker, chapter)
        assert len(number) == 4 and number.isdigit()
    others = [
        p
        for p in (DATA / corpus).rglob("*")
        if p.is_file() and p.suffix != ".ogg" and not p.name.endswith(".trans.txt") and p.name != "SPEAKERS.TXT"
    ]
    assert not others


def test_sizes_are_what_the_readme_promises(corpus):
    assert {part: len(transcripts(corpus, part)) for part in COUNTS[corpus]} == COUNTS[corpus]
    for part in ("test-clean", "test-other"):  # enough for intervals of about a point
        assert sum(len(text.split()) for _, text in transcripts(corpus, part).values()) > 2990


def test_text_is_capitals_and_of_the_promised_length(corpus):
    shortest, longest = {"numbers": (3, 8), "sentences": (3, 10)}[corpus]
    for part in COUNTS[corpus]:
        for name, (_, text) in transcripts(corpus, part).items():
            assert re.fullmatch(r"[A-Z']+( [A-Z']+)*", text), (name, text)
            assert shortest <= len(text.split()) <= longest, (name, text)


def test_no_word_sequence_stands_in_two_parts(corpus):
    owner = {}
    for part in COUNTS[corpus]:
        for name, (_, text) in transcripts(corpus, part).items():
            assert owner.setdefault(text, part) == part, (name, text)


def test_every_word_is_learnable(corpus):
    train = Counter(w for _, text in transcripts(corpus, "train").values() for w in text.split())
    assert min(train.values()) >= 20, train.most_common()[:-11:-1]
    for part in PARTS[1:]:
        heard = {w for _, text in transcripts(corpus, part).values() for w in text.split()}
        assert heard <= set(train), heard - set(train)


def test_voices_of_the_other_parts_are_heard_nowhere_else(corpus):
    table = speakers(corpus)
    for part in PARTS:
        present = {name.split("-")[0] for name in transcripts(corpus, part)}
        assert present == {s for s, (_, parts) in table.items() if part in parts}
    unheard = {part: {s for s, (_, parts) in table.items() if part in parts} for part in ("dev-other", "test-other")}
    for part, least in (("dev-other", 4), ("test-other", 10)):
        assert len(unheard[part]) >= least and all(table[s][1] == [part] for s in unheard[part])
    assert sum("train" in parts for _, parts in table.values()) >= 30
    assert len({voice for voice, _ in table.values()}) == len(table), "one voice under two ids"


def test_nobody_in_the_other_parts_has_a_relative_in_training(corpus):
    """Not as half of a mean, not through the vocoder, not as another synthesis of the same person."""
    people = {part: set() for part in ("train", "dev-other", "test-other")}
    for voice, parts in speakers(corpus).values():
        engine, _, name = voice.split(",")[0].partition(" ")
        for part in set(parts) & set(people):
            if engine == "kokoro":
                people[part] |= set(name.split("+"))
            elif engine in ("flite", "festival"):
                people[part].add(re.search(r"kal|ked|slt|awb|rms", name)[0])
            else:
                people[part].add(f"{engine} {name}")  # espeak-ng's accents and variants, pico's languages
    assert all(people.values())
    for a, b in (("train", "dev-other"), ("train", "test-other"), ("dev-other", "test-other")):
        assert not people[a] & people[b]


def test_sampled_files_are_16_khz_mono_speech_at_a_sane_pace_and_level(corpus):
    rng = np.random.default_rng(0)
    for part in COUNTS[corpus]:
        rows = transcripts(corpus, part)
        for name in rng.choice(sorted(rows), 12, replace=False):
            path, text = rows[name]
            wave, rate = soundfile.read(path, dtype="float32")
            assert rate == 16000 and wave.ndim == 1, name
            assert len(wave) == soundfile.info(path).frames, name
            assert 0.15 < len(wave) / rate / len(text.split()) < 1.0, name
            assert np.sqrt(np.square(wave).mean()) > 0.005, name
            assert np.count_nonzero(np.abs(wave) > 0.999) <= 3, name  # a codec may overshoot by a sample
            # Speech moves: its loudest tenth is at least 10 dB above its quietest tenth.
            frames = np.square(wave[: len(wave) // 400 * 400].reshape(-1, 400)).mean(axis=1)
            quiet, loud = np.quantile(frames, [0.1, 0.9])
            assert loud > (3 if part.endswith("-other") else 10) * quiet, name


def test_all_of_it_stays_under_40_megabytes(corpus):
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) <= 40e6


def test_text_follows_from_the_seed_and_is_the_text_that_was_shipped(corpus):
    script = [sys.executable, str(DATA / "make_corpus.py"), "--text", corpus]
    told = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    shipped = [f"{part} {text}" for part in PARTS for _, text in transcripts(corpus, part).values()]
    assert sorted(told) == sorted(shipped)
    other = subprocess.run(script + ["--seed", "1"], capture_output=True, text=True, check=True).stdout
    assert sorted(other.splitlines()) != sorted(told)


def test_check_finds_what_is_broken(corpus, tmp_path):
    folder = tmp_path / corpus / "train" / "101" / "1"
    folder.mkdir(parents=True)
    (folder / "101-1.trans.txt").write_text("101-1-0000 ONE TWO THREE\n101-1-0001 FOUR FIVE SIX\n")
    (folder / "101-1-0001.ogg").write_bytes(b"not audio")
    silence = np.zeros(16000, np.float32)
    soundfile.write(folder / "101-1-0002.ogg", silence, 16000, format="OGG", subtype="OPUS")
    script = [sys.executable, str(DATA / "make_corpus.py"), "--check", "--corpus", corpus]
    script += ["--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1
    for fault in ("0000: transcript without audio", "0001: unreadable", "0002: audio without", "dev: empty"):
        assert fault in done.stdout, fault
    done = subprocess.run(script[:-1] + [str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No corpus at" in done.stderr
