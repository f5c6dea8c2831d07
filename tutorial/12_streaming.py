# %% [markdown]
# # 12 Streaming and the device: words while they are spoken
#
# A phone does not wait until you have finished. Audio arrives in pieces, words should appear at once, and the answer
# must not depend on where the pieces were cut.
#
# You will be able to feed a model piece by piece, to say what it must remember, and to work out the delay that remains
# however fast the computer is.

# %%
import time

import numpy as np

from mini_pkd.conformer import EncoderStream
from mini_pkd.decode import GreedyStream
from mini_pkd.features import SAMPLE_RATE, SHIFT, WINDOW, StreamingMFCC, mfcc
from tutorial import draw, models, utterance
from tutorial.exercise import check

spoken = utterance.load()
recogniser = models.load("S3", beam=1)
print(f"{spoken.text}, {spoken.seconds:.2f} s")
draw.hear(spoken.path)

# %% [markdown]
# ## Words appear
#
# **Question.** What is known, and when? `push` takes samples, any number of them, and returns the text so far. Here
# they come in pieces of 160 ms. Greedy search (notebook 09) never takes a word back, so its text only grows.

# %%
piece = 16 * SHIFT
pieces = [spoken.wave[i : i + piece] for i in range(0, len(spoken.wave), piece)]
stream = recogniser.stream()
texts = [stream.push(samples) for samples in pieces]
final = stream.finish()
heard = np.minimum(np.arange(1, len(pieces) + 1) * piece, len(spoken.wave)) / SAMPLE_RATE
draw.show(
    draw.words_under(spoken.wave, heard, texts),
    "The wave, and under it the text after each piece that changed it, at the moment when the piece had been heard. "
    "How long after a word in the wave does its text come?",
)
print("streamed:  ", final)
print("whole file:", recogniser.transcribe(spoken.wave))
assert all(later.startswith(earlier) for earlier, later in zip(texts, [*texts[1:], final], strict=True))

# %% [markdown]
# Both may differ from what S3 said in 01: there it searched with a beam of 8, here it is greedy (09). What counts is
# that they are equal: streaming has lost nothing.
#
# ## What must be remembered
#
# **Question.** Why may the audio be cut anywhere? Every stage keeps what later samples need of earlier ones, and no
# more. The stages in the order of the signal:
#
# | stage | keeps |
# | --- | --- |
# | `StreamingMFCC` | the window that has begun, one sample for pre-emphasis (notebook 03) |
# | `EncoderStream`, attention | keys and values of as many rows as the window reaches back |
# | `EncoderStream`, convolution | one row less than the kernel is long |
# | `EncoderStream`, pooling | a row that waits for its partner |
# | `GreedyStream` | the state of the prediction network, the units said |
#
# No stage looks ahead, and none goes back to earlier sound; the prediction network carries what was said in a state of
# fixed size. So with $x_{\le n}$ for the samples so far, the
# rows that are out after $n$ samples are final: $h_r(x_{\le n}) = h_r(x)$.

# %%
features = recogniser.normaliser(mfcc(spoken.wave))


def encoded(rows, cut, restart=False):
    """The encoder's rows when `cut` feature rows come at a time."""
    found, stream = [], EncoderStream(recogniser.model.encoder)
    for i in range(0, len(rows), cut):
        found.append(stream.push(rows[i : i + cut]))
        if restart:
            found.append(stream.finish())
            stream = EncoderStream(recogniser.model.encoder)
    return np.concatenate([*found, stream.finish()])


whole = encoded(features, len(features))
for cut in (1, 7, 16, 50):
    print(f"{cut:2d} feature rows at a time: largest difference {np.abs(encoded(features, cut) - whole).max():.1e}")
    assert np.abs(encoded(features, cut) - whole).max() < 1e-3 * np.abs(whole).max()

# %% [markdown]
# **Break it.** Restart the encoder with every piece, as happens when `transcribe` is called on pieces. The number of
# rows is right, so nothing complains. Each piece begins without a memory.

# %%
restarted = encoded(features, 16, restart=True)
apart = {
    "kept": np.abs(encoded(features, 16) - whole).max(axis=1),
    "restarted every 160 ms": np.abs(restarted - whole).max(axis=1),
}
draw.show(
    draw.encoder_rows_apart(apart),
    "Largest difference of an encoder row from that of the whole utterance, 80 ms a row. With its memory kept, the "
    "encoder gives the same rows. Restarted, which rows are right? Only the first piece had nothing to forget.",
)
assert restarted.shape == whole.shape
assert apart["restarted every 160 ms"].max() > 100 * apart["kept"].max()


