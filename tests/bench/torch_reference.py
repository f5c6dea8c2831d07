"""The same model in PyTorch, twice: as most people write it, and as fast as a careful user gets it on a CPU.

Both forms hold the same parameters in PyTorch's standard layers and copy mini_pkd's weights by name
(`load_weights`); both must agree with mini_pkd's loss and with every gradient (test_reference.py).

*stock*   a padded batch; dense T x T attention with a mask; nn.Conv1d, nn.LSTM; logits (B, T, U+1, V) with
          log_softmax and kl_div; autograd everywhere except in the RNN-T recursion, which in stock
          toolkits is a C++ kernel and here costs as little; Adam as it comes, tensor by tensor.

*tuned*   utterances laid end to end, so that layers run on exactly the rows that exist; attention in blocks of
          queries against the keys of their window, the depthwise convolution as batched products with Toeplitz
          matrices (three times faster than conv1d and its backward), both with analytic gradients; all dropout
          masks drawn in one call; of the lattice only valid nodes, walked in chunks with analytic
          gradients and reused buffers, rows padded to 16 floats, which MKL needs; fused Adam; and, where
          the caller asks for it, torch.compile for the elementwise chains and keep_freed_memory() for the allocator.

There is no mini_pkd in this file: what it is given are arrays, so that a process which measures PyTorch holds
PyTorch and nothing else.  Features arrive masked (SpecAugment belongs to the data), temperature is 1,
the KL is the full one and is added with weight alpha.
"""

import ctypes
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# ------------------------------------------------------------------------------------------------------------
# Parameters, for both forms
# ------------------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x, rate):
        h = F.dropout(F.silu(self.wide(self.norm(x))), rate)
        return x + 0.5 * F.dropout(self.narrow(h), rate)


