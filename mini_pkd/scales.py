"""tiny, small, medium, full: four complete descriptions of the same pipeline.

From the paper: 40 MFCCs, blocks / width / heads of T1 (16 / 512 / 4), LSTM 2 x 1024, 10026 symbols, dropout 0.1,
alpha 0.02, temperature 1, beam 8, the peak learning rate 1e-4 of `full`, the students' numbers of parameters, and who
teaches whom.  Everything else is our choice and is made here, in one place: the students' widths and depths, windows,
the optimiser's schedule, epochs, the form of the mixed loss.

On the command line a setting is changed by its name, `epochs=3`, and a number of a size by both names, `T1.width=96`;
command_line.py reads these, and says which values each may have.
"""

import dataclasses
from dataclasses import dataclass

from . import UserError
from .command_line import nearest, overridden
from .conformer import ConformerConfig
from .decode import MAX_SYMBOLS
from .lattice_walk import KEEP_BYTES
from .specaugment import SpecAugmentPolicy
from .transducer import TransducerConfig, count_parameters


@dataclass(frozen=True)
class Size:
    """The shape of a network, all but its number of symbols."""

    blocks: int  # conformer blocks of the encoder
    width: int  # D, of the encoder's rows
    heads: int  # of attention
    window: int  # rows that attention sees, the present one included
    kernel: int  # rows that the convolution sees, likewise
    expansion: int  # of the feed-forward modules: hidden width over width
    joint_width: int  # J, of the joint network and so of the tied symbol table
    lstm_layers: int
    lstm_width: int

    def config(self, symbols):
        """The transducer of this size over `symbols` symbols."""
        encoder = ConformerConfig(
            blocks=self.blocks, width=self.width, heads=self.heads,
            window=self.window, kernel=self.kernel, expansion=self.expansion,
        )  # fmt: skip
        return TransducerConfig(encoder, symbols, self.joint_width, self.lstm_layers, self.lstm_width)


@dataclass(frozen=True)
class Stage:
    """One stage of the cascade, by names: three models of one size.

    In the first stage of an experiment the teacher is T1, and so the progressive and the direct student are the same.
    """

    size: str
    teacher: str  # of the progressive student
    progressive: str
    direct: str  # taught by T1
    baseline: str  # taught by nobody


@dataclass(frozen=True)
class Model:
    """One model to train."""

    name: str
    size: str
    teacher: str | None  # None: a model that nobody teaches
    role: str  # teacher | progressive | direct | baseline
    experiment: tuple[int, ...]  # numbers of the experiments it is part of: T1 of all, the others of one
    stage: int  # of its experiment; 0 for T1


