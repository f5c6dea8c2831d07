"""tiny, small, full: three complete descriptions of the same pipeline.

Everything that the paper leaves open is decided here, in one place, and is our choice, not theirs: the
students' widths and depths, windows, the optimiser's schedule, epochs, the form of the mixed loss.  From the
paper: 40 MFCCs, blocks / width / heads of T1 (16 / 512 / 4), LSTM 2 x 1024, 10026 symbols, dropout 0.1,
alpha 0.02, temperature 1, beam 8, the peak learning rate 1e-4 of `full`, the sizes and the order of the cascade.

A setting can be changed on the command line by its name, `epochs=3`, and one model size's by size and
name, `T1.width=96`.  Most of them define a run's results and are fixed from its start; what may change on the way
is in MAY_CHANGE.
"""

import dataclasses
import difflib
import math
import sys
from dataclasses import dataclass

from . import UserError
from .conformer import ConformerConfig
from .decode import MAX_BEAM, MAX_SYMBOLS
from .specaugment import SpecAugmentPolicy
from .transducer import TransducerConfig, count_parameters


@dataclass(frozen=True)
class Size:
    """One model size.  `joint_width` is also the width of the tied symbol table."""

    blocks: int
    width: int
    heads: int
    window: int
    kernel: int
    expansion: int
    joint_width: int
    lstm_layers: int
    lstm_width: int

    def config(self, symbols):
        """The transducer of this size over `symbols` symbols."""
        encoder = ConformerConfig(
            blocks=self.blocks,
            width=self.width,
            heads=self.heads,
            window=self.window,
            kernel=self.kernel,
            expansion=self.expansion,
        )
        return TransducerConfig(encoder, symbols, self.joint_width, self.lstm_layers, self.lstm_width)

    def check(self, name):
        """Raise a UserError if no model called `name` can have this size."""
        _check_ranges(self, f"{name}.")
        try:
            self.config(symbols=3)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Stage:
    """One row of Table 1: three models of one size.  `teacher` is whom the progressive student learns from.

    Where progressive == direct (the first stage: its teacher is T1) the two columns share one model.
    """

    size: str
    teacher: str
    progressive: str
    direct: str
    baseline: str


@dataclass(frozen=True)
class Model:
    """One model to train: its size, and who teaches it (None: nobody)."""

    name: str
    size: str
    teacher: str | None
    role: str  # teacher | progressive | direct | baseline
    experiment: tuple[int, ...]
    stage: int


@dataclass(frozen=True)
class Settings:
    """Every number of a run.  The first line of each comment says what raising it does."""

    data: str  # corpus folder when --data is not given, relative to the repository
    vocab_size: int  # symbols V, the blank included
    epochs: int  # passes over the training set, the same for every model of the scale
    batch_utterances: int
    batch_frames: int
    max_frames: int  # longer training utterances are left out, and listed
    peak_rate: float  # learning rate at the end of the warm-up
    warmup_steps: int
    floor_rate: float = 0.0  # last learning rate over the peak
    clip: float = 5.0  # largest norm of a gradient
    dropout: float = 0.1
    alpha: float = 0.02  # weight of the KL, summed over the lattice
    temperature: float = 1.0
    kl: str = "full"  # full | collapsed
    mixing: str = "add"  # add: L_RNNT + alpha L_KD | convex: (1 - alpha) L_RNNT + alpha L_KD
    curriculum_epochs: int = 0  # epochs that grow from short utterances to all
    max_warp_fraction: float = 0.0  # SpecAugment: how far a point of an utterance moves in time
    time_masks: int = 2  # and which rows and cepstra are hidden from the encoder
    max_time: int = 8
    max_time_fraction: float = 0.15
    freq_masks: int = 1
    max_freq: int = 4
    dev_every: int = 1  # epochs between two looks at the dev set
    checkpoint_minutes: float = 5.0
    beam: int = 8
    max_symbols: int = MAX_SYMBOLS  # most symbols per encoder row in decoding
    feature_type: str = "float32"  # float16 halves the feature store

    def spec_augment(self):
        """The SpecAugment policy of these settings."""
        return SpecAugmentPolicy(
            self.time_masks, self.max_time, self.max_time_fraction, self.freq_masks, self.max_freq,
            self.max_warp_fraction,
        )  # fmt: skip

    def check(self):
        """Raise a UserError if no run can have these settings."""
        _check_ranges(self)
        if self.max_frames > self.batch_frames:
            raise UserError(
                f"an utterance may have max_frames={self.max_frames} and a batch only "
                f"batch_frames={self.batch_frames}: raise batch_frames or lower max_frames."
            )
        if self.mixing == "convex" and self.alpha > 1:
            raise UserError(f"alpha must be at most 1 with mixing=convex, not {self.alpha}.")