class Attention(nn.Module):
    def __init__(self, width, heads, window):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.positions = nn.Parameter(torch.empty(window, width))
        self.out = nn.Linear(width, width)

    def forward(self, x, rate):
        """x (B, T, D).  Padding needs no mask: it lies in every row's future."""
        (B, T, D), H, W = x.shape, self.heads, len(self.positions)
        q, k, v = self.qkv(self.norm(x)).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)  # (B, H, T, C) each
        r = self.positions.view(W, H, D // H).transpose(0, 1)  # (H, W, C)
        distance = torch.arange(T)[:, None] - torch.arange(T)[None]  # (T, T)
        relative = (q @ r.transpose(1, 2)).gather(3, distance.clamp(0, W - 1).expand(B, H, T, T))
        scores = (q @ k.transpose(2, 3) + relative) / math.sqrt(D // H)
        scores = scores.masked_fill((distance < 0) | (distance >= W), -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D)
        return x + F.dropout(self.out(attended), rate)


class Convolution(nn.Module):
    def __init__(self, width, taps):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gated = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, taps, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x, rate):
        h = F.glu(self.gated(self.norm(x)), dim=-1).transpose(1, 2)  # (B, D, T)
        h = self.depthwise(F.pad(h, (self.depthwise.kernel_size[0] - 1, 0))).transpose(1, 2)
        return x + F.dropout(self.out(F.silu(self.inner_norm(h))), rate)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["width"]
        self.feed_forward_1 = FeedForward(width, config["expansion"] * width)
        self.attention = Attention(width, config["heads"], config["window"])
        self.convolution = Convolution(width, config["kernel"])
        self.feed_forward_2 = FeedForward(width, config["expansion"] * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x, rate):
        x = self.attention(self.feed_forward_1(x, rate), rate)
        return self.norm(self.feed_forward_2(self.convolution(x, rate), rate))


class Transducer(nn.Module):
    """`config` is mini_pkd's Transducer.config_dict().  The forward pass is Stock's or Tuned's."""

    def __init__(self, config):
        super().__init__()
        e, J, width = config["encoder"], config["joint_width"], config["lstm_width"]
        self.config = config
        self.encoder = nn.Module()
        self.encoder.input = nn.Linear(e["features"], e["width"])
        self.encoder.blocks = nn.ModuleList(Block(e) for _ in range(e["blocks"]))
        self.predictor = nn.Module()
        self.predictor.embedding = nn.Embedding(config["symbols"], J)
        self.predictor.layers = nn.ModuleList(
            nn.LSTM(J if i == 0 else width, width, batch_first=True) for i in range(config["lstm_layers"])
        )
        for layer in self.predictor.layers:  # mini_pkd has one bias: the other stays 0
            layer.bias_hh_l0.requires_grad_(False)
        self.encoder_to_joint = nn.Linear(e["width"], J)
        self.predictor_to_joint = nn.Linear(width, J)
        self.output_bias = nn.Parameter(torch.zeros(config["symbols"]))


ENDINGS = (  # mini_pkd's names and PyTorch's, and how an array of the one becomes an array of the other
    (".gain", ".weight", None),
    ("convolution.kernel", "convolution.depthwise.weight", "taps"),
    ("convolution.bias", "convolution.depthwise.bias", None),
    (".w_input", ".weight_ih_l0", "transpose"),
    (".w_hidden", ".weight_hh_l0", "transpose"),
    (".embedding.table", ".embedding.weight", None),
    (".weight", ".weight", "transpose"),
)


def counterpart(name):
    """mini_pkd's parameter name -> (PyTorch's name, how to rearrange)."""
    for ours, theirs, change in ENDINGS:
        if name.endswith(ours):
            return name[: -len(ours)] + theirs, change
    if name.startswith("predictor.layers.") and name.endswith(".bias"):
        return name + "_ih_l0", None
    return name, None


def load_weights(model, arrays):
    """Copy {mini_pkd name: array} into a Transducer; every parameter must be named, and nothing else."""
    parameters = {name: p for name, p in model.named_parameters() if not name.endswith("bias_hh_l0")}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias_hh_l0"):
                p.zero_()
        for name, array in arrays.items():
            theirs, change = counterpart(name)
            if change == "taps":
                array = np.asarray(array).T[:, None]  # (taps, D) -> (D, 1, taps)
            elif change == "transpose":
                array = np.asarray(array).T
            target = parameters.pop(theirs)
            assert target.shape == array.shape, (name, target.shape, array.shape)
            target.copy_(torch.from_numpy(np.array(array)))
    assert not parameters, f"no weights for {', '.join(parameters)}"
    return model


def gradients(model, names):
    """{mini_pkd name: gradient array}, in mini_pkd's shapes."""
    found, parameters = {}, dict(model.named_parameters())
    for name in names:
        theirs, change = counterpart(name)
        gradient = parameters[theirs].grad.numpy()
        gradient = gradient[:, 0] if change == "taps" else gradient
        found[name] = gradient.T if change else gradient
    return found


class Batch:
    """mini_pkd's ragged batch as tensors: features (sum T, F), labels (sum U,), lengths and label_lengths (B,)."""

    def __init__(self, features, lengths, labels, label_lengths):
        self.features = torch.from_numpy(np.ascontiguousarray(features))
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.lengths = [int(n) for n in lengths]
        self.label_lengths = [int(n) for n in label_lengths]


# ------------------------------------------------------------------------------------------------------------
# RNN-T: forward-backward on two numbers per node, a whole batch at once
# ------------------------------------------------------------------------------------------------------------


def _sweep(start, arrive, along):
    """x[t, u] = log_add(x[t-1, u] + arrive[t, u], x[t, u-1] + along[t, u]),  x[0, 0] = start;  (T, B, C).

    With c the running sum of `along` over u, z = x - c obeys z[t] = logcumsumexp(z[t-1] + c[t-1] + arrive[t] - c[t]):
    two operations per frame, however long the labels.
    """
    c = along.cumsum(-1)
    z = torch.empty_like(c)
    z[0] = start[:, None]
    step = c[:-1] + arrive[1:] - c[1:]  # (T - 1, B, C)
    for t in range(1, len(c)):
        torch.logcumsumexp(z[t - 1] + step[t - 1], -1, out=z[t])
    return z + c


@torch.no_grad()
def forward_backward(blank, label, lengths, label_lengths):
    """ln P(blank), ln P(next label) (B, T, C) -> losses (B,) and the gradients of their sum by both.

    What lies outside an utterance's T_b x (U_b + 1) nodes is ignored, but must be finite; the gradient there is 0.
    beta is alpha on the lattice turned by 180 degrees, so that both are one sweep over 2B lattices.
    """
    B, T, C = blank.shape
    lengths, label_lengths = torch.as_tensor(lengths), torch.as_tensor(label_lengths)
    dtype, blank, label = blank.dtype, blank.double(), label.double()
    t, u = torch.arange(T)[None, :, None], torch.arange(C)[None, None]  # (1, T, 1), (1, 1, C)
    last_t, last_u = (lengths - 1)[:, None, None], label_lengths[:, None, None]
    turned = ((last_t - t).clamp(min=0) * C + (last_u - u).clamp(min=0)).view(B, T * C)

    def turn(x):
        return x.reshape(B, T * C).gather(1, turned).view(B, T, C)

    arrive, along = torch.zeros(T, 2 * B, C, dtype=torch.double), torch.zeros(T, 2 * B, C, dtype=torch.double)
    arrive[1:, :B] = blank[:, :-1].transpose(0, 1)
    along[:, :B, 1:] = label[:, :, :-1].transpose(0, 1)
    turned_blank = turn(blank).transpose(0, 1)
    arrive[:, B:] = turned_blank
    along[:, B:, 1:] = turn(label)[:, :, 1:].transpose(0, 1)
    start = torch.cat([torch.zeros(B, dtype=torch.double), turned_blank[0, :, 0]])
    x = _sweep(start, arrive, along)
    alpha, beta = x[:, :B].transpose(0, 1), turn(x[:, B:].transpose(0, 1))

    total = beta[:, 0, 0]
    arrived = alpha - total[:, None, None]
    past = F.pad(beta, (0, 1, 0, 1), value=-math.inf)  # (B, T + 1, C + 1)
    after_blank = past[:, 1:, :-1].masked_fill((t >= last_t) | (u > last_u), -math.inf)
    after_blank = after_blank.masked_fill((t == last_t) & (u == last_u), 0.0)
    after_label = past[:, :-1, 1:].masked_fill((t > last_t) | (u >= last_u), -math.inf)
    d_blank = -(arrived + blank + after_blank).exp()
    d_label = -(arrived + label + after_label).exp()
    return -total, d_blank.to(dtype), d_label.to(dtype)


class RNNTFromLogProbs(torch.autograd.Function):
    """Losses (B,) of log-probabilities of blank and label (B, T, C)."""

    @staticmethod
    def forward(ctx, blank, label, lengths, label_lengths):
        losses, *grads = forward_backward(blank, label, lengths, label_lengths)
        ctx.save_for_backward(*grads)
        return losses.to(blank.dtype)

    @staticmethod
    def backward(ctx, g):
        d_blank, d_label = ctx.saved_tensors
        return d_blank * g[:, None, None], d_label * g[:, None, None], None, None


# ------------------------------------------------------------------------------------------------------------
# Stock
# ------------------------------------------------------------------------------------------------------------


def pad(rows, lengths, value=0.0):
    """(sum T, ...) -> (B, max T, ...)."""
    return nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True, padding_value=value)


