"""The command line of the cascade: settings changed by name, and what is refused before anything is written."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from chirps import refusal

from mini_pkd import UserError
from mini_pkd.command_line import read_command_line
from mini_pkd.scales import SCALES, SMALL, TINY, Settings


def test_overrides():
    changed = TINY.override(["epochs=3", "alpha=0.5", "kl=collapsed", "T1.width=96", "T1.heads=2", "61.blocks=5"])
    assert (changed.settings.epochs, changed.settings.alpha, changed.settings.kl) == (3, 0.5, "collapsed")
    assert (changed.sizes["T1"].width, changed.sizes["T1"].heads, changed.sizes["61"].blocks) == (96, 2, 5)
    assert changed.settings.beam == TINY.settings.beam and changed.sizes["79"] == TINY.sizes["79"]
    assert TINY == SCALES["tiny"] and TINY.settings.epochs != 3  # the original is as it was
    assert TINY.override([]) == TINY
    assert TINY.override(["peak_rate=1e-3"]).settings.peak_rate == 0.001
    assert TINY.override(["data=/some=where"]).settings.data == "/some=where"  # only the first = divides


@pytest.mark.parametrize(
    "assignment, sentence",
    [
        ("epoch=3", "there is no setting 'epoch'; the nearest known name is 'epochs'"),
        ("peakrate=1", "the nearest known name is 'peak_rate'"),
        ("T1.widht=3", "there is no setting 'T1.widht'; the nearest known name is 'width'"),
        ("T2.width=8", "there is no model size 'T2' in tiny; the nearest known name is 'T1'"),
        ("zzzz=1", "there is no setting 'zzzz'; known are data, vocab_size"),
        ("epochs", "'epochs' is not a setting; write name=value"),
        ("epochs=many", "epochs wants a whole number, not 'many'"),
        ("epochs=2.5", "epochs wants a whole number"),
        ("alpha=", "alpha wants a number"),
        ("epochs=0", "epochs must be at least 1"),
        ("warmup_steps=-1", "warmup_steps must be at least 0"),
        ("T1.heads=0", "T1.heads must be at least 1"),
        ("beam=257", "beam must be at most 256, and 257 is more"),
        ("max_symbols=101", "max_symbols must be at most 100"),
        ("T1.window=10001", "T1.window must be at most 10000"),
        ("T1.kernel=1001", "T1.kernel must be at most 1000"),
        ("time_masks=1001", "time_masks must be at most 1000"),
        ("freq_masks=1001", "freq_masks must be at most 1000"),
        ("T1.blocks=1001", "T1.blocks must be at most 1000"),
        ("79.lstm_layers=101", "79.lstm_layers must be at most 100"),
        ("epochs=100001", "epochs must be at most 100000"),
        ("T1.width=1" + 400 * "0", "T1.width must be at most 1000000000"),  # floats end at 1e308
        ("floor_rate=1.5", "floor_rate must be at most 1, not 1.5"),
        ("alpha=nan", "alpha must be a finite number"),
        ("peak_rate=-1", "peak_rate must be a finite number of at least 0"),
        ("dropout=1", "dropout must be below 1"),
        ("temperature=0", "temperature must be above 0"),
        ("kl=half", "kl is one of full, collapsed, not 'half'"),
        ("mixing=both", "mixing is one of add, convex"),
        ("kl_weighting=frames", "kl_weighting is one of nodes, paths"),
        ("feature_type=int8", "feature_type is one of float32, float16"),
        ("=3", "there is no setting ''"),
    ],
)
def test_bad_overrides_are_one_sentence(assignment, sentence):
    with pytest.raises(UserError) as error:
        TINY.override([assignment])
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_width_that_the_heads_do_not_divide_is_a_sentence():
    with pytest.raises(UserError, match="57 is not a multiple of its 4 heads"):
        TINY.override(["T1.width=57"]).sizes["T1"].config(64)
    with pytest.raises(UserError, match="2 encoder blocks cannot hold 3"):
        TINY.override(["T1.blocks=2"]).sizes["T1"].config(64)


def test_every_setting_can_be_set():
    """Each field's type is a plain one that text can be turned into."""
    for field in dataclasses.fields(Settings):
        assert field.type in (int, float, str)
        value = getattr(SMALL.settings, field.name)
        assert SMALL.override([f"{field.name}={value}"]) == SMALL


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--scale", "tyni"], "there is no scale 'tyni'; the nearest known name is 'tiny'"),
        (["epoch=3"], "the nearest known name is 'epochs'"),
        (["epochs"], "'epochs' is not a setting; write name=value"),
        (["epochs=few"], "epochs wants a whole number"),
        (["epochs=0"], "epochs must be at least 1"),
        (["batch_utterances=0"], "batch_utterances must be at least 1"),
        (["alpha=-1"], "alpha must be a finite number of at least 0"),
        (["mixing=convex", "alpha=1.5"], "alpha must be at most 1 with mixing=convex"),
        (["dropout=2"], "dropout must be below 1"),
        (["beam=0"], "beam must be at least 1"),
        (["temperature=0"], "temperature must be above 0"),
        (["peak_rate=0"], "peak_rate must be above 0"),
        (["max_time_fraction=1.5"], "max_time_fraction must be at most 1"),
        (["max_frames=5000", "batch_frames=4000"], "raise batch_frames or lower max_frames"),
        (["microbatch_frames=500"], "a batch only microbatch_frames=500; raise microbatch_frames or lower max_frames"),
        (["T1.width=90", "T1.heads=4"], "T1: encoder width 90 is not a multiple of its 4 heads"),
        (["61.blocks=2"], "61: 2 encoder blocks cannot hold 3 time reductions"),
        (["T9.width=8"], "there is no model size 'T9'"),
        (["--only", "X1"], "there is no model 'X1' in tiny: it has T1, S1"),
        (["--only", "epochs=2"], "--only is without a model; name one"),
        (["--only", "S1"], "S1 learns from T1, which is not trained yet"),
        (["--only", "T1", "S3"], "S3 learns from S1, which is not trained yet"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--jobs", "2", "T1.width=100000"], "2 trainings at a time need about "),
        (["--jobs", "1", "T1.width=100000"], "the largest training needs about "),
        (["--memory", "0.1"], "GB of memory and 0.1 GB are free; choose smaller sizes, a smaller batch_frames"),
        (["--memory", "0"], "--memory must be above 0"),
        (["--memory", "nan"], "--memory must be above 0"),
        (["beam=257"], "beam must be at most 256"),
        (["--jobs", "two"], "invalid int value: 'two'"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "1.5"], "invalid int value: '1.5'"),
        (["--sede", "1"], "unrecognized arguments: --sede"),
        (["--data"], "expected one argument"),
    ],
)
def test_refused_before_anything_is_written(data, tmp_path, capfd, words, sentence):
    first = [] if "--data" in words else ["--data", data, "--out", tmp_path / "run"]
    assert sentence in refusal(capfd, [*first, *words])
    assert list(tmp_path.iterdir()) == []


def test_commands_of_the_documents_are_understood():
    root = Path(__file__).resolve().parent.parent
    texts = [path.read_text(encoding="utf-8") for path in (root / "README.md", root / "docs" / "librispeech.md")]
    command = re.compile(r"^\S*python -m mini_pkd\.cascade ([^`\n]*)$", re.MULTILINE)
    lines = [line for text in texts for line in command.findall(text)]
    assert len(lines) >= 5
    for line in lines:
        options = read_command_line(shlex.split(line, comments=True), SCALES)
        SCALES[options.scale].override(options.settings)
