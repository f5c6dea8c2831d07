"""threads.py: products on the kernels' threads are those of OpenBLAS's own, to the last bit; and nobody hangs.

The rest of the tests has one thread, and so no pool: what needs several runs in processes of its own, with
more threads than most machines' cores, and a time limit, for a mistake here shows as waiting for ever.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mini_pkd import threads

BEGIN = """
import os, sys
import numpy as np
from mini_pkd.threads import CROWDED, GRAIN, POOL
POOL.next_look = float("inf")  # on a busy machine it would step back in the middle of a test
"""

# (rows, inner, columns) of products: from one row, and none, to what many jobs share; the last is long inside
SHAPES = [(0, 8, 8), (1, 1, 1), (1, 300, 200), (600, 96, 96), (513, 129, 65), (2000, 1, 64), (96, 4600, 192)]

PRODUCTS = f"""
def products():
    rng, found = np.random.default_rng(0), []
    for rows, inner, columns in {SHAPES}:
        for dtype in (np.float32, np.float64):
            a, b = rng.standard_normal((rows, inner)).astype(dtype), rng.standard_normal((inner, columns)).astype(dtype)
            v = rng.standard_normal(rows).astype(dtype)
            found += [a @ b, b.T @ a.T, v @ a, a.T @ a, np.asfortranarray(a) @ b, a @ b[:, 0]]
    return found