def stock_summands(model, batch, rate=0.0):
    """The joint's two summands, padded: enc (B, T', J), pred (B, U+1, J), and T' (list)."""
    x, lengths = model.encoder.input(pad(batch.features, batch.lengths)), torch.tensor(batch.lengths)
    for i, block in enumerate(model.encoder.blocks):
        x = block(x, 0.0 if i == 0 else rate)
        if i < model.config["encoder"]["pools"]:
            padding = torch.arange(x.shape[1])[None] >= lengths[:, None]
            x = x.masked_fill(padding[:, :, None], -math.inf)  # a last odd row must not meet padding
            x = F.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
            lengths = (lengths + 1) // 2
            padding = torch.arange(x.shape[1])[None] >= lengths[:, None]
            x = x.masked_fill(padding[:, :, None], 0.0)
    symbols = F.pad(pad(batch.labels, batch.label_lengths), (1, 0))  # 0 starts every utterance
    y = model.predictor.embedding(symbols)
    for i, layer in enumerate(model.predictor.layers):
        y = layer(y)[0]
        y = F.dropout(y, rate) if i > 0 else y
    return model.encoder_to_joint(x), model.predictor_to_joint(y), lengths.tolist()


def stock_joint(enc, pred, table, bias):
    """Every logit of the padded batch: (B, T, U+1, V)."""
    return torch.tanh(enc[:, :, None] + pred[:, None]) @ table.T + bias


def stock_lattice(student, teacher, labels, lengths, label_lengths, alpha):
    """(loss, RNN-T (B,), KL (B,)) from padded joint inputs; teacher may be None."""
    log_probs = stock_joint(*student).log_softmax(-1)  # (B, T, U+1, V)
    B, T, C, _ = log_probs.shape
    padded = F.pad(pad(labels, label_lengths), (0, C - (max(label_lengths) if len(labels) else 0)))  # (B, U+1)
    label = log_probs.gather(3, padded[:, None, :, None].expand(B, T, C, 1))[..., 0]
    rnnt = RNNTFromLogProbs.apply(log_probs[..., 0], label, lengths, label_lengths)
    if teacher is None:
        return rnnt.mean(), rnnt, torch.zeros_like(rnnt)
    with torch.no_grad():
        teacher_log_probs = stock_joint(*teacher).log_softmax(-1)
    kl = F.kl_div(log_probs, teacher_log_probs, log_target=True, reduction="none").sum(-1)  # (B, T, U+1)
    valid = (torch.arange(T)[None, :, None] < torch.tensor(lengths)[:, None, None]) & (
        torch.arange(C)[None, None] <= torch.tensor(label_lengths)[:, None, None]
    )
    kl = (kl * valid).sum((1, 2))
    return (rnnt + alpha * kl).mean(), rnnt, kl


def stock_loss(model, teacher, batch, alpha, rate=0.0):
    """(loss, RNN-T (B,), KL (B,)) of a batch."""
    enc, pred, lengths = stock_summands(model, batch, rate)
    student = enc, pred, model.predictor.embedding.weight, model.output_bias
    taught = None
    if teacher is not None:
        with torch.no_grad():
            taught = *stock_summands(teacher, batch)[:2], teacher.predictor.embedding.weight, teacher.output_bias
    return stock_lattice(student, taught, batch.labels, lengths, batch.label_lengths, alpha)


# ------------------------------------------------------------------------------------------------------------
# Tuned, the encoder: rows end to end
# ------------------------------------------------------------------------------------------------------------


class Buffers:
    """Large arrays that live on between steps: memory from a buffer is already mapped."""

    def __init__(self):
        self.flat = {}

    def __call__(self, name, *shape, dtype=torch.float32):
        size = math.prod(shape)
        flat = self.flat.get((name, dtype))
        if flat is None or flat.numel() < size:
            flat = self.flat[(name, dtype)] = torch.empty(size, dtype=dtype)
        return flat[:size].view(shape)


