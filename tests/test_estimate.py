"""Operations, memory and the dry run."""

import dataclasses
import json
import re

import numpy as np
import pytest
from chirps import MODELS, SETTINGS, untrain, words_of

from mini_pkd import cascade, estimate
from mini_pkd.estimate import forward_flop, training_flop
from mini_pkd.scales import FULL, TINY, Size
from mini_pkd.transducer import Transducer, count_parameters


def test_operations_follow_from_the_weights():
    """Every row passes every weight matrix of its rate once; windows and taps are read three times and once."""
    size = dataclasses.replace(TINY.sizes["T1"], blocks=5, width=12, heads=3, expansion=3, window=5, kernel=2,
                               lstm_layers=2, lstm_width=7, joint_width=9)  # fmt: skip
    config, frames, labels, nodes = size.config(11), 1000, 50, 6000
    operations = 0
    for name, p in Transducer(config, np.random.default_rng(0)).named_parameters().items():
        block = re.search(r"blocks\.(\d+)", name)
        if p.data.ndim < 2:
            continue  # biases and norms are not counted
        elif name == "encoder.input.weight":
            rows = frames
        elif block:
            rows = frames / 2 ** min(int(block[1]), 3) * (3 if "positions" in name else 1)
        elif name.startswith("encoder_to_joint"):
            rows = frames / 8
        else:
            rows = nodes if "table" in name else labels  # the table's other use, the embedding, is a look-up
        operations += 2 * rows * p.data.size
    assert forward_flop(config, frames, labels, nodes) == operations
    assert training_flop(config, frames, labels, nodes) == 3 * operations
    teacher = TINY.sizes["79"].config(11)
    taught = forward_flop(teacher, frames, labels, nodes)
    assert training_flop(config, frames, labels, nodes, teacher) == 3 * operations + taught
    again = 2 * nodes * 11 * config.joint_width
    assert training_flop(config, frames, labels, nodes, teacher, 1.0) == 3 * operations + taught + again


@pytest.mark.parametrize("taught", [True, False])
def test_operations_of_utterances_are_those_of_all_of_them(taught):
    """Where every logit is kept; where none is, the student's logits are computed once more."""
    config, teacher = (FULL.sizes[name].config(10026) for name in ("46", "79"))
    frames, labels = np.array([800, 1, 1229, 3600]), np.array([20, 0, 33, 100])
    nodes = np.ceil(frames / 8) * (labels + 1)
    teacher = teacher if taught else None
    kept, not_kept = (
        estimate.flop_of_utterances(config, teacher, frames, labels, FULL.override([f"keep_mb={n}"]).settings)
        for n in (10**6, 0)
    )
    whole = training_flop(config, frames.sum(), labels.sum(), nodes.sum(), teacher)
    assert kept.shape == (4,) and kept.sum() == pytest.approx(whole, rel=1e-12)
    logits = 2 * nodes * 10026 * config.joint_width
    assert (not_kept[1] == kept[1]) and (not_kept[[0, 2, 3]] > (kept + 0.5 * logits)[[0, 2, 3]]).all()


def test_dry_run_prints_estimates_and_writes_nothing(data, tmp_path, finished, capfd):
    assert cascade.main(words_of(data, tmp_path / "run", "--dry-run")) == 0
    from_audio = capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
    rows = {line.split()[0]: line.split() for line in from_audio.splitlines()}
    assert [rows[name][-1] for name in MODELS] == [teacher or "-" for teacher in MODELS.values()]
    assert float(rows["T1"][1]) == round(json.loads((finished / "T1" / "result.json").read_text())["params"] / 1e6, 3)
    assert all(float(rows[name][3]) > 0 for name in MODELS)
    assert "12 utterances (its audio files)" in from_audio and "estimates" in from_audio and "GFLOP/s" in from_audio

    assert cascade.main(words_of(data, finished, "--dry-run")) == 0
    assert "12 utterances (its feature store)" in capfd.readouterr().out
    assert cascade.main(["--scale", "full", "--dry-run", "--data", str(tmp_path / "LibriSpeech")]) == 0
    full = capfd.readouterr().out
    assert "960.13 h in 281241 utterances (as in LibriSpeech" in full
    assert "batches of 64 utterances or 80000 frames, in parts of 8000\n" in full and "in parts of" not in from_audio


