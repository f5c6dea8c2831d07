"""One training step, forward + backward + clipping + Adam with a teacher, in mini_pkd and in PyTorch.

The same model with the same weights on the same utterances with the same number of threads: mini_pkd, and
torch_reference.py's two forms, stock and tuned.  Each runs in a process of its own; they take turns, so that
whatever the machine does besides hits all of them.  Before anything is timed their losses and the norms of
their gradients must agree (without dropout).  Timed steps have dropout on, each with its own random numbers.

  tiny, small      a batch of the corpus in data_small/ as training forms it: 8 utterances of similar length
  tiny-16, ...     16 utterances of the corpus with lengths spread over 2 to 6 s; any number goes
  full             the 128 M teacher of the paper, 10026 symbols: two synthetic utterances of 14 and 14.5 s with
                   38 and 40 labels (needs about 10 GB for all three; --only takes less)
  full-34          the same model on one synthetic utterance of 34 s (any number goes) with four labels a second and
                   no teacher, as T1 and the baselines train: its lattice is mostly nodes that no path comes near

Student and teacher are both of size T1 unless --student / --teacher say otherwise (a size of scales.py, or
none).  SpecAugment has been applied beforehand: it is part of the data here.

Reported: medians over the repeats and their ratios; GFLOP of a step, counted from the formulas on the rows and
nodes that exist (recomputation not counted, nodes left out not subtracted); MFU, their rate over the best float32
matrix product (2048 x 2048) that any of the processes reached in this run; the peak memory of each process, from its
first step on.

examples:
  python -m tests.bench.training_step tiny small --threads 2
  python -m tests.bench.training_step full --repeats 5
  python -m tests.bench.training_step small --only mini_pkd --profile
  python -m tests.bench.training_step small --threads 1 2 4 8 16
"""

import argparse
import ast
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from . import measure

NAMES = ("mini_pkd", "stock", "tuned")
MODULE = "tests.bench.training_step"
STORE = measure.REPOSITORY / "build" / "bench" / "features"
UTTERANCES = 480  # of the corpus, to choose a batch from


# ------------------------------------------------------------------------------------------------------------
# The case: models and utterances, written to a folder for the workers
# ------------------------------------------------------------------------------------------------------------