class Noise:
    """Dropout masks, already divided by 1 - rate.  From the second step on all are drawn in one call.

    Four 16-bit numbers from each random 64 bits: the rate is rounded to 1/65536, and a mask costs a
    quarter of bernoulli_'s time.
    """

    def __init__(self, rate):
        self.rate, self.used, self.flat = rate, 0, torch.empty(0)

    def restart(self):
        if self.used > len(self.flat):
            self.flat = torch.empty(-(-self.used // 4) * 4)
            self.bits = torch.empty(len(self.flat) // 4, dtype=torch.int64)
        if self.rate and len(self.flat):
            self.draw(self.flat, self.bits)
        self.used = 0

    def draw(self, out, bits):
        kept = bits.random_(-(2**63), None).view(torch.int16)
        torch.ge(kept, round(self.rate * 65536) - 32768, out=out)
        out.mul_(1 / (1 - self.rate))

    def next(self, rows, width):
        if not self.rate:
            return None
        first, self.used = self.used, self.used + rows * width
        if self.used <= len(self.flat):
            return self.flat[first : self.used].view(rows, width)
        quarters = -(-rows * width // 4)
        out = torch.empty(4 * quarters)
        self.draw(out, torch.empty(quarters, dtype=torch.int64))
        return out[: rows * width].view(rows, width)


NO_NOISE = Noise(0.0)


class Rows:
    """Where utterances lie when laid end to end, at one frame rate: shared by all blocks of that rate."""

    def __init__(self, lengths, window, taps):
        self.lengths, self.window, self.taps = lengths, window, taps
        self.N = sum(lengths)
        starts = np.cumsum([0, *lengths])
        # Attention: queries in blocks of c against their W - 1 predecessors as well.  Only blocks that
        # contain an utterance's first rows can look into another utterance: `crossing`, with what to hide.
        self.c = c = window if window <= 64 else window // 2
        self.blocks = -(-self.N // c)
        self.keys = c + window - 1
        self.front = window - 1  # rows of nothing in front of the first key
        self.padded = (self.blocks + -(-self.keys // c)) * c
        owner = np.full(self.padded, -1)
        owner[self.front : self.front + self.N] = np.repeat(np.arange(len(lengths)), lengths)
        rows = np.arange(self.blocks)[:, None] * c
        mine = owner[self.front + rows + np.arange(c)][:, :, None]  # (blocks, c, 1)
        hidden = (owner[rows + np.arange(self.keys)][:, None] != mine) & (mine >= 0)  # (blocks, c, keys)
        self.crossing = torch.from_numpy(np.flatnonzero(hidden.any((1, 2))))
        self.hide = torch.from_numpy(hidden[self.crossing.numpy()])  # (some, c, keys)
        # Convolution: time runs along the last axis, with taps - 1 zeros between utterances.
        gap = taps - 1
        self.conv_block = max(16, taps)  # output rows per Toeplitz matrix
        bounds = zip(starts.tolist(), starts[1:].tolist(), strict=False)
        self.places = [(start, end, start + b * gap) for b, (start, end) in enumerate(bounds)]
        self.conv_blocks = -(-(self.N + len(lengths) * gap) // self.conv_block)
        # Pooling
        halves = [(n + 1) // 2 for n in lengths]
        left = [s + 2 * np.arange(h) for s, h in zip(starts[:-1], halves, strict=True)]
        right = [np.minimum(rows + 1, e - 1) for rows, e in zip(left, starts[1:], strict=True)]
        self.left, self.right = (torch.from_numpy(np.concatenate(rows)) for rows in (left, right))


class BandedAttention(torch.autograd.Function):
    """(N, 3D), positions (W, D) -> (N, D).  Scores of a block of c queries are (c, c + W - 1).

    q r^T gives scores by distance.  Query i's key at distance W - 1 - e is the block's key i + e, so with rows one
    element longer the scores' own memory is a view by distance, and the -inf around it is the band's mask.
    (Products go to contiguous results: for others PyTorch leaves MKL's batched product and loops.)
    """

    @staticmethod
    def forward(ctx, qkv, positions, rows, heads):
        N, D, W, c, nb, K = rows.N, positions.shape[1], rows.window, rows.c, rows.blocks, rows.keys
        C = D // heads
        shrink = 1 / math.sqrt(C)
        padded = F.pad(qkv, (0, 0, rows.front, rows.padded - rows.front - N))  # (padded, 3D)
        far_first = positions.flip(0)  # entry e is distance W - 1 - e
        scores = qkv.new_full((heads, nb, c, K), -math.inf)
        by_distance = _by_distance(scores, W)
        for h in range(heads):
            q, k, _ = _views(padded, rows, h * C, C, D)
            relative = q.flatten(0, 1) @ far_first[:, h * C : (h + 1) * C].T  # (nb c, W)
            by_distance[h] = relative.view(nb, c, W)
            scores[h].baddbmm_(q, k.transpose(1, 2), beta=shrink, alpha=shrink)
        if len(rows.crossing):
            scores[:, rows.crossing] = scores[:, rows.crossing].masked_fill_(rows.hide, -math.inf)
        p = scores.softmax(-1)  # (H, nb, c, K)
        out = qkv.new_empty(nb * c, D)
        for h in range(heads):
            v = _views(padded, rows, h * C, C, D)[2]
            out.view(nb, c, D)[:, :, h * C : (h + 1) * C] = torch.bmm(p[h], v)
        ctx.save_for_backward(padded, far_first, p)
        ctx.layout = rows, heads
        return out[:N]

    @staticmethod
    def backward(ctx, g):
        padded, far_first, p = ctx.saved_tensors
        rows, heads = ctx.layout
        N, D, W, c, nb = rows.N, far_first.shape[1], rows.window, rows.c, rows.blocks
        C = D // heads
        shrink, nothing = 1 / math.sqrt(C), padded.new_zeros(1)
        g = F.pad(g, (0, 0, 0, nb * c - N)).view(nb, c, D)
        ds = torch.empty_like(p)
        for h in range(heads):
            v = _views(padded, rows, h * C, C, D)[2]
            torch.bmm(g[:, :, h * C : (h + 1) * C], v.transpose(1, 2), out=ds[h])
        ds = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
        by_distance = _by_distance(ds, W)
        d_padded, d_far = torch.zeros_like(padded), torch.empty_like(far_first)
        for h in range(heads):
            q, k, _ = _views(padded, rows, h * C, C, D)
            dq, dk, dv = (d_padded[:, i * D + h * C : i * D + (h + 1) * C] for i in range(3))
            far = far_first[:, h * C : (h + 1) * C]
            part = torch.baddbmm(nothing, ds[h], k, beta=0, alpha=shrink)
            part.baddbmm_(by_distance[h], far.expand(nb, W, C), alpha=shrink)
            dq[rows.front : rows.front + nb * c] = part.flatten(0, 1)
            d_far[:, h * C : (h + 1) * C] = torch.bmm(by_distance[h].transpose(1, 2), q).sum(0).mul_(shrink)
            _overlap_add(dk, torch.baddbmm(nothing, ds[h].transpose(1, 2), q, beta=0, alpha=shrink), c)
            _overlap_add(dv, torch.bmm(p[h].transpose(1, 2), g[:, :, h * C : (h + 1) * C]), c)
        return d_padded[rows.front : rows.front + N], d_far.flip(0), None, None


def _views(padded, rows, c0, C, D):
    """One head's queries (nb, c, C), keys and values (nb, K, C): no copies, keys of neighbouring blocks overlap."""
    row, block = padded.stride(0), rows.c * padded.stride(0)
    q = padded.as_strided((rows.blocks, rows.c, C), (block, row, 1), rows.front * row + c0)
    k, v = (padded.as_strided((rows.blocks, rows.keys, C), (block, row, 1), i * D + c0) for i in (1, 2))
    return q, k, v


def _by_distance(scores, W):
    """(H, nb, c, K) -> a view (H, nb, c, W): entry (i, e) is key i + e."""
    heads, nb, c, K = scores.shape
    return scores.as_strided((heads, nb, c, W), (nb * c * K, c * K, K + 1, 1))


def _overlap_add(target, parts, c):
    """target[j c + i] += parts[j, i] for parts (nb, K, C)."""
    nb, K, C = parts.shape
    for lo in range(0, K, c):
        hi = min(lo + c, K)
        rows = target[lo : lo + nb * c].unflatten(0, (nb, c))
        rows[:, : hi - lo] += parts[:, lo:hi]


class ToeplitzConvolution(torch.autograd.Function):
    """Causal depthwise convolution: x (N, D), weight (D, 1, taps), bias (D,) -> (N, D).

    Per channel, c outputs are a Toeplitz matrix (c, c + taps - 1) times as many inputs: three times the
    arithmetic, but in batched matrix products.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, rows):
        windows = _windows(_spread(x, rows, rows.taps - 1), rows)
        y = torch.baddbmm(bias[:, None, None], windows, _toeplitz(weight[:, 0], rows).transpose(1, 2))
        ctx.save_for_backward(windows, weight)
        ctx.rows = rows
        return _gather(y.flatten(1), rows)

    @staticmethod
    def backward(ctx, g):
        windows, weight = ctx.saved_tensors
        rows, c = ctx.rows, ctx.rows.conv_block
        g_windows = _windows(_spread(g, rows, 0), rows)
        dx = torch.bmm(g_windows, _toeplitz(weight[:, 0].flip(1), rows).transpose(1, 2))
        products = torch.bmm(g_windows[:, :, :c].transpose(1, 2), windows)  # (D, c, c + taps - 1)
        size = c + rows.taps - 1
        diagonals = products.as_strided((len(weight), c, rows.taps), (c * size, size + 1, 1))
        return _gather(dx.flatten(1), rows), diagonals.sum(1)[:, None], g.sum(0), None


def _spread(x, rows, front):
    """(N, D) -> (D, time), zeros between utterances, `front` zeros before the first."""
    out = x.new_zeros(x.shape[1], rows.conv_blocks * rows.conv_block + rows.taps - 1)
    for start, end, place in rows.places:
        out[:, front + place : front + place + end - start] = x[start:end].T
    return out


def _gather(y, rows):
    """The inverse of _spread with front 0."""
    out = y.new_empty(rows.N, len(y))
    for start, end, place in rows.places:
        out[start:end] = y[:, place : place + end - start].T
    return out


def _windows(spread, rows):
    c = rows.conv_block
    windows = spread.as_strided((len(spread), rows.conv_blocks, c + rows.taps - 1), (spread.stride(0), c, 1))
    return windows.contiguous()  # overlapping rows are no matrix to MKL, and PyTorch would loop over channels


def _toeplitz(weight, rows):
    (D, taps), c = weight.shape, rows.conv_block
    matrix = F.pad(weight[:, None].expand(D, c, taps), (0, c))  # (D, c, taps + c): shift row i by i, as above
    size = c + taps - 1
    return matrix.as_strided((D, c, size), (c * (c + taps), size, 1))


class Pool(torch.autograd.Function):
    """Max over pairs of rows; a lonely last row is its own partner."""

    @staticmethod
    def forward(ctx, x, rows):
        a, b = x[rows.left], x[rows.right]
        took_right = b > a
        ctx.save_for_backward(took_right)
        ctx.rows = rows
        return torch.maximum(a, b)

    @staticmethod
    def backward(ctx, g):
        (took_right,), rows = ctx.saved_tensors, ctx.rows
        dx = g.new_empty(rows.N, g.shape[1])
        dx[rows.right] = g * took_right  # a lonely row is written twice, and its second time is the right one
        dx[rows.left] = g.masked_fill(took_right, 0)
        return dx, None


# Elementwise chains between matrix products, as plain functions so that torch.compile can fuse them.


def _half_feed_forward(x, norm_weight, norm_bias, w1, b1, w2, b2, noise_1, noise_2):
    h = F.silu(F.linear(F.layer_norm(x, x.shape[1:], norm_weight, norm_bias), w1, b1))
    h = h if noise_1 is None else h * noise_1
    y = F.linear(h, w2, b2)
    return torch.add(x, y, alpha=0.5) if noise_2 is None else torch.addcmul(x, y, noise_2, value=0.5)


def _normed_linear(x, norm_weight, norm_bias, w, b):
    return F.linear(F.layer_norm(x, x.shape[1:], norm_weight, norm_bias), w, b)


def _normed_glu(x, norm_weight, norm_bias, w, b):
    return F.glu(_normed_linear(x, norm_weight, norm_bias, w, b), dim=-1)


def _linear_residual(x, h, w, b, noise):
    y = F.linear(h, w, b)
    return x + y if noise is None else torch.addcmul(x, y, noise)


def _convolution_end(x, h, norm_weight, norm_bias, w, b, noise):
    return _linear_residual(x, F.silu(F.layer_norm(h, h.shape[1:], norm_weight, norm_bias)), w, b, noise)


def _compare(logits, teacher_logits, log_probs, teacher_probs, kl):
    """log_softmax of both, exp of the teacher's, KL per row; into the given arrays (all (n, V) but kl (n,))."""
    torch.ops.aten._log_softmax.out(logits, -1, False, out=log_probs)
    log_p = torch.ops.aten._log_softmax(teacher_logits, -1, False)
    torch.exp(log_p, out=teacher_probs)
    torch.sum(log_p.sub_(log_probs).mul_(teacher_probs), -1, out=kl)


def _compare_fused(logits, teacher_logits, log_probs, teacher_probs, kl):
    log_q, log_p = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    p = log_p.exp()
    log_probs.copy_(log_q)
    teacher_probs.copy_(p)
    kl.copy_((p * (log_p - log_q)).sum(-1))


class Tuned:
    """The tuned form's functions and buffers.  compile: fuse the elementwise chains with torch.compile.

    keep_bytes    an utterance whose student's and teacher's probabilities take more computes its logits twice
    chunk_rows    nodes per matrix product; 0 chooses
    """

    def __init__(self, rate=0.0, compile=False, keep_bytes=2**31, chunk_rows=0):
        self.noise, self.buffers = Noise(rate), Buffers()
        self.keep_bytes, self.chunk_rows = keep_bytes, chunk_rows

        def fuse(function):
            return torch.compile(function, dynamic=True) if compile else function

        self.half_feed_forward, self.normed_linear = fuse(_half_feed_forward), fuse(_normed_linear)
        self.normed_glu, self.linear_residual = fuse(_normed_glu), fuse(_linear_residual)
        self.convolution_end = fuse(_convolution_end)
        self.compare = fuse(_compare_fused) if compile else _compare

    def feed_forward(self, module, x, noise):
        norm, wide, narrow = module.norm, module.wide, module.narrow
        N, D = x.shape
        masks = noise.next(N, wide.out_features), noise.next(N, D)
        weights = norm.weight, norm.bias, wide.weight, wide.bias, narrow.weight, narrow.bias
        return self.half_feed_forward(x, *weights, *masks)

    def block(self, block, x, rows, noise):
        N, D = x.shape
        x = self.feed_forward(block.feed_forward_1, x, noise)
        a = block.attention
        qkv = self.normed_linear(x, a.norm.weight, a.norm.bias, a.qkv.weight, a.qkv.bias)
        attended = BandedAttention.apply(qkv, a.positions, rows, a.heads)
        x = self.linear_residual(x, attended, a.out.weight, a.out.bias, noise.next(N, D))
        v = block.convolution
        h = self.normed_glu(x, v.norm.weight, v.norm.bias, v.gated.weight, v.gated.bias)
        h = ToeplitzConvolution.apply(h, v.depthwise.weight, v.depthwise.bias, rows)
        norm, out = v.inner_norm, v.out
        x = self.convolution_end(x, h, norm.weight, norm.bias, out.weight, out.bias, noise.next(N, D))
        x = self.feed_forward(block.feed_forward_2, x, noise)
        return block.norm(x)

    def summands(self, model, batch, noise=NO_NOISE, shared=None):
        """enc (sum T', J), pred (sum (U+1), J), T'; shared: a dict of Rows, for a teacher of the same windows."""
        e = model.config["encoder"]
        x, lengths = model.encoder.input(batch.features), batch.lengths
        shared = {} if shared is None else shared
        for i, block in enumerate(model.encoder.blocks):
            key = (tuple(lengths), e["window"], e["kernel"])
            if key not in shared:
                shared[key] = Rows(lengths, e["window"], e["kernel"])
            x = self.block(block, x, shared[key], NO_NOISE if i == 0 else noise)
            if i < e["pools"]:
                x, lengths = Pool.apply(x, shared[key]), [(n + 1) // 2 for n in lengths]
        columns = [n + 1 for n in batch.label_lengths]
        y = model.predictor.embedding(F.pad(pad(batch.labels, batch.label_lengths), (1, 0)))
        for i, layer in enumerate(model.predictor.layers):
            y = layer(y)[0]
            mask = noise.next(y.shape[0] * y.shape[1], y.shape[2]) if i > 0 else None
            y = y if mask is None else y * mask.view(y.shape)
        valid = torch.arange(y.shape[1])[None] < torch.tensor(columns)[:, None]
        return model.encoder_to_joint(x), model.predictor_to_joint(y[valid]), lengths

    def loss(self, model, teacher, batch, alpha):
        """(loss, RNN-T (B,), KL (B,)) of a batch."""
        self.noise.restart()
        shared = {}
        enc, pred, lengths = self.summands(model, batch, self.noise, shared)
        student = enc, pred, model.predictor.embedding.weight, model.output_bias
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = *self.summands(teacher, batch, shared=shared)[:2], teacher.predictor.embedding.weight
                taught = *taught, teacher.output_bias
        return self.lattice(student, taught, batch.labels, lengths, batch.label_lengths, alpha)

    def lattice(self, student, teacher, labels, lengths, label_lengths, alpha):
        """(loss, RNN-T (B,), KL (B,)) from ragged joint inputs."""
        return TunedLattice.apply(*student, self, teacher, labels, lengths, label_lengths, alpha)


class TunedLattice(torch.autograd.Function):
    """Joint network, RNN-T and KL over valid nodes; gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx, enc, pred, table, bias, tuned, teacher, labels, lengths, label_lengths, alpha):
        student = enc, pred, table, bias
        rnnt, kl, grads = _walk(tuned, student, teacher, labels, lengths, label_lengths, alpha)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(rnnt, kl)
        return (rnnt + alpha * kl).mean().to(enc.dtype), rnnt, kl

    @staticmethod
    def backward(ctx, g, _rnnt, _kl):
        grads = ctx.saved_tensors
        if g != 1:
            grads = [gradient * g for gradient in grads]
        return *grads, None, None, None, None, None, None


def _round_up_table(table, bias, name, buffers):
    """V to a multiple of 16: MKL loses a third at rows of 10026 floats.  The new symbols have probability 0."""
    V, J = table.shape
    extra = -V % 16
    if not extra:
        return table, bias
    wide = buffers(name, V + extra, J, dtype=table.dtype)
    wide[:V], wide[V:] = table, 0
    return wide, F.pad(bias, (0, extra), value=-1e4)


def _walk(tuned, student, teacher, labels, lengths, label_lengths, alpha):
    """Losses, KL, and gradients by enc, pred, table, bias of mean(RNN-T + alpha KL)."""
    enc, pred, table, bias = student
    (V, J), B, dtype, buffers = table.shape, len(lengths), enc.dtype, tuned.buffers
    wide, wide_bias = _round_up_table(table, bias, "table", buffers)
    width = len(wide)
    if teacher is not None:
        teacher = (*teacher[:2], *_round_up_table(*teacher[2:], "teacher table", buffers))
    d_enc, d_pred = torch.empty_like(enc), torch.zeros_like(pred)
    d_wide, d_bias = torch.zeros_like(wide), torch.zeros_like(wide_bias)
    losses, kl_sums = enc.new_zeros(B), enc.new_zeros(B)
    sizes = [T * (U + 1) for T, U in zip(lengths, label_lengths, strict=True)]
    enc_start, pred_start = np.cumsum([0, *lengths]), np.cumsum([0, *(U + 1 for U in label_lengths)])
    label_start = np.cumsum([0, *label_lengths])
    node_bytes = 2 * width * enc.element_size()
    most = tuned.chunk_rows or max(1024, 2**21 // width)

    first = 0
    while first < B:
        last = first + 1  # utterances first .. last - 1 share one forward-backward
        while last < B and sum(sizes[first : last + 1]) * node_bytes <= 2**26:
            last += 1
        group = range(first, last)
        nodes = sum(sizes[first:last])
        keep = nodes * node_bytes <= tuned.keep_bytes
        rows = nodes if keep else min(nodes, most + max(label_lengths[first:last]) + 1)
        log_probs = buffers("log_probs", rows, width, dtype=dtype)
        teacher_probs = buffers("teacher_probs", rows, width, dtype=dtype) if teacher is not None else None
        hidden = buffers("hidden", rows, J, dtype=dtype)
        T, C = max(lengths[first:last]), max(label_lengths[first:last]) + 1
        blank, label = enc.new_zeros(last - first, T, C), enc.new_zeros(last - first, T, C)
        chunks = []  # (utterance, first and last frame, its nodes in the kept arrays)
        node = 0
        for b in group:
            columns, frames = label_lengths[b] + 1, max(1, most // (label_lengths[b] + 1))
            for lo in range(0, lengths[b], frames):
                hi = min(lo + frames, lengths[b])
                place = slice(node, node + (hi - lo) * columns) if keep else slice(0, (hi - lo) * columns)
                chunks.append((b, lo, hi, place))
                node += (hi - lo) * columns

        def forward(b, lo, hi, place, first=first, log_probs=log_probs, teacher_probs=teacher_probs, hidden=hidden):
            e, p = slice(enc_start[b] + lo, enc_start[b] + hi), slice(pred_start[b], pred_start[b + 1])
            n = place.stop - place.start
            kl = enc.new_zeros(n)
            logits = buffers("logits", n, width, dtype=dtype)
            _joint((enc, pred, wide, wide_bias), e, p, hidden[place], logits)
            if teacher is None:
                torch.ops.aten._log_softmax.out(logits, -1, False, out=log_probs[place])
            else:
                teacher_logits = buffers("teacher logits", n, width, dtype=dtype)
                teacher_hidden = buffers("teacher hidden", n, teacher[2].shape[1], dtype=dtype)
                _joint(teacher, e, p, teacher_hidden, teacher_logits)
                tuned.compare(logits, teacher_logits, log_probs[place], teacher_probs[place], kl)
            return kl

        for b, lo, hi, place in chunks:
            kl_sums[b] += forward(b, lo, hi, place).sum()
            columns = label_lengths[b] + 1
            found = log_probs[place].view(hi - lo, columns, width)
            blank[b - first, lo:hi, :columns] = found[:, :, 0]
            said = labels[label_start[b] : label_start[b + 1]]
            u = torch.arange(columns - 1)
            label[b - first, lo:hi, : columns - 1] = found[:, u, said]
        losses[first:last], d_blank, d_label = forward_backward(
            blank, label, lengths[first:last], label_lengths[first:last]
        )

        for b, lo, hi, place in chunks:
            if not keep:
                forward(b, lo, hi, place)
            columns = label_lengths[b] + 1
            e, p = slice(enc_start[b] + lo, enc_start[b] + hi), slice(pred_start[b], pred_start[b + 1])
            at_blank = d_blank[b - first, lo:hi, :columns].reshape(-1) / B
            at_label = d_label[b - first, lo:hi, :columns].reshape(-1) / B
            d = log_probs[place].exp_()
            if teacher is None:
                d.mul_(-(at_blank + at_label)[:, None])
            else:
                d.mul_((alpha / B - at_blank - at_label)[:, None]).sub_(teacher_probs[place], alpha=alpha / B)
            d[:, 0] += at_blank
            u, said = torch.arange(columns - 1), labels[label_start[b] : label_start[b + 1]]
            d.view(hi - lo, columns, width)[:, u, said] += at_label.view(hi - lo, columns)[:, :-1]
            h = hidden[place]
            d_wide.addmm_(d.T, h)
            d_bias.addmv_(d.T, enc.new_ones(len(d)))
            d_hidden = torch.mm(d, wide, out=buffers("d_hidden", *h.shape, dtype=dtype))
            torch.ops.aten.tanh_backward.grad_input(d_hidden, h, grad_input=d_hidden)
            d_hidden = d_hidden.view(hi - lo, columns, J)
            torch.sum(d_hidden, 1, out=d_enc[e])
            d_pred[p] += d_hidden.sum(0)
        first = last
    return losses, kl_sums, (d_enc, d_pred, d_wide[:V], d_bias[:V])


def _joint(network, enc_rows, pred_rows, hidden, logits):
    enc, pred, table, bias = network
    e, p = enc[enc_rows], pred[pred_rows]
    torch.add(e[:, None], p[None], out=hidden.view(len(e), len(p), -1))
    torch.addmm(bias, hidden.tanh_(), table.T, out=logits)


def keep_freed_memory():
    """Ask glibc not to hand freed pages back to the kernel; each would have to be faulted in again."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(-3, 2**30) and libc.mallopt(-1, 2**31 - 1) and libc.mallopt(-2, 2**26))
    except (OSError, AttributeError):
        return False


# ------------------------------------------------------------------------------------------------------------
# One training step, either form
# ------------------------------------------------------------------------------------------------------------


class Trainer:
    """Loss, backward, clipping and Adam.  form: "stock" or "tuned"; options go to Tuned."""

    def __init__(self, form, model, teacher, alpha=0.02, rate=0.1, learning_rate=1e-4, clip=5.0, **options):
        self.form, self.model, self.teacher = form, model, teacher
        self.alpha, self.rate, self.clip = alpha, rate, clip
        self.tuned = Tuned(rate, **options) if form == "tuned" else None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        settings = {"lr": learning_rate, "betas": (0.9, 0.98), "eps": 1e-8}
        self.adam = torch.optim.Adam(self.parameters, **settings, **({"fused": True} if self.tuned else {}))

    def loss(self, batch):
        """(loss, RNN-T (B,), KL (B,))."""
        if self.tuned is not None:
            return self.tuned.loss(self.model, self.teacher, batch, self.alpha)
        return stock_loss(self.model, self.teacher, batch, self.alpha, self.rate)

    def step(self, batch):
        """One update; the loss as a float."""
        loss, _, _ = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return float(loss.detach())
