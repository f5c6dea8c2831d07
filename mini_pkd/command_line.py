"""The command line of the cascade: options such as `--jobs 2`, and settings by name, `epochs=3` or `T1.width=96`.

Here is how they are read, which values settings may have, and which of them may change on a run that has begun.  The
settings themselves, and what each of them does, stand in scales.py.
"""

import argparse
import dataclasses
import difflib
import math

from . import UserError
from .command import Parser
from .decode import MAX_BEAM

# These may change on a run that has begun: how often to save, memory for logits and for parts of a batch (other parts
# drop other elements, and else add up to the same gradient), and the beam (finished models are then decoded again).
# max_symbols may not, because the dev set is decoded with it, and that decides which weights are kept.
# peak_rate may only fall, for the models that are not trained yet (run_folder.py).
MAY_CHANGE = ("checkpoint_minutes", "keep_mb", "microbatch_frames", "beam")

MAY_BE_ZERO = (
    "warmup_steps", "keep_mb", "microbatch_frames", "dev_updates", "dev_utterances", "curriculum_epochs", "time_masks",
    "max_time", "freq_masks", "max_freq",
)  # fmt: skip
ABOVE_ZERO = ("temperature", "peak_rate", "clip", "checkpoint_minutes")
# More than this is a slip of the finger that would keep a loop busy for hours.  Sizes that cost memory are checked by
# estimate.py.
AT_MOST = {
    "floor_rate": 1, "max_time_fraction": 1, "max_warp_fraction": 1, "max_mel_warp": 1, "max_channel_db": 40,
    "max_noise": 1,
    "beam": MAX_BEAM, "max_symbols": 100, "window": 10_000, "kernel": 1000, "time_masks": 1000, "freq_masks": 1000,
    "blocks": 1000, "lstm_layers": 100, "epochs": 100_000,
}  # fmt: skip
MOST_HOURS = 10_000
MOST_SEEDS = 100
MOST_RANKS = 100_000
CHOICES = {
    "kl": ("full", "collapsed"), "kl_weighting": ("nodes", "paths"), "mixing": ("add", "convex"),
    "feature_type": ("float32", "float16"),
}  # fmt: skip


# --- options --------------------------------------------------------------------------------------


def read_command_line(arguments, scales):
    """Arguments, without the program's name, -> argparse's Namespace; scales: their names."""
    parser = Parser(
        "cascade",
        description="Train the teacher, the students and the baselines of a scale, and write Table 1.",
        epilog="Any setting of scales.py is changed by name: epochs=3 alpha=0.05 T1.width=96.  A stopped run "
        "continues when the same command is given again.",
    )
    add = parser.add_argument
    add("settings", nargs="*", metavar="NAME=VALUE", help="settings to change, e.g. epochs=3")
    add("--scale", default="tiny", help=f"{', '.join(scales)} (default: tiny)")
    add("--data", metavar="DIR", help="corpus in LibriSpeech's layout (default: the scale's own)")
    add("--out", metavar="DIR", help="folder of this run (default: runs/SCALE, runs/SCALE-seedN)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    add(
        "--seeds",
        type=int,
        default=1,
        metavar="K",
        help="train K times, with the seeds N, N+1, ..., in the folders "
        "seedN, ... below --out, and pool the results; a run of one seed in --out becomes one of them (default: 1)",
    )
    add("--only", nargs="+", metavar="MODEL", help="train just these of each seed, e.g. T1 S1; teachers must exist")
    add("--jobs", type=int, metavar="N",
        help="models trained side by side (default: one per core, at most 4; 1 for full)")  # fmt: skip
    add("--memory", type=float, metavar="GB",
        help="memory that training may use; more is refused (default: what is free)")  # fmt: skip
    add("--max-hours", type=float, metavar="H", help="save and stop after so many hours, as at Ctrl-C")
    add("--slot", type=int, help=argparse.SUPPRESS)  # which of the jobs this process is
    add("--command", help=argparse.SUPPRESS)  # ... and what the user typed, to be named in messages
    add("--strict", action="store_true", help="stop at the first bad utterance instead of listing it")
    add("--dry-run", action="store_true", help="time some steps, print what the run would take, and stop")
    add("--ranks", type=int, metavar="N", help="with --dry-run: the time at N MPI processes, too, as a projection")
    options = parser.parse_intermixed_args(arguments)
    # argparse gives all words of "--only T1 S1 epochs=3" to --only; those with a "=" are settings.
    given = options.only or []
    options.settings += [word for word in given if "=" in word]
    if options.only is not None:
        options.only = [word for word in given if "=" not in word]
        if not options.only:
            parser.error("--only is without a model; name one, for example T1")
    if options.seed < 0:
        parser.error(f"--seed must be at least 0, not {options.seed}")
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds must be from 1 to {MOST_SEEDS}, not {options.seeds}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")
    if options.max_hours is not None and not 0 < options.max_hours <= MOST_HOURS:
        parser.error(f"--max-hours must be above 0 and at most {MOST_HOURS}, not {options.max_hours}")
    if options.ranks is not None and not (options.dry_run and 1 <= options.ranks <= MOST_RANKS):
        parser.error(f"--ranks is from 1 to {MOST_RANKS} and wants --dry-run beside it")
    if options.memory is not None and not options.memory > 0:  # nan as well
        parser.error(f"--memory must be above 0, not {options.memory}")
    return options


