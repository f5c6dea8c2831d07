"""measure_steps.py: what is timed is what training does, the fastest time counts, and processes share the work."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from chirps import SETTINGS

from mini_pkd import UserError, measure_steps
from mini_pkd.estimate import flop_of_utterances, forward_flop
from mini_pkd.measure_steps import BEAM_FRAMES, BEAM_UTTERANCES, fastest, measure, noise_part, work
from mini_pkd.optimizer import Adam
from mini_pkd.scales import TINY

SCALE = TINY.override([*SETTINGS, "kl_weighting=paths"])
CONFIGS = {size: SCALE.sizes[size].config(8) for size in SCALE.sizes}
BATCHES = [([40, 33], [3, 0]), ([90, 80, 85], [6, 5, 7])]
PAIRS = [("T1", None), ("61", "79")]


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is a second later, at the processor's time two; what was called is noted."""
    ticks, calls = itertools.count(), []
    monkeypatch.setattr(measure_steps.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(measure_steps.time, "process_time", lambda: 2.0 * next(ticks))
    return calls


def task(**more):
    configs = {size: dataclasses.asdict(config) for size, config in CONFIGS.items()}
    return {"settings": dataclasses.asdict(SCALE.settings), "configs": configs, "pairs": PAIRS, "batches": BATCHES,
            "seconds": 0.0, "show": False, **more}  # fmt: skip


def test_what_is_timed_is_a_training_step_a_look_at_dev_and_a_search(clock, monkeypatch):
    seen = []

    def watch(name, what):
        real = getattr(measure_steps, name)

        def watched(*arguments):
            seen.append((name, what(*arguments)))
            return real(*arguments)

        monkeypatch.setattr(measure_steps, name, watched)

    def sizes(*networks):
        return [next((s for s in CONFIGS if n and n.config == CONFIGS[s]), None) for n in networks]

    watch("add_gradient", lambda student, teacher, batch, norm, share, settings, *_: (
        sizes(student, teacher), batch.lengths.tolist(), batch.label_lengths.tolist(), share, settings
    ))  # fmt: skip
    watch("evaluate", lambda network, part, bpe, settings: (sizes(network), part.store.lengths.tolist(), settings))
    watch("beam_search", lambda network, enc, lengths, beam, most: (sizes(network), len(lengths), beam, most))
    found = work(task())
    s = SCALE.settings
    steps = [(([student, teacher], *batch, 1.0, s)) for student, teacher in PAIRS for batch in BATCHES]
    assert [what for name, what in seen if name == "add_gradient"][2:] == steps  # after two that load the kernels
    assert [what for name, what in seen if name == "evaluate"] == [([size], BATCHES[0][0], s) for size in ("T1", "61")]
    counts = [(1, 2, 12), (BEAM_UTTERANCES, 2, 12)]
    assert [what for name, what in seen if name == "beam_search"] == [
        ([size], *count) for size in ("T1", "61") for count in counts
    ]
    for (student, teacher), pace in zip(PAIRS, found["pairs"], strict=True):
        for batch, seconds in zip(BATCHES, pace["step"], strict=True):
            pair = CONFIGS[student], teacher and CONFIGS[teacher]
            flop = flop_of_utterances(*pair, *map(np.array, batch), s).sum()
            np.testing.assert_allclose(np.array(seconds) * flop, [2.0, 4.0])  # ticks of the clock and the processor
        np.testing.assert_allclose(pace["update"], [2.0, 4.0])
    (frames, labels), paces = BATCHES[0], found["sizes"]
    nodes = sum(-(-T // 8) * (U + 1) for T, U in zip(frames, labels, strict=True))
    for size, pace in paces.items():
        flop = forward_flop(CONFIGS[size], sum(frames), sum(labels), nodes)
        np.testing.assert_allclose(np.array(pace["dev"]) * flop, [2.0, 4.0])
        np.testing.assert_allclose(np.array(pace["beam"]) * BEAM_UTTERANCES * BEAM_FRAMES, [2.0, 4.0])
    assert paces.keys() == {"T1", "61"}


def test_the_fastest_of_several_rounds_counts(monkeypatch):
    times, now = {"a": iter([5.0, 3.0, 4.0]), "b": iter([1.0, 2.0, 9.0])}, [0.0]

    def timed(name):
        seconds = next(times[name])
        now[0] += seconds
        return np.array([seconds, 10 / seconds])

    monkeypatch.setattr(measure_steps, "timed", timed)
    monkeypatch.setattr(measure_steps.time, "monotonic", lambda: now[0])
    assert fastest(["a", "b"], 100.0, rounds=2).tolist() == [[3.0, 2.0], [1.0, 5.0]]
    assert fastest(["a", "b"], 1.0).tolist() == [[4.0, 2.5], [9.0, 10 / 9]]  # once at least, and not again


def test_weights_stay_what_they_were():
    """... or the second round would time another model.  The gradients go, and their memory with them."""
    part = noise_part([40, 33], [3, 0], 8)
    student = measure_steps.Transducer(CONFIGS["61"], np.random.default_rng(0))
    before = Adam(student).values.copy()
    measure_steps.measure_pair(student, None, [part], SCALE.settings, 0.0)
    after = np.concatenate([p.data.ravel() for p in student.named_parameters().values()])
    assert np.array_equal(before, after) and all(p.grad is None for p in student.named_parameters().values())


def test_blank_is_as_probable_as_all_other_symbols_together(monkeypatch):
    biases = []
    real = measure_steps.measure_size
    monkeypatch.setattr(
        measure_steps, "measure_size", lambda n, *rest: biases.append(n.output_bias.data.tolist()) or real(n, *rest)
    )
    work(task(pairs=[("61", None)]))
    assert biases == [[pytest.approx(math.log(8)), *[0.0] * 7]]


def test_processes_share_the_pairs(monkeypatch):
    monkeypatch.setattr(measure_steps, "SECONDS", 0.1)
    of_pairs, of_sizes, waited = measure(CONFIGS, PAIRS, SCALE.settings, BATCHES, jobs=2, show=False)
    assert list(of_pairs) == PAIRS and of_sizes.keys() == {"T1", "61"} and waited >= 0
    for pace in of_pairs.values():
        assert pace["step"].shape == (2, 2) and pace["update"].shape == (2,)
        assert all((numbers > 0).all() for numbers in pace.values())
    with pytest.raises(UserError, match="a process that measured training steps has ended early"):
        measure(CONFIGS, PAIRS, dataclasses.replace(SCALE.settings, beam=0), BATCHES, show=False)


def test_batches_are_cut_to_the_time_there_is(monkeypatch):
    monkeypatch.setattr(measure_steps, "matrix_speed", lambda: 1e9)
    flop = sum(measure_steps._flop(CONFIGS, pair, BATCHES, SCALE.settings) for pair in PAIRS)
    seconds = flop / (measure_steps.UTILISATION * 1e9)

    def cut(share):
        return [list(map(list, batch)) for batch in
                measure_steps._cut(CONFIGS, PAIRS, SCALE.settings, BATCHES, share * seconds)]  # fmt: skip

    assert cut(1.01) == cut(9.0) == [list(map(list, batch)) for batch in BATCHES]
    assert cut(0.7) == [[[40], [3]], [[90, 80], [6, 5]]]
    assert cut(0.0) == [[[40], [3]], [[90], [6]]]
