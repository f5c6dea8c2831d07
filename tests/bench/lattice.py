"""The lattice alone: from the joint network's inputs to their gradients, RNN-T, and RNN-T + KL to a teacher.

Inputs are enc (sum T, J), pred (sum (U+1), J), the table (V, J) and the bias (V,); outputs the loss and its
gradients by all four.  Every implementation has a fresh process of its own and they take turns; losses and norms
of gradients must agree first.

  v500      16 utterances of 25 to 75 rows with 4 to 20 labels, V = 500, J = 256
  v10026    2 utterances of 182 and 175 rows with 38 and 40 labels, V = 10026, J = 1024
  8s, 34s   one utterance of 103 rows with 29 labels, of 426 rows with 133 labels, V = 10026, J = 256

  mini_pkd              as training runs it
  tuned, tuned-recompute, stock       torch_reference.py
  fast_rnnt, optimized_transducer     joint and KL in PyTorch, their loss (python -m tests.bench.others builds them)
  warprnnt_numba        pip install warprnnt_numba; its loops are interpreted on a CPU: asked for by name only

What is not installed gets a line that says so.  "extra MiB" is the process's peak above what it held with all
inputs loaded, so it counts gradients, logits and buffers.  --recursion times forward-backward alone, given two
log-probabilities per node.

examples:
  python -m tests.bench.lattice --threads 2
  python -m tests.bench.lattice v10026 --kl only --names mini_pkd tuned stock --repeats 3
  python -m tests.bench.lattice v500 --recursion --threads 1
  python -m tests.bench.lattice 8s 34s --kl without --names mini_pkd --threads 1
"""

import argparse
import math
import sys

import numpy as np

from . import measure, others

MODULE = "tests.bench.lattice"
ALPHA = 0.02
NAMES = (
    "mini_pkd", "tuned", "tuned-recompute", "stock", "fast_rnnt", "optimized_transducer", "warprnnt_numba",
)  # fmt: skip
DEFAULT = NAMES[:-1]
RECURSION_NAMES = ("mini_pkd", "tuned", "fast_rnnt")
SHAPES = {"v500": (500, 256), "v10026": (10026, 1024), "8s": (10026, 256), "34s": (10026, 256), "toy": (19, 8)}


def make_case(shape):
    """-> (lengths, label_lengths, labels, student, teacher), the last two (enc, pred, table, bias)."""
    V, J = SHAPES[shape]
    rng = np.random.default_rng(0)
    if shape == "v10026":
        lengths, label_lengths = np.array([182, 175]), np.array([38, 40])
    elif shape in ("8s", "34s"):
        lengths, label_lengths = np.array([103 if shape == "8s" else 426]), np.array([29 if shape == "8s" else 133])
    else:
        lengths, label_lengths = rng.integers(25, 76, 16), rng.integers(4, 21, 16)
    labels = rng.integers(1, V, label_lengths.sum())

    def network():
        rows = (lengths.sum(), J), ((label_lengths + 1).sum(), J)
        enc, pred = (rng.standard_normal(size, dtype=np.float32) for size in rows)
        table = rng.standard_normal((V, J), dtype=np.float32)
        return enc, pred, table / np.float32(math.sqrt(J)), np.zeros(V, np.float32)

    return lengths, label_lengths, labels, network(), network()


# ------------------------------------------------------------------------------------------------------------
# Implementations: each has .step() -> (loss, four gradients)
# ------------------------------------------------------------------------------------------------------------


class Mini:
    def __init__(self, shape, kl, name):
        from mini_pkd.memory import keep_freed_memory
        from mini_pkd.tensor import Tensor

        keep_freed_memory()
        self.lengths, self.label_lengths, self.labels, student, self.teacher = make_case(shape)
        self.inputs = [Tensor(array, requires_grad=True) for array in student]
        self.kl = kl

    def step(self):
        from mini_pkd.lattice_kl import distillation_loss
        from mini_pkd.rnnt_loss import rnnt_loss

        lattice = self.labels, self.lengths, self.label_lengths
        if self.kl:
            loss = distillation_loss(self.inputs, self.teacher, *lattice, ALPHA)[0]
        else:
            loss = rnnt_loss(*self.inputs, *lattice)[0]
        for tensor in self.inputs:
            tensor.grad = None
        loss.backward()
        return float(loss.data), [tensor.grad for tensor in self.inputs]