def test_dry_run_measures_audio_as_the_store_does(data, finished, tmp_path):
    scale = TINY.override(SETTINGS)
    frames, words, _ = estimate._training_set(cascade.Cascade(scale, data, tmp_path / "run"))
    exact, exact_words, _ = estimate._training_set(cascade.Cascade(scale, data, finished))
    assert np.abs(frames - exact).max() <= 2 and np.array_equal(words, exact_words)
    sampled, some, _ = estimate._training_set(cascade.Cascade(scale, data, tmp_path / "run"), sample=5)
    assert len(sampled) == len(some) == 12 and set(sampled) <= set(frames)


def test_memory_that_is_free(tmp_path, monkeypatch):
    """The least that anybody grants: the machine, what others leave of it, every control group around us."""
    monkeypatch.setattr(estimate.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}[name])
    monkeypatch.setattr(estimate, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(estimate, "control_groups", lambda controller: [tmp_path / "inner", tmp_path])
    (tmp_path / "inner").mkdir()
    assert estimate.memory_free() == 2**32
    (tmp_path / "meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable:    3000000 kB\n")
    assert estimate.memory_free() == 3000000 * 1024
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "inner" / "memory.max").write_text("max\n")
    assert estimate.memory_free() == 2000000000
    (tmp_path / "inner" / "memory.limit_in_bytes").write_text("1000000000\n")
    assert estimate.memory_free() == 1000000000

    def unknown(name):
        raise ValueError

    monkeypatch.setattr(estimate.os, "sysconf", unknown)
    monkeypatch.setattr(estimate, "MEMINFO", tmp_path / "nowhere")
    monkeypatch.setattr(estimate, "control_groups", lambda controller: [])
    assert estimate.memory_free() is None
    estimate.refuse_what_does_not_fit(TINY.override(["T1.width=100000"]), TINY.models(), 1)  # who knows


def test_memory_needed_is_that_of_the_largest_at_a_time():
    scale = TINY.override(["T1.width=2000"])
    models = {model.name: model for model in scale.models()}
    largest, students = estimate.memory_needed(scale, [models["T1"]]), [models[name] for name in ("S2", "B2", "S3")]
    assert estimate.memory_needed(scale, models.values()) == largest
    assert largest < estimate.memory_needed(scale, models.values(), 2) < 2 * largest
    taught, alone, _ = (estimate.memory_needed(scale, [model]) for model in students)
    teacher = 4 * count_parameters(scale.sizes["T1"].config(scale.settings.vocab_size))
    assert 0 < taught - alone - teacher < 0.03 * teacher  # its weights, and its share of a chunk of the lattice
    assert estimate.memory_needed(scale, [], 2) == 0
    many_frames = TINY.override(["batch_frames=1000000000"])  # says: no limit, and eight utterances are the limit
    assert estimate.memory_needed(many_frames, models.values()) < 1e9


def test_memory_follows_the_part_of_a_batch_that_is_in_it():
    full = [estimate.memory_needed(FULL.override(change), FULL.models()) for change in ([], ["microbatch_frames=0"])]
    assert full[0] < 6e9 < 15e9 < full[1]
    frames = [8000, 16000, 24000]
    needed = [estimate.memory_needed(FULL.override([f"microbatch_frames={n}"]), FULL.models()) for n in frames]
    assert needed[2] - needed[1] == pytest.approx(needed[1] - needed[0]) and needed[1] > needed[0]


def test_a_run_that_fits_is_not_refused_and_what_is_trained_needs_nothing(copy, data):
    assert cascade.main(words_of(data, copy, "--memory", 1e-6)) == 0
    assert cascade.main(words_of(data, copy, "--memory", 1e-6, "beam=1")) == 0
    untrain(copy, "B2")
    assert cascade.main(words_of(data, copy, "--memory", 1e-6, "beam=1")) == 1
    assert cascade.main(words_of(data, copy, "--memory", 2, "beam=1")) == 0


def test_nodes_are_counted_at_the_rate_of_the_models_encoder(data, finished, monkeypatch):
    class TwoPools(Size):
        def config(self, symbols):
            config = super().config(symbols)
            return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, pools=2))

    scale = TINY.override(SETTINGS)
    sizes = {name: TwoPools(**dataclasses.asdict(size)) for name, size in scale.sizes.items()}
    nodes = []
    monkeypatch.setattr(estimate, "training_flop", lambda *arguments: nodes.append(arguments[3].sum()) or np.ones(1))
    for changed in (scale, dataclasses.replace(scale, sizes=sizes)):
        estimate.describe(cascade.Cascade(changed, data, finished), 1)
    assert len(nodes) == 2 * len(MODELS) and nodes[-1] > 1.5 * nodes[0]  # twice, but for the last row of an utterance
