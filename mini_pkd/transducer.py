"""The whole model: encoder, prediction network, and the joint network between them (Graves 2012, 2013).

A transducer reads the encoder's rows one after the other.  At each it says labels, none or several, and then blank
(symbol 0), which moves on to the next row.  So what it says next depends on t, the row it is at, and u, how many
labels it has said: on a node (t, u) of a lattice (rnnt_loss.py draws one).  There the joint network computes

    logits(t, u) = tanh(W_e enc_t + W_p pred_u + b) E^T + c            over V symbols

where b is the sum of two biases, one with each W, and E (V, J) is the prediction network's embedding table: one tensor,
used twice, which saves ten million parameters at 10026 symbols.  This file computes the two summands, a row for each t
and a row for each u; the losses add them and multiply by E, some nodes at a time, because there are too many logits.
"""

from dataclasses import asdict, dataclass, field

import numpy as np

from .conformer import Conformer, ConformerConfig
from .layers import NO_DROPOUT, Linear, Module, parameter
from .predictor import Predictor
from .ragged import BLANK
from .tensor import Tensor, no_grad
from .threads import matmul


@dataclass(frozen=True)
class TransducerConfig:
    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    symbols: int = 10026  # V, the blank included
    joint_width: int = 1024  # J: width of joint, embedding and tied output table
    lstm_layers: int = 2
    lstm_width: int = 1024  # L

    @classmethod
    def from_dict(cls, values):
        """The inverse of dataclasses.asdict; it trusts its input, so model_file.py checks what a file says first."""
        return cls(**values | {"encoder": ConformerConfig(**values["encoder"])})


def count_parameters(config):
    """How many parameters a transducer of this TransducerConfig has, without building it.

    >>> encoder = ConformerConfig(blocks=16, width=512, heads=4, window=256, kernel=32, expansion=4)
    >>> count_parameters(TransducerConfig(encoder))  # the paper's 128 M
    127732010
    """
    V, J, L = config.symbols, config.joint_width, config.lstm_width
    e = config.encoder
    F, D, W, K, hidden = e.features, e.width, e.window, e.kernel, e.expansion * e.width
    norms = 6 * 2 * D
    feed_forward = 2 * (D * hidden + hidden + hidden * D + D)
    attention = D * 3 * D + 3 * D + W * D + D * D + D
    convolution = D * 2 * D + 2 * D + K * D + D + D * D + D
    encoder = F * D + D + e.blocks * (norms + feed_forward + attention + convolution)
    lstm = 4 * L * (J + L + 1) + (config.lstm_layers - 1) * 4 * L * (L + L + 1)
    joint = D * J + J + L * J + J + V
    return encoder + V * J + lstm + joint


class Transducer(Module):
    """A conformer transducer; `rng` draws its initial weights."""

    def __init__(self, config, rng, dtype=np.float32):
        self.config = config
        self.encoder = Conformer(config.encoder, rng, dtype)
        V, J, L = config.symbols, config.joint_width, config.lstm_width
        self.predictor = Predictor(V, J, config.lstm_layers, L, rng, dtype)
        self.encoder_to_joint = Linear(config.encoder.width, J, rng, dtype)
        self.predictor_to_joint = Linear(L, J, rng, dtype)
        self.output_bias = parameter(np.zeros(V, dtype))

    @property
    def table(self):
        """The tied tensor E (V, J): input embedding and output matrix."""
        return self.predictor.embedding.table

    def lattice_inputs(self, batch, features, dropout=NO_DROPOUT):
        """What the losses need: ((enc, pred, table, bias), T' (B,)).

        enc (sum T', J) and pred (sum (U+1), J) are the joint's two summands, as Tensors on the tape.
        `features` are given beside `batch` because training masks them (specaugment.py).
        """
        encoded, lengths = self.encoder(Tensor(features), batch.lengths, dropout)
        predicted = self.predictor(batch.labels, batch.label_lengths, dropout)
        summands = self.encoder_to_joint(encoded), self.predictor_to_joint(predicted)
        return (*summands, self.table, self.output_bias), lengths

    # --- for decoding: plain arrays, nothing recorded ---------------------------------------------

    def encode(self, features, lengths):
        """features (sum T, F), lengths (B,) -> the encoder's summand in the joint (sum T', J), T' (B,)."""
        with no_grad():
            encoded, lengths = self.encoder(Tensor(features), lengths)
            return self.encoder_to_joint(encoded).data, lengths

    def predictor_start(self, N):
        """The prediction network after the start symbol, for N hypotheses: (pred (N, J), state)."""
        return self.predictor_step(np.full(N, BLANK, dtype=np.int64), self.predictor.zero_state(N))

    def predictor_step(self, symbols, state):
        """Feed one symbol to each hypothesis: (N,), state -> (pred (N, J), state)."""
        rows, state = self.predictor.step(symbols, state)
        with no_grad():
            return self.predictor_to_joint(Tensor(rows)).data, state

    def joint_logits(self, enc_rows, pred_rows):
        """For N nodes, the summand of the encoder and that of the predictor: (N, J), (N, J) -> logits (N, V)."""
        return matmul(np.tanh(enc_rows + pred_rows), self.table.data.T) + self.output_bias.data

    # --- about the model --------------------------------------------------------------------------

    def config_dict(self):
        """The configuration as plain JSON values."""
        return asdict(self.config)

    def parameters_by_part(self):
        """{"encoder": how many numbers training changes there, "table": E, "predictor": the rest of it, ...}"""
        sizes = {}
        for name, p in self.named_parameters().items():
            part = "table" if p is self.table else name.split(".")[0]
            sizes[part] = sizes.get(part, 0) + p.data.size
        return sizes


def demo():
    encoder = ConformerConfig(blocks=3, width=32, heads=4, window=16, kernel=8, expansion=2)
    config = TransducerConfig(encoder, symbols=30, joint_width=24, lstm_layers=1, lstm_width=20)
    model = Transducer(config, np.random.default_rng(0))
    for part, size in model.parameters_by_part().items():
        print(f"{part:20s} {size:7d} parameters")
    print(f"{'in all':20s} {model.num_parameters():7d}")
    print("the table's are 30 x 24, once for its two uses; the predictor's are its LSTM's, 4 x 20 x (24 + 20 + 1)")
    enc, lengths = model.encode(np.zeros((50, encoder.features), np.float32), [50])
    print(f"50 feature rows -> {lengths[0]} rows for the joint (one per {encoder.reduction}, rounded up)")
    print(f"logits at node (0, 0): {model.joint_logits(enc[:1], model.predictor_start(1)[0]).shape}")


if __name__ == "__main__":
    demo()
