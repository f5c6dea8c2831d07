"""How fast this machine trains, scores and decodes: real steps of every pair of student and teacher, timed.

A pair is timed on two micro-batches of invented utterances, one of short and one of longer ones (dry_run.py chooses
them): forward, loss with the teacher, backward, exactly what training calls.  The update by Adam is timed by itself,
because a batch in many parts has one.  For each size, a dev set and the beam are timed on a few utterances.

Of several rounds the fastest counts: other processes can make a step slower, never faster.  Weights are as they were
drawn, except that blank is as probable as all other symbols together, so that the searches are about as busy as with
a trained model.

`measure` starts processes as a run would: as many side by side, each with as many threads, as models are trained.
Such a process reads its task from stdin and writes what it found to stdout, both JSON.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import time

import numpy as np

from . import UserError, ctrl_c_is_for_us
from .command import progress_bar
from .estimate import flop_of_utterances, forward_flop
from .fast_beam import beam_search
from .features import NUM_FEATURES, Normaliser
from .memory import keep_freed_memory
from .optimizer import Adam
from .prepared_corpus import Part
from .scales import Settings
from .seeds import generator
from .threads import Crowding, matmul, usable_cores
from .train import add_gradient, evaluate
from .transducer import Transducer, TransducerConfig

SECONDS = 60.0  # of one process, for all that it measures, if its steps are short enough
ROUNDS = 7  # at most so many of each
UTILISATION = 0.35  # of the speed of matrix products that a step reaches: a guess, to cut the task to its time
BEAM_UTTERANCES, BEAM_FRAMES = 32, 64  # decoding takes 32 at a time, and the time for a row does not depend on lengths


# --- in the process that measures -----------------------------------------------------------------


class Noise:
    """What a Part needs of a feature store: utterances of these lengths, made of noise."""

    normaliser = Normaliser(np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES))

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.ids = [str(i) for i in range(len(lengths))]
        self.texts = ["NOISE"] * len(lengths)

    def __getitem__(self, i):
        return generator(0, "noise", i).standard_normal((int(self.lengths[i]), NUM_FEATURES), dtype=np.float32)

    def decode(self, labels):  # as a BPE
        return "NOISE"


def noise_part(frames, labels, symbols):
    """A Part of utterances with so many frames and labels each."""
    targets = [generator(0, "labels", i).integers(1, symbols, U) for i, U in enumerate(labels)]
    return Part(Noise(frames), targets, np.arange(len(frames)))


def timed(work):
    """-> seconds that it took, by the clock and of all processors together (2,)"""
    start = np.array([time.perf_counter(), time.process_time()])
    work()
    return np.array([time.perf_counter(), time.process_time()]) - start


def fastest(works, seconds, rounds=ROUNDS):
    """Time each of `works` in turn, as often as there are seconds for, at least once -> best times (len(works), 2)."""
    best, start = np.full((len(works), 2), math.inf), time.monotonic()
    for done in range(1, rounds + 1):
        best = np.minimum(best, [timed(work) for work in works])
        if (time.monotonic() - start) * (done + 1) / done > seconds:
            break
    return best


def measure_pair(student, teacher, parts, settings, seconds):
    """-> {"step": seconds per FLOP of the micro-batches (2, 2), "update": seconds of Adam (2,)}, by clock and CPU."""
    adam, draw = Adam(student, settings.clip), functools.partial(generator, 0, "dry run")
    update = fastest([lambda: adam.step(0.0)], 0.0, 2)[0]  # also touches the memory of the gradients
    works, flop = [], []
    for part in parts:
        batch = part.batch(part.indices)
        works.append(functools.partial(
            add_gradient, student, teacher, batch, part.store.normaliser, 1.0, settings, draw, 0, 1
        ))  # fmt: skip
        flop.append(flop_of_part(student, teacher, part, settings))
    best = fastest(works, seconds)
    for p in student.named_parameters().values():
        p.grad = None  # a view of Adam's buffer, which may go now
    return {"step": (best / np.array(flop)[:, None]).tolist(), "update": update.tolist()}


def flop_of_part(student, teacher, part, settings):
    labels = np.array([len(target) for target in part.targets])
    configs = student.config, teacher and teacher.config
    return flop_of_utterances(*configs, part.store.lengths, labels, settings).sum()


def measure_size(network, part, settings, seconds):
    """-> {"dev": seconds per FLOP of a forward pass (2,), "beam": seconds per frame (2,)}, by clock and CPU."""
    frames, labels = part.store.lengths, np.array([len(target) for target in part.targets])
    nodes = np.ceil(frames / network.config.encoder.reduction) * (labels + 1)
    lengths = np.full(BEAM_UTTERANCES, BEAM_FRAMES)
    rows = np.concatenate(list(map(Noise(lengths).__getitem__, range(BEAM_UTTERANCES))))

    def decode(count=BEAM_UTTERANCES):
        enc, encoded = network.encode(rows[: count * BEAM_FRAMES], lengths[:count])
        beam_search(network, enc, encoded, settings.beam, settings.max_symbols)

    decode(1)  # the first call loads the kernels
    dev, beam = fastest([lambda: evaluate(network, part, part.store, settings), decode], seconds)
    flop = forward_flop(network.config, frames.sum(), labels.sum(), nodes.sum())
    return {"dev": (dev / flop).tolist(), "beam": (beam / lengths.sum()).tolist()}


def work(task):
    """What `measure` asks of one process -> {"pairs": [...], "sizes": {...}, "waited": seconds per second or None}."""
    keep_freed_memory()
    crowding = None
    with contextlib.suppress(OSError):
        crowding = Crowding()
    settings = Settings(**task["settings"])
    configs = {size: TransducerConfig.from_dict(config) for size, config in task["configs"].items()}
    networks, pairs, sizes = {}, [], {}

    def network(size):
        if size not in networks:
            networks[size] = Transducer(configs[size], generator(0, size, "weights"))
            networks[size].output_bias.data[0] = math.log(configs[size].symbols)
        return networks[size]

    parts = [noise_part(*batch, next(iter(configs.values())).symbols) for batch in task["batches"]]
    flop = [_flop(configs, pair, task["batches"], settings) for pair in task["pairs"]]
    with progress_bar("measuring" if task["show"] else None, total=len(flop), unit="pair", leave=False) as bar:
        for i, (size, taught_by) in enumerate(task["pairs"]):
            student, teacher = network(size), taught_by and network(taught_by)
            seconds = task["seconds"] * flop[i] / sum(flop)
            if i == 0:  # it gets the memory that the others use again, and loads the kernels
                measure_pair(student, teacher, [noise_part([64], [3], 4)], settings, 0.0)
                measure_pair(student, teacher, parts[:1], settings, 0.0)
            pairs.append(measure_pair(student, teacher, parts, settings, 0.8 * seconds))
            if size not in sizes:
                sizes[size] = measure_size(student, parts[0], settings, 0.2 * seconds)
            bar.update()
    return {"pairs": pairs, "sizes": sizes, "waited": crowding and float(crowding.look())}


# --- in the process that asks ---------------------------------------------------------------------


def measure(configs, pairs, settings, batches, jobs=1, show=True):
    """-> ({pair: {"step": (2, 2), "update": (2,)}}, {size: {"dev": (2,), "beam": (2,)}}, waited), see measure_*.

    configs   {size: TransducerConfig}
    pairs     [(size of the student, size of its teacher or None), ...], no two the same
    batches   two pairs (frames (n,), labels (n,)): a micro-batch of short utterances, and one of longer ones
    jobs      processes that measure at the same time
    waited    the longest that a thread waited for a core, per second of its work: other processes are at work
    """
    shares = [pairs[i::jobs] for i in range(min(jobs, len(pairs)))]
    threads = str(max(1, usable_cores() // jobs))  # as processes.py gives them
    batches = _cut(configs, pairs, settings, batches, SECONDS / 3)  # so that there is time for a second round
    about = {
        "settings": dataclasses.asdict(settings), "seconds": SECONDS,
        "configs": {size: dataclasses.asdict(config) for size, config in configs.items()},
        "batches": [[np.asarray(numbers).tolist() for numbers in batch] for batch in batches],
    }  # fmt: skip
    limits = {name: threads for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")} if jobs > 1 else {}
    processes = []
    try:
        for i, share in enumerate(shares):
            with ctrl_c_is_for_us():
                processes.append(subprocess.Popen(
                    [sys.executable, "-m", "mini_pkd.measure_steps"], env=os.environ | limits, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                ))  # fmt: skip
            processes[-1].stdin.write(json.dumps(about | {"pairs": share, "show": show and i == 0}))
            processes[-1].stdin.close()
        answers = [process.stdout.read() for process in processes]
        if any(process.wait() for process in processes):
            raise UserError(
                "a process that measured training steps has ended early; if memory has run out, choose a smaller "
                "microbatch_frames or --jobs."
            )
    finally:
        for process in processes:
            process.kill()  # one that has ended is left alone
            process.wait()
            process.stdout.close()
    found = [json.loads(answer) for answer in answers]
    of_pairs, of_sizes = {}, {}
    for share, f in zip(shares, found, strict=True):
        of_pairs |= dict(zip(share, map(_arrays, f["pairs"]), strict=True))
        of_sizes |= {size: _arrays(pace) for size, pace in f["sizes"].items()}
    return of_pairs, of_sizes, max(f["waited"] or 0.0 for f in found)


def _arrays(numbers):
    return {name: np.array(values) for name, values in numbers.items()}


def _cut(configs, pairs, settings, batches, seconds):
    """Fewer utterances of each batch, if one round of all pairs would take longer than so many seconds."""
    speed = UTILISATION * matrix_speed()
    flop = sum(_flop(configs, pair, batches, settings) for pair in pairs)
    share = min(1.0, seconds * speed / flop)
    return [[numbers[: max(1, int(share * len(numbers)))] for numbers in batch] for batch in batches]


def _flop(configs, pair, batches, settings):
    """Operations of a pair's two micro-batches."""
    student, teacher = (size and configs[size] for size in pair)
    return sum(flop_of_utterances(student, teacher, *map(np.asarray, batch), settings).sum() for batch in batches)


def matrix_speed(seconds=0.3):
    """FLOP per second of a float32 matrix product of a common shape."""
    a, b = np.ones((1024, 512), np.float32), np.ones((512, 512), np.float32)
    matmul(a, b)
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        matmul(a, b)
        count += 1
    return count * 2 * 1024 * 512 * 512 / (time.monotonic() - start)


if __name__ == "__main__":
    json.dump(work(json.load(sys.stdin)), sys.stdout)