def corpus_batch(scale, number=None):
    """A real batch, its normaliser and the vocabulary's size: a median one of training, or `number` of 2 to 6 s."""
    from mini_pkd.bpe import BPE, word_counts
    from mini_pkd.corpus_folder import find_parts, read_part
    from mini_pkd.feature_store import FeatureStore, estimate_normaliser
    from mini_pkd.prepared_corpus import REPOSITORY, Part

    settings = scale.settings
    found = [u for folder in find_parts(REPOSITORY / settings.data)["train"] for u in read_part(folder)[0]]
    bpe = BPE.train(word_counts(u.text for u in found), settings.vocab_size)
    some = found[:: max(1, len(found) // UTTERANCES)][:UTTERANCES]
    store = FeatureStore.build(STORE / Path(settings.data).name, some, workers=1)
    store.normaliser = estimate_normaliser([store])
    part, _ = Part.encode(store, bpe, settings.max_frames)
    if number is None:  # what training sees: neighbours in length
        number = settings.batch_utterances
        batches = part.batches(settings.batch_frames, number, seed=0, epoch=0)
        full = sorted((b for b in batches if len(b) == number), key=lambda b: store.lengths[b].sum())
        return part.batch(full[len(full) // 2]), store.normaliser, bpe.size
    by_length = part.indices[np.argsort(store.lengths[part.indices], kind="stable")]
    fitting = by_length[(store.lengths[by_length] >= 200) & (store.lengths[by_length] <= 600)]
    chosen = fitting[np.linspace(0, len(fitting) - 1, number).round().astype(int)]
    return part.batch(np.random.default_rng(0).permutation(chosen)), store.normaliser, bpe.size


def synthetic_batch(scale, seconds=None):
    """Two utterances of 14 and 14.5 s, 38 and 40 labels; or one of `seconds`, four labels a second."""
    from mini_pkd.ragged import Batch

    rng = np.random.default_rng(0)
    lengths, label_lengths = np.array([1450, 1400]), np.array([38, 40])
    if seconds:
        lengths, label_lengths = np.array([100 * seconds]), np.array([4 * seconds])
    features = rng.standard_normal((lengths.sum(), 40), dtype=np.float32)
    labels = rng.integers(1, scale.settings.vocab_size, label_lengths.sum())
    return Batch([f"synthetic-{b}" for b in range(len(lengths))], features, lengths, labels, label_lengths)


def write_case(folder, size, student, teacher):
    """Everything that a worker needs; returns the case's description."""
    from mini_pkd.features import Normaliser
    from mini_pkd.scales import get_scale
    from mini_pkd.seeds import generator
    from mini_pkd.specaugment import spec_augment
    from mini_pkd.transducer import Transducer

    name, _, number = size.partition("-")
    scale = get_scale(name)
    if name == "full":
        batch, symbols = synthetic_batch(scale, int(number) if number else None), scale.settings.vocab_size
        normaliser = Normaliser(np.zeros(40), np.ones(40))
        teacher = "none" if number else teacher
    else:
        batch, normaliser, symbols = corpus_batch(scale, int(number) if number else None)
    masks = [generator(0, "benchmark", "masks", i) for i in batch.ids]
    features = spec_augment(batch.features, batch.lengths, masks, scale.settings.spec_augment(), normaliser)
    np.savez(folder / "batch.npz", features=features, lengths=batch.lengths, labels=batch.labels,
             label_lengths=batch.label_lengths)  # fmt: skip
    case = {"size": size, "scale": name, "lengths": batch.lengths.tolist(),
            "label_lengths": batch.label_lengths.tolist(), "alpha": scale.settings.alpha,
            "dropout": scale.settings.dropout, "clip": scale.settings.clip, "networks": {}}  # fmt: skip
    for role, size_name in (("student", student), ("teacher", teacher)):
        if size_name == "none":
            continue
        config = scale.sizes[size_name].config(symbols)
        model = Transducer(config, generator(0, "benchmark", role))
        parameters = model.named_parameters()
        flat = np.concatenate([p.data.ravel() for p in parameters.values()])
        np.save(folder / f"{role}.npy", flat)
        case["networks"][role] = {
            "size": size_name, "config": model.config_dict(), "parameters": int(flat.size),
            "shapes": {key: list(p.shape) for key, p in parameters.items()},
        }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    return case


def read_case(folder):
    """-> (case, batch's arrays)."""
    with np.load(folder / "batch.npz") as arrays:
        return json.loads((folder / "case.json").read_text()), {key: arrays[key] for key in arrays.files}


def read_weights(folder, case, role):
    """{mini_pkd name: array}, mapped from the disk."""
    flat = np.load(folder / f"{role}.npy", mmap_mode="r")
    found, start = {}, 0
    for name, shape in case["networks"][role]["shapes"].items():
        stop = start + math.prod(shape)
        found[name] = flat[start:stop].reshape(shape)
        start = stop
    return found


# ------------------------------------------------------------------------------------------------------------
# The workers
# ------------------------------------------------------------------------------------------------------------


class MiniWorker:
    """What mini_pkd/train.py does to a batch: lattice_loss, backward, Adam.step."""

    def __init__(self, folder):
        from mini_pkd.memory import keep_freed_memory
        from mini_pkd.optimizer import Adam
        from mini_pkd.ragged import Batch
        from mini_pkd.scales import get_scale
        from mini_pkd.transducer import Transducer, TransducerConfig

        case, arrays = read_case(folder)
        self.settings = get_scale(case["scale"]).settings
        self.batch = Batch([str(b) for b in range(len(arrays["lengths"]))], **arrays)
        networks = {}
        for role in case["networks"]:
            config = TransducerConfig.from_dict(case["networks"][role]["config"])
            networks[role] = model = Transducer(config, np.random.default_rng(0))
            weights = read_weights(folder, case, role)
            for name, p in model.named_parameters().items():
                p.data[:] = weights[name]
        self.model, self.teacher = networks["student"], networks.get("teacher")
        self.adam = Adam(self.model, case["clip"])
        self.rng = np.random.default_rng(0)
        keep_freed_memory()  # from here on: what loading has freed goes back to the kernel

    def _backward(self, rate):
        from mini_pkd.layers import DropoutKeys
        from mini_pkd.train import lattice_loss

        dropout = DropoutKeys(rate, self.rng)
        loss, rnnt, kl = lattice_loss(self.model, self.teacher, self.batch, self.batch.features, self.settings, dropout)
        loss.backward()
        return loss, rnnt, kl

    def check(self):
        loss, rnnt, kl = self._backward(0.0)
        norm = math.sqrt(sum(float((p.grad.astype(np.float64) ** 2).sum()) for p in self._parameters()))
        self.adam.gradients[:] = 0
        return {"loss": float(loss.data), "rnnt": float(rnnt.mean()), "kl": float(kl.mean()), "norm": norm}

    def _parameters(self):
        return self.model.named_parameters().values()

    def one_step(self):
        self._backward(self.settings.dropout)
        self.adam.step(1e-4)

    def gemm(self):
        return measure.numpy_gemm()

    def profile(self, repeats):
        return Profile.of(self.one_step, repeats)


class TorchWorker:
    """torch_reference.Trainer."""

    def __init__(self, folder, form, compile):
        import os

        import torch

        from . import torch_reference as reference

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        case, arrays = read_case(folder)
        networks = {}
        for role in case["networks"]:
            network = reference.Transducer(case["networks"][role]["config"])
            networks[role] = reference.load_weights(network, read_weights(folder, case, role))
        options = {"compile": compile} if form == "tuned" else {}
        self.trainer = reference.Trainer(
            form, networks["student"], networks.get("teacher"), case["alpha"], case["dropout"], clip=case["clip"],
            **options,
        )  # fmt: skip
        self.batch = reference.Batch(**arrays)
        if form == "tuned":
            reference.keep_freed_memory()

    def check(self):
        trainer = self.trainer
        rate, trainer.rate = trainer.rate, 0.0
        if trainer.tuned is not None:
            trainer.tuned.noise.rate = 0.0
        loss, rnnt, kl = trainer.loss(self.batch)
        loss.backward()
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in trainer.parameters))
        trainer.adam.zero_grad(set_to_none=True)
        trainer.rate = rate
        if trainer.tuned is not None:
            trainer.tuned.noise.rate = rate
        return {"loss": float(loss.detach()), "rnnt": float(rnnt.detach().mean()),
                "kl": float(kl.detach().mean()), "norm": norm}  # fmt: skip

    def one_step(self):
        self.trainer.step(self.batch)

    def gemm(self):
        return measure.torch_gemm()

    def profile(self, repeats):
        import torch

        self.one_step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(repeats):
                self.one_step()
        return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50)


def work(name, folder, compile):
    """The loop of a worker process."""
    state = {}

    def start():
        state["worker"] = MiniWorker(folder) if name == "mini_pkd" else TorchWorker(folder, name, compile)
        measure.reset_peak()

    measure.serve(
        {
            "start": start,
            "check": lambda: state["worker"].check(),
            "step": lambda: measure.timed(state["worker"].one_step),
            "gemm": lambda: state["worker"].gemm(),
            "memory": measure.peak_memory,
            "profile": lambda repeats: state["worker"].profile(repeats),
        }
    )


# ------------------------------------------------------------------------------------------------------------
# Where mini_pkd's time goes
# ------------------------------------------------------------------------------------------------------------


class Profile:
    """Seconds inside BLAS, inside numba kernels, and the rest: Python, and numpy's own loops.

    Before mini_pkd is imported, `instrument()` arranges that every `a @ b` and matmul of its source passes a
    stop-watch; after a warm-up, when all kernels are compiled, every compiled function that Python calls gets one.
    """

    seconds, calls, compiled = {}, {}, []

    @classmethod
    def clock(cls, key, function, *arguments, **keywords):
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            cls.seconds[key] = cls.seconds.get(key, 0.0) + time.perf_counter() - start
            cls.calls[key] = cls.calls.get(key, 0) + 1

    @classmethod
    def product(cls, where, multiply, *arguments, **keywords):
        return cls.clock(("BLAS", where), multiply, *arguments, **keywords)

    @classmethod
    def instrument(cls):
        """Rewrite matrix products while mini_pkd's modules are imported."""
        import importlib.abc
        import importlib.machinery

        class Rewrite(ast.NodeTransformer):
            def __init__(self, file):
                self.file = file

            def call(self, node, multiply, arguments, keywords=()):
                where = ast.Constant(f"{self.file}:{node.lineno}")
                new = ast.Call(ast.Name("_clocked_product", ast.Load()), [where, multiply, *arguments], list(keywords))
                return ast.copy_location(new, node)

            def visit_FunctionDef(self, node):
                text = " ".join(ast.unparse(d) for d in node.decorator_list)
                return node if "jit" in text or "overload" in text else self.generic_visit(node)

            def visit_BinOp(self, node):
                self.generic_visit(node)
                is_product = isinstance(node.op, ast.MatMult)
                return (
                    self.call(node, ast.parse("np.matmul").body[0].value, [node.left, node.right])
                    if is_product
                    else node
                )

            def visit_Call(self, node):
                self.generic_visit(node)
                is_product = ast.unparse(node.func) in ("np.matmul", "matmul")  # numpy's, and that of threads.py
                return self.call(node, node.func, node.args, node.keywords) if is_product else node

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                tree = ast.parse(self.get_data(self.path), self.path)
                tree = ast.fix_missing_locations(Rewrite(Path(self.path).name).visit(tree))
                return compile(tree, self.path, "exec")

            def exec_module(self, module):
                module._clocked_product = cls.product
                super().exec_module(module)

        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, fullname, path, target=None):
                if not fullname.startswith("mini_pkd.") or fullname == "mini_pkd.threads":
                    return None
                spec = importlib.machinery.PathFinder.find_spec(fullname, path)
                if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                    spec.loader = Loader(spec.loader.name, spec.loader.path)
                return spec

        assert not any(name.startswith("mini_pkd.") for name in sys.modules), "too late: mini_pkd is imported"
        sys.meta_path.insert(0, Finder())

    @classmethod
    def of(cls, step, repeats):
        from numba.core.dispatcher import Dispatcher

        step()
        for name, module in list(sys.modules.items()):
            if name.startswith("mini_pkd.") and name != "mini_pkd.threads":
                for key, value in list(vars(module).items()):
                    compiled = getattr(value, "compiled", value)  # what simd.kernel has wrapped
                    if isinstance(compiled, Dispatcher):
                        file = Path(compiled.py_func.__code__.co_filename).name
                        setattr(module, key, _Clocked(value, f"{file}:{compiled.py_func.__name__}"))
        step()
        cls.seconds.clear()
        cls.calls.clear()
        total = sum(measure.timed(step) for _ in range(repeats))
        rows = [[kind, where, 1e3 * s / repeats, cls.calls[kind, where] / repeats, s / total]
                for (kind, where), s in cls.seconds.items()]  # fmt: skip
        return {"seconds": total / repeats, "rows": sorted(rows, key=lambda row: -row[2])}


