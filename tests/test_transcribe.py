"""transcribe.py with a small random model: streamed text = whole text, and every bad input.

A random model says random things, but it says them deterministically, and that is all these tests need.
"""

import io
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from test_audio_pieces import int16, wav_header, waveform

from mini_pkd import UserError, checkpoint, transcribe, transcribe_options
from mini_pkd.audio_pieces import cut
from mini_pkd.bpe import BPE
from mini_pkd.conformer import ConformerConfig
from mini_pkd.features import NUM_FEATURES, Normaliser, mfcc
from mini_pkd.model_file import load_model, save_model
from mini_pkd.transcribe import Recogniser, main
from mini_pkd.transducer import Transducer, TransducerConfig

ENCODER = ConformerConfig(features=NUM_FEATURES, blocks=3, width=16, heads=2, window=8, kernel=4, expansion=2)


@pytest.fixture(scope="module")
def bpe():
    return BPE.train({"ONE": 5, "TWO": 4, "NINE": 3}, vocab_size=12)


@pytest.fixture(scope="module")
def normaliser():
    return Normaliser.estimate([mfcc(waveform(0, 8000))])


@pytest.fixture(scope="module")
def model(bpe, normaliser):
    """The first random model that has something to say, and different things for different audio."""
    config = TransducerConfig(ENCODER, bpe.size, joint_width=12, lstm_layers=1, lstm_width=10)
    for seed in range(100):
        made = Transducer(config, np.random.default_rng(seed))
        for p, factor in ((made.table, 6), (made.encoder_to_joint.weight, 2), (made.predictor_to_joint.weight, 3)):
            p.data *= factor  # sharp enough to have opinions
        texts = [
            Recogniser(made, normaliser, bpe, beam).transcribe(waveform(*audio))
            for beam in (1, 8)
            for audio in ((0, 16000), (1, 20000), (3, 20000))
        ]
        if len(set(texts)) == 6 and min(map(len, texts)) > 6:
            return made
    raise AssertionError("no random model says anything")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, normaliser, bpe):
    """model.npz and some audio files."""
    folder = tmp_path_factory.mktemp("transcribe")
    save_model(folder / "model.npz", model, normaliser, bpe, name="T1")
    for i, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(folder / name, waveform(i, 16000 + 4000 * i), 16000, subtype="PCM_16")
    soundfile.write(folder / "stereo.wav", np.zeros((1600, 2)), 16000)
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    soundfile.write(folder / "click.wav", np.array([0.5]), 16000)
    (folder / "garbage.wav").write_bytes(b"this is no audio at all")
    return folder