# %%
def text_of(rows):
    joint = rows @ recogniser.model.encoder_to_joint.weight.data + recogniser.model.encoder_to_joint.bias.data
    return recogniser.bpe.decode(GreedyStream(recogniser.model).push(joint))


print("kept:     ", text_of(whole))
print("restarted:", text_of(restarted))
assert text_of(whole) == recogniser.transcribe(spoken.wave)

# %% [markdown]
# ## The delay that no computer can remove
#
# **Question.** How long must a row wait for its own samples? A row of the encoder pools 8 feature rows. Feature row $t$
# begins at sample $160\,t$ and needs 400.
#
# **Exercise 1.** How many milliseconds after the beginning of an encoder row have all its samples arrived?

# %%
# SOLUTION: delay = ...
delay = 7 * 10 + 25
# END SOLUTION


def first_row_after():
    """Milliseconds of audio until the first encoder row is out: fed one millisecond at a time."""
    front, encoder = StreamingMFCC(), EncoderStream(recogniser.model.encoder)
    for ms in range(1, 1000):
        if len(encoder.push(recogniser.normaliser(front.push(spoken.wave[16 * (ms - 1) : 16 * ms])))):
            return ms


check(
    delay, lambda ms: abs(ms - first_row_after()) <= 1, "The eighth feature row begins 70 ms after the first. It lasts?"
)
assert abs(first_row_after() - 1000 * (7 * SHIFT + WINDOW) / SAMPLE_RATE) <= 1

# %% [markdown]
# That is for the first sample of a row; the last one waits some 15 ms. And in pieces of 160 ms a sound waits up to 160
# ms more for the end of its piece.
#
# The rest of the delay is the model's own choice. It was never told to hurry: the loss (notebook 07) sums over all
# alignments, so a word may be said late without any penalty. (Products add one: FastEmit rewards early labels, for
# example.) And `finish` is called by us; a phone must decide by itself that you have finished, and that wait is often
# longer than all of the above. `emissions` says when each unit came.

# %%
for unit, row, seconds in recogniser.emissions(spoken.wave):
    print(f"{seconds:4.2f} s  row {row:2d}  {unit}")

# %% [markdown]
# ## What fits into a pocket
#
# **Question.** What does a device pay? Three numbers: megabytes that it must store, milliseconds for each piece, and
# the *real-time factor*, $\mathrm{RTF} = \text{seconds of computing} / \text{seconds of audio}$. Below 1 it keeps up,
# if no single piece takes longer than it lasts.
#
# **Exercise 2.** S3 has 4 bytes a parameter. Stored with 1 byte each (int8, which this project does not do, and which
# costs some errors), how many MB would its parameters have? Use `parameters`.

# %%
parameters = recogniser.model.num_parameters()
# SOLUTION: megabytes = ...
megabytes = parameters / 1e6
# END SOLUTION
check(megabytes, parameters * 1e-6, "One byte for each parameter; a megabyte is a million bytes.")

# %% [markdown]
# **Exercise 3.** A piece of 160 ms takes 8 ms to compute. What is the RTF?

# %%
# SOLUTION: rtf = ...
rtf = 8 / 160
# END SOLUTION
check(rtf, lambda r: abs(r * 160 - 8) < 1e-9, "Computing over audio, both in milliseconds.")

# %% [markdown]
# ## The number
#
# The teacher and the smallest taught student, streamed in pieces of 160 ms on one thread of the machine that made this
# page, greedy. Times are this machine's at that moment; a phone is slower.


# %%
def milliseconds(name):
    """Of each piece, after one utterance to warm up."""
    listener, found = models.load(name, beam=1), []
    listener.transcribe(spoken.wave)
    stream = listener.stream()
    for samples in pieces:
        start = time.perf_counter()
        stream.push(samples)
        found.append(1000 * (time.perf_counter() - start))
    return np.array(found)


for name in ("T1", "S3"):
    took = milliseconds(name)
    rtf = took.sum() / 1000 / spoken.seconds
    print(
        f"{name}  {models.megabytes(name):5.2f} MB  median {np.median(took):4.1f} ms  slowest {took.max():4.1f} ms  ",
        end="",
    )
    print(f"RTF {rtf:.3f}")
assert models.megabytes("S3") < models.megabytes("T1")

# %% [markdown]
# If the two times are close, the arithmetic is not what takes them: at this size it is the calls around it.
#
# **Next:** [13 fast and far](13_fast_and_far.ipynb): where the time goes, and what the paper's size would take.