class _Clocked:
    """A compiled function with a stop-watch.  Other attributes are the function's own."""

    def __init__(self, function, where):
        self.function, self.where = function, where

    def __call__(self, *arguments, **keywords):
        return Profile.clock(("numba", self.where), self.function, *arguments, **keywords)

    def __getattr__(self, name):
        return getattr(self.function, name)


def print_profile(found, most=25):
    """Markdown of Profile.of's result."""
    inside = {kind: sum(row[4] for row in found["rows"] if row[0] == kind) for kind in ("BLAS", "numba")}
    outside = 1 - sum(inside.values())
    print(f"\nA step with stop-watches: {1e3 * found['seconds']:.1f} ms; BLAS {inside['BLAS']:.1%}, "
          f"numba kernels {inside['numba']:.1%}, Python and numpy {outside:.1%}\n")  # fmt: skip
    rows = [[f"{kind} {where}", f"{ms:.2f}", f"{calls:.0f}", f"{share:.1%}"]
            for kind, where, ms, calls, share in found["rows"][:most]]  # fmt: skip
    print(measure.table(["where", "ms a step", "calls", "share"], rows))


# ------------------------------------------------------------------------------------------------------------
# Arithmetic of a step
# ------------------------------------------------------------------------------------------------------------


def forward_gflop(config, lengths, label_lengths):
    """{part: GFLOP} of one forward pass: multiplications and additions of products, on rows that exist."""
    e, V, J, H = config["encoder"], config["symbols"], config["joint_width"], config["lstm_width"]
    D, W = e["width"], e["window"]
    found = dict.fromkeys(("input", "encoder", "predictor", "joint", "lattice"), 0.0)
    found["input"] = 2 * sum(lengths) * e["features"] * D
    lengths = list(lengths)
    for i in range(e["blocks"]):
        per_row = 2 * (2 * 2 * D * e["expansion"] * D + D * 3 * D + D * D + D * 2 * D + D * D + e["kernel"] * D)
        pairs = sum(min(t + 1, W) for T in lengths for t in range(T))
        found["encoder"] += per_row * sum(lengths) + 2 * 2 * D * pairs  # q (k + r), and p v
        if i < e["pools"]:
            lengths = [(T + 1) // 2 for T in lengths]
    columns = [U + 1 for U in label_lengths]
    for i in range(config["lstm_layers"]):
        found["predictor"] += 2 * sum(columns) * ((J if i == 0 else H) + H) * 4 * H
    found["joint"] = 2 * J * (sum(lengths) * D + sum(columns) * H)
    found["lattice"] = 2 * sum(T * C for T, C in zip(lengths, columns, strict=True)) * V * J
    return {part: flop / 1e9 for part, flop in found.items()}


def step_gflop(case):
    """GFLOP of a training step: forward, twice that for the gradients (features need none), teacher's forward."""
    shape = case["lengths"], case["label_lengths"]
    student = forward_gflop(case["networks"]["student"]["config"], *shape)
    total = 3 * sum(student.values()) - student["input"]
    if "teacher" in case["networks"]:
        total += sum(forward_gflop(case["networks"]["teacher"]["config"], *shape).values())
    return total


# ------------------------------------------------------------------------------------------------------------
# The command
# ------------------------------------------------------------------------------------------------------------


def agree(answers, tolerance=1e-4):
    """Refuse to time different computations."""
    first = next(iter(answers))
    for name, answer in answers.items():
        for key in ("loss", "rnnt", "kl", "norm"):
            a, b = answers[first][key], answer[key]
            limit = tolerance * max(abs(a), 1e-3) * (10 if key == "norm" else 1)
            if not abs(a - b) <= limit:
                raise measure.Failed(f"{name}'s {key} is {b}, {first}'s is {a}: they do not compute the same.")


def run_size(size, threads, arguments):
    """Measure one size with one number of threads: {name: {"seconds": [...], "peak": MiB, ...}}, case, peak rate."""
    folder = Path(tempfile.mkdtemp(prefix="mini_pkd_bench_"))
    try:
        case = write_case(folder, size, arguments.student, arguments.teacher)
        flags = ["--compile"] * arguments.compile
        named = {name: ["--worker", name, "--folder", folder, *flags] for name in arguments.only}
        if arguments.profile and "mini_pkd" in named:
            named["mini_pkd"].append("--instrument")
        with measure.workers(MODULE, named, threads) as running:
            for worker in running.values():
                worker.ask("start")
            checks = {name: worker.ask("check") for name, worker in running.items()}
            agree(checks)
            if arguments.profile:
                for name, worker in running.items():
                    found = worker.ask("profile", repeats=arguments.repeats or 5)
                    print(f"\n### {name}, {size}, threads: {threads}")
                    print_profile(found) if name == "mini_pkd" else print(f"\n```\n{found}\n```")
                return None
            rates = [worker.ask("gemm") for worker in running.values()]
            repeats = arguments.repeats or (5 if size.startswith("full") else 15)
            warm_up = 1 if size.startswith("full") else 3
            if arguments.memory:
                repeats, warm_up = 2, 1
            seconds = measure.take_turns(running, repeats, warm_up)
            memory = {name: worker.ask("memory")[0] for name, worker in running.items()}
            rates += [worker.ask("gemm") for worker in running.values()]
        return case, checks, seconds, memory, max(rates)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(size, threads, case, checks, seconds, memory, rate):
    """Rows of the table, and a line about the case."""
    gflop = step_gflop(case)
    networks = case["networks"]
    taught = f", taught by {networks['teacher']['size']}" if "teacher" in networks else ", no teacher"
    frames, labels = case["lengths"], case["label_lengths"]
    loss = next(iter(checks.values()))
    print(
        f"\n{size}: {networks['student']['size']} ({networks['student']['parameters'] / 1e6:.2f} M parameters, "
        f"V = {networks['student']['config']['symbols']}){taught}; {len(frames)} utterances of {min(frames) / 100:.1f}"
        f" to {max(frames) / 100:.1f} s with {min(labels)} to {max(labels)} labels; {gflop:.2f} GFLOP a step; "
        f"threads: {threads}; sgemm {rate:.0f} GFLOP/s; loss {loss['loss']:.4f} in all "
        f"(largest difference {spread(checks, 'loss'):.0e}, of gradient norms {spread(checks, 'norm'):.0e})",
        flush=True,
    )
    ours = measure.median(seconds["mini_pkd"]) if "mini_pkd" in seconds else math.nan
    rows = []
    for name, values in seconds.items():
        m = measure.median(values)
        rows.append([
            f"{size} {name}", threads, f"{m:.4g}", f"{min(values):.4g}", f"{m / ours:.2f}", f"{gflop / m:.1f}",
            f"{gflop / m / rate:.0%}", f"{memory[name]:.0f}",
        ])  # fmt: skip
    return rows


def spread(checks, key):
    values = [check[key] for check in checks.values()]
    return (max(values) - min(values)) / abs(max(values, key=abs))


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=["tiny", "small"], help="default: tiny small")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="one table line for each (default: 2)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="leave the others out")
    parser.add_argument("--repeats", type=int, help="timed steps of each (default: 15, full: 5)")
    parser.add_argument("--student", default="T1", help="its size in scales.py (default: T1)")
    parser.add_argument("--teacher", default="T1", help="its size, or none (default: T1)")
    parser.add_argument("--compile", action="store_true", help="torch.compile in the tuned form (needs a compiler)")
    parser.add_argument("--memory", action="store_true", help="two steps only: enough for the memory column")
    parser.add_argument("--profile", action="store_true", help="where the time goes, instead of the table")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--instrument", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        if arguments.instrument:
            Profile.instrument()
        return work(arguments.worker, arguments.folder, arguments.compile)

    from mini_pkd import UserError
    from mini_pkd.scales import get_scale

    rows = []
    try:
        for size in arguments.sizes:
            name, dash, number = size.partition("-")
            known = get_scale(name).sizes
            if dash and not (number.isdecimal() and int(number)):
                raise measure.Failed(
                    f"{size} is not a size: say tiny, small or full, tiny-16 for 16 utterances or full-34 for 34 s."
                )
            for wanted in (arguments.student, arguments.teacher):
                if wanted not in known and (wanted != "none" or arguments.student == "none"):
                    raise measure.Failed(f"there is no model {wanted!r} in {name}; known are {', '.join(known)}.")
        print(measure.heading(MODULE, argv))
        for size in arguments.sizes:
            for threads in arguments.threads:
                found = run_size(size, threads, arguments)
                if found is not None:
                    rows += report(size, threads, *found)
    except (measure.Failed, UserError) as error:
        print(f"training_step: {error}", file=sys.stderr)
        return 2
    if rows:
        print()
        header = ["step", "threads", "median s", "best s", "over mini_pkd", "GFLOP/s", "MFU", "peak MiB"]
        print(measure.table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
