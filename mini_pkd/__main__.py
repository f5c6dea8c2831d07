"""`python -m mini_pkd` lists the commands, and the lessons that print a demo."""

from pathlib import Path

from . import __doc__ as about

COMMANDS = {
    "cascade": "train, decode and score a whole cascade: the main job",
    "transcribe": "speech to text with a trained model, from files or as a stream",
    "report": "tables and figures from the results of a run, or of several with different seeds",
    "wer": "score a file of hypotheses against a file of references",
    "corpus": "count utterances, hours and problems of a corpus",
    "download": "fetch LibriSpeech, or parts of it",
}


def files_with(function):
    """Names of the files that define demo() or main()."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return [path.stem for path in files if f"\ndef {function}(" in path.read_text(encoding="utf-8")]


def main():
    print(about.strip().splitlines()[0], end="\n\n")
    for name, what in COMMANDS.items():
        print(f"  python -m mini_pkd.{name:12s}{what}")
    print("\n--help after any of them tells more.  These print a small demo, to be checked by hand:\n")
    row = "  "
    for name in files_with("demo"):
        if len(row) + len(name) > 98:
            print(row)
            row = "  "
        row += name + "  "
    print(row)


if __name__ == "__main__":
    main()
