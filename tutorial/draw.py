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
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

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
    """A Figure -> bytes, with a palette of 128 colours: half the size."""
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(128, kmeans=1, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True
    )
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
        aside = {"direct": 1.03, "baseline": 0.97}.get(role, 1)
        size = [4 * aside * runs.get(name, "params")[0] / 1e6 for name in names]
        wer = [100 * runs.mean(name, "wer", test_set) for name in names]
        bounds = [runs.get(name, "wer_ci95", test_set)[0] for name in names]
        bars = np.abs(np.array([[100 * bound[i] for bound in bounds] for i in (0, 1)]) - wer)
        style = {"color": ROLES[role], "marker": MARKERS[role], "linestyle": "--" if len(names) > 1 else "none"}
        axes.errorbar(size, wer, bars, capsize=3, label=role, **style)
        for name, x, y in zip(names, size, wer, strict=True):
            axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", color=ROLES[role])
        top = max(top, *(100 * high for _, high in bounds))
    axes.set(
        xlabel="size in MB, 4 bytes a parameter; models of one size are set apart a little",
        ylabel=f"WER on {test_set} in %",
        ylim=(0, 1.1 * top),
    )
    axes.legend(ncols=2, loc="upper center")
    return figure


# --- 02 autodiff ----------------------------------------------------------------------------------


def tape(nodes, edges, notes, height=2.4):
    """tensor.graph's nodes [(operation, shape)] and edges as boxes and arrows; notes: a text below each name.

    Results stand from left to right, each as far as the longest way to it; a leaf stands above or below its only user.
    """
    figure, axes = panels(height=height)
    results = {result for _, result in edges}
    users = [[result for parent, result in edges if parent == i] for i in range(len(nodes))]
    column, row = [0] * len(nodes), [0.0] * len(nodes)
    for parent, result in edges:  # in the order of results, so the parent's is final
        column[result] = max(column[result], column[parent] + (parent in results or len(set(users[parent])) > 1))
    for c in range(max(column) + 1):
        same = [i for i in range(len(nodes)) if column[i] == c and (i in results or len(set(users[i])) > 1)]
        for k, i in enumerate(same):
            row[i] = (len(same) - 1) / 2 - k
    for i in range(len(nodes)):
        if i not in results and len(set(users[i])) == 1:
            user = users[i][0]
            column[i] = column[user]
            row[i] = row[user] + (1 if [p for p, r in edges if r == user and p not in results][0] == i else -1)
    where, boxes = list(zip(column, row, strict=True)), []
    for i, ((name, _), note) in enumerate(zip(nodes, notes, strict=True)):
        color = BLUE if i in results else GREEN
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "linewidth": 1.5}
        text = axes.text(*where[i], f"{name}\n{note}", ha="center", va="center", fontsize=8, bbox=box)
        boxes.append(text.get_bbox_patch())
    for k, (parent, result) in enumerate(edges):
        around = row[parent] == row[result] and column[result] > column[parent] + 1  # what stands between them
        curve = -0.45 if around else 0.25 if (parent, result) in edges[:k] else 0.0
        style = {"arrowstyle": "-|>", "color": GREY, "connectionstyle": f"arc3,rad={curve}"}
        ends = {"patchA": boxes[parent], "patchB": boxes[result], "shrinkA": 1, "shrinkB": 2}
        axes.annotate("", where[result], where[parent], arrowprops=style | ends)
    axes.set(xlim=(min(column) - 0.5, max(column) + 0.5), ylim=(min(row) - 0.5, max(row) + 0.5))
    axes.set_axis_off()
    return figure


def steps(sizes, disagreements):
    """gradcheck's result against its step."""
    figure, axes = panels(height=2.8)
    axes.loglog(sizes, disagreements, color=BLUE, marker="o")
    axes.set(xlabel="step h", ylabel="relative disagreement")
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
    limit = np.quantile(np.abs(stages.cepstra[:, 1:]), 0.98)  # coefficient 0, the loudness, is far beyond
    bar = image_on(axes[3], stages.cepstra, seconds, cmap=DIVERGING, vmin=-limit, vmax=limit)
    axes[3].set(title="cepstra: 40 numbers a row, what the network gets", ylabel="coefficient", xlabel="time (s)")
    bar.set_label("value")
    return figure


