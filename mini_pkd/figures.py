"""Figures 1, 2 and 3 of the paper: the cascade drawn, and WER against compression, one picture for each experiment.

    runs = Runs([read_results("runs/small")])
    cascade_figure(runs, experiment=1)          Figure 1, the first half
    compression_figure(runs, experiment=1)      Figure 2; of experiment 2 it is Figure 3

Both return a matplotlib Figure that belongs to no window, or None while there is nothing to draw: save it with
`.savefig`, or make it the last line of a notebook's cell, after `%matplotlib inline`.  matplotlib is optional, and so
imported only where it is used; without it `draw_figures`, which the report calls, returns a sentence that says so.
"""

import io
import math
from pathlib import Path
from typing import NamedTuple

from .checkpoint import write_file_atomic
from .tables import rate_cell, short_name, size_cell

DPI = 80

# Colours of Okabe and Ito, which the colour-blind can tell apart; marker and dash repeat the information.
SERIES = {
    "progressive": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "direct": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "baseline": {"color": "#555555", "marker": "^", "linestyle": ":"},
}


class Section(NamedTuple):
    """Figures on disk, and the words that belong to them in report.md."""

    title: str
    caption: str
    images: list  # of (path, the picture in words, for readers who cannot see it)


def draw_figures(runs, folder):
    """Writes figure1-1.png, figure1-2.png, ... and figure2.png, figure3.png, ... for experiments 1, 2, ...

    Returns (a list of Sections, None), or without matplotlib ([], the line that says so).
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [], "No figures: matplotlib is not installed (pip install matplotlib), the tables are complete."
    sections = []
    for title, caption, draw, describe, file_name in (
        ("Figure 1: the cascade", CASCADE_CAPTION, cascade_figure, cascade_alt, "figure1-{0}.png"),
        (
            f"Figure{'s 2 and 3' if len(runs.experiments) > 1 else ' 2'}: WER against compression",
            f"The WER of Table 1 over the compression against T1. Bars: {_bars(runs)}; grey line: T1.",
            *(compression_figure, compression_alt, "figure{1}.png"),
        ),
    ):
        images = []
        for number in range(1, len(runs.experiments) + 1):
            figure = draw(runs, number)
            if figure is not None:
                png = io.BytesIO()
                figure.savefig(png, format="png")
                path = Path(folder) / file_name.format(number, number + 1)
                write_file_atomic(path, lambda file, png=png: file.write(png.getvalue()))
                images.append((path, describe(runs, number)))
        if images:
            sections.append(Section(title, caption, images))
    return sections, None


def _title(runs, experiment):
    return f"Experiment {experiment}, {runs.first['scale']}"


def _spread(runs):
    return f"range of {len(runs.seeds)} seeds" if runs.several else "95 % interval"


def _bars(runs):
    bars = (
        f"95 % interval over {len(runs.seeds)} seeds and utterances" if runs.several and runs.pooled else _spread(runs)
    )
    return f"{bars}; dots: each seed" if runs.several else bars


# --- Figure 1: the cascade -----------------------------------------------------------------------
#
#     row 0       +----+           +----+           +----+
#                 | T1 | --------> | S1 | --------> | S3 |      the progressive cascade
#                 +----+           +----+           +----+
#                    |________________________________
#                                                     v
#     row 1                                         +----+
#                                                   | S2 |      students taught by T1 itself (stage 1: that is S1)
#                                                   +----+
#                                  +----+           +----+
#     row 2                        | B1 |           | B2 |      baselines
#                                  +----+           +----+
#
# Lengths are points (1/72 inch) and y grows downwards.  The longest line of text is measured: all boxes are as wide.

TITLE_SIZE, NAME_SIZE, TEXT_SIZE, ARROW_SIZE = 11, 11, 9, 8  # sizes of type
GREY = "#444444"
LINE = 14  # from one line of text to the next
PAD = 9  # from a box to its text, between rows, and from the edge of the figure to what is drawn
GAP = 46  # between columns: an arrow and the word over it
LANE = 32  # between rows 0 and 1: the arrows to the direct students
BOXES = {  # role: (colour, how much of it fills the box, width and style of its line)
    "teacher": ("#000000", 0.10, 1.8, "-"),
    "progressive": (SERIES["progressive"]["color"], 0.18, 1.8, "-"),
    "direct": (SERIES["direct"]["color"], 0.12, 1.4, "--"),
    "baseline": (SERIES["baseline"]["color"], 0.05, 1.4, ":"),
}
NOTES = {"direct": "same sizes,\ntaught by T1 itself", "baseline": "same sizes,\nno teacher"}  # under T1

CASCADE_CAPTION = (
    "Each box is a model with its parameters, how much smaller than T1 it is, and its WER in per cent. Arrows lead "
    "from teacher to student: in the upper row the progressive cascade, below it students of the same sizes whose "
    "teacher is T1 itself, and baselines that have no teacher."
)


class Box(NamedTuple):
    name: str
    role: str  # a key of BOXES
    label: str  # the role in words
    teacher: str | None
    row: int
    column: int


def cascade_boxes(runs, experiment=1):
    """T1, then for each stage the progressive, the direct and the baseline model, with their rows and columns."""
    boxes = [Box("T1", "teacher", "teacher", None, 0, 0)]
    for column, stage in enumerate(runs.experiments[experiment - 1]["stages"], start=1):
        shared = stage["progressive"] == stage["direct"]
        label = "progressive = direct" if shared else "progressive"
        boxes.append(Box(stage["progressive"], "progressive", label, stage["teacher"], 0, column))
        if not shared:
            boxes.append(Box(stage["direct"], "direct", "direct", "T1", 1, column))
        boxes.append(Box(stage["baseline"], "baseline", "baseline", None, 2, column))
    used = sorted({box.row for box in boxes})  # without direct students the baselines move up
    return [box._replace(row=used.index(box.row)) for box in boxes]


def box_lines(runs, name):
    """What a box says under the name: size and compression, then the WER on each test set."""
    size, compression = size_cell(runs, name), runs.compression(name)
    if name != "T1" and compression is not None:
        size += f", {100 * compression:.0f} % smaller"
    return [size, *(f"WER {short_name(s)}  {rate_cell(runs, name, 'wer', s, True)}" for s in runs.test_sets)]


def cascade_figure(runs, experiment=1):
    """Figure 1 of the paper for one experiment, counted from 1: each model a box with its size and its WER."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window system

    boxes = cascade_boxes(runs, experiment)
    if not any(runs.get(box.name, "params") for box in boxes):
        return None
    texts = {box.name: box_lines(runs, box.name) for box in boxes}
    where = "parentheses" if runs.several else "brackets"
    title = f"{_title(runs, experiment)}: the cascade (WER in %, in {where} the {_spread(runs)})"

    heads = [_text_width(box.name, NAME_SIZE, "bold") + 2 * PAD + _text_width(box.label, TEXT_SIZE) for box in boxes]
    width = 2 * PAD + max(heads + [_text_width(line, TEXT_SIZE) for lines in texts.values() for line in lines])
    height = 2 * PAD + NAME_SIZE + LINE * (1 + len(runs.test_sets))
    columns, rows = 1 + max(box.column for box in boxes), 1 + max(box.row for box in boxes)
    drawn = columns * width + (columns - 1) * GAP
    across = 2 * PAD + max(drawn, _text_width(title, TITLE_SIZE))
    left, top = (across - drawn) / 2, 3 * PAD + TITLE_SIZE

    def corner(row, column):
        """Where the box in this row and column begins, above and to the left."""
        return left + column * (width + GAP), top + row * (height + PAD) + (LANE - PAD if row else 0)

    down = corner(rows - 1, 0)[1] + height + PAD
    figure = Figure(figsize=(across / 72, down / 72), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    axes.text(across / 2, PAD + TITLE_SIZE / 2, title, size=TITLE_SIZE, ha="center", va="center")
    for box in boxes:
        _draw_box(axes, box, texts[box.name], *corner(box.row, box.column), width, height)
    for row, role in {box.row: box.role for box in boxes if box.role in NOTES}.items():
        x, y = corner(row, 0)
        axes.text(x + width / 2, y + height / 2, NOTES[role], size=TEXT_SIZE, color=GREY, ha="center", va="center")
    _draw_arrows(axes, boxes, corner, width, height)
    return figure


def _draw_box(axes, box, lines, x, y, width, height):
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    color, filled, linewidth, linestyle = BOXES[box.role]
    style = {"facecolor": to_rgba(color, filled), "edgecolor": color, "linewidth": linewidth, "linestyle": linestyle}
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=5", **style))
    y += PAD + NAME_SIZE / 2
    axes.text(x + PAD, y, box.name, size=NAME_SIZE, weight="bold", va="center")
    axes.text(x + width - PAD, y, box.label, size=TEXT_SIZE, color=GREY, ha="right", va="center")
    for i, line in enumerate(lines, start=1):
        axes.text(x + PAD, y + 2 + i * LINE, line, size=TEXT_SIZE, va="center")


def _draw_arrows(axes, boxes, corner, width, height):
    """From each teacher to its student: along row 0, and from T1 through the lane below it to the direct students."""
    last = boxes[0]
    for box in boxes[1:]:
        x, y = corner(box.row, box.column)
        color, _, linewidth, _ = BOXES[box.role]
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": linewidth, "shrinkA": 0, "shrinkB": 1}
        if box.role == "progressive":
            if box.teacher == last.name:
                axes.annotate("", (x, y + height / 2), (x - GAP, y + height / 2), arrowprops=arrow)
                axes.text(
                    x - GAP / 2, y + height / 2 - 7, "teaches", size=ARROW_SIZE, color=GREY, ha="center", va="center"
                )
            last = box
        elif box.role == "direct":
            x_t, y_t = corner(0, 0)
            lane, style = y - LANE / 2, {"color": color, "linewidth": linewidth, "solid_capstyle": "round"}
            axes.plot([x_t + width / 2, x_t + width / 2, x + width / 2], [y_t + height, lane, lane], **style)
            axes.annotate("", (x + width / 2, y), (x + width / 2, lane), arrowprops=arrow)


def _text_width(text, size, weight="normal"):
    """In points; a little more than measured, because letters are rounded to whole pixels when they are drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return 1.03 * TextPath((0, 0), text, prop=FontProperties(size=size, weight=weight)).get_extents().width + 1


def cascade_alt(runs, experiment=1):
    """cascade_figure in words: who teaches whom."""
    students = {}
    for box in sorted(cascade_boxes(runs, experiment)[1:], key=lambda box: box.row):
        sized = f"{box.name} ({size_cell(runs, box.name)})"
        students.setdefault(f"{box.teacher} teaches" if box.teacher else "without a teacher:", []).append(sized)
    taught = "; ".join(f"{teacher} {', '.join(names)}" for teacher, names in students.items())
    return f"{_title(runs, experiment)}: T1 ({size_cell(runs, 'T1')}) is the first teacher; {taught}"


# --- Figures 2 and 3: WER against compression ----------------------------------------------------

NAMES = {  # role: (how far the curve is set aside so that bars do not hide each other, where names stand, their side)
    "progressive": (0.0, (0, 3), "center"),  # above the bar
    "direct": (1.4, (6, -3), "left"),
    "baseline": (-1.4, (-6, -3), "right"),
}


def compression_figure(runs, experiment=1):
    """Figure 2 or 3 of the paper, for one experiment, counted from 1: a panel for each test set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * max(1, len(runs.test_sets)), 4.2), dpi=DPI, layout="constrained")
    drawn = False
    for column, test_set in enumerate(runs.test_sets, start=1):
        axes = figure.add_subplot(1, len(runs.test_sets), column)
        drawn |= _draw_panel(axes, runs, runs.experiments[experiment - 1], test_set)
    if not drawn:
        return None
    bars = f"bars: {_bars(runs)}"
    figure.suptitle(f"{_title(runs, experiment)}: WER against compression ({bars})", fontsize=11)
    return figure