"""


def run(script, count=4, **environment):
    """The script's output, of a process with `count` threads in either pool."""
    variables = {"OPENBLAS_NUM_THREADS": str(count), "NUMBA_NUM_THREADS": str(count), **environment}
    done = subprocess.run([sys.executable, "-c", BEGIN + script], env=os.environ | variables, timeout=300,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def can_share():
    """The conditions of threads.py, asked for here without it, so that a pool which never shares fails a test."""
    if sys.platform != "linux" or not os.path.exists("/proc/self/schedstat"):
        pytest.skip("one pool is for Linux")
    script = """
import numba
config = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
@numba.njit(parallel=True)
def start():
    for _ in numba.prange(2):
        pass
start()
print(config["name"], config["version"], numba.threading_layer())
"""
    name, version, layer = run(script)
    if "openblas" not in name or tuple(map(int, version.split(".")[:3])) < (0, 3, 28) or layer != "omp":
        pytest.skip(f"one pool needs OpenBLAS 0.3.28 and OpenMP; here are {name} {version} and {layer}")


def test_products_on_one_pool_equal_those_on_two(can_share):
    script = PRODUCTS + """
assert POOL.shared
ours = products()
POOL.share(False)
theirs = products()
print(all(np.array_equal(a, b) for a, b in zip(ours, theirs)), len(ours))
"""
    for count in (2, 7):
        assert run(script, count) == ["True", str(len(SHAPES) * 12)]


def test_python_threads_that_multiply_at_the_same_time_take_turns(can_share):
    script = PRODUCTS + """
import threading
assert POOL.shared
right, wrong = products(), []

def work():
    for _ in range(3):
        wrong.extend(1 for a, b in zip(right, products()) if not np.array_equal(a, b))

workers = [threading.Thread(target=work) for _ in range(4)]
[w.start() for w in workers], [w.join() for w in workers]
print(len(wrong))
"""
    assert run(script) == ["0"]


def test_fewer_threads_for_blas_than_for_kernels_and_more(can_share):
    script = PRODUCTS + "print(POOL.shared, POOL.blas.num_threads(), products()[-1].shape)"
    assert run(script, NUMBA_NUM_THREADS="2")[:2] == ["True", "2"]  # four jobs for two threads would hang
    assert run(script, OPENBLAS_NUM_THREADS="2")[:2] == ["True", "2"]


def test_a_forked_child_multiplies_on_threads_of_its_own(can_share):
    script = PRODUCTS + """
right = products()
child = os.fork()
if child == 0:
    same = all(np.array_equal(a, b) for a, b in zip(right, products()))
    os._exit(0 if same and not POOL.shared else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), POOL.shared)
"""
    assert run(script) == ["0", "True"]


@pytest.mark.parametrize(
    "variable, value", [("OPENBLAS_NUM_THREADS", "1"), ("OMP_DYNAMIC", "true"), ("OMP_THREAD_LIMIT", "1")]
)
def test_two_pools_stay_where_one_could_hang_or_is_useless(variable, value):
    assert run(PRODUCTS + "print(POOL.shared, POOL.blas, len(products()) > 0)", **{variable: value}) == [
        "False", "None", "True",
    ]  # fmt: skip


def test_the_number_of_threads_changes_no_bit_of_a_kernel():
    """The LSTM's step once did: with two or three utterances left, two threads have a row or two each."""
    script = """
from mini_pkd.lstm import lstm
from mini_pkd.ops import layer_norm
from mini_pkd.tensor import Tensor

def gradients(team):
    POOL.team = lambda numbers: team
    rng, D, H = np.random.default_rng(0), 24, 128
    lengths = [17, 13, 11, 6, 6, 1, 0]
    shapes = [(sum(lengths), D), (D,), (D,), (D, 4 * H), (H, 4 * H), (4 * H,)]
    x, gain, bias, *weights = (Tensor(rng.standard_normal(s).astype(np.float32), True) for s in shapes)
    y = lstm(layer_norm(x, gain, bias, swish=True), *weights, lengths)
    y.backward(rng.standard_normal(y.shape).astype(np.float32))
    return [y.data] + [leaf.grad for leaf in (x, gain, bias, *weights)]

one = gradients(1)
print(all(np.array_equal(a, b) for team in (2, 3, 4) for a, b in zip(one, gradients(team))), len(one))
"""
    assert run(script, OPENBLAS_NUM_THREADS="1") == ["True", "7"]


def test_it_steps_back_while_the_cores_are_crowded(can_share):
    script = """
def look(waited):
    POOL.crowding.look = lambda: waited
    POOL.next_look = 0
    return POOL.team(4 * GRAIN), POOL.team(4 * GRAIN - 1), POOL.shared

print([look(w) for w in (0.0, CROWDED, 0.9, 0.0)])
"""
    assert " ".join(run(script)) == "[(4, 1, True), (1, 1, False), (1, 1, False), (4, 1, True)]"


def test_a_team_asks_the_clock_once_a_second(monkeypatch):
    looks = []
    pool = threads.Pool()  # of one thread, as all in these tests
    pool.next_look, pool.shared = 10.0, True
    pool.crowding = type("", (), {"look": lambda self: looks.append(1) or 0.0})()
    for now in (9.5, 10.0, 10.5, 10.9, 11.0, 11.2):
        monkeypatch.setattr(threads.time, "monotonic", lambda now=now: now)
        pool.team(1)
    assert len(looks) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this kernel does not count")
def test_crowding_counts_what_the_kernel_counts(monkeypatch):
    crowding = threads.Crowding()
    ran, waited = crowding.read()
    np.linalg.svd(np.ones((200, 200)))
    assert crowding.read()[0] > ran > 0 and waited >= 0
    for reading, expected in (([4e9, 1e9], 0.25), ([4e9, 1e9], 0.0), ([6e9, 3e9], 1.0)):  # of nothing done: no wait
        crowding.before = crowding.before if expected != 0.25 else np.zeros(2)
        monkeypatch.setattr(crowding, "read", lambda reading=reading: np.array(reading))
        assert crowding.look() == expected


def test_a_look_that_fails_changes_nothing(monkeypatch):
    crowding = threads.Crowding.__new__(threads.Crowding)
    crowding.before = np.array([4e9, 1e9])
    monkeypatch.setattr(threads.os, "listdir", lambda _: (_ for _ in ()).throw(OSError("too many open files")))
    assert crowding.look() == 0.0 and crowding.before.tolist() == [4e9, 1e9]


def test_one_thread_needs_no_pool():
    pool = threads.Pool()
    assert (pool.size, pool.blas, pool.shared, pool.team(10**9)) == (1, None, False, 1)


# --- how many cores are ours ---------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes /proc/self/cgroup and the files under /sys/fs/cgroup of a machine with 64 cores."""
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(threads, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    def write(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


V1 = {"cpu__box__cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    "own, files, cores",
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/box/job\n", {"box__cpu.max": "300000 100000\n", "box__job__cpu.max": "max 100000\n"}, 3),
        ("0::/not/mounted/here\n", {"cpu.max": "300000 100000\n"}, 3),  # a container sees the host's path
        ("5:cpu,cpuacct:/box\n0::/\n", {**V1, "cpu__box__cpu.cfs_quota_us": "400000\n"}, 4),
        ("5:cpu,cpuacct:/box\n", {**V1, "cpu__box__cpu.cfs_quota_us": "-1\n"}, 64),
        ("5:cpuset:/box\n", {**V1, "cpu__box__cpu.cfs_quota_us": "400000\n"}, 64),
        ("0::/\n", {"cpu.max": "what?\n"}, 64),
    ],
)
def test_a_quota_of_a_container_counts(groups, own, files, cores):
    groups(own, **files)
    assert threads.usable_cores() == cores


def test_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "nowhere")
    monkeypatch.delattr(threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: None)
    assert threads.usable_cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_counts():
    core = min(os.sched_getaffinity(0))
    script = f"os.sched_setaffinity(0, {{{core}}})\nfrom mini_pkd.threads import usable_cores\nprint(usable_cores())"
    assert run(script) == ["1"]


def test_the_pool_keeps_to_the_usable_cores(tmp_path):
    """... unless it was told its number."""
    script = """
os.environ.pop("NUMBA_NUM_THREADS")
from mini_pkd import threads
threads.numba.config.NUMBA_NUM_THREADS, threads.usable_cores = 8, lambda: 3
sizes = [threads.Pool().size]
os.environ["NUMBA_NUM_THREADS"] = "8"
print(*sizes, threads.Pool().size)
"""
    assert run(script, count=1) == ["3", "8"]


def test_nobody_counts_cores_for_himself():
    package = Path(threads.__file__).parent
    assert [p.name for p in package.glob("*.py") if "cpu_count" in p.read_text()] == ["threads.py"]