def masks(before, after):
    """Log mel energies (T, 40) above their mean, and the same with stretches hidden by SpecAugment."""
    figure, axes = panels(2, height=3.8, sharex=True)
    for ax, rows, title in zip(axes, (before, after), ("as they are", "in one epoch of training"), strict=True):
        bar = image_on(ax, rows, len(rows) * SHIFT / SAMPLE_RATE, cmap=DIVERGING, vmin=-6, vmax=6)
        bar.set_label("nats above the mean")
        ax.set(title=title, ylabel="mel channel")
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


def rows_seen(wave, strengths):
    """The wave, and (T', T) how much each output row changes with each input row: white where it cannot at all."""
    figure, axes = panels(2, height=4.6, sharex=True, height_ratios=[1, 3])
    wave_on(axes[0], wave)
    rows, frames = strengths.shape
    amount = np.where(strengths > 0, np.log10(np.maximum(strengths, 1e-30)), np.nan) - np.log10(strengths.max())
    seconds = frames * SHIFT / SAMPLE_RATE
    extent = (0, seconds, rows * ROW_SECONDS, 0)
    image = axes[1].imshow(amount, extent=extent, origin="upper", vmin=-6, vmax=0)
    figure.colorbar(image, ax=axes[1], pad=0.01, aspect=15).set_label("log10 of the gradient")
    axes[1].set(xlabel="input row at (s)", ylabel="output row at (s)")
    return figure


def looked_back(weights, row_seconds):
    """(H, W): how much each head takes, on average, from a row that lies so far back."""
    figure, axes = panels(height=2.8)
    far = np.arange(weights.shape[1]) * row_seconds
    for h, (head, color, marker) in enumerate(zip(weights, (BLUE, ORANGE, GREEN, PINK), "os^D", strict=False)):
        axes.plot(far, head, color=color, marker=marker, markersize=4, label=f"head {h}")
    axes.axhline(1 / weights.shape[1], color=BLACK, linestyle=":")
    axes.set(xlabel="seconds back", ylabel="mean weight", ylim=(0, 1.5 * weights.max()))
    axes.legend(ncols=4)
    return figure


def leak(differences, starts):
    """{name: difference per output row (T',)} of a batch laid end to end; starts: of its utterances, in rows."""
    figure, axes = panels(height=2.6)
    for (name, values), color, dash in zip(differences.items(), (BLUE, RED), ("-", "--"), strict=False):
        axes.plot(np.arange(len(values)) * ROW_SECONDS, values, dash, color=color, label=name)
    for start in starts:
        axes.axvline(start * ROW_SECONDS, color=GREY, linestyle=":")
    axes.set(xlabel="time in the batch (s); dotted: an utterance begins", ylabel="largest difference")
    axes.legend()
    return figure


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


def lattice_on(axes, values, names, path=None, bar=True, **options):
    """values (T, U+1), a number for each node, as an image: time to the right, what is said downwards.

    names: of the U labels.  path, as rnnt_loss.best_path returns it, is drawn over it.  Returns the scale of colours,
    or with bar=False the image, whose scale another panel shows.
    """
    T, columns = values.shape
    image = axes.imshow(values.T, extent=(0, T * ROW_SECONDS, columns, 0), origin="upper", **options)
    axes.set_yticks(np.arange(columns) + 0.5, ["nothing yet", *names], fontsize=8)
    if path is not None:
        t, u, _ = np.array(path, dtype=float).T
        line, ring = {"color": "white", "linewidth": 2}, withStroke(linewidth=4, foreground=RED)
        axes.plot((t + 0.5) * ROW_SECONDS, u + 0.5, path_effects=[ring], **line)
    return axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=15) if bar else image


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
        above = lattice_on(column[0], blank, names, path, bar=False, vmin=0, vmax=1)
        column[0].set(title=title, xlabel="time (s)")
        column[0].tick_params(labelbottom=True)
        if kl is None:
            column[1].set_axis_off()
        else:
            below = lattice_on(column[1], kl, names, path, bar=False, vmin=0, vmax=most, cmap="Greys")
            column[1].set(title=f"KL to the teacher: {kl.sum():.1f} in all", xlabel="time (s)")
    for row, image, label in ((axes[0], above, "P(blank)"), (axes[1], below, "KL of the node")):
        figure.colorbar(image, ax=row, pad=0.01, aspect=15).set_label(label)
    axes[0, 0].set_ylabel("said so far")
    return figure


