"""What the three benchmark commands share: worker processes that take turns, their memory, and Markdown.

Every implementation lives in a fresh process of its own, so that none meets another's threads, allocator settings
or peak memory; the parent asks them for one measurement in turn, and only one of them works at a time.  They
talk in lines of JSON.
"""

import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PAUSE = 0.02  # seconds between turns, in which the last one's waiting threads fall asleep


class Failed(Exception):
    """A worker could not do what it was asked; the message says why."""


class Worker:
    """One implementation in its own process: Worker("tests.bench.x", ["--worker", ...], threads).ask("step")."""

    def __init__(self, module, arguments, threads):
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        # what mini_pkd has set in this process: its workers set it again, and PyTorch's keep their default
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            environment.pop(name, None)
        self.name = arguments[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=REPOSITORY, env=environment,
        )  # fmt: skip

    def ask(self, command, **arguments):
        """Send a command, wait for its answer."""
        time.sleep(PAUSE)
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"the process of {self.name} ended while it did {command!r} (exit {self.process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer["result"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def workers(module, named_arguments, threads):
    """{name: Worker}, closed at the end.  named_arguments: {name: arguments}."""
    running = {}
    try:
        for name, arguments in named_arguments.items():
            running[name] = Worker(module, arguments, threads)
        yield running
    finally:
        for worker in running.values():
            worker.close()


def serve(commands):
    """A worker's loop: {name: function}; answers on stdout, which is kept free of anything else."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": commands[request.pop("command")](**request)}
        except ModuleNotFoundError as error:
            answer = {"error": f"{error.name} is not installed"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed(function):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(running, repeats, warm_up, command="step"):
    """{name: seconds of each repeat}: every round asks each worker once, starting with another one each time."""
    names = list(running)
    for _ in range(warm_up):
        for name in names:
            running[name].ask(command)
    seconds = {name: [] for name in names}
    for turn in range(repeats):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            seconds[name].append(running[name].ask(command))
    return seconds


def median(values):
    return statistics.median(values)


def peak_memory():
    """MiB: the most this process has held, and what it holds now.  (ru_maxrss would count the parent's.)"""
    try:
        with open("/proc/self/status") as lines:
            values = dict(line.split(":", 1) for line in lines)
        return [int(values[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS")]
    except (OSError, KeyError):
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit] * 2


def reset_peak():
    """Let peak_memory() count from now on, where Linux allows it."""
    gc.collect()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def numpy_gemm(n=2048, repeats=4):
    """GFLOP/s of numpy's float32 matrix product, on the pool's threads."""
    import numpy as np

    from mini_pkd.threads import matmul

    a, b = (np.random.default_rng(i).standard_normal((n, n), dtype=np.float32) for i in range(2))
    out = np.empty_like(a)
    return max(2e-9 * n**3 / timed(lambda: matmul(a, b, out=out)) for _ in range(repeats))


def torch_gemm(n=2048, repeats=4):
    """GFLOP/s of PyTorch's."""
    import torch

    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    return max(2e-9 * n**3 / timed(lambda: torch.mm(a, b, out=out)) for _ in range(repeats))


def table(header, rows):
    """A Markdown table; numbers are right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = ["| " + " | ".join(h.ljust(w) for h, w in zip(header, widths, strict=True)) + " |"]
    lines.append("| " + " | ".join("-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths)) + " |")
    for row in cells:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join(lines)


def heading(module, argv):
    """Where and how this was measured."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from mini_pkd.run_folder import machine

    versions = []
    for package in ("numpy", "numba", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return (
        f"machine: {machine()}\nversions: {', '.join(versions)}, {platform.platform()}\n"
        f"command: python -m {module} {' '.join(argv)}".rstrip()
        + "\n"
    )
