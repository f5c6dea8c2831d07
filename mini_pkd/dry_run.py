"""What a run would cost, before it is paid for: `python -m mini_pkd.cascade --dry-run`.

The corpus is counted, as far as it is there; steps are timed on this machine (measure_steps.py); the rest are formulas
(estimate.py).  A step's seconds per operation depend on the length of its utterances, so two micro-batches are timed,
where 21 % and 79 % of an epoch's operations lie below and their mean is taken: Gauss's rule with two points.

Nothing is written but the kernels' cache.
"""

import contextlib
import dataclasses
import math
import os
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import soundfile

from . import UserError, vocabulary_file, warm_up
from .bpe import BPE, word_counts
from .corpus import epoch_batches, pack, usable_utterances
from .corpus_folder import find_parts, missing_roles, read_part
from .estimate import (
    flop_of_utterances,
    forward_flop,
    memory_free,
    memory_needed,
    model_bytes,
    store_bytes,
    training_bytes,
)  # fmt: skip
from .feature_store import FeatureStore
from .measure_steps import measure
from .plan import Plan
from .prepared_corpus import REDUCTION, TEST_SETS, Part
from .processes import ROLES
from .threads import POOL, usable_cores
from .transducer import count_parameters

GAUSS = (0.5 - 12**-0.5, 0.5 + 12**-0.5)
EVENNESS = 0.95  # of the ranks' shares of an update: the mean over the largest
NETWORK = 1e9  # bytes per second in which ranks exchange gradients
WAITED = 0.1  # seconds that a thread waits for a core, per second of work: more than it does alone
# utterances and mean frames of LibriSpeech's parts, with 33 words each, for a corpus that is not there yet
LIBRISPEECH = {"train": (281241, 1229), "dev": (5567, 692), "test-clean": (2620, 742), "test-other": (2939, 654)}


class Role(NamedTuple):
    """The utterances of a role."""

    frames: np.ndarray  # (n,) of 10 ms
    labels: np.ndarray  # (n,) units of the vocabulary
    source: str  # where these numbers are from

    @property
    def hours(self):
        return self.frames.sum() / 360000

    def of(self, indices):
        return Role(self.frames[indices], self.labels[indices], self.source)


def describe(cascade, jobs, seeds=1, ranks=None):
    """What a run would train and what it would take, as text.  ranks: a projection for so many MPI processes."""
    roles, symbols = census(cascade)
    s = dataclasses.replace(cascade.settings, vocab_size=symbols)
    scale = dataclasses.replace(cascade.scale, settings=s)
    listed = roles["train"]
    kept, problems = usable_utterances(listed.frames, listed.labels, REDUCTION, s.max_frames)
    if not kept:
        raise UserError(f"no utterance of {cascade.data} has at most max_frames={s.max_frames} frames; raise it.")
    configs = {size: scale.sizes[size].config(s.vocab_size) for size in scale.sizes}
    size_of = {model.name: model.size for model in scale.models()} | {None: None}
    pairs = list(dict.fromkeys((model.size, size_of[model.teacher]) for model in scale.models()))
    training, dev = listed.of(kept), roles["dev"].of(roles["dev"].frames <= s.max_frames)
    plan = _plan(training, s, cascade.seed, configs["T1"])
    memory, free = memory_needed(scale, scale.models() * seeds, jobs), memory_free()
    fits = free is None or memory <= free
    if fits:
        cascade.say("compiling the kernels, half a minute the first time")
        warm_up.ensure()
        parts = micro_batches(training, s, configs["T1"])
        of_pairs, of_sizes, waited = measure(configs, pairs, s, parts, jobs, cascade.progress)
    lines = [
        f"{scale.name}: {cascade.corpus}, {s.vocab_size} symbols, {s.epochs} epochs, batches of {s.batch_utterances} "
        f"utterances or {s.batch_frames} frames" + f", in parts of {s.microbatch_frames}" * (s.microbatch_frames > 0),
        f"{'model':6s} {'parameters':>12s} {'memory':>10s} {'GFLOP an hour':>13s} {'an epoch':>10s} {'in all':>10s} "
        f"{'its CPU':>10s}   taught by",
    ]
    costs = {}
    for model in scale.models():
        config, pair = configs[model.size], (model.size, size_of[model.teacher])
        flop = flop_of_utterances(config, pair[1] and configs[pair[1]], training.frames, training.labels, s).sum()
        row = (
            f"{model.name:6s} {count_parameters(config) / 1e6:10.3f} M {memory_needed(scale, [model]) / 1e9:7.2f} GB "
            f"{flop / training.hours / 1e9:13.0f}"
        )
        if fits:
            costs[model.name] = cost = Cost.of(config, flop, plan, dev, roles, s, of_pairs[pair], of_sizes[model.size])
            epoch = (flop * cost.pace + plan.updates / s.epochs * of_pairs[pair]["update"])[0]
            row += "".join(f"{duration(x):>11s}" for x in (epoch, *cost.total))
        lines.append(f"{row}   {model.teacher or '-'}")
    lines += [f"Memory: {memory / 1e9:.2f} GB, {jobs} at a time.", *_about_corpus(roles, problems, s, plan)]
    lines += _about_disk(roles, configs, scale.models() * seeds, jobs, s)
    if not fits:
        return "\n".join([*lines, f"Time: not measured, because {free / 1e9:.1f} GB of memory are free here."])
    return "\n".join(lines + _about_time(scale.models(), costs, jobs, seeds, waited) + (
        [_at_ranks(costs, configs, size_of, plan, training, seeds, ranks)] if ranks else []
    ))  # fmt: skip