@dataclass(frozen=True)
class Scale:
    """A named whole: settings, sizes by name, and the experiments as lists of stages."""

    name: str
    settings: Settings
    sizes: dict[str, Size]
    experiments: tuple[tuple[Stage, ...], ...]

    def models(self):
        """Every model once, in an order in which teachers come before their students."""
        found = {"T1": Model("T1", "T1", None, "teacher", tuple(range(1, len(self.experiments) + 1)), 0)}
        for number, stages in enumerate(self.experiments, start=1):
            for i, stage in enumerate(stages, start=1):
                where = ((number,), i)
                for name, teacher, role in (
                    (stage.direct, "T1", "direct"),
                    (stage.progressive, stage.teacher, "progressive"),
                    (stage.baseline, None, "baseline"),
                ):
                    if name == stage.progressive and role == "direct":
                        continue
                    found.setdefault(name, Model(name, stage.size, teacher, role, *where))
        return list(found.values())

    def override(self, assignments):
        """A copy with `name=value` strings applied; an unknown name or a bad value is a UserError."""
        settings, sizes = {}, dict(self.sizes)
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise UserError(f"{assignment!r} is not of the form name=value, for example epochs=3.")
            if "." in name:
                size, _, key = name.partition(".")
                if size not in sizes:
                    raise UserError(f"there is no model size {size!r} in {self.name}{_nearest(size, sizes)}.")
                value = _parse(Size, key, text, name)
                sizes[size] = dataclasses.replace(sizes[size], **{key: value})
            elif name in RETIRED:
                print(f"{name} has no effect any more: {RETIRED[name]}.", file=sys.stderr)
            else:
                settings[name] = _parse(Settings, name, text, name)
        settings = dataclasses.replace(self.settings, **settings)
        settings.check()
        for name, size in sizes.items():
            size.check(name)
        return dataclasses.replace(self, settings=settings, sizes=sizes)

    def as_dict(self):
        """Plain values, for config.json."""
        return dataclasses.asdict(self)


RETIRED = {"keep_mb": "the lattice needs little memory without it"}  # settings of older versions, still accepted


def _parse(owner, key, text, name):
    types = {field.name: field.type for field in dataclasses.fields(owner)}
    if key not in types:
        raise UserError(f"there is no setting {name!r}{_nearest(key, types)}.")
    try:
        return types[key](text)
    except ValueError:
        wanted = "a whole number" if types[key] is int else "a number"
        raise UserError(f"{name} wants {wanted}, and {text!r} is none.") from None


# Operational settings, free to change on a run that has begun: how often to save, how much memory to use, and the beam,
# with which finished models are then decoded again.  Not max_symbols, because which weights are kept depends on it:
# the dev set is decoded with it.  peak_rate may only fall, for the models that are not trained yet.
MAY_CHANGE = ("checkpoint_minutes", "beam")
MAY_BE_ZERO = ("warmup_steps", "curriculum_epochs", "time_masks", "max_time", "freq_masks", "max_freq")
ABOVE_ZERO = ("temperature", "peak_rate", "clip", "checkpoint_minutes")
# More than these is a slip of the finger that would keep a loop busy for hours; the sizes that cost memory are up to
# the estimate.
AT_MOST = {
    "floor_rate": 1, "max_time_fraction": 1, "max_warp_fraction": 1,
    "beam": MAX_BEAM, "max_symbols": 100, "window": 10_000, "kernel": 1000, "time_masks": 1000, "freq_masks": 1000,
    "blocks": 1000, "lstm_layers": 100, "epochs": 100_000,
}  # fmt: skip
CHOICES = {"kl": ("full", "collapsed"), "mixing": ("add", "convex"), "feature_type": ("float32", "float16")}


def _check_ranges(values, prefix=""):
    """What can be said of each number by itself."""
    for key, value in dataclasses.asdict(values).items():
        name = prefix + key
        if isinstance(value, int):
            least = 0 if key in MAY_BE_ZERO else 1
            if value < least:
                raise UserError(f"{name} must be at least {least}, and {value} is less.")
            most = AT_MOST.get(key, 10**9)
            if value > most:
                raise UserError(f"{name} must be at most {most}, and {value} is more.")
        elif isinstance(value, float):
            if not 0 <= value < math.inf:  # nan as well
                raise UserError(f"{name} must be a finite number of at least 0, not {value}.")
            if (key in ABOVE_ZERO and value == 0) or value > AT_MOST.get(key, math.inf):
                wanted = "above 0" if value == 0 else f"at most {AT_MOST[key]}"
                raise UserError(f"{name} must be {wanted}, not {value}.")
            if key == "dropout" and value >= 1:
                raise UserError(f"{name} must be below 1, not {value}.")
        elif key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{name} is one of {', '.join(CHOICES[key])}, not {value!r}.")


def _nearest(word, known):
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; the nearest known name is {close[0]!r}" if close else f"; known are {', '.join(known)}"


