"""The pictures of the tutorial, in one style: a function for each, from arrays to a matplotlib Figure.

    draw.show(draw.sound(spoken.wave), "What a microphone hears ...")

`show` puts a picture into the page, with its caption below in words that also serve a reader who cannot see it.
`hear` puts a sound there, as the small compressed file that it is.

The style: at most WIDTH inches wide, 80 dots an inch, every axis with its unit.  Colours are those of Okabe and Ito,
which the colour-blind can tell apart, and a marker or a dash says the same again; amounts are shown in CMAP, which is
as even in grey, and differences in two directions in DIVERGING.  Time runs to the right, in seconds.
"""

import io

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

from mini_pkd.features import NFFT, SAMPLE_RATE, SHIFT

DPI, WIDTH = 80, 9
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#777777"
ROLES = {"teacher": BLACK, "progressive": BLUE, "direct": ORANGE, "baseline": GREY}  # as in the report's figures
MARKERS = {"teacher": "D", "progressive": "o", "direct": "s", "baseline": "^"}
CMAP, DIVERGING = "cividis", "PuOr"
ROW_SECONDS = 8 * SHIFT / SAMPLE_RATE  # an encoder row: 0.08 s

rcParams.update({
    "figure.dpi": DPI, "font.size": 10, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False, "image.cmap": CMAP,
    "image.aspect": "auto", "image.interpolation": "nearest", "image.origin": "lower", "lines.linewidth": 1.5,
})  # fmt: skip