@pytest.fixture
def run(capsys, monkeypatch, folder):
    """run(*arguments, stdin=b"") -> (status, lines on stdout, lines on stderr), from inside the folder."""
    monkeypatch.chdir(folder)

    def call(*arguments, stdin=b""):
        source = stdin if stdin is None else SimpleNamespace(buffer=io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", source)
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


# --- the class ------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("samples", [1, 399, 400, 401, 1680, 20000])
def test_streamed_text_is_the_whole_text_for_any_cutting(model, normaliser, bpe, beam, samples):
    recogniser = Recogniser(model, normaliser, bpe, beam)
    audio = waveform(3, samples)
    whole = recogniser.transcribe(audio)
    rng = np.random.default_rng(samples)
    for trial in range(4):
        edges = np.sort(rng.integers(0, samples + 1, 12))
        pieces = [audio] if trial == 0 else np.split(audio, edges)  # some of the pieces are empty
        stream = recogniser.stream()
        partial = [stream.push(piece) for piece in pieces]
        final = stream.finish()
        assert final == whole
        if beam == 1:  # greedy takes nothing back
            assert all(b.startswith(a) for a, b in zip(partial, partial[1:] + [final], strict=True))
    assert len(whole) > 3 or samples < 20000  # a model that says nothing would pass all of this


def test_n_best_is_sorted_and_the_same_in_a_stream(model, normaliser, bpe):
    recogniser = Recogniser(model, normaliser, bpe, beam=6)
    audio = waveform(5, 12000)
    whole = recogniser.n_best(audio, 4)
    stream = recogniser.stream()
    for piece in cut(audio, 2000):
        stream.push(piece)
    streamed = stream.finish_n_best(4)
    assert [text for text, _ in whole] == [text for text, _ in streamed]
    scores = np.array([score for _, score in whole])
    assert len(scores) == 4 and (np.diff(scores) <= 0).all() and whole[0][0] == recogniser.transcribe(audio)
    # float32 rows, summed over some ten frames: 1e-4 is a hundred times what is seen
    np.testing.assert_allclose(scores, [score for _, score in streamed], atol=1e-4)


def test_max_symbols_bounds_what_is_said_per_row(model, normaliser, bpe):
    chatty = Transducer(model.config, np.random.default_rng(0))
    chatty.output_bias.data[3] = 50.0  # always unit 3, never blank
    audio, rows = waveform(1, 16000), 13  # 99 frames -> 50 -> 25 -> 13
    for most in (2, transcribe.MAX_SYMBOLS):
        text = Recogniser(chatty, normaliser, bpe, beam=1, max_symbols=most).transcribe(audio)
        assert text == bpe.decode([3] * (most * rows))


def test_the_lattice_of_a_transcript_is_what_the_decoder_walks(model, normaliser, bpe):
    """Node by node, symbol by symbol fed to the predictor as a search does; without labels one column is left."""
    recogniser, audio = Recogniser(model, normaliser, bpe), waveform(0, 20000)
    features = normaliser(mfcc(audio))
    enc, lengths = model.encode(features, [len(features)])
    for text in ("TWO ONE", "NINE", ""):
        found, labels = recogniser.lattice(audio, text)
        assert labels.tolist() == bpe.encode(text) and found.shape == (lengths[0], len(labels) + 1, bpe.size)
        pred, state = model.predictor_start(1)
        for u in range(len(labels) + 1):
            logits = model.joint_logits(enc, np.repeat(pred, len(enc), axis=0))  # (T', V)
            expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            # float32, 8 rows or 16 at a time: some 1e-6 by rounding
            np.testing.assert_allclose(found[:, u], expected, atol=2e-5)
            if u < len(labels):
                pred, state = model.predictor_step(labels[u : u + 1], state)


@pytest.mark.parametrize("samples", [1, 400, 1680, 20000])
def test_emissions_are_what_a_stream_has_heard_when_it_speaks(model, normaliser, bpe, samples):
    """Fed a sample at a time near each emission, the stream says the unit exactly then."""
    recogniser, audio = Recogniser(model, normaliser, bpe, beam=1), waveform(1, samples)
    said = recogniser.emissions(audio)
    assert bpe.decode([bpe.units.index(unit) for unit, _, _ in said]) == recogniser.transcribe(audio)
    rows = [row for _, row, _ in said]
    assert rows == sorted(rows) and all(0 < seconds <= samples / 16000 for *_, seconds in said)
    for moment in {round(16000 * seconds) for *_, seconds in said} - {samples}:
        stream = recogniser.stream()
        before, after = stream.push(audio[: moment - 1]), stream.push(audio[moment - 1 : moment])
        units = [[unit for unit, _, s in said if s * 16000 <= end + 0.5] for end in (moment - 1, moment)]
        assert [before, after] == [bpe.decode([bpe.units.index(unit) for unit in spoken]) for spoken in units]
    assert said or samples < 20000


def test_a_stream_without_samples_says_so(model, normaliser, bpe):
    stream = Recogniser(model, normaliser, bpe).stream()
    assert stream.push(np.zeros(0, np.float32)) == ""
    with pytest.raises(UserError, match="no samples"):
        stream.finish()


def test_saved_and_loaded_model_says_the_same(folder, model, normaliser, bpe):
    audio = waveform(2, 9000)
    loaded = Recogniser.load(folder / "model.npz", beam=3)
    assert loaded.n_best(audio, 3) == Recogniser(model, normaliser, bpe, beam=3).n_best(audio, 3)
    assert load_model(folder / "model.npz")[3] == {"name": "T1"}


# --- the command ----------------------------------------------------------------------------------


def test_a_line_per_file(run, model, normaliser, bpe):
    recogniser = Recogniser(model, normaliser, bpe)
    status, out, err = run("model.npz", "a.wav", "b.wav")
    texts = [recogniser.transcribe(waveform(i, 16000 + 4000 * i)) for i in range(2)]
    assert (status, err) == (0, []) and texts[0] != texts[1]
    assert out == [f"a.wav {texts[0]}", f"b.wav {texts[1]}"]
    assert run("model.npz", "--beam", 1, "a.wav")[1] == [
        f"a.wav {Recogniser(model, normaliser, bpe, beam=1).transcribe(waveform(0, 16000))}"
    ]


@pytest.mark.parametrize("beam", [1, 8])
@pytest.mark.parametrize("piece", [1, 160, 100000])
def test_stream_prints_growing_lines_and_ends_with_the_same(run, beam, piece):
    whole = run("model.npz", "a.wav", "--beam", beam)[1]
    status, out, err = run("model.npz", "a.wav", "--beam", beam, "--stream", "--piece-ms", piece)
    assert (status, err) == (0, []) and out[-1:] == whole
    assert all(line.startswith("a.wav ") and line.endswith(" ...") for line in out[:-1])
    assert all(a != b for a, b in zip(out, out[1:], strict=False))  # a line per change, no more
    assert len(out) > 2 if piece == 160 else True


def test_n_best_lines(run):
    status, out, _ = run("model.npz", "b.wav", "--n-best", 3)
    assert status == 0 and [line.split()[:2] for line in out] == [["b.wav", str(k)] for k in (1, 2, 3)]
    scores = [float(line.split()[2]) for line in out]
    assert scores == sorted(scores, reverse=True)
    assert out[0].split(maxsplit=3)[3] == run("model.npz", "b.wav")[1][0].partition(" ")[2]
    assert run("model.npz", "b.wav", "--n-best", 3, "--stream")[1][-3:] == out


@pytest.mark.parametrize("options", [(), ("--stream",), ("--stream", "--piece-ms", "37")])
def test_stdin(run, options):
    raw = int16(waveform(0, 16000))
    text = run("model.npz", "a.wav")[1][0].partition(" ")[2]
    for content in (raw, wav_header(len(raw)) + raw):
        status, out, err = run("model.npz", "-", *options, stdin=content)
        assert (status, err) == (0, []) and out[-1] == f"- {text}"


def test_stdin_that_is_closed(run):
    good = run("model.npz", "a.wav")[1]
    for options in ((), ("--stream",)):
        status, out, err = run("model.npz", "-", "a.wav", *options, stdin=None)  # what `<&-` is to Python
        assert status == 1 and out[-1:] == good and len(err) == 1 and "stdin is closed" in err[0]


def test_special_files_are_one_sentence(run, folder):
    """Each of them would wait for ever, or never end."""
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")  # a relative name, because an absolute one may be too long for a socket
        good = run("model.npz", "a.wav")[1]
        bad = ("fifo", "socket", "/dev/null", "/dev/zero")
        for options in ((), ("--stream",)):
            status, out, err = run("model.npz", *bad, "a.wav", *options)
            assert status == 1 and out[-1:] == good and len(err) == len(bad)
            assert all(f"{name} is a pipe, a device or a socket" in line for name, line in zip(bad, err, strict=True))
        for name in bad:
            status, out, err = run(name, "a.wav")
            assert (status, out, len(err)) == (1, [], 1) and name in err[0]


def test_a_file_of_one_sample(run):
    status, out, err = run("model.npz", "click.wav")
    assert (status, err) == (0, []) and len(out) == 1 and out[0].startswith("click.wav")


@pytest.mark.parametrize("options", [(), ("--stream",)])
def test_bad_files_are_reported_and_the_others_transcribed(run, options):
    good = run("model.npz", "a.wav")[1]
    bad = ("missing.wav", "stereo.wav", "empty.wav", "garbage.wav", ".")
    status, out, err = run("model.npz", *bad, "a.wav", *options)
    assert status == 1 and out[-1:] == good and len(err) == len(bad)
    for line, word in zip(err, ("does not exist", "2 channels", "no samples", "cannot be read", "folder"), strict=True):
        assert line.startswith("transcribe: ") and word in line
    assert run("model.npz", "-", "a.wav")[::2] == (
        1, ["transcribe: stdin holds no samples; pipe a WAV file or raw mono int16 samples at 16 kHz into it."]
    )  # fmt: skip


def test_bad_models(run, folder):
    checkpoint.save(folder / "other.npz", {"x": np.zeros(3)}, {"epoch": 1})
    np.savez(folder / "archive.npz", x=np.zeros(3))
    (folder / "text.npz").write_text("hello")
    (folder / "cut.npz").write_bytes((folder / "model.npz").read_bytes()[:2000])
    for model, word in (
        ("nowhere.npz", "no checkpoint"),
        ("other.npz", "not a model"),
        ("archive.npz", "not a mini_pkd checkpoint"),
        ("text.npz", "not a mini_pkd checkpoint"),
        ("cut.npz", "damaged"),
        (".", "could not be opened"),
    ):
        status, out, err = run(model, "a.wav")
        assert status == 1 and out == [] and len(err) == 1 and word in err[0], (model, err)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("--piece-ms", "0"), f"--piece-ms must be from 1 to {transcribe_options.MAX_PIECE_MS}, not 0"),
        (("--piece-ms", "-5"), "--piece-ms"),
        (("--piece-ms", "a"), "--piece-ms"),
        (("--beam", "0"), "--beam"),
        (("--beam", "2.5"), "--beam"),
        (("--beam", "1000000"), "--beam must be from 1 to 256, not 1000000"),
        (("--piece-ms", "9" * 5000), "--piece-ms"),
        (("--n-best", "0"), "--n-best"),
        (("--n-best", "3", "--beam", "2"), "needs a --beam of at least 3"),
        (("--fast",), "--fast"),
    ],
)
def test_bad_options(run, arguments, word):
    status, out, err = run("model.npz", "a.wav", *arguments)
    assert status == 2 and out == [] and len(err) == 1 and word in err[0]


