"""Tables of text: how a number is written in a cell, and rows of cells for a terminal or for Markdown.

Rates and changes are fractions in `Runs` and per cent in a cell.  A number that is not there yet is a dash.  A table is
(header, rows), lists of strings; report.py decides which models are its rows.
"""

import math

from .command import printable

DASH = "-"  # not there (yet)

# --- the cells of one model ----------------------------------------------------------------------


def model_header(runs, compact=False):
    short = [short_name(s) for s in runs.test_sets]
    both = " / ".join(short)
    return [
        *("model", "role", "from" if compact else "taught by", "params", "compr."),
        *(f"WER {s} %" for s in short),
        *(["SER %"] if compact else [f"SER {s} %" for s in short]),
        *(["vs T1 %", "vs B %"] if compact else [f"WER vs T1 %: {both}", f"vs baseline %: {both}"]),
        *(["seeds"] if runs.several else []),
    ]


def model_cells(runs, name, role, teacher, baseline, compact=False):
    """What stands under model_header: `compact` has the SER of all test sets in one column."""
    return [
        *(name, role, teacher or DASH),
        size_cell(runs, name),
        percent_cell(runs.compression(name), ".0f", " %"),
        *(rate_cell(runs, name, "wer", s, compact) for s in runs.test_sets),
        *([_ser_cell(runs, name)] if compact else [rate_cell(runs, name, "ser", s) for s in runs.test_sets]),
        _change_cell(runs, name, None if name == "T1" else "T1"),
        _change_cell(runs, name, baseline),
        *([str(len(runs.get(name, "wer")))] if runs.several else []),
    ]


def size_cell(runs, name):
    """Parameters with three digits that count: 128 M, 1.28 M, 0.612 M."""
    params = runs.mean(name, "params")
    if params is None:
        return DASH
    millions = params / 1e6
    return (f"{millions:#.3g}".rstrip(".") if millions < 1000 else f"{millions:.0f}") + " M"


def rate_cell(runs, name, key, test_set, compact=False):
    """12.3 [11.0, 13.5] (11.8..12.9): a 95 % interval, then the range of several seeds; compact: only one of them."""
    rates = runs.get(name, key, test_set)
    if not rates:
        return DASH
    text = f"{100 * sum(rates) / len(rates):.1f}"
    interval = runs.interval(name, key, test_set)
    if interval and not (compact and runs.several):
        text += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    if runs.several:
        text += f" ({100 * min(rates):.1f}..{100 * max(rates):.1f})"
    return text


def percent_cell(fraction, form=".1f", unit=""):
    return DASH if fraction is None else f"{100 * fraction:{form}}{unit}"


def _ser_cell(runs, name):
    return " / ".join(percent_cell(runs.mean(name, "ser", s)) for s in runs.test_sets)


def _change_cell(runs, name, reference):
    changes = [runs.relative(name, reference, s) if reference else None for s in runs.test_sets]
    if all(change is None for change in changes):
        return DASH
    return " / ".join(percent_cell(change, "+.1f") for change in changes)


def short_name(test_set):
    return test_set.removeprefix("test-")


# --- who was understood how well ------------------------------------------------------------------

MOST_SPEAKERS = 12


def speakers_table(runs, test_set):
    """(header, rows): the WER of every model on each speaker of a test set; no rows if there are too many speakers."""
    names = [name for name in runs.names() if runs.finished(name)]
    speakers = runs.speakers(test_set)
    rows = [
        [printable(speaker).replace("|", "/"), str(words), *(percent_cell(rates.get(name)) for name in names)]
        for speaker, words, rates in sorted(speakers, key=lambda row: row[0])
    ]
    return [f"speaker of {short_name(test_set)}", "words", *names], rows if len(rows) <= MOST_SPEAKERS else []


# --- how the training went -----------------------------------------------------------------------


def training_table(runs):
    """(header, rows): updates, time and the best dev WER of every finished model."""
    rows = []
    for name in runs.names():
        if runs.finished(name):
            updates, seconds = runs.mean(name, "updates"), runs.mean(name, "seconds")
            rows.append(
                [
                    name,
                    DASH if updates is None else f"{updates:.0f}",
                    DASH if seconds is None else duration(seconds),
                    percent_cell(runs.mean(name, "best_dev_wer")),
                ]
            )
    return ["model", "updates", "time", "best dev WER %"], rows


def duration(seconds):
    """
    >>> duration(61), duration(512.3), duration(7265)
    ('61 s', '8 min 32 s', '2 h 1 min')
    """
    seconds = 0 if not math.isfinite(seconds) else round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


# --- rows as text --------------------------------------------------------------------------------


def as_text(header, rows):
    """Columns aligned for a terminal.

    >>> print(as_text(["model", "WER %"], [["T1", "8.1"], ["S3", "12.4"]]))
    model  WER %
    -----  -----
    T1       8.1
    S3      12.4
    """
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    # words to the left; a column of numbers, dashes and blanks to the right
    right = [all(not row[c] or row[c][0] in "+-0123456789" for row in rows) for c in range(len(header))]

    def line(cells):
        padded = [f"{x:>{w}}" if r else f"{x:<{w}}" for x, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def as_markdown(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def run_facts(runs):
    """Seed, command, machine, time: what it takes to run this again."""
    seeds = f"mean over {len(runs.seeds)} seeds ({', '.join(map(str, runs.seeds))})"
    facts = [seeds if runs.several else f"seed {runs.first['seed']}"]
    for key, quote in (("command", "`"), ("machine", "")):
        if runs.first.get(key):  # a command may name a path that is no valid UTF-8, but report.md is UTF-8
            line = " ".join(runs.first[key].split()).encode("utf-8", "backslashreplace").decode("utf-8")
            facts.append(f"{quote}{line}{quote}")
    times = [r["seconds"] for r in runs.results if r.get("seconds") is not None]
    if times:
        whose = "all models of all seeds" if runs.several else "all models"
        facts.append(f"{duration(sum(times))} of training and decoding, added up over {whose}")
    return "; ".join(facts) + "."