def panels(rows=1, columns=1, height=3.0, **options):
    """(Figure, axes) of the common width; options are those of Figure.subplots, such as height_ratios and sharex."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def png(figure):
    """A Figure -> bytes, with a palette of 64 colours: a third of the size."""
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def show(figure, caption):
    """Display a Figure and, below it, its caption: what is seen, and what to see in it."""
    from IPython.display import Markdown, display

    display({"image/png": png(figure), "text/plain": caption}, raw=True, metadata={"image/png": {"alt": caption}})
    display(Markdown(f"*{caption}*"))


def hear(path):
    """A player for a compressed sound file, which is copied into the page: some 6 kB for two seconds."""
    from IPython.display import Audio, display

    display(Audio(filename=str(path)))


# --- parts of pictures ----------------------------------------------------------------------------


def wave_on(axes, wave, rate=SAMPLE_RATE):
    """A waveform as the eye knows it: the lowest and the highest sample of each 2.5 ms."""
    step = rate // 400
    blocks = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)
    times = (np.arange(len(blocks)) + 0.5) * step / rate
    axes.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color=BLUE, linewidth=0.5)
    axes.set_xlim(0, len(wave) / rate)
    axes.set_ylabel("amplitude")


def image_on(axes, values, seconds, low=0, high=None, **options):
    """values (rows in time, rows upwards) as an image over `seconds`, with a scale of colours at its side."""
    high = values.shape[1] if high is None else high
    image = axes.imshow(values.T, extent=(0, seconds, low, high), **options)
    return axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=12)


# --- 01 the problem -------------------------------------------------------------------------------


def wer_against_size(runs, test_set="test-clean"):
    """Word error rate over megabytes (4 bytes a parameter), each model with its 95 % interval; lines join the roles."""
    figure, axes = panels(height=3.6)
    roles = {"teacher": ["T1"], "progressive": [], "direct": [], "baseline": []}
    for stage in (stage for experiment in runs.experiments for stage in experiment["stages"]):
        for role in ("progressive", "direct", "baseline"):
            if stage[role] not in sum(roles.values(), []):
                roles[role].append(stage[role])
    top = 0
    for role, names in roles.items():
        size = [4 * runs.get(name, "params")[0] / 1e6 for name in names]
        wer = [100 * runs.mean(name, "wer", test_set) for name in names]
        bounds = [runs.get(name, "wer_ci95", test_set)[0] for name in names]
        bars = np.abs(np.array([[100 * bound[i] for bound in bounds] for i in (0, 1)]) - wer)
        style = {"color": ROLES[role], "marker": MARKERS[role], "linestyle": "--" if len(names) > 1 else "none"}
        axes.errorbar(size, wer, bars, capsize=3, label=role, **style)
        for name, x, y in zip(names, size, wer, strict=True):
            axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", color=ROLES[role])
        top = max(top, *(100 * high for _, high in bounds))
    axes.set(
        xlabel="size of the model in MB, 4 bytes a parameter", ylabel=f"WER on {test_set} in %", ylim=(0, 1.1 * top)
    )
    axes.legend(ncols=2)
    return figure


# --- 03 sound -------------------------------------------------------------------------------------


def sound(wave, stages):
    """The four stages of features.stages under each other, on one axis of time: (n,) samples and its Stages."""
    figure, axes = panels(4, height=7, sharex=True)
    seconds = len(wave) / SAMPLE_RATE
    wave_on(axes[0], wave)
    axes[0].set_title("wave: 16,000 samples a second")
    decibels = 10 * np.log10(np.maximum(stages.spectrum, 1))
    bar = image_on(axes[1], decibels, seconds, high=SAMPLE_RATE / 2000)
    axes[1].set(title=f"spectrum: {NFFT // 2 + 1} frequencies, every 10 ms", ylabel="frequency (kHz)")
    bar.set_label("dB")
    bar = image_on(axes[2], stages.log_mel, seconds)
    axes[2].set(title="mel filters: 40 bands, wider to the top", ylabel="band")
    bar.set_label("ln energy")
    limit = np.abs(stages.cepstra[:, 1:]).max()
    bar = image_on(axes[3], stages.cepstra, seconds, cmap=DIVERGING, vmin=-limit, vmax=limit)
    axes[3].set(title="cepstra: 40 numbers a row, what the network gets", ylabel="coefficient", xlabel="time (s)")
    bar.set_label("value")
    return figure


def masks(before, after):
    """Normalised cepstra (T, 40), and the same with stretches hidden by SpecAugment."""
    figure, axes = panels(2, height=3.8, sharex=True)
    for ax, rows, title in zip(axes, (before, after), ("as they are", "in one epoch of training"), strict=True):
        bar = image_on(ax, rows, len(rows) * SHIFT / SAMPLE_RATE, cmap=DIVERGING, vmin=-3, vmax=3)
        bar.set_label("deviations")
        ax.set(title=title, ylabel="coefficient")
    axes[1].set_xlabel("time (s)")
    return figure


def rows_apart(differences):
    """{name: difference per row (T,)}: by how much rows of features are wrong, over time."""
    figure, axes = panels(height=2.4)
    for (name, values), color, dash in zip(differences.items(), (BLUE, RED, GREEN), ("-", "--", ":"), strict=False):
        axes.plot(np.arange(len(values)) * SHIFT / SAMPLE_RATE, values, dash, color=color, label=name)
    axes.set(xlabel="time (s)", ylabel="largest difference")
    axes.legend()
    return figure


# --- 05 conformer ---------------------------------------------------------------------------------


def attention(weights, row_seconds):
    """What each row takes from the rows before it, (H, T, T), a panel for each head."""
    figure, axes = panels(1, len(weights), height=2.9, sharey=True, squeeze=False)
    seconds = weights.shape[1] * row_seconds
    for h, (ax, head) in enumerate(zip(axes[0], weights, strict=True)):
        image = ax.imshow(head, extent=(0, seconds, seconds, 0), origin="upper", vmin=0, vmax=weights.max())
        ax.set(title=f"head {h}", xlabel="takes from (s)")
    axes[0, 0].set_ylabel("the row at (s)")
    figure.colorbar(image, ax=axes, pad=0.01).set_label("weight")
    return figure


# --- 07 lattice: toys -----------------------------------------------------------------------------


def _toy(axes, T, names):
    """The nodes of a small lattice as dots: frames to the right, what is said downwards, as in lattice_on."""
    U = len(names)
    axes.set(xlim=(-0.4, T + 0.1), ylim=(U + 0.4, -0.45), xticks=range(T), yticks=range(U + 1), xlabel="frame t")
    axes.set_yticklabels(["nothing yet", *names])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.scatter(*np.indices((T, U + 1)).reshape(2, -1), color=GREY, s=25, zorder=3)


def _toy_step(axes, t, u, says_label, width, gap=0.12):
    """One step as an arrow: a blank to the right, a label down."""
    color = ORANGE if says_label else BLUE
    start, end = ((t, u + gap), (t, u + 1 - gap)) if says_label else ((t + gap, u), (t + 1 - gap, u))
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=arrow)


def toy_paths(paths, probabilities, T, names):
    """Every path of a small lattice in a panel of its own, with its probability."""
    columns = 3
    figure, axes = panels(-(-len(paths) // columns), columns, height=5, sharex=True, sharey=True, squeeze=False)
    for ax, path, probability in zip(axes.flat, paths, probabilities, strict=False):
        _toy(ax, T, names)
        for step in path:
            _toy_step(ax, *step, width=2)
        ax.set(title=f"P = {probability:.5f}", xlabel="")
    for ax in axes[-1]:
        ax.set_xlabel("frame t")
    return figure


def toy_numbers(values, names):
    """{title: a probability for each node (T, U+1)} of a small lattice, written at the nodes."""
    figure, axes = panels(1, len(values), height=3, sharey=True, squeeze=False)
    for ax, (title, numbers) in zip(axes[0], values.items(), strict=True):
        _toy(ax, len(numbers), names)
        for (t, u), number in np.ndenumerate(numbers):
            ax.text(t + 0.06, u - 0.08, f"{number:.3f}", va="bottom")
            if u < len(names):
                _toy_step(ax, t, u, True, width=0.6)
            if t < len(numbers) - 1 or u == len(names):
                _toy_step(ax, t, u, False, width=0.6)
        ax.set_title(title)
    return figure


def toy_arrows(taken, labels, names):
    """taken (T, U+1, V): the probability of each step of a small lattice, as the thickness of its arrow."""
    figure, ax = panels(height=3.6)
    _toy(ax, len(taken), names)
    for t, u in np.ndindex(taken.shape[:2]):
        blank = taken[t, u, 0]
        if t < len(taken) - 1 or u == len(names):
            _toy_step(ax, t, u, False, width=0.3 + 7 * blank)
            ax.text(t + 0.5, u - 0.1, f"{blank:.2f}", ha="center", va="bottom", color=BLUE)
        if u < len(names):
            label = taken[t, u, labels[u]]
            _toy_step(ax, t, u, True, width=0.3 + 7 * label)
            ax.text(t + 0.07, u + 0.5, f"{label:.2f}", va="center", color=RED)
    ax.set_title("blank: to the right.  label: down.")
    return figure


# --- 07 lattice, 10 distillation ------------------------------------------------------------------


def lattice_on(axes, values, names, path=None, **options):
    """values (T, U+1), a number for each node, as an image: time to the right, what is said downwards.

    names: of the U labels.  path, as rnnt_loss.best_path returns it, is drawn over it.
    """
    T, columns = values.shape
    image = axes.imshow(values.T, extent=(0, T * ROW_SECONDS, columns, 0), origin="upper", **options)
    axes.set_yticks(np.arange(columns) + 0.5, ["nothing yet", *names], fontsize=8)
    if path is not None:
        t, u, _ = np.array(path, dtype=float).T
        axes.plot((t + 0.5) * ROW_SECONDS, u + 0.5, color=RED, linewidth=2, marker=".", markersize=3)
    return axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=15)


def lattices(wave, occupancies, names, paths=()):
    """{title: occupancy (T, U+1)} under the wave, in one scale of colours; paths: a best path for each, or none."""
    n = len(occupancies)
    figure, axes = panels(1 + n, height=1.2 + 2.6 * n, sharex=True, height_ratios=[1] + [2.6] * n)
    wave_on(axes[0], wave)
    paths = list(paths) or [None] * n
    for ax, (title, occupancy), path in zip(axes[1:], occupancies.items(), paths, strict=True):
        bar = lattice_on(ax, occupancy, names, path, vmin=0, vmax=1)
        bar.set_label("P(a path comes here)")
        ax.set(title=title, ylabel="said so far")
    axes[-1].set_xlabel("time (s)")
    return figure


def blanks(models, names, path=None):
    """{title: (P(blank) (T, U+1), KL to the teacher (T, U+1) or None)} side by side, the KL below."""
    figure, axes = panels(2, len(models), height=5.6, sharex=True, sharey=True, squeeze=False)
    most = max(kl.max() for _, kl in models.values() if kl is not None)
    for column, (title, (blank, kl)) in zip(axes.T, models.items(), strict=True):
        bar = lattice_on(column[0], blank, names, path, vmin=0, vmax=1)
        column[0].set_title(title)
        if kl is None:
            column[1].set_axis_off()
        else:
            below = lattice_on(column[1], kl, names, path, vmin=0, vmax=most, cmap="Greys")
            column[1].set(title=f"KL to the teacher: {kl.sum():.1f} in all", xlabel="time (s)")
    bar.set_label("P(blank)")
    below.set_label("KL of the node")
    return figure
