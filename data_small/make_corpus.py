"""Make the two corpora that ship with mini_pkd: `numbers` and `sentences`.

Both lie in LibriSpeech's layout, so everything that reads them reads LibriSpeech too:

    data_small/<corpus>/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<nnnn>.ogg
    data_small/<corpus>/<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt

The text is ours (two small grammars, grammars.py), the voices are free speech synthesisers (voices.py). What a
part promises:

    train       known voices; half of it with noise at 5-30 dB, a quarter in a room of 0.1-0.5 s RT60
    dev         the voices of train, word sequences that stand nowhere else, clean
    test-clean  the same promise as dev
    test-other  voices that are heard nowhere else, restless noise at 10-20 dB, a room of 0.2-0.4 s RT60
    dev-other   the same promise as test-other, with other voices; whoever reads dev reads it too

Text and effects follow from --seed alone. The synthesisers are other people's programs: another
version of one of them gives other samples, and the corpus in the repository is the reference.

    python data_small/make_corpus.py --check              look at what is there; needs no engine
    python data_small/make_corpus.py --corpus numbers     make one corpus anew (a few minutes)
    python data_small/make_corpus.py --text sentences     print sentences, synthesise nothing
"""

import argparse
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from engines import SPEAK, Problem, require_engines, vocode  # beside this file, like the next and voices
from grammars import GRAMMARS
from scipy.signal import fftconvolve, resample_poly
from tqdm import tqdm
from voices import VOICES, speakers

HERE = Path(__file__).resolve().parent
RATE = 16000  # samples per second, like LibriSpeech
BUDGET = 38_000_000  # bytes; the repository promises 40 MB at most
OPUS_LEVEL = 0.96  # libsndfile's compression level for Opus; see `encode`
PARTS = ("train", "dev", "dev-other", "test-clean", "test-other")

# Utterances per part.
COUNTS = {
    "numbers": {"train": 1600, "dev": 230, "dev-other": 120, "test-clean": 630, "test-other": 630},
    "sentences": {"train": 3250, "dev": 210, "dev-other": 120, "test-clean": 470, "test-other": 480},
}


# --- from an engine's samples to a file ---------------------------------------------------------


def resample(samples, rate, factor):
    """To 16 kHz, and `factor` times higher and shorter: a small change of the speaker's size."""
    ratio = Fraction(RATE / (rate * factor)).limit_denominator(320)
    return resample_poly(samples, ratio.numerator, ratio.denominator)


def trim(samples, floor_db=-42):
    """Cut the silence the engine puts around speech: 10 ms frames more than 42 dB under the loudest."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    energy = np.square(frames).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (floor_db / 10))
    return samples[loud[0] * 160 : (loud[-1] + 1) * 160]


def room(rng, rt60):
    """An impulse response: the direct sound, then noise that falls by 60 dB in rt60 seconds."""
    time = np.arange(int(rt60 * RATE)) / RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail[: int(0.004 * RATE)] = 0  # the first wall is more than a metre away
    direct_over_tail = rng.uniform(2, 9)  # dB
    tail *= np.sqrt(10 ** (-direct_over_tail / 10) / np.square(tail).sum())
    tail[0] = 1
    return tail


def background(rng, count):
    """Noise whose spectrum falls by 0 to 6 dB per octave: hiss, fan, traffic."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 50)
    noise = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1), count)
    return noise / np.sqrt(np.square(noise).mean())


def restless(rng, noise):
    """The same noise, coming and going once to four times a second by up to 5 dB, over a hum of 100 to 200 Hz."""
    time = np.arange(len(noise)) / RATE
    swell = 1 + rng.uniform(0.2, 0.5) * np.sin(2 * np.pi * (rng.uniform(1, 4) * time + rng.random()))
    pitch = rng.uniform(100, 200)
    hum = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in (1, 2, 3))
    noise = noise * swell + rng.uniform(0, 0.7) * hum
    return noise / np.sqrt(np.square(noise).mean())


def finish(samples, rate, factor, rng, part):
    """Trim, pad, put into a room, add noise, set the level. All drawn from rng, in a fixed order."""
    speech = trim(resample(samples, rate, factor))
    speech = speech / np.sqrt(np.square(speech).mean())
    before, after = rng.uniform(0.05, 0.15), rng.uniform(0.08, 0.2)
    draw_room, draw_noise = rng.random(2)
    rt60 = snr = None
    if part.endswith("-other"):
        rt60, snr = rng.uniform(0.2, 0.4), rng.uniform(10, 20)
    elif part == "train":
        rt60 = rng.uniform(0.1, 0.5) if draw_room < 0.25 else None
        snr = rng.uniform(5, 30) if draw_noise < 0.5 else None
    wave = np.concatenate([np.zeros(int(before * RATE)), speech, np.zeros(int(after * RATE))])
    if rt60:
        wave = fftconvolve(wave, room(rng, rt60))[: len(wave)]
    # Even a clean recording has a floor; without one the log of digital silence would rule the features.
    noise = background(rng, len(wave))
    if part.endswith("-other"):
        noise = restless(rng, noise)
    wave = wave + noise * 10 ** (-(snr or rng.uniform(40, 55)) / 20)
    wave *= 10 ** (rng.uniform(-30, -20) / 20)  # dB below full scale
    return wave * min(1.0, 0.95 / np.abs(wave).max())


