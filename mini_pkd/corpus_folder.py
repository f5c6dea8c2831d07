"""The folders of a corpus: which parts there are, and which utterances a part holds.

corpus.py shows the shape of such a folder.  Copies break off, disks have bad sectors, macOS leaves files of its own,
and a link may lead in a circle: what cannot be used is left out and listed as a `Problem`, or, with `strict`, ends the
command.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from . import UserError
from .audio_file import inspect_audio
from .command import disk_errors, printable, progress_bar

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus")
TRANSCRIPT_SUFFIX = ".trans.txt"
SHAPE = (
    "a part in LibriSpeech's shape holds <speaker>/<chapter>/ folders, each with one audio file per "
    "utterance (.flac, .wav, .ogg) and a .trans.txt file whose lines read `ID TEXT`"
)

# Which parts play which role. A part counts if its folder exists; several train parts are used together.
ROLES = {
    "train": ("train", "train-clean-100", "train-clean-360", "train-other-500", "train-clean-5"),
    "dev": ("dev", "dev-clean", "dev-other", "dev-clean-2"),
    "test-clean": ("test-clean",),
    "test-other": ("test-other",),
}

UTTERANCES = {  # of LibriSpeech's parts and mini LibriSpeech's
    "train-clean-100": 28539, "train-clean-360": 104014, "train-other-500": 148688, "train-clean-5": 1519,
    "dev-clean": 2703, "dev-other": 2864, "dev-clean-2": 1089, "test-clean": 2620, "test-other": 2939,
}  # fmt: skip

EXAMPLE = Path(__file__).resolve().parent.parent / "data_small" / "numbers"  # the corpus that the demos show


@dataclass(frozen=True)
class Utterance:
    """A sentence that somebody said: its audio file and its words."""

    id: str
    speaker: str
    audio: Path
    text: str


@dataclass(frozen=True)
class Problem:
    """An utterance or a file that was left out, and why."""

    where: str
    reason: str

    def __str__(self):
        return printable(f"{self.where}: {self.reason}")


# --- the parts of a corpus ------------------------------------------------------------------------


def scan(folder):
    """(subfolders, files, others) of a folder, as sorted lists of (name, path); hidden names are passed over.

    Others cannot be read: links that lead nowhere or in circles, and pipes, at which a reader would wait for ever.
    """
    folders, files, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):  # .DS_Store, ._copy, and our own markers
                try:
                    kind = folders if entry.is_dir() else files if entry.is_file() else others
                except OSError:  # a loop of links
                    kind = others
                kind.append((entry.name, entry.path))
    return sorted(folders), sorted(files), sorted(others)


def no_folder(path):
    """Why something is not a folder.  os.path, because Path's methods raise for a path that is too long."""
    return "is not a folder" if os.path.lexists(path) else "does not exist"


def find_parts(root, required=("train", "dev")):
    """A corpus's root folder -> {role: [folders]} for train, dev, test-clean, test-other.

    The root may be one of data_small's corpora (parts named train, dev, ...), a LibriSpeech folder
    (train-clean-100, ...), mini LibriSpeech (train-clean-5, dev-clean-2), or the folder above one that is
    called LibriSpeech.  A role without parts gets an empty list, or is a UserError if it is required.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(
            f"the data folder {root} {no_folder(root)}: give a folder with parts such as train or train-clean-100; "
            f"{SHAPE}."
        )
    for folder in (root, root / "LibriSpeech"):
        parts = {
            role: [folder / name for name in names if os.path.isdir(folder / name)] for role, names in ROLES.items()
        }
        if any(parts.values()):
            break
    missing = [role for role in required if not parts[role]]
    if missing:
        wanted = " and ".join(f"{role} (one of {', '.join(ROLES[role])})" for role in missing)
        with disk_errors(root):
            inside = ", ".join(name for name, _ in scan(root)[0][:8]) or "no folders at all"
        raise UserError(
            f"the data folder {root} has no part for {wanted}; it holds {inside}: choose a folder whose "
            f"parts have these names; {SHAPE}."
        )
    return parts


def missing_roles(parts):
    """One sentence about the roles without a part, or '' if every role has one."""
    missing = [role for role, folders in parts.items() if not folders]
    if not missing:
        return ""
    no_wer = {"test-clean", "test-other"} <= set(missing)
    so = "no WER will be reported" if no_wer else "nothing will be reported for it"
    return f"This corpus has no {' and no '.join(missing)}, so {so}."


def doubts(root, parts):
    """Sentences about a copy of LibriSpeech that may not be what its user thinks it is.

    parts: {role: {folder: its utterances}}
    """
    sentences, names = [], {folder.name for folders in parts.values() for folder in folders}
    if not {folder.name for folder in parts["train"]} & UTTERANCES.keys():
        return []  # another corpus, which may mean it
    for folder, utterances in (item for folders in parts.values() for item in folders.items()):
        if len(utterances) < UTTERANCES.get(folder.name, 0):
            sentences.append(
                f"{folder} holds {len(utterances)} of the {UTTERANCES[folder.name]} utterances that this part of "
                f"LibriSpeech has; if a download or a copy broke off, delete it and fetch it again."
            )
    for name in sorted(UTTERANCES.keys() - names):
        for archive in (folder / f"{name}.tar.gz{end}" for folder in (root, root.parent) for end in (".part", "")):
            if archive.exists():
                sentences.append(f"{name} is not used, because its download has not ended ({archive}); go on with it.")
    speakers = {role: {u.speaker for some in folders.values() for u in some} for role, folders in parts.items()}
    for role in [role for role in speakers if role != "train"]:
        both = sorted(speakers["train"] & speakers[role])
        if both:
            more = f" and {len(both) - 3} more" if len(both) > 3 else ""
            sentences.append(
                f"{', '.join(both[:3])}{more} of {role} have names of speakers of train; if they are the same people, "
                f"error rates look better than they are; if not, rename their folders and files."
            )
    return [printable(sentence) for sentence in sentences]


# --- the utterances of a part ---------------------------------------------------------------------


def read_part(folder, strict=False):
    """A part's folder -> (its utterances, its problems), speaker by speaker and chapter by chapter.

    An utterance needs a line with text in a transcript, and in the same folder an audio file that is named by its id.
    Everything else that lies there becomes a Problem; with strict, the first one raises a UserError.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"the corpus folder {folder} {no_folder(folder)}: give the path of a part; {SHAPE}.")
    utterances, problems, first_seen = [], [], {}

    def problem(where, reason):
        if strict:
            raise UserError(f"{Problem(str(where), reason)} (leave out --strict to skip and list it).")
        problems.append(Problem(str(where), reason))

    for speaker, files in chapters(folder, problem):
        audio = audio_files(files, problem)
        without_line = dict(audio)
        for path, number, words in transcript_lines(files, problem):
            name, where = words[0], f"{path} line {number}"
            without_line.pop(name, None)
            if name in first_seen:
                problem(where, f"the id {name} stands twice, first in {first_seen[name]}")
            elif name not in audio and len(words) > 1:
                problem(where, f"no audio file for {name} in that folder")
            elif name not in audio:
                problem(where, f"malformed line {name[:60]!r}, expected `ID TEXT`")
            elif len(words) == 1:
                first_seen[name] = path
                problem(where, f"the transcript of {name} is empty")
            else:
                first_seen[name] = path
                utterances.append(Utterance(name, speaker, Path(audio[name]), " ".join(words[1:])))
        for name, path in without_line.items():
            problem(path, f"no transcript line for {name}")
    if not utterances:
        detail = f"; the first of {len(problems)} problems is {problems[0]}" if problems else ""
        raise UserError(f"no utterance was found in {folder}: {SHAPE}{detail}.")
    return utterances, problems


