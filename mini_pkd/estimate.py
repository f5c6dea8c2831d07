"""What training needs, by formulas: memory, disk, floating-point operations.

Memory follows from the arrays that a training keeps, disk from what it writes; operations of the model were counted by
hand.  How long they take is measured (measure_steps.py); dry_run.py makes a price of all of it.
"""

import contextlib
import os
from pathlib import Path

import numpy as np

from . import UserError
from .features import NUM_FEATURES
from .lattice_walk import chunk_rows
from .threads import control_groups
from .transducer import count_parameters

MEMINFO = Path("/proc/meminfo")


def memory_needed(scale, models, jobs=1):
    """Bytes of the `jobs` largest trainings among these models, which may run at the same time."""
    configs = {name: size.config(scale.settings.vocab_size) for name, size in scale.sizes.items()}
    sizes = {model.name: model.size for model in scale.models()}
    each = [_memory(configs[m.size], scale.settings, configs.get(sizes.get(m.teacher))) for m in models]
    return sum(sorted(each)[-jobs:])


def memory_free():
    """Bytes that this process may still take; None if the system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = MEMINFO.read_text().splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for folder in control_groups("memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            with contextlib.suppress(OSError, ValueError):  # not there; "max"
                found.append(int((folder / file).read_text()))
    return min(found, default=None)


def refuse_what_does_not_fit(scale, models, jobs, gigabytes=None):
    """Raise a UserError if memory would run out in the middle of the run; nothing has been built yet.

    gigabytes: what may be used; None: what memory_free says.
    """
    needed, free = memory_needed(scale, models, jobs), memory_free() if gigabytes is None else 1e9 * gigabytes
    if free is not None and needed > free:
        together = min(jobs, len(models))
        who = f"{together} trainings at a time need" if together > 1 else "the largest training needs"
        raise UserError(
            f"{who} about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; choose smaller sizes, a "
            f"smaller batch_frames or --jobs, or say with --memory how many GB there are."
        )


def _memory(config, settings, teacher):
    """Bytes of one training: parameters x (value, gradient, m, v, best), saved activations of a part, the rest."""
    e = config.encoder
    frames = min(settings.frames_at_once, settings.batch_utterances * settings.max_frames)
    rates = [0.5 ** min(i, e.pools) for i in range(e.blocks)]
    row = 4 * (e.width * (4 * e.expansion + 16) + e.heads * e.window)
    taught = 4 * count_parameters(teacher) if teacher else 0
    V, J = config.symbols, config.joint_width
    rows = chunk_rows(V, J, teacher is not None)
    lattice = 4 * rows * (2 * J + ((V + teacher.joint_width) if teacher else 0))
    lattice += max(4 * rows * V, settings.keep_mb * 2**20)
    return 20 * count_parameters(config) + frames * sum(rates) * row + taught + lattice + 200e6


# --- disk -----------------------------------------------------------------------------------------


def store_bytes(frames, feature_type):
    """Of the feature stores of so many frames: 55 GB for LibriSpeech in float32, half of it in float16."""
    return frames * NUM_FEATURES * np.dtype(feature_type).itemsize


def model_bytes(config):
    """Of a finished model."""
    return 4 * count_parameters(config)


def training_bytes(config):
    """Of a model in training: two saved states and a third while it is written, each of them weights, the best weights
    and Adam's two moments."""
    return 3 * 4 * model_bytes(config)


# --- floating-point operations, counted by hand ---------------------------------------------------


def forward_flop(config, frames, labels, nodes):
    """Floating-point operations of a forward pass: an estimate by hand, two for every multiply-add.

    frames, labels and nodes are totals over the utterances: feature rows of 10 ms, label ids, lattice nodes
    T' (U + 1).  Only matrix products, attention and the depthwise convolution count; the rest is memory
    traffic.  One block of width 1 (4 times expanded, window 1, kernel 1) without pooling, an LSTM of width 1,
    V = 3, J = 1, one frame, one label, two nodes:

        feed-forward 2 x (4 + 4), attention 3 + 1 and 3 x window, convolution 2 + 1 and kernel,
        input 40, to the joint 1                                                             = 68
        LSTM 4 x (1 + 1), to the joint 1                                                     =  9
        logits 3 per node                                                                    =  6

    >>> from mini_pkd.conformer import ConformerConfig
    >>> from mini_pkd.transducer import TransducerConfig
    >>> config = TransducerConfig(ConformerConfig(40, 1, 1, 1, 1, 1, 4, pools=0), 3, 1, 1, 1)
    >>> forward_flop(config, frames=1, labels=1, nodes=2) == 2 * (68 + 9 + 6)
    True
    """
    e, V, J, L = config.encoder, config.symbols, config.joint_width, config.lstm_width
    D = e.width
    block = 4 * e.expansion * D * D + 4 * D * D + 3 * e.window * D + 3 * D * D + e.kernel * D
    rates = sum(0.5 ** min(i, e.pools) for i in range(e.blocks))  # rows of all blocks together, per frame
    encoder = frames * (e.features * D + rates * block + 0.5**e.pools * D * J)
    lstm = labels * (sum(4 * L * ((J if i == 0 else L) + L) for i in range(config.lstm_layers)) + L * J)
    return 2 * (encoder + lstm + nodes * V * J)


def training_flop(config, frames, labels, nodes, teacher=None, logits_again=0.0):
    """Floating-point operations of training: forward, twice that backward (by inputs and by weights), teacher forward.

    logits_again: at this share of the nodes the student's logits are computed twice rather than kept (lattice_walk.py).
    """
    networks = [config] if teacher is None else [config, teacher]
    again = 2 * logits_again * nodes * config.symbols * config.joint_width
    return (
        2 * forward_flop(config, frames, labels, nodes)
        + again
        + sum(forward_flop(c, frames, labels, nodes) for c in networks)
    )


def flop_of_utterances(config, teacher, frames, labels, settings):
    """training_flop of each utterance: frames (n,), labels (n,) -> (n,); teacher: its configuration, or None."""
    nodes = np.ceil(frames / config.encoder.reduction) * (labels + 1)  # (n,)
    rows = chunk_rows(config.symbols, config.joint_width, teacher is not None)
    rows = max(rows, settings.keep_mb * 2**20 / (4 * config.symbols))
    again = np.maximum(0, 1 - rows / np.maximum(1, nodes))
    return training_flop(config, frames, labels, nodes, teacher, again)