def encode(path, wave):
    """Ogg Opus. libsndfile maps level 0..1 to 256..6 kbit/s; ours gives about 19 kbit/s,
    which keeps the band up to 8 kHz; at 24 the two corpora would not fit into the repository."""
    soundfile.write(path, wave.astype(np.float32), RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)


# --- making a corpus ----------------------------------------------------------------------------


def texts_of(corpus, seed):
    """{part: [words]}: every word sequence of the corpus, all different."""
    rng = np.random.default_rng([seed, list(GRAMMARS).index(corpus)])
    counts = COUNTS[corpus]
    draw = GRAMMARS[corpus](rng)
    seen, lines = set(), []
    while len(lines) < sum(counts.values()):
        words = draw()
        if tuple(words) not in seen:
            seen.add(tuple(words))
            lines.append(words)
    order = rng.permutation(len(lines))  # a grammar may drift; its parts must not
    parts, start = {}, 0
    for part in counts:
        parts[part] = [lines[i] for i in order[start : start + counts[part]]]
        start += counts[part]
    return parts


def share_out(corpus, part, lines):
    """[(speaker, words)]: every speaker of the part in turn."""
    voices = speakers(corpus, part)
    return [(voices[i % len(voices)], words) for i, words in enumerate(lines)]


def make_chunk(job):
    """Worker: speak some lines of one voice, write the files. Returns how many."""
    corpus, part, seed, folder, speaker, lines = job
    voice = VOICES[corpus][speaker]
    spoken, effects = [], []
    for number, words in lines:
        rng = np.random.default_rng([seed, list(GRAMMARS).index(corpus), PARTS.index(part), speaker, number])
        effects.append(rng)
        spoken.append((" ".join(words).lower(), voice.tempo * rng.uniform(0.85, 1.2), rng.uniform(-0.12, 0.12)))
    for (number, _), rng, (samples, rate) in zip(lines, effects, SPEAK[voice.engine](voice.name, spoken), strict=True):
        if samples.ndim > 1 or len(samples) < 0.3 * rate or np.abs(samples).max() < 0.01:
            raise Problem(f"{voice} gave no usable sound for line {number} of {part}; try the engine by hand.")
        if voice.vocoded:
            samples = vocode(samples, rate, voice.pitch, voice.formants)
        wave = finish(samples, rate, rng.uniform(0.95, 1.05), rng, part)
        encode(os.path.join(folder, f"{speaker}-1-{number:04d}.ogg"), wave)
    return len(lines)


def make(corpus, out, seed, processes):
    require_engines(VOICES[corpus].values())
    making = out / f".making-{corpus}"
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True)
    except OSError as error:
        raise Problem(f"Cannot write into {out}: {error.strerror}; choose another folder with --out.") from None
    jobs = []
    for part, lines in texts_of(corpus, seed).items():
        chapters = {}
        for speaker, words in share_out(corpus, part, lines):
            chapters.setdefault(speaker, []).append(words)
        for speaker, mine in sorted(chapters.items()):
            folder = making / part / str(speaker) / "1"
            folder.mkdir(parents=True)
            rows = [f"{speaker}-1-{n:04d} {' '.join(words)}\n" for n, words in enumerate(mine)]
            (folder / f"{speaker}-1.trans.txt").write_text("".join(rows))
            numbered = list(enumerate(mine))
            for start in range(0, len(mine), 12):
                jobs.append((corpus, part, seed, str(folder), speaker, numbered[start : start + 12]))
    # Slow engines first, or the last minutes belong to one process alone.
    jobs.sort(key=lambda job: VOICES[corpus][job[4]].engine != "kokoro")
    total = sum(len(job[5]) for job in jobs)
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        tqdm(total=total, desc=corpus, unit="utt") as bar,
    ):
        for count in pool.imap_unordered(make_chunk, jobs):
            bar.update(count)
    rows = ["; speaker | engine and voice | parts\n"]
    rows += [f"{speaker} | {voice} | {' '.join(voice.parts)}\n" for speaker, voice in VOICES[corpus].items()]
    (making / "SPEAKERS.TXT").write_text("".join(rows))
    final, old = out / corpus, out / f".old-{corpus}"  # only a complete corpus takes the old one's place
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    making.rename(final)
    shutil.rmtree(old, ignore_errors=True)


# --- checking -----------------------------------------------------------------------------------