def distributions(probabilities, units, most=6):
    """{model: P over the symbols (V,)} at one node: bars for the symbols that any of them finds most probable."""
    figure, axes = panels(height=2.6)
    largest = np.max(list(probabilities.values()), axis=0)
    shown = np.argsort(-largest)[:most]
    width = 0.8 / len(probabilities)
    styles = zip((BLACK, BLUE, ORANGE), ("", "//", ".."), strict=True)
    for i, ((name, values), (color, hatch)) in enumerate(zip(probabilities.items(), styles, strict=False)):
        place = np.arange(len(shown)) + (i - (len(probabilities) - 1) / 2) * width
        axes.bar(place, values[shown], width, color=color, hatch=hatch, edgecolor="white", label=name)
    axes.set_xticks(range(len(shown)), [units[k] for k in shown])
    axes.set(xlabel="symbol", ylabel="P(symbol)", ylim=(0, 1))
    axes.legend()
    return figure


def where_kl_lies(kl, occupancy, names):
    """KL of each node (T, U+1), how probably a path comes by, and the product of the two, side by side."""
    figure, axes = panels(1, 3, height=3.2, sharex=True, sharey=True)
    amount = {"vmin": 0, "vmax": kl.max(), "cmap": "Greys"}
    first = lattice_on(axes[0], kl, names, bar=False, **amount)
    lattice_on(axes[1], occupancy, names, bar=False, vmin=0, vmax=1)
    lattice_on(axes[2], occupancy * kl, names, bar=False, **amount)
    for ax, title in zip(axes, ("KL", "P(a path comes by)", "product of the two"), strict=True):
        ax.set(title=title, xlabel="time (s)")
    axes[0].set_ylabel("said so far")
    figure.colorbar(first, ax=axes, pad=0.01, aspect=15).set_label("KL of the node")
    return figure


def growing(steps):
    """{merges: [units of each word]}: a line for each number of merges, a box for each unit."""
    figure, axes = panels(height=0.4 + 0.38 * len(steps))
    colors = (SKY, ORANGE, YELLOW, PINK, GREEN)
    for line, words in enumerate(steps.values()):
        x = 0.0
        for word in words:
            for k, unit in enumerate(word):
                color = colors[k % len(colors)] if len(unit) > 1 else "white"
                box = {"facecolor": color, "edgecolor": GREY, "alpha": 0.6}
                axes.add_patch(Rectangle((x + 0.05, line - 0.38), len(unit) - 0.1, 0.76, **box))
                for i, letter in enumerate(unit):
                    axes.text(x + i + 0.5, line, letter.replace("\u2581", "_"), ha="center", va="center", fontsize=9)
                x += len(unit)
            x += 1.0
    axes.set(xlim=(-0.2, x - 0.8), ylim=(len(steps) - 0.5, -0.5), ylabel="merges")
    axes.set_yticks(range(len(steps)), list(steps))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    return figure


def units_per_word(sizes, curves, lattice):
    """{name: units a word for each size of vocabulary}, and beside it how many numbers a lattice has."""
    figure, axes = panels(1, 2, height=3.0)
    for (name, values), color, marker in zip(curves.items(), (BLUE, ORANGE), "os", strict=False):
        axes[0].plot(sizes, values, color=color, marker=marker, markersize=4, label=name)
    axes[0].set(xlabel="V, symbols in the vocabulary", ylabel="units a word", ylim=(0, None))
    axes[0].legend()
    axes[1].plot(sizes, np.array(lattice) / 1000, color=GREEN, marker="D", markersize=4)
    axes[1].set(xlabel="V, symbols in the vocabulary", ylabel="thousand numbers in a lattice", ylim=(0, None))
    return figure


