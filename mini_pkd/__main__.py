"""`python -m mini_pkd` lists the commands, and the lessons that print a demo."""

from pathlib import Path

from . import __doc__ as about

COMMANDS = {
    "cascade": "train, decode and score a whole cascade: the main job",
    "transcribe": "speech to text with a trained model, from files or as a stream",
    "report": "tables and figures from finished runs, one or several side by side",
    "wer": "score a file of hypotheses against a file of references",
    "corpus": "count utterances, hours and problems of a corpus",
    "download": "fetch LibriSpeech, or parts of it",
    "bpe": "train a vocabulary of subword units and encode text with it",
    "warm_up": "compile every kernel once",
}


def demos():
    """Names of the files that end in a demo."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if "\ndef demo(" in path.read_text(encoding="utf-8")]


def main():
    print(about.strip().splitlines()[0], end="\n\n")
    for name, what in COMMANDS.items():
        print(f"  python -m mini_pkd.{name:12s}{what}")
    print("\n--help after any of them tells more.  These print a small demo, to be checked by hand:\n")
    row = "  "
    for name in demos():
        if len(row) + len(name) > 98:
            print(row)
            row = "  "
        row += name + "  "
    print(row)


if __name__ == "__main__":
    main()