def compression_alt(runs, experiment=1):
    """compression_figure in words."""
    stages = runs.experiments[experiment - 1]["stages"]
    curves = [f"{role} {', '.join(stage[role] for stage in stages)}" for role in SERIES]
    return f"{_title(runs, experiment)}: WER against compression, three curves from T1: {'; '.join(curves)}"


def _draw_panel(axes, runs, experiment, test_set):
    """One test set: three curves that begin at T1.  Returns whether there was anything to draw."""
    ends = []  # (y, x, role) of the last point of each curve
    for role in SERIES:
        points = _points(runs, ["T1", *(stage[role] for stage in experiment["stages"])], test_set)
        if {name for name, *_ in points} - {"T1"}:
            named = {experiment["stages"][0]["progressive"]} if role == "direct" else set()  # it has its name already
            ends.append((*_draw_curve(axes, role, points, named), role))
    teacher = runs.mean("T1", "wer", test_set)
    if teacher is not None and math.isfinite(teacher):
        axes.axhline(100 * teacher, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes.annotate("T1", (0, 100 * teacher), xytext=(-7, 4), textcoords="offset points", fontsize=8, ha="right")
    axes.set_title(test_set, fontsize=10)
    axes.set_xlabel("compression against T1 (%), curves set apart a little", fontsize=9)
    axes.set_ylabel("WER (%)")
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.08, y=0.12)
    _label_ends(axes, ends)
    return bool(ends)


