"""Compile every kernel of training once, in a process of its own: `python -m mini_pkd.warm_up`.

numba compiles a kernel at its first call and keeps the machine code in a cache on disk.  The code that is run right
after compiling and the code that later processes load from the cache are not always the same: here the backward
pass of attention and the LSTM differed in the last bit.  A run that compiled, was killed and continued would
then not end in the same bits.  So a process that trains never compiles: this one does, and fills the cache for all.
"""

import subprocess
import sys

import numpy as np

from . import ctrl_c_is_for_us
from .conformer import ConformerConfig
from .layers import DropoutKeys
from .optimizer import Adam
from .ragged import Batch
from .scales import TINY
from .train import lattice_loss
from .transducer import Transducer, TransducerConfig

_done = False


def ensure():
    """Fill the cache from another process, once in the life of this one."""
    global _done
    if not _done:
        with ctrl_c_is_for_us():
            process = subprocess.Popen([sys.executable, "-m", "mini_pkd.warm_up"], stdin=subprocess.DEVNULL)
        try:
            process.wait()
        finally:
            process.kill()  # after Ctrl-C; one that has ended is left alone
        _done = True


def compile_all():
    """One training step of a very small model, in every form that the settings allow."""
    rng = np.random.default_rng(0)
    lengths, label_lengths = np.array([40, 9]), np.array([3, 0])
    features = rng.standard_normal((49, 40)).astype(np.float32)
    batch = Batch(["a", "b"], features, lengths, np.array([1, 2, 1]), label_lengths)
    encoder = ConformerConfig(blocks=3, width=8, heads=2, window=4, kernel=2, expansion=2)
    teacher, model = (Transducer(TransducerConfig(encoder, 5, 8, 1, 8), rng) for _ in range(2))
    adam = Adam(model)
    for teaches in (None, teacher):
        for kl in ("full", "collapsed"):
            settings = TINY.override([f"kl={kl}"]).settings
            loss, _, _ = lattice_loss(model, teaches, batch, features, settings, DropoutKeys(0.1, rng))
            loss.backward()
            adam.step(1e-3)


if __name__ == "__main__":
    compile_all()