class InTorch:
    """Joint, softmax and KL in PyTorch; the loss from `name`."""

    def __init__(self, shape, kl, name):
        import os

        import torch

        from . import torch_reference as reference

        others.add_to_path()
        if name in ("fast_rnnt", "optimized_transducer", "warprnnt_numba"):
            self.library = __import__(name)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        if name.startswith("tuned"):
            reference.keep_freed_memory()
            self.tuned = reference.Tuned(keep_bytes=0 if name.endswith("recompute") else 2**40)
        lengths, label_lengths, labels, student, teacher = make_case(shape)
        self.torch, self.reference, self.kl, self.name = torch, reference, kl, name.partition("-")[0]
        self.lengths, self.label_lengths = lengths.tolist(), label_lengths.tolist()
        self.columns = [U + 1 for U in self.label_lengths]
        self.labels = torch.from_numpy(labels)
        self.inputs = [torch.from_numpy(array).requires_grad_() for array in student]
        self.teacher = [torch.from_numpy(array) for array in teacher] if kl else None

    def step(self):
        loss = getattr(self, self.name)()
        for tensor in self.inputs:
            tensor.grad = None
        loss.backward()
        return float(loss.detach()), [tensor.grad.numpy() for tensor in self.inputs]

    def tuned(self):
        raise AssertionError("replaced by the Tuned object")

    def padded(self, network):
        enc, pred, table, bias = network
        pad = self.reference.pad
        return pad(enc, self.lengths), pad(pred, self.columns), table, bias

    def packed_logits(self, network):
        """(all valid nodes, V)."""
        enc, pred, table, bias = network
        e, p = enc.split(self.lengths), pred.split(self.columns)
        sums = [(a[:, None] + b[None]).flatten(0, 1) for a, b in zip(e, p, strict=True)]
        return self.torch.addmm(bias, self.torch.cat(sums).tanh(), table.T)

    def divergence(self, log_probs, logits_of, network):
        """Sum of the KL; `logits_of` makes the teacher's logits."""
        F = self.torch.nn.functional
        with self.torch.no_grad():
            taught = logits_of(network).log_softmax(-1)
        return F.kl_div(log_probs, taught, log_target=True, reduction="none")

    def stock(self):
        taught = self.padded(self.teacher) if self.kl else None
        student = self.padded(self.inputs)
        return self.reference.stock_lattice(student, taught, self.labels, self.lengths, self.label_lengths, ALPHA)[0]

    def fast_rnnt(self):
        """Its C++ recursion on the valid nodes' log-probabilities, scattered into the padded px and py it wants."""
        torch = self.torch
        log_probs = self.packed_logits(self.inputs).log_softmax(-1)
        B, T, S = len(self.lengths), max(self.lengths), max(self.label_lengths)
        px, py = log_probs.new_full((B, S, T + 1), -math.inf), log_probs.new_full((B, S + 1, T), -math.inf)
        sizes = [t * c for t, c in zip(self.lengths, self.columns, strict=True)]
        said = self.labels.split(self.label_lengths)
        for b, nodes in enumerate(log_probs.split(sizes)):
            nodes = nodes.view(self.lengths[b], self.columns[b], -1)
            py[b, : self.columns[b], : self.lengths[b]] = nodes[:, :, 0].T
            u = torch.arange(self.label_lengths[b])
            px[b, : self.label_lengths[b], : self.lengths[b]] = nodes[:, u, said[b]].T
        boundary = torch.zeros(B, 4, dtype=torch.int64)
        boundary[:, 2], boundary[:, 3] = torch.tensor(self.label_lengths), torch.tensor(self.lengths)
        loss = -self.library.mutual_information_recursion(px, py, boundary).sum()
        if self.kl:
            loss = loss + ALPHA * self.divergence(log_probs, self.packed_logits, self.teacher).sum()
        return loss / B

    def optimized_transducer(self):
        torch = self.torch
        logits = self.packed_logits(self.inputs)
        scores = logits.log_softmax(-1) if self.kl else logits
        loss = self.library.transducer_loss(
            logits=scores, targets=self.reference.pad(self.labels, self.label_lengths).int(),
            logit_lengths=torch.tensor(self.lengths).int(), target_lengths=torch.tensor(self.label_lengths).int(),
            blank=0, reduction="sum", from_log_softmax=self.kl, one_sym_per_frame=False,
        )  # fmt: skip
        if self.kl:
            loss = loss + ALPHA * self.divergence(scores, self.packed_logits, self.teacher).sum()
        return loss.squeeze() / len(self.lengths)

    def warprnnt_numba(self):
        torch = self.torch
        B, T, C = len(self.lengths), max(self.lengths), max(self.columns)
        logits = self.reference.stock_joint(*self.padded(self.inputs))
        loss = self.library.RNNTLossNumba(blank=0, reduction="sum")(
            logits, self.reference.pad(self.labels, self.label_lengths).int(), torch.tensor(self.lengths).int(),
            torch.tensor(self.label_lengths).int(),
        )  # fmt: skip
        if self.kl:
            valid = (torch.arange(T)[None, :, None] < torch.tensor(self.lengths)[:, None, None]) & (
                torch.arange(C)[None, None] < torch.tensor(self.columns)[:, None, None]
            )
            joint = self.reference.stock_joint
            kl = self.divergence(logits.log_softmax(-1), lambda n: joint(*self.padded(n)), self.teacher)
            loss = loss + ALPHA * (kl.sum(-1) * valid).sum()
        return loss.squeeze() / B