def guesses(probabilities, units, labels, least=0.08):
    """(U+1, V): P(next symbol) after each label, for the symbols that are ever likely; rings: what came next."""
    came = [*labels, 0]  # in the end, the blank
    shown = [k for k in range(len(units)) if probabilities[:, k].max() >= least or k in came]
    figure, axes = panels(height=0.9 + 0.2 * len(shown))
    image = axes.imshow(probabilities[:, shown].T, vmin=0, vmax=1)
    ring = {"facecolors": "none", "edgecolors": "white", "linewidths": 1.5}
    effect = [withStroke(linewidth=4, foreground=RED)]
    axes.scatter(range(len(came)), [shown.index(k) for k in came], s=60, path_effects=effect, **ring)
    axes.set_yticks(range(len(shown)), [units[k].replace("\u2581", "_") or "end" for k in shown], fontsize=8)
    axes.set_xticks(range(len(came)), ["start", *(units[k].replace("\u2581", "_") for k in labels)])
    axes.set(xlabel="the last label that was said", ylabel="next")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=20).set_label("P(next)")
    return figure


def cheating(curves, ignorance):
    """{name: loss after each step}, and a dotted line for a model that knows nothing."""
    figure, axes = panels(height=3.0)
    for (name, values), color, dash in zip(curves.items(), (BLUE, ORANGE, RED), ("-", "--", "-."), strict=False):
        axes.plot(values, dash, color=color, label=name)
    axes.axhline(ignorance, color=GREY, linestyle=":")
    axes.set(xlabel="steps of training", ylabel="loss a symbol (nats)", ylim=(0, None))
    axes.legend()
    return figure


def parts(models):
    """{model: Transducer.parameters_by_part()} as bars of 100 %."""
    figure, axes = panels(height=1.0 + 0.5 * len(models))
    colors = dict(zip(next(iter(models.values())), (BLUE, ORANGE, GREEN, SKY, PINK, BLACK), strict=False))
    for line, sizes in enumerate(models.values()):
        left, total = 0.0, sum(sizes.values())
        for part, size in sizes.items():
            label = part.replace("_", " ") if line == 0 else None
            axes.barh(line, 100 * size / total, left=left, color=colors[part], edgecolor="white", label=label)
            left += 100 * size / total
    names = [f"{name}: {sum(sizes.values()) / 1e6:.3g} M" for name, sizes in models.items()]
    axes.set_yticks(range(len(models)), names)
    axes.invert_yaxis()
    axes.set(xlabel="share of the parameters in %", xlim=(0, 100))
    figure.legend(loc="outside upper center", ncols=6, fontsize=8)
    return figure


def beam_tree(trace, units, best):
    """The trace of beam_search_readable as a tree: {labels: ways} for each row; best: labels of the winner, a tuple."""
    lives = {}  # labels: first and last row
    for t, row in enumerate(trace):
        for labels in row:
            lives[labels] = (lives.get(labels, (t,))[0], t)
    place = {labels: i for i, labels in enumerate(sorted(lives))}  # a text stands before those that go on from it
    figure, axes = panels(height=1.2 + 0.16 * len(lives))
    for labels, (first, last) in lives.items():
        won = labels == best[: len(labels)]
        style = {"color": BLUE if won else GREY, "linewidth": 3 if won else 1}
        start, y = first * ROW_SECONDS, place[labels]
        axes.plot([start, (last + 1) * ROW_SECONDS], [y, y], **style)
        before = next((labels[:n] for n in range(len(labels) - 1, -1, -1) if labels[:n] in lives), None)
        if before is not None:
            axes.plot([start, start], [place[before], y], **style, alpha=0.5)
            text = " ".join(units[i] for i in labels[len(before) :])
            axes.annotate(text, (start, y), (-3, 0), "data", "offset points", fontsize=8, ha="right", va="center")
    axes.set(xlabel="time (s)", yticks=[], ylim=(len(lives) - 0.3, -0.7), xlim=(-0.1, len(trace) * ROW_SECONDS))
    axes.spines["left"].set_visible(False)
    return figure


# --- 08 training ----------------------------------------------------------------------------------