EXPERIMENT_1 = (
    Stage("79", "T1", "S1", "S1", "B1"),
    Stage("61", "S1", "S3", "S2", "B2"),
    Stage("46", "S3", "S5", "S4", "B3"),
)
EXPERIMENT_2 = (
    Stage("58", "T1", "S6", "S6", "B4"),
    Stage("24", "S6", "S8", "S7", "B5"),
)

# Sizes are named after the paper's millions of parameters.  blocks, width, heads, window, kernel, expansion,
# joint_width, lstm_layers, lstm_width.
TINY = Scale(
    "tiny",
    Settings(
        data="data_small/numbers",
        vocab_size=64,
        epochs=33,
        batch_utterances=8,
        batch_frames=4000,
        max_frames=1200,
        peak_rate=3e-3,
        warmup_steps=300,
        dev_every=6,
        max_warp_fraction=0.15,
    ),
    {
        "T1": Size(3, 96, 4, 16, 8, 2, 112, 1, 128),
        "79": Size(3, 64, 4, 16, 8, 2, 96, 1, 96),
        "61": Size(3, 40, 4, 16, 8, 2, 48, 1, 48),
    },
    (EXPERIMENT_1[:2],),
)

SMALL = Scale(
    "small",
    Settings(
        data="data_small/sentences",
        vocab_size=256,
        epochs=20,
        batch_utterances=8,
        batch_frames=4000,
        max_frames=1600,
        peak_rate=2e-3,
        warmup_steps=400,
        dev_every=5,
        curriculum_epochs=2,
        max_warp_fraction=0.15,
    ),
    {
        "T1": Size(3, 144, 4, 16, 8, 2, 176, 1, 160),
        "79": Size(3, 112, 4, 16, 8, 2, 128, 1, 128),
        "61": Size(3, 96, 4, 16, 8, 2, 112, 1, 128),
        "46": Size(3, 80, 4, 16, 8, 2, 112, 1, 112),
        "58": Size(3, 96, 4, 16, 8, 2, 96, 1, 112),
        "24": Size(3, 56, 4, 16, 8, 2, 80, 1, 80),
    },
    (EXPERIMENT_1, EXPERIMENT_2),
)

FULL = Scale(
    "full",
    Settings(
        data="LibriSpeech",
        vocab_size=10026,
        epochs=40,
        batch_utterances=64,
        batch_frames=80000,
        max_frames=3600,
        peak_rate=1e-4,
        warmup_steps=10000,
        curriculum_epochs=1,
        max_time=100,
        max_time_fraction=0.05,
        freq_masks=2,
        max_freq=8,
        checkpoint_minutes=20.0,
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

SCALES = {scale.name: scale for scale in (TINY, SMALL, FULL)}


def get_scale(name):
    """The scale of that name; an unknown one is a UserError."""
    if name not in SCALES:
        raise UserError(f"there is no scale {name!r}{_nearest(name, SCALES)}.")
    return SCALES[name]


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

    >>> config = TransducerConfig(ConformerConfig(40, 1, 1, 1, 1, 1, 4, pools=0), 3, 1, 1, 1)
    >>> forward_flop(config, frames=1, labels=1, nodes=2) == 2 * (68 + 9 + 6)
    True
    """
    e, V, J, H = config.encoder, config.symbols, config.joint_width, config.lstm_width
    D = e.width
    block = 4 * e.expansion * D * D + 4 * D * D + 3 * e.window * D + 3 * D * D + e.kernel * D
    rates = sum(0.5 ** min(i, e.pools) for i in range(e.blocks))  # rows of all blocks together, per frame
    encoder = frames * (e.features * D + rates * block + 0.5**e.pools * D * J)
    lstm = labels * (sum(4 * H * ((J if i == 0 else H) + H) for i in range(config.lstm_layers)) + H * J)
    return 2 * (encoder + lstm + nodes * V * J)


def training_flop(config, frames, labels, nodes, teacher=None, logits_again=0.0):
    """... of training: forward, twice that backward (by the inputs and by the weights), the teacher forward.

    logits_again: of this share of the nodes rnnt_loss.py computes the student's logits twice rather than keep them.
    """
    networks = [config] if teacher is None else [config, teacher]
    again = 2 * logits_again * nodes * config.symbols * config.joint_width
    return 2 * forward_flop(config, frames, labels, nodes) + again + sum(
        forward_flop(c, frames, labels, nodes) for c in networks
    )


if __name__ == "__main__":
    for scale in SCALES.values():
        print(f"{scale.name}: {scale.settings.data}, {scale.settings.epochs} epochs")
        for model in scale.models():
            P = count_parameters(scale.sizes[model.size].config(scale.settings.vocab_size))
            print(f"  {model.name:3s} {P / 1e6:8.3f} M  taught by {model.teacher or '-'}")
