"""The report: Tables 1 and 2 and Figures 1, 2 and 3 of the paper, from `results.json` of one or several runs.

    python -m mini_pkd.report runs/small                     of one seed, or of those that `--seeds` has trained there
    python -m mini_pkd.report runs/small-0 runs/small-1 ...  runs that differ in the seed only: means and ranges

Table 1 has one group of rows for each stage of the cascade: the progressive student, the direct one of the same size,
and the baseline of that size, which had no teacher.  Does the detour over intermediate teachers pay?  Table 2 has
direct students only, smaller and smaller, each above its baseline: how far does one stage carry?

    compression     = 1 - parameters / parameters of T1
    relative change = (WER - WER of the reference) / WER of the reference        negative: better

Rates are fractions in the file and per cent in the report.  With several seeds, a cell is the mean over the seeds that
have the model, and a relative change is taken between two means.  Nothing is trained or decoded here, so a report may
be written while the cascade is still busy; a number that is not there yet appears as "-".

How cells are written is in tables.py, who beats whom in findings.py, the drawing in figures.py.
"""

import sys
from pathlib import Path

from .checkpoint import write_text_atomic
from .command import Parser, command
from .figures import draw_figures
from .findings import findings, paper_beside_ours, teaching_table, verdicts
from .results import read_runs, results_path
from .tables import DASH, as_markdown, as_text, model_cells, model_header, run_facts, speakers_table, training_table


def table1(runs, compact=False):
    """(header, rows) of strings: for each stage the progressive, the direct and the baseline model.

    `compact` is for terminals: short headers, and the SER of all test sets in one column.
    """
    rows = [["", *model_cells(runs, "T1", "teacher", None, None, compact)]]
    for number, experiment in enumerate(runs.experiments, start=1):
        for i, stage in enumerate(experiment["stages"], start=1):
            progressive, direct, baseline = stage["progressive"], stage["direct"], stage["baseline"]
            models = [(progressive, "progressive", stage["teacher"], baseline), (direct, "direct", "T1", baseline)]
            if progressive == direct:  # first stage: the progressive student is taught by T1 itself
                models = [(progressive, "prog. = direct", "T1", baseline)]
            for model in [*models, (baseline, "baseline", None, None)]:
                rows.append([f"{number}.{i}", *model_cells(runs, *model, compact)])
    return ["stage", *model_header(runs, compact)], rows


def table2(runs):
    """(header, rows): the direct students at higher and higher compression, each with its baseline."""

    def compression(pair):
        known = [c for c in map(runs.compression, pair) if c is not None]  # the two models have the same size
        return known[0] if known else 1  # not there yet: last

    rows = [model_cells(runs, "T1", "teacher", None, None)]
    for direct, baseline in sorted(((s["direct"], s["baseline"]) for s in runs.stages), key=compression):
        rows.append(model_cells(runs, direct, "direct", "T1", baseline))
        rows.append(model_cells(runs, baseline, "baseline", None, None))
    return model_header(runs), rows


# --- the whole report -----------------------------------------------------------------------------


def write_report(folders, out=None):
    """results.json of each folder -> report.md and figures in `out`, by default the first folder; returns Table 1."""
    runs = read_runs(folders)
    out = Path(out) if out is not None else results_path(folders[0]).parent
    figures, remark = draw_figures(runs, out)
    path = out / "report.md"
    write_text_atomic(path, report_text(runs, figures, remark))
    legend = f"Rates in %; pairs are {' / '.join(runs.test_sets)}; vs: relative change of the WER, negative is better."
    if runs.several:
        legend += f" WER: mean and range of the seeds {', '.join(map(str, runs.seeds))}."
    lines = [as_text(*table1(runs, compact=True)), legend, remark, f"The whole report: {path}"]
    return "\n".join(line for line in lines if line)


def report_text(runs, figures=(), remark=None):
    """report.md; figures (title, caption, images) and the remark why there are none come from draw_figures."""
    found = findings(runs)
    parts = [f"# {runs.first['scale']}: multi-stage progressive compression of a conformer transducer", run_facts(runs)]
    if missing := [name for name in runs.names() if not runs.finished(name)]:
        parts.append(f'Not there yet, shown as "{DASH}": {", ".join(missing)}.')
    spread = "in parentheses the range of the seeds" if runs.several else "in brackets 95 % bootstrap intervals"
    if runs.several and runs.pooled:
        spread = f"in brackets 95 % bootstrap intervals over seeds and utterances, {spread}"
    caption = (
        f"Rates in per cent, {spread}. WER and SER: lower is better. Compression is 1 - parameters / parameters "
        "of T1. The last columns are relative changes of the WER, negative is better: against T1, and against "
        "the baseline of the same size that had no teacher."
    )
    parts += ["## Table 1: progressive, direct, baseline", caption, as_markdown(*table1(runs))]
    parts += ["## Table 2: one stage from T1, higher and higher compression", as_markdown(*table2(runs))]
    worth = (
        "The WER of a taught student relative to that of the untaught one of its size, negative is better, and the WER "
        "of the untaught one in multiples of T1's; in brackets 95 % intervals, p of the paired test."
    )
    parts += ["## What a teacher is worth, and what size is worth without one", worth]
    parts.append(as_markdown(*teaching_table(runs)))
    for title, caption, images in figures:
        parts += [f"## {title}", caption, *(f"![{alt}]({path.name})" for path, alt in images)]
    if remark:
        parts += ["## Figures 1, 2 and 3", remark]
    parts += ["## What the numbers say", *verdicts(runs, found)]
    parts += ["## The paper beside this run", as_markdown(*paper_beside_ours(runs, found))]
    parts.append(
        "The paper's numbers are for LibriSpeech, 128 M parameters and 10026 units (arXiv 2210.00169); changes are "
        "relative. Widths, depths, schedules and epochs of the students are this project's choice."
    )
    for title, (header, rows) in (
        *((f"WER of each speaker of {s}, %", speakers_table(runs, s)) for s in runs.test_sets),
        ("Training", training_table(runs)),
    ):
        if rows:
            parts += [f"## {title}", as_markdown(header, rows)]
    return "\n\n".join(parts) + "\n"


@command("report")
def main(arguments=None):
    parser = Parser("report", description="Tables 1 and 2 and Figures 1, 2 and 3 from results.json.")
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR", help="a run; several: same scale, other seeds")
    parser.add_argument("--out", help="where report.md and the figures go (default: the first RUN_DIR)")
    options = parser.parse_args(arguments)
    print(write_report(options.folders, options.out))


if __name__ == "__main__":
    sys.exit(main())