# --- settings by name -----------------------------------------------------------------------------


def overridden(scale, assignments):
    """A copy of a Scale with `name=value` strings applied; an unknown name or a bad value is a UserError."""
    settings, sizes = scale.settings, dict(scale.sizes)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        size, dot, key = name.partition(".")
        if not equals:
            raise UserError(f"{assignment!r} is not a setting; write name=value, for example epochs=3.")
        elif not dot:
            settings = _replaced(settings, name, text, name)
        elif size not in sizes:
            raise UserError(f"there is no model size {size!r} in {scale.name}{nearest(size, sizes)}.")
        else:
            sizes[size] = _replaced(sizes[size], key, text, name)
    check_settings(settings)
    for name, size in sizes.items():
        check_size(size, name)
    return dataclasses.replace(scale, settings=settings, sizes=sizes)


def _replaced(values, key, text, name):
    """The dataclass `values` with `text` read into its field `key`; `name` is what the user calls that field."""
    types = {field.name: field.type for field in dataclasses.fields(values)}
    if key not in types:
        raise UserError(f"there is no setting {name!r}{nearest(key, types)}.")
    try:
        return dataclasses.replace(values, **{key: types[key](text)})
    except ValueError:
        wanted = "a whole number" if types[key] is int else "a number"
        raise UserError(f"{name} wants {wanted}, not {text!r}.") from None


def nearest(word, known):
    """The end of a sentence about an unknown word: which known one it resembles, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; the nearest known name is {close[0]!r}" if close else f"; known are {', '.join(known)}"


# --- ranges ---------------------------------------------------------------------------------------


def check_settings(settings):
    """Raise a UserError if no run can have these Settings."""
    _check_ranges(settings)
    for name in ("batch_frames", "microbatch_frames"):
        most = getattr(settings, name) or math.inf
        if settings.max_frames > most:
            raise UserError(
                f"an utterance may have max_frames={settings.max_frames} and a batch only "
                f"{name}={most}; raise {name} or lower max_frames."
            )
    if settings.mixing == "convex" and settings.alpha > 1:
        raise UserError(f"alpha must be at most 1 with mixing=convex, not {settings.alpha}.")


def check_size(size, name):
    """Raise a UserError if no model called `name` can have this Size."""
    _check_ranges(size, f"{name}.")
    try:
        size.config(symbols=3)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _check_ranges(values, prefix=""):
    """What can be said of each number by itself."""
    for key, value in dataclasses.asdict(values).items():
        name = prefix + key
        if isinstance(value, int):
            least, most = 0 if key in MAY_BE_ZERO else 1, AT_MOST.get(key, 10**9)
            if value < least:
                raise UserError(f"{name} must be at least {least}, and {value} is less.")
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