def check(corpus, out):
    """Read every file, compare with the transcripts, print what there is. Returns a list of faults."""
    root = out / corpus
    if not root.is_dir():
        raise Problem(f"No corpus at {root}: make it with `python data_small/make_corpus.py --corpus {corpus}`.")
    faults, owner, frequency, present = [], {}, Counter(), {}
    print(f"\n{corpus}: part, utterances, minutes, words, seconds each (least, mean, most), megabytes, speakers")
    for part in COUNTS[corpus]:
        seconds, words_here, size = [], 0, 0
        present[part] = set()
        listed = set()
        for transcript in sorted((root / part).glob("*/*/*.trans.txt")):
            for row in transcript.read_text().splitlines():
                name, _, text = row.partition(" ")
                path = transcript.parent / f"{name}.ogg"
                listed.add(path)
                present[part].add(name.split("-")[0])
                words_here += len(text.split())
                if owner.setdefault(text, part) != part:
                    faults.append(f"{name}: {text!r} stands in {owner[text]} and in {part}")
                if part == "train":
                    frequency.update(text.split())
                if not path.is_file():
                    faults.append(f"{name}: transcript without audio")
                    continue
                try:
                    wave, rate = soundfile.read(path, dtype="float32")
                except soundfile.LibsndfileError as error:
                    faults.append(f"{name}: unreadable ({error})")
                    continue
                size += path.stat().st_size
                seconds.append(len(wave) / rate)
                if rate != RATE or wave.ndim != 1:
                    faults.append(f"{name}: not 16 kHz mono")
                level, clipped = np.sqrt(np.square(wave).mean()), np.count_nonzero(np.abs(wave) > 0.999)
                if level < 0.005 or clipped > 3:  # a codec may overshoot by a sample
                    faults.append(f"{name}: level {level:.4f}, {clipped} samples at full scale")
                pace = seconds[-1] / len(text.split())
                if not 0.15 < pace < 1.0:
                    faults.append(f"{name}: {pace:.2f} seconds per word")
        faults += [f"{p.stem}: audio without transcript" for p in set((root / part).rglob("*.ogg")) - listed]
        if not seconds:
            faults.append(f"{corpus}/{part}: empty")
            continue
        print(
            f"  {part:10s} {len(seconds):5d} {sum(seconds) / 60:7.1f} {words_here:6d}   "
            f"{min(seconds):.2f} {np.mean(seconds):.2f} {max(seconds):.2f}   {size / 1e6:6.2f}   "
            f"{' '.join(sorted(present[part]))}"
        )
    for part in present.keys() & {"dev-other", "test-other"}:
        faults += [f"speaker {heard} of {part} is heard in training" for heard in present["train"] & present[part]]
    for text, part in owner.items():
        unknown = set(text.split()) - set(frequency)
        if unknown:
            faults.append(f"{part}: {sorted(unknown)} never occur in training")
    table = [f"{word} {count}" for word, count in frequency.most_common()]
    print(f"  {len(frequency)} words in training, most frequent first:")
    for start in range(0, len(table), 10):
        print("    " + "  ".join(table[start : start + 10]))
    return faults


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=sorted(GRAMMARS), help="make this corpus anew (default: both)")
    parser.add_argument("--seed", type=int, default=0, help="text and effects follow from it (default 0)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder that holds the corpora (default: this one)")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="engines at a time (default 2)")
    parser.add_argument(
        "--kokoro-voices",
        metavar="FOLDER",
        default=os.environ.get("KOKORO_VOICES", "package/voices"),
        help="package/voices of what `npm pack kokoro-js@1.2.1` fetches (default: $KOKORO_VOICES, or package/voices)",
    )
    parser.add_argument("--check", action="store_true", help="check what is there instead of making it")
    parser.add_argument(
        "--text", choices=sorted(GRAMMARS), metavar="CORPUS", help="print the sequences of one corpus and stop"
    )
    options = parser.parse_args(arguments)
    os.environ["KOKORO_VOICES"] = options.kokoro_voices  # how the workers hear of it
    try:
        if options.text:
            for part, lines in texts_of(options.text, options.seed).items():
                for words in lines:
                    print(part, " ".join(words))
            return 0
        chosen = [options.corpus] if options.corpus else list(GRAMMARS)
        if not options.check:
            for corpus in chosen:
                make(corpus, options.out, options.seed, options.processes)
        faults = [fault for corpus in chosen for fault in check(corpus, options.out)]
        size = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
        if size > BUDGET:
            faults.append(f"{options.out} holds {size / 1e6:.1f} MB, more than {BUDGET / 1e6:.0f}")
        print(f"\n{size / 1e6:.1f} MB in all; " + (f"{len(faults)} faults" if faults else "no fault found"))
        for fault in faults[:20]:
            print("  " + fault)
        return 1 if faults else 0
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("Stopped; the finished corpora are as they were.", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"{error.filename or options.out}: {error.strerror}; free some space or choose another --out.",
            file=sys.stderr,
        )
        return 2
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