@dataclass(frozen=True)
class Settings:
    """Every number of a run but for the sizes: the same for all models of the run."""

    data: str  # corpus folder when --data is not given, relative to the repository
    vocab_size: int  # symbols V, the blank included
    epochs: int  # passes over the training set
    batch_utterances: int  # a batch has at most so many utterances,
    batch_frames: int  # and at most so many frames of 10 ms
    max_frames: int  # longer training utterances are left out, and listed
    peak_rate: float  # learning rate at the end of the warm-up
    warmup_steps: int  # steps in which the learning rate grows from 0 to its peak; at most a fifth of all (plan.py)
    floor_rate: float = 0.0  # last learning rate over the peak
    clip: float = 5.0  # largest norm of a gradient; a larger gradient is scaled down to it
    dropout: float = 0.1  # share of elements that are set to 0
    alpha: float = 0.02  # weight of the KL, summed over the lattice
    temperature: float = 1.0  # divides both networks' logits in the KL: above 1 both are less sure
    kl: str = "full"  # full: over all symbols | collapsed: over blank, next label, the rest
    kl_weighting: str = "nodes"  # nodes: the KL of each counts alike | paths: by how probably a path comes by
    mixing: str = "add"  # add: L_RNNT + alpha L_KD | convex: (1 - alpha) L_RNNT + alpha L_KD
    curriculum_epochs: int = 0  # epochs that grow from short utterances to all
    max_warp_fraction: float = 0.0  # SpecAugment: how far a point of an utterance moves in time
    time_masks: int = 2  # stretches of rows that are hidden from the encoder,
    max_time: int = 8  # each at most so many rows long,
    max_time_fraction: float = 0.15  # and at most this share of the utterance
    freq_masks: int = 1  # bands of the mel axis that are hidden,
    max_freq: int = 4  # each at most so many of 40 channels wide
    max_mel_warp: float = 0.0  # how far the mel axis is stretched or compressed, as a fraction of it
    max_channel_db: float = 0.0  # largest gain or loss of a smooth random filter
    max_noise: float = 0.0  # largest power of a noise floor over the utterance's: 0.1 is 10 dB below it
    dev_every: int = 1  # epochs from one dev score to the next,
    dev_updates: int = 0  # and within an epoch updates; 0: at its end only
    dev_utterances: int = 0  # utterances of the dev set that are scored, drawn once; 0: all
    microbatch_frames: int = 0  # frames that are in memory at a time, parts of a batch; 0: all of it
    keep_mb: int = KEEP_BYTES // 2**20  # MiB of logits kept rather than computed twice (lattice_walk.py)
    checkpoint_minutes: float = 5.0  # between two saved states of a training
    beam: int = 8  # hypotheses that the search keeps on the test sets
    max_symbols: int = MAX_SYMBOLS  # most symbols per encoder row in decoding
    feature_type: str = "float32"  # float16 halves the feature store

    @property
    def frames_at_once(self):
        """Most frames of one pass through the network."""
        return self.microbatch_frames or self.batch_frames

    def spec_augment(self):
        """The SpecAugment policy of these settings."""
        names = (field.name for field in dataclasses.fields(SpecAugmentPolicy))
        return SpecAugmentPolicy(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Scale:
    """All of a run: its settings, its sizes by name, and its experiments as lists of stages."""

    name: str
    settings: Settings
    sizes: dict[str, Size]
    experiments: tuple[tuple[Stage, ...], ...]

    def models(self):
        """Every model once, in an order in which teachers come before their students."""
        found = {"T1": Model("T1", "T1", None, "teacher", tuple(range(1, len(self.experiments) + 1)), 0)}
        for number, stages in enumerate(self.experiments, start=1):
            for i, stage in enumerate(stages, start=1):
                students = {  # where the progressive student is the direct one, the second line takes its place
                    stage.direct: ("T1", "direct"),
                    stage.progressive: (stage.teacher, "progressive"),
                    stage.baseline: (None, "baseline"),
                }
                for name, (teacher, role) in students.items():
                    found[name] = Model(name, stage.size, teacher, role, (number,), i)
        return list(found.values())

    def override(self, assignments):
        """A copy with `name=value` strings applied; an unknown name or a bad value is a UserError."""
        return overridden(self, assignments)

    def as_dict(self):
        return dataclasses.asdict(self)


# --- the paper's cascade, and four sizes of it ----------------------------------------------------

# A size is named after the millions of parameters that it has in the paper.
# size, teacher, progressive, direct, baseline
EXPERIMENT_1 = (
    Stage("79", "T1", "S1", "S1", "B1"),
    Stage("61", "S1", "S3", "S2", "B2"),
    Stage("46", "S3", "S5", "S4", "B3"),
)
EXPERIMENT_2 = (
    Stage("58", "T1", "S6", "S6", "B4"),
    Stage("24", "S6", "S8", "S7", "B5"),
)

# blocks, width, heads, window, kernel, expansion, joint_width, lstm_layers, lstm_width
# fmt: off
TINY = Scale(
    "tiny",
    Settings(
        data="data_small/numbers", vocab_size=64, epochs=20, dev_every=4,
        batch_utterances=8, batch_frames=4000, max_frames=1200,
        peak_rate=2e-3, warmup_steps=300, clip=1.0, max_warp_fraction=0.15,
    ),
    {
        "T1": Size(3, 96, 4, 16, 8, 2, 112, 1, 128),
        "79": Size(3, 48, 4, 16, 8, 2, 64, 1, 64),
        "61": Size(3, 24, 4, 16, 8, 2, 32, 1, 32),
    },
    (EXPERIMENT_1[:2],),
)

SMALL = Scale(
    "small",
    Settings(
        data="data_small/sentences", vocab_size=64, epochs=20, curriculum_epochs=2, dev_every=5,
        batch_utterances=8, batch_frames=4000, max_frames=1600,
        peak_rate=2e-3, warmup_steps=400, max_warp_fraction=0.15,
    ),
    {
        "T1": Size(3, 144, 4, 16, 8, 2, 176, 1, 176),
        "79": Size(3, 112, 4, 16, 8, 2, 128, 1, 144),
        "61": Size(3, 96, 4, 16, 8, 2, 120, 1, 136),
        "46": Size(3, 80, 4, 16, 8, 2, 112, 1, 128),
        "58": Size(3, 96, 4, 16, 8, 2, 96, 1, 128),
        "24": Size(3, 56, 4, 16, 8, 2, 80, 1, 96),
    },
    (EXPERIMENT_1, EXPERIMENT_2),
)

MEDIUM = Scale(
    "medium",
    Settings(
        data="LibriSpeech", vocab_size=1024, epochs=30, curriculum_epochs=1, dev_utterances=500,
        batch_utterances=16, batch_frames=24000, microbatch_frames=8000, max_frames=2500,
        peak_rate=1e-3, warmup_steps=2000, max_time=100, max_time_fraction=0.05, freq_masks=2, max_freq=8,
    ),
    {
        "T1": Size(8, 208, 4, 64, 16, 4, 384, 1, 384),
        "79": Size(8, 160, 4, 64, 16, 4, 320, 1, 320),
        "61": Size(8, 144, 4, 64, 16, 4, 240, 1, 240),
        "46": Size(7, 128, 4, 64, 16, 4, 248, 1, 248),
        "58": Size(8, 136, 4, 64, 16, 4, 272, 1, 272),
        "24": Size(7, 88, 4, 64, 16, 4, 192, 1, 192),
    },
    (EXPERIMENT_1, EXPERIMENT_2),
)

FULL = Scale(
    "full",
    Settings(
        data="LibriSpeech", vocab_size=10026, epochs=40, curriculum_epochs=1, keep_mb=256, checkpoint_minutes=20.0,
        dev_updates=2000, dev_utterances=500,
        batch_utterances=64, batch_frames=80000, microbatch_frames=8000, max_frames=3600,
        peak_rate=1e-4, warmup_steps=10000,
        max_time=100, max_time_fraction=0.05, freq_masks=2, max_freq=8,
    ),
    {
        "T1": Size(16, 512, 4, 256, 32, 4, 1024, 2, 1024),
        "79": Size(16, 400, 4, 256, 32, 4, 768, 2, 768),
        "61": Size(16, 352, 4, 256, 32, 4, 640, 2, 640),
        "46": Size(14, 320, 4, 256, 32, 4, 576, 2, 576),
        "58": Size(12, 384, 4, 256, 32, 4, 704, 2, 704),
        "24": Size(14, 224, 4, 256, 32, 4, 400, 2, 400),
    },
    (EXPERIMENT_1, EXPERIMENT_2),
)
# fmt: on

SCALES = {scale.name: scale for scale in (TINY, SMALL, MEDIUM, FULL)}


def get_scale(name):
    """The scale of that name; an unknown one is a UserError."""
    if name not in SCALES:
        raise UserError(f"there is no scale {name!r}{nearest(name, SCALES)}.")
    return SCALES[name]


def demo():
    for scale in SCALES.values():
        print(f"{scale.name}: {scale.settings.data}, {scale.settings.epochs} epochs")
        for model in scale.models():
            P = count_parameters(scale.sizes[model.size].config(scale.settings.vocab_size))
            print(f"  {model.name:3s} {P / 1e6:8.3f} M  taught by {model.teacher or '-'}")


if __name__ == "__main__":
    demo()