# --- the corpus -----------------------------------------------------------------------------------


def census(cascade):
    """-> ({role: Role}, symbols) of the corpus: from its feature store, else from its audio, else as LibriSpeech is."""
    V = cascade.settings.vocab_size
    with contextlib.suppress(UserError):
        stores = {role: FeatureStore(cascade.features(role)) for role in ("train", "dev")}
        for role in TEST_SETS:
            with contextlib.suppress(UserError):
                stores[role] = FeatureStore(cascade.features(role))
        texts = {role: store.texts for role, store in stores.items()}
        frames = {role: store.lengths for role, store in stores.items()}
        return _roles(cascade, frames, texts, "its feature store")
    if not cascade.data.is_dir():
        source = f"as in LibriSpeech, because {cascade.data} is not there"
        per_word = 1 + 4.4 * (30 / max(30, V)) ** 0.5  # letters at V = 30, nearly words at 10000
        return {role: Role(np.full(n, T), np.full(n, round(33 * per_word * T / 1229)), source)
                for role, (n, T) in LIBRISPEECH.items()}, V  # fmt: skip
    found = {role: [u for folder in folders for u in read_part(folder)[0]]
             for role, folders in find_parts(cascade.data).items() if folders}  # fmt: skip
    frames = {role: sampled_frames(utterances) for role, utterances in found.items()}
    texts = {role: [u.text for u in utterances] for role, utterances in found.items()}
    return _roles(cascade, frames, texts, "its audio files")


def _roles(cascade, frames, texts, source):
    """... labels counted with the run's vocabulary, or with the one that it would train."""
    path = cascade.folder.path / "vocabulary.json"
    if path.exists():
        bpe = vocabulary_file.load(path)
    else:
        bpe = BPE.train(word_counts(texts["train"]), cascade.settings.vocab_size, cascade.progress)

    def labels(text):
        try:
            return len(bpe.encode(text))
        except UserError:  # a character that is not in the vocabulary
            return 0

    roles = {role: Role(frames[role], np.array([labels(text) for text in texts[role]]), source) for role in frames}
    return roles, bpe.size