def strip(occupancies, names):
    """{title: occupancy (T, U+1)}: six looks into one lattice, in one scale of colours."""
    figure, axes = panels(2, 3, height=5.4, sharex=True, sharey=True)
    for ax, (title, occupancy) in zip(axes.flat, occupancies.items(), strict=True):
        image = lattice_on(ax, occupancy, names, bar=False, vmin=0, vmax=1)
        ax.set_title(title)
    for ax in axes[1]:
        ax.set_xlabel("time (s)")
    for ax in axes[:, 0]:
        ax.set_ylabel("said so far")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=25).set_label("P(a path comes here)")
    return figure


def curves(found, label="loss", log=True, level=None):
    """{name: values}: a number over the steps, for one or several trainings; level: a dotted line to compare with."""
    figure, axes = panels(height=2.8)
    for (name, values), color, dash in zip(found.items(), (BLUE, RED, GREEN), ("-", "--", ":"), strict=False):
        axes.plot(np.arange(1, len(values) + 1), values, dash, color=color, label=name)
    axes.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
    if level is not None:
        axes.axhline(level, color=GREY, linestyle=":")
    if len(found) > 1:
        axes.legend()
    return figure


# --- 11 cascade -----------------------------------------------------------------------------------


def differences(found):
    """{name: (difference, low, high)}, fractions: WERs of two models apart, in points, with their intervals."""
    figure, axes = panels(height=0.8 + 0.4 * len(found))
    for y, (value, low, high) in enumerate(found.values()):
        axes.plot([100 * low, 100 * high], [y, y], color=BLUE, lw=2)
        axes.plot([100 * value], [y], "o", color=BLUE)
    axes.axvline(0, color=GREY, lw=1, ls="--")
    axes.set(yticks=range(len(found)), yticklabels=list(found), ylim=(len(found) - 0.5, -0.5))
    axes.set_xlabel("difference of the WERs (points)")
    return figure


# --- 12 streaming, 13 fast and far ----------------------------------------------------------------


def words_under(wave, heard, texts):
    """The text so far under the wave: heard (n,) seconds after each piece, and the n texts; a line for each new one."""
    new = [(s, text) for s, text, before in zip(heard, texts, ["", *texts], strict=False) if text != before]
    figure, axes = panels(2, height=2 + 0.24 * len(new), sharex=True, height_ratios=[1.2, max(1, 0.24 * len(new))])
    wave_on(axes[0], wave)
    for i, (seconds, text) in enumerate(new):
        axes[0].axvline(seconds, color=GREY, linewidth=0.6)
        axes[1].plot([seconds, seconds], [-1, i], color=GREY, linewidth=0.6)
        axes[1].plot(seconds, i, "o", color=RED, markersize=4)
        axes[1].annotate(text, (seconds, i), (-6, 0), "data", "offset points", fontsize=8, ha="right", va="center")
    axes[1].set(xlabel="heard so far (s)", yticks=[], ylim=(len(new) - 0.4, -1))
    axes[1].spines["left"].set_visible(False)
    return figure


def encoder_rows_apart(differences):
    """{name: difference per encoder row (T',)}, over time."""
    figure, axes = panels(height=2.4)
    for (name, values), color, dash in zip(differences.items(), (BLUE, RED), ("-", "--"), strict=False):
        axes.plot(np.arange(len(values)) * ROW_SECONDS, values, dash, color=color, label=name, marker=".")
    axes.set(xlabel="beginning of the row (s)", ylabel="largest difference")
    axes.legend()
    return figure


def cost_against_vocabulary(sizes, costs):
    """{name: (milliseconds, MiB) for each size of the vocabulary}, time and memory beside each other."""
    figure, axes = panels(1, 2, height=3.0)
    styles = zip((RED, BLUE), ("s--", "o-"), strict=True)
    for (name, found), (color, style) in zip(costs.items(), styles, strict=True):
        for ax, values in zip(axes, zip(*found, strict=True), strict=True):
            ax.loglog(sizes, values, style, color=color, label=name)
    for ax, title in zip(axes, ("time (ms)", "memory at the highest moment (MiB)"), strict=True):
        ax.set(title=title, xlabel="symbols V")
        ax.set_xticks(sizes, [f"{V:,}" for V in sizes], fontsize=9)
        ax.minorticks_off()
    axes[0].legend()
    return figure