def test_no_arguments_and_help(run):
    status, out, err = run()
    assert status == 2 and len(err) == 1 and "MODEL.npz" in err[0] and "FILE" in err[0]
    assert run("model.npz")[0] == 2
    status, out, err = run("--help")
    assert status == 0 and "--stream" in "\n".join(out) and "arecord" in "\n".join(out)


def test_interrupting_files_is_130_and_a_microphone_keeps_its_text(run, monkeypatch):
    raw = int16(waveform(0, 16000))
    heard = []

    class Pressed:
        """A StopSignal whose user presses Ctrl-C after the third piece."""

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        raised = property(lambda self: len(heard) >= 3)

    push = transcribe.RecogniserStream.push
    monkeypatch.setattr(transcribe.RecogniserStream, "push", lambda self, x: heard.append(x) or push(self, x))
    monkeypatch.setattr(transcribe, "StopSignal", Pressed)
    status, out, _ = run("model.npz", "-", "--stream", stdin=raw)
    assert status == 0 and len(heard) == 3
    assert out[-1] == run("model.npz", "-", stdin=raw[: 3 * 2 * 2560])[1][0]

    def interrupted(self, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recogniser, "n_best", interrupted)
    assert run("model.npz", "a.wav") == (130, [], ["transcribe: stopped."])


# --- as a program ---------------------------------------------------------------------------------


def test_the_training_loop_is_not_needed():
    program = "import sys, mini_pkd.transcribe; print('mini_pkd.train' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_reader_that_leaves_early_causes_no_traceback(folder):
    """As in `... | head -1`: the other end of the pipe is closed before anything is written."""
    command = [sys.executable, "-m", "mini_pkd.transcribe", "--beam", "1", str(folder / "model.npz")]
    audio = [str(folder / "a.wav")]
    process = subprocess.Popen(command + audio, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141 and message == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full exists on Linux only")
@pytest.mark.parametrize("options", [(), ("--stream",)])
def test_a_full_device_is_one_sentence(folder, options):
    command = [sys.executable, "-m", "mini_pkd.transcribe", *options, str(folder / "model.npz"), str(folder / "a.wav")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("transcribe: stdout cannot be written (No space left on device)")