def chapters(part, problem):
    """Yield (speaker, files) for each <speaker>/<chapter>/ folder of a part; files as (name, path)."""

    def listing(folder):
        try:
            folders, files, others = scan(folder)
        except OSError as error:
            problem(folder, f"this folder cannot be read ({error.strerror}); look at its permissions")
            return [], []
        for _, path in others:
            problem(path, "neither a file nor a folder (a link that leads nowhere, a pipe or a device); remove it")
        return folders, files

    for speaker, speaker_path in listing(part)[0]:
        folders, loose = listing(speaker_path)
        if any(name.endswith(TRANSCRIPT_SUFFIX) for name, _ in loose):
            problem(speaker_path, "a transcript outside any <chapter> folder; move it into one")
        for _, path in folders:
            yield speaker, listing(path)[1]


def audio_files(files, problem):
    """{id: path} of the audio files among the (name, path) of one chapter."""
    audio = {}
    for name, path in files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in AUDIO_SUFFIXES:
            if stem in audio:
                problem(path, f"a second audio file for {stem}; the first, {audio[stem]}, is used")
            else:
                audio[stem] = path
    return audio


def transcript_lines(files, problem):
    """Yield (path, line number, words) for each line of a chapter's transcripts that is not empty."""
    for name, path in files:
        if not name.endswith(TRANSCRIPT_SUFFIX):
            continue
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            problem(path, "this transcript is not UTF-8 text; convert it")
            continue
        except OSError as error:
            problem(path, f"this transcript cannot be read ({error.strerror}); look at its permissions")
            continue
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if words:
                yield path, number, words


# --- counting -------------------------------------------------------------------------------------


def print_counts(root, strict=False, show=10):
    """Print utterances, hours and problems of every part below `root`; returns the number of problems."""
    parts = find_parts(root, required=())
    folders = [folder for role in parts.values() for folder in role] or [Path(root)]  # perhaps root is itself a part
    print(f"{'part':18s} {'utterances':>10s} {'speakers':>8s} {'words':>9s} {'hours':>8s} {'problems':>8s}")
    bad = 0
    for folder in folders:
        name = printable(folder.name)
        utterances, problems = read_part(folder, strict)
        total = 0.0
        for utterance in progress_bar(name, iterable=utterances, unit="utt", leave=False):
            seconds, wrong = inspect_audio(utterance.audio)
            total += seconds
            if wrong:
                problems.append(Problem(str(utterance.audio), wrong))
        words = sum(len(u.text.split()) for u in utterances)
        speakers = len({u.speaker for u in utterances})
        print(f"{name:18s} {len(utterances):10d} {speakers:8d} {words:9d} {total / 3600:8.2f} {len(problems):8d}")
        for problem in problems[:show]:
            print(f"    {problem}")
        if len(problems) > show:
            print(f"    and {len(problems) - show} more")
        bad += len(problems)
    if folders != [Path(root)]:
        print(missing_roles(parts) or "Every role (train, dev, test-clean, test-other) has its part.")
    return bad
