"""Operations, memory and disk, by formulas."""

import dataclasses
import re

import numpy as np
import pytest
from chirps import SETTINGS, unfinished_state, untrain, words_of

from mini_pkd import cascade, estimate
from mini_pkd.corpus_folder import read_part
from mini_pkd.estimate import forward_flop, training_flop
from mini_pkd.feature_store import FeatureStore
from mini_pkd.scales import FULL, TINY
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
    scale = TINY.override(["T1.width=2000", "61.width=40", "61.joint_width=48", "61.lstm_width=48"])
    models = {model.name: model for model in scale.models()}
    largest, students = estimate.memory_needed(scale, [models["T1"]]), [models[name] for name in ("S2", "B2", "S3")]
    assert estimate.memory_needed(scale, models.values()) == largest
    assert largest < estimate.memory_needed(scale, models.values(), 2) < 2 * largest
    taught, alone, _ = (estimate.memory_needed(scale, [model]) for model in students)
    teacher = 4 * count_parameters(scale.sizes["T1"].config(scale.settings.vocab_size))
    assert 0 < taught - alone - teacher < 0.02 * teacher  # its weights, and its share of a chunk of the lattice
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


def test_nodes_are_counted_at_the_rate_of_the_models_encoder(monkeypatch):
    config = TINY.sizes["T1"].config(64)
    two_pools = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, pools=2))
    nodes = []
    monkeypatch.setattr(estimate, "training_flop", lambda *arguments: nodes.append(arguments[3].sum()))
    for each in (config, two_pools):
        estimate.flop_of_utterances(each, None, np.array([80, 81]), np.array([3, 0]), TINY.settings)
    assert nodes == [10 * 4 + 11, 20 * 4 + 21]


def test_what_training_leaves_on_the_disk(data, finished, copy):
    """To the size of headers: 128 bytes for an array and twice its name, some KB for what is told of a training."""
    scale = TINY.override(SETTINGS)
    for name, model in {m.name: m for m in scale.models()}.items():
        config = scale.sizes[model.size].config(8)
        assert 0 < (finished / name / "model.npz").stat().st_size - estimate.model_bytes(config) < 80_000
    untrain(copy, "B2")
    state = unfinished_state(copy, data, "B2")
    config = scale.sizes["61"].config(8)
    assert 0 < state.stat().st_size - estimate.training_bytes(config) / 3 < 10_000
    for kind, bytes_each in (("float32", 4), ("float16", 2)):
        store = FeatureStore.build(copy.parent / f"disk-{kind}", read_part(data / "dev")[0], dtype=np.dtype(kind))
        rows = (copy.parent / f"disk-{kind}" / "rows.bin").stat().st_size
        assert estimate.store_bytes(store.num_rows, kind) == rows == 40 * bytes_each * store.num_rows