class TunedInTorch(InTorch):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.form, self.name = self.tuned, "lattice"

    def lattice(self):
        return self.form.lattice(
            tuple(self.inputs), self.teacher, self.labels, self.lengths, self.label_lengths, ALPHA
        )[0]


class Recursion:
    """Forward-backward alone: two log-probabilities per node in, totals and gradients out."""

    def __init__(self, shape, kl, name):
        import os

        rng = np.random.default_rng(0)
        self.lengths, self.label_lengths = make_case(shape)[:2]
        self.name, self.columns = name, self.label_lengths + 1
        B, T, C = len(self.lengths), self.lengths.max(), self.columns.max()
        blank, label = (-3 * rng.random((B, T, C)) for _ in range(2))
        if name == "mini_pkd":
            from mini_pkd.lattice_kernels import forward_backward

            self.kernel = forward_backward
            shapes = list(zip(self.lengths, self.columns, strict=True))
            for b, (t, c) in enumerate(shapes):
                label[b, :t, c - 1] = -np.inf
            self.blank, self.label = (
                np.concatenate([x[b, :t, :c].ravel() for b, (t, c) in enumerate(shapes)]) for x in (blank, label)
            )
            self.node_start = np.concatenate([[0], np.cumsum(self.lengths * self.columns)])
            self.outputs = [np.empty_like(self.blank) for _ in range(4)]  # go_on, speak, take_blank, take_label
            self.totals = np.empty(B)
            return
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.torch = torch
        self.blank, self.label = torch.from_numpy(blank), torch.from_numpy(label)
        if name == "fast_rnnt":
            others.add_to_path()
            import fast_rnnt

            self.kernel = fast_rnnt.mutual_information_recursion
            px = np.full((B, C - 1, T + 1), -np.inf)
            for b, (t, u) in enumerate(zip(self.lengths, self.label_lengths, strict=True)):
                px[b, :u, :t] = label[b, :t, :u].T
            self.px = torch.from_numpy(px).float()
            self.py = self.blank.transpose(1, 2).contiguous().float()
            self.boundary = torch.zeros(B, 4, dtype=torch.int64)
            self.boundary[:, 2] = torch.from_numpy(self.label_lengths)
            self.boundary[:, 3] = torch.from_numpy(self.lengths)

    def step(self):
        if self.name == "mini_pkd":
            self.kernel(self.blank, self.label, self.node_start, self.columns, *self.outputs, self.totals)
            _, _, take_blank, take_label = self.outputs
            return -float(self.totals.mean()), [take_blank, take_label[np.isfinite(self.label)]]
        if self.name == "fast_rnnt":
            found, (px, py) = self.kernel(self.px, self.py, self.boundary, return_grad=True)
            return -float(found.mean()), [py.numpy(), px.numpy()]
        from .torch_reference import forward_backward

        losses, *grads = forward_backward(self.blank, self.label, self.lengths, self.label_lengths)
        return float(losses.mean()), [gradient.numpy() for gradient in grads]


def implementation(name, shape, kl, recursion):
    """The object behind a name."""
    if recursion:
        return Recursion(shape, kl, name)
    kind = Mini if name.startswith("mini_pkd") else TunedInTorch if name.startswith("tuned") else InTorch
    return kind(shape, kl, name)