def sampled_frames(utterances, sample=2000):
    """Frames of each utterance; of many, every n-th file is looked at, and the ones after it count alike."""
    step = max(1, len(utterances) // sample)
    frames = []
    for utterance in utterances[::step]:
        try:
            frames.append(round(100 * soundfile.info(os.fsencode(utterance.audio)).duration))
        except (soundfile.SoundFileError, RuntimeError, OSError):
            frames.append(0)
    return np.repeat(frames, step)[: len(utterances)]


def _about_corpus(roles, problems, s, plan):
    train = roles["train"]
    reasons = Counter(problem.reason.split(":")[0].lstrip("0123456789 ") for problem in problems)
    limits = {"too long": f" (max_frames={s.max_frames})"}
    left_out = "; left out: " + ", ".join(
        f"{n} {reason}{limits.get(reason, '')}" for reason, n in reasons.items()
    ) if reasons else "; none is left out"  # fmt: skip
    missing = missing_roles({role: [role] if role in roles else [] for role in ("train", "dev", *TEST_SETS)})
    cut = f", cut from warmup_steps={s.warmup_steps}" if plan.warmup < s.warmup_steps else ""
    return [
        f"Training set: {train.hours:.2f} h in {len(train.frames)} utterances ({train.source}){left_out}.",
        *([missing] if missing else []),
        f"Updates of a model: {plan.updates}; warm-up: {plan.warmup} of them, {plan.warmup / plan.updates:.0%}{cut}.",
    ]


def _about_disk(roles, configs, models, jobs, s):
    frames = sum(int(role.frames.sum()) for role in roles.values())
    store = {kind: store_bytes(frames, kind) for kind in ("float32", "float16")}
    finished = sum(model_bytes(configs[model.size]) for model in models)
    states = sum(sorted(training_bytes(configs[model.size]) for model in models)[-jobs:])
    return [
        f"Disk: {size(store[s.feature_type] + finished + states)} = features {size(store['float32'])} in float32 or "
        f"{size(store['float16'])} in float16 (feature_type={s.feature_type}), models {size(finished)}, "
        f"states of trainings {size(states)}."
    ]


def size(number):
    """
    >>> size(55.3e9), size(27_600_000)
    ('55.3 GB', '27.6 MB')
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


# --- time -----------------------------------------------------------------------------------------


def _plan(training, s, seed, config):
    """The Plan of a model of this configuration, which tells how many updates there are."""
    store = SimpleNamespace(lengths=training.frames)
    part = Part(store, [range(U) for U in training.labels], np.arange(len(training.frames)))
    return Plan(part, s, seed, SimpleNamespace(config=config))


def micro_batches(training, s, config):
    """Two micro-batches as training forms them, (frames (n,), labels (n,)) each: at the points of Gauss's rule."""
    batches = epoch_batches(training.frames, s.batch_frames, s.batch_utterances, shuffle=False)
    if s.microbatch_frames:
        batches = [
            part for batch in batches
            for part in pack(np.array(batch), training.frames, s.microbatch_frames, s.batch_utterances)
        ]  # fmt: skip
    flop = flop_of_utterances(config, None, training.frames, training.labels, s)
    done = np.cumsum([flop[batch].sum() for batch in batches])
    chosen = [batches[np.searchsorted(done, point * done[-1])] for point in GAUSS]
    return [(training.frames[batch], training.labels[batch]) for batch in chosen]


class Cost(NamedTuple):
    """Seconds of a model, by the clock and of all processors together, each (2,)."""

    pace: np.ndarray  # of an operation
    steps: np.ndarray  # all micro-batches
    updates: np.ndarray  # all of Adam
    dev: np.ndarray  # all looks at the dev set
    beam: np.ndarray  # the test sets

    @classmethod
    def of(cls, config, flop, plan, dev, roles, s, of_pair, of_size):
        """flop: of an epoch with all utterances."""
        pace, epochs = of_pair["step"].mean(axis=0), plan.work[-1] / plan.flop.sum()  # fewer, with a curriculum
        frames, labels = dev.frames, dev.labels
        nodes = np.ceil(frames / config.encoder.reduction) * (labels + 1)
        share = min(1.0, s.dev_utterances / len(frames)) if s.dev_utterances else 1.0
        looks = math.ceil(s.epochs / s.dev_every) + (plan.updates // s.dev_updates if s.dev_updates else 0)
        look = share * forward_flop(config, frames.sum(), labels.sum(), nodes.sum())
        test_frames = sum(roles[role].frames.sum() for role in TEST_SETS if role in roles)
        return cls(
            pace, epochs * flop * pace, plan.updates * of_pair["update"], looks * look * of_size["dev"],
            test_frames * of_size["beam"],
        )  # fmt: skip

    @property
    def total(self):
        return self.steps + self.updates + self.dev + self.beam


def in_all(models, seconds, jobs):
    """Seconds until all are finished, `jobs` at a time, each when its teacher is (processes.py).

    models: each with a name and a teacher, by name or None; seconds: {name: seconds}
    """
    finished, free, queue = {None: 0.0}, [0.0] * jobs, list(models)
    while queue:
        slot = free.index(min(free))
        ready = [max(free[slot], finished.get(model.teacher, math.inf)) for model in queue]
        i = ready.index(min(ready))  # the first of those that can begin first
        model = queue.pop(i)
        free[slot] = finished[model.name] = ready[i] + seconds[model.name]
    return max(free)


def _about_time(models, costs, jobs, seeds, waited):
    queue = [
        SimpleNamespace(name=(seed, m.name), teacher=m.teacher and (seed, m.teacher))
        for seed in range(seeds) for m in sorted(models, key=lambda m: ROLES.index(m.role))
    ]  # fmt: skip
    threads = POOL.size if jobs == 1 else max(1, usable_cores() // jobs)
    clock, cpu = (in_all(queue, {m.name: costs[m.name[1]].total[i] for m in queue}, jobs) for i in (0, 1))
    dev, beam = (seeds * sum(getattr(cost, part)[0] for cost in costs.values()) for part in ("dev", "beam"))
    each = f", each model with {seeds} seeds" if seeds > 1 else ""
    lines = [
        f"Time in all: {duration(clock)}, {jobs} at a time, threads of each: {threads}{each}; without features.",
        f"Of these, added up: dev set {duration(dev)}, beam on the test sets {duration(beam)}.",
        "Times are of this machine now: from micro-batches of short and of longer utterances, for each pair of student "
        "and teacher\nthe fastest of some.",
    ]
    if waited > WAITED:
        least = f"between {duration(cpu / threads)} and " if threads > 1 else ""
        lines.append(
            f"Others are at work on it: for each second of work a thread waited {waited:.1f} s for a core.  By the CPU "
            f"time, alone it\nwould take {least}{duration(cpu)}."
        )
    return lines


def _at_ranks(costs, configs, size_of, plan, training, seeds, ranks):
    """A projection, and what it assumes."""
    most = max(1, round(plan.work[-1] / plan.flop.sum() * len(training.frames) / plan.updates))
    working, seconds, exchanged = min(ranks, most), 0.0, 0.0
    for name, cost in costs.items():
        gradients = 4 * count_parameters(configs[size_of[name]])
        exchange = plan.updates * 2 * gradients / NETWORK if ranks > 1 else 0.0  # there and back
        shared = (cost.steps[0] / EVENNESS if ranks > 1 else cost.steps[0]) + cost.dev[0] + cost.beam[0]
        seconds += shared / working + cost.updates[0] + exchange
        exchanged += exchange
    idle = f"; the others have nothing to do, because an update has about {most} utterances" if ranks > most else ""
    return (
        f"At {ranks} ranks: {duration(seeds * seconds)}, a projection: {working} processes, each as fast as one "
        f"here{idle}; their shares even to {EVENNESS:.0%}; {NETWORK / 1e9:g} GB/s for gradients "
        f"({exchanged / seconds:.0%} of the time); one model after the other."
    )


def duration(seconds):
    """
    >>> duration(30.0), duration(1e6)
    ('30.0 s', '11.6 days')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