def _points(runs, names, test_set):
    """[(name, compression %, WER %, length of the bar below, above, WER % of each of several seeds)]

    ... of the models that have a WER to draw.
    """
    points = []
    for name in names:
        wers, compression = runs.get(name, "wer", test_set), runs.compression(name)
        if wers and compression is not None and math.isfinite(sum(wers)):
            dots = [100 * rate for rate in wers] if runs.several else []
            points.append((name, 100 * compression, 100 * sum(wers) / len(wers), *_bar(runs, name, test_set), dots))
    return points


def _draw_curve(axes, role, points, named):
    """Bars, markers, a line, and the names but T1's and those `named` elsewhere.  Returns (y, x) of the last point."""
    from matplotlib.patheffects import withStroke

    names, x, y, below, above, dots = zip(*points, strict=True)
    shift, offset, side = NAMES[role]
    x = [x_i + (shift if x_i else 0) for x_i in x]
    style = SERIES[role]
    axes.errorbar(x, y, yerr=[below, above], capsize=2, elinewidth=0.8, linewidth=1.6, markersize=6, **style)
    for i in range(len(points)):
        color = style["color"] if x[i] else SERIES["baseline"]["color"]  # T1 is on every curve
        axes.scatter([x[i]] * len(dots[i]), dots[i], s=9, color="white", edgecolors=color, linewidths=0.9, zorder=3)
    for i in range(1, len(points)):
        if names[i] not in named:
            top = max([y[i] + above[i], *dots[i]]) if role == "progressive" else y[i]
            label = {"textcoords": "offset points", "ha": side, "color": style["color"], "fontsize": 8}
            halo = [withStroke(linewidth=2.5, foreground="white")]  # a line may run through the name
            axes.annotate(names[i], (x[i], top), xytext=offset, path_effects=halo, zorder=4, **label)
    return y[-1], x[-1]


def _bar(runs, name, test_set):
    """(below, above): the lengths of the error bar in points of WER."""
    wers = runs.get(name, "wer", test_set)
    mean = sum(wers) / len(wers)
    low, high = min(wers), max(wers)
    if runs.pooled or not runs.several:
        low, high = runs.interval(name, "wer", test_set) or (mean, mean)
        low, high = (bound if math.isfinite(bound) else mean for bound in (low, high))
    return 100 * max(0.0, mean - low), 100 * max(0.0, high - mean)


def _label_ends(axes, ends):
    """The curves' names at the right edge, at the height of their ends but never on top of each other."""
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = 0.07 * (high - low)
    heights = []
    for y, *_ in sorted(ends):
        heights.append(max(y, heights[-1] + gap) if heights else y)
    for height, (y, x, role) in zip(heights, sorted(ends), strict=True):
        color = SERIES[role]["color"]
        axes.annotate(
            role,
            (x, y),
            xytext=(1.03, height),
            textcoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5},
        )