def work(arguments):
    """The loop of a worker process."""
    state = {}

    def start():  # first a toy, so that libraries are loaded and kernels compiled before memory is counted
        implementation(arguments.worker, "toy", arguments.with_kl, arguments.recursion).step()
        state["it"] = implementation(arguments.worker, arguments.shape, arguments.with_kl, arguments.recursion)
        measure.reset_peak()
        state["before"] = measure.peak_memory()[1]

    def check():
        loss, grads = state["it"].step()
        return [loss, *(float(np.linalg.norm(g.astype(np.float64))) for g in grads)]

    measure.serve(
        {
            "start": start,
            "check": check,
            "step": lambda: measure.timed(state["it"].step),
            "memory": lambda: measure.peak_memory()[0] - state["before"],
        }
    )


# ------------------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------------------


def gflop(shape, kl):
    """Of the products on valid nodes: forward and two for the gradients, one more for the teacher."""
    lengths, label_lengths = make_case(shape)[:2]
    V, J = SHAPES[shape]
    return 2e-9 * float((lengths * (label_lengths + 1)).sum()) * V * J * (4 if kl else 3)


def run(shape, kl, threads, arguments):
    """Rows of the table for one lattice."""
    what = "recursion" if arguments.recursion else "RNN-T + KL" if kl else "RNN-T"
    rows, ready = [], {}
    flags = ["--kl", "with"] * kl + ["--recursion"] * arguments.recursion
    named = {name: ["--worker", name, "--shape", shape, *flags] for name in arguments.names}
    with measure.workers(MODULE, named, threads) as running:
        checks = {}
        for name, worker in running.items():
            try:
                worker.ask("start")
                checks[name] = worker.ask("check")
                ready[name] = worker
            except measure.Failed as error:
                reason = "not installed" if str(error).endswith("is not installed") else str(error)
                rows.append([f"{shape} {what} {name}", threads, reason, *[""] * 4])
        first = next(iter(checks))
        for name, values in checks.items():
            if not np.allclose(values, checks[first], rtol=2e-3 if arguments.recursion else 5e-4, atol=1e-5):
                raise measure.Failed(f"{name} finds {values}, {first} {checks[first]}: they do not compute the same.")
        repeats = arguments.repeats or (3 if shape == "v10026" else 11)
        seconds = measure.take_turns(ready, repeats, 1)
        memory = {name: worker.ask("memory") for name, worker in ready.items()}
    ours = measure.median(seconds.get("mini_pkd", next(iter(seconds.values()))))
    work_done = 0 if arguments.recursion else gflop(shape, kl)
    measured = []
    for name, values in seconds.items():
        m = measure.median(values)
        measured.append([
            f"{shape} {what} {name}", threads, f"{1e3 * m:.2f}", f"{1e3 * min(values):.2f}", f"{m / ours:.2f}",
            f"{work_done / m:.1f}" if work_done else "", f"{memory[name]:.0f}",
        ])  # fmt: skip
    print(f"{shape} {what}: largest relative difference of the losses {spread(checks):.0e}", flush=True)
    return measured + rows


def spread(checks):
    losses = [values[0] for values in checks.values()]
    return (max(losses) - min(losses)) / abs(losses[0])


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", metavar="shape", default=["v500", "v10026"],
                        help=f"of {', '.join(SHAPES)} (default: v500 v10026)")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="(default: 2)")
    parser.add_argument("--names", nargs="+", choices=NAMES, metavar="name", help="implementations (see above)")
    parser.add_argument("--kl", choices=("both", "only", "without", "with"), default="both",
                        help="RNN-T and RNN-T + KL, or one of them (default: both)")  # fmt: skip
    parser.add_argument("--repeats", type=int, help="(default: 11, v10026: 3)")
    parser.add_argument("--recursion", action="store_true", help="forward-backward alone")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        arguments.with_kl = arguments.kl == "with"
        return work(arguments)
    unknown = [shape for shape in arguments.shapes if shape not in SHAPES]
    if unknown:
        parser.error(f"there is no lattice {unknown[0]!r}; known are {', '.join(SHAPES)}")
    if arguments.recursion:
        arguments.names, kinds = arguments.names or RECURSION_NAMES, [False]
    else:
        arguments.names = arguments.names or DEFAULT
        kinds = {"both": [False, True], "without": [False]}.get(arguments.kl, [True])

    print(measure.heading(MODULE, argv))
    rows = []
    try:
        for shape in arguments.shapes:
            for threads in arguments.threads:
                for kl in kinds:
                    rows += run(shape, kl, threads, arguments)
    except measure.Failed as error:
        print(f"lattice: {error}", file=sys.stderr)
        return 2
    print()
    header = ["lattice", "threads", "median ms", "best ms", "over mini_pkd", "GFLOP/s", "extra MiB"]
    print(measure.table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
