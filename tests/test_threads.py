"""threads.py: a product has the same bits on all threads of the pool and on one; and when the pool steps back.

The rest of the tests has one thread, and so no pool: what needs several runs in processes of its own, with
more threads than most machines' cores, and a time limit, because a mistake here may show as waiting for ever.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mini_pkd import threads

BEGIN = """
import os, sys
import numpy as np
from mini_pkd import threads
from mini_pkd.threads import CROWDED, GRAIN, POOL, matmul
POOL.next_look = float("inf")  # on a busy machine it would step back in the middle of a test
"""

# (rows, inner, columns) of products: from one row, and none, to what is worth cutting; the last is long inside
SHAPES = [(0, 8, 8), (1, 1, 1), (1, 300, 200), (300, 40, 1), (513, 129, 65), (2000, 1, 64), (96, 4600, 192)]

PRODUCTS = f"""
threads.WHOLE = 1  # cut all of them, down to parts of nothing

def pairs():
    rng = np.random.default_rng(0)
    for rows, inner, columns in {SHAPES}:
        for dtype in (np.float32, np.float64):
            a, b = rng.standard_normal((rows, inner)).astype(dtype), rng.standard_normal((inner, columns)).astype(dtype)
            wide = np.zeros((rows, 2 * inner + 3), dtype)
            wide[:, 2 : inner + 2], wide[:, inner + 3 :: 2] = a, a[:, : -(-inner // 2)]
            yield from [(a, b), (b.T, a.T), (a.T, a), (np.asfortranarray(a), b), (wide[:, 2 : inner + 2], b)]
            yield from [(wide[:, ::2], wide[:, ::2].T), (np.broadcast_to(dtype(1), (3, rows)), a)]  # not for BLAS

def products():
    found = [matmul(a, b) for a, b in pairs()]
    for a, b in pairs():
        out = np.full((len(a), b.shape[1] + 3), np.nan, a.dtype)
        part = out[:, 1:-2]
        assert matmul(a, b, out=part) is part
        assert np.isnan(out[:, 0]).all() and np.isnan(out[:, -2:]).all()
        found.append(part)
    return found

def same(some, others):
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))
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
    if "openblas" not in name or layer != "omp":
        pytest.skip(f"one pool needs OpenBLAS and OpenMP; here are {name} {version} and {layer}")


def test_products_of_all_threads_equal_those_of_one(can_share):
    """To the last bit, because crowding must change nothing; and numpy's up to rounding."""
    script = (
        PRODUCTS
        + """
assert POOL.shared
together = products()
POOL.shared = False
alone = products()
numpys = [np.matmul(a.astype(float), b.astype(float)) for a, b in pairs()] * 2
for product, right in zip(together, numpys, strict=True):
    assert product.shape == right.shape
    tolerance = 1e-4 if product.dtype == np.float32 else 1e-12  # of sums of up to 4600 terms
    assert np.abs(product - right).max(initial=0) < tolerance * max(1, np.abs(right).max(initial=0))
print(same(together, alone), len(alone))
"""
    )
    for count in (2, 6):
        assert run(script, count) == ["True", str(len(SHAPES) * 28)]


def test_what_cannot_be_multiplied_is_numpys_error(can_share):
    script = """
for a, b in ((np.ones((2, 3)), np.ones((2, 3))), (np.ones((200, 300)), np.ones((200, 300)))):
    try:
        matmul(a, b)
    except ValueError:
        print("refused")
"""
    assert run(script) == ["refused"] * 2


def test_stepped_back_one_thread_does_it_all(can_share):
    """By the kernel's count of what each thread ran: none of OpenBLAS's own, none of numba's, wakes up or spins."""
    script = """
import threading, time
a, b = np.ones((1000, 200), np.float32), np.ones((200, 300), np.float32)
matmul(a, b)
POOL.shared = False
time.sleep(0.2)  # whoever still spins goes to sleep
before = POOL.crowding.read()
for _ in range(50):
    matmul(a, b), a @ b
ran = {thread: now[0] - before.get(thread, [0])[0] for thread, now in POOL.crowding.read().items()}
mine = ran.pop(str(threading.get_native_id()))
print(mine > 0, sum(ran.values()) < 0.1 * mine)
"""
    assert run(script) == ["True", "True"]


def test_python_threads_may_multiply_at_the_same_time(can_share):
    script = (
        PRODUCTS
        + """
import threading
assert POOL.shared
right, wrong = products(), []

def work():
    for _ in range(2):
        wrong.append(not same(right, products()))

workers = [threading.Thread(target=work) for _ in range(3)]
[w.start() for w in workers], [w.join() for w in workers]
print(wrong.count(False))
"""
    )
    assert run(script) == ["6"]


def test_fewer_threads_for_blas_than_for_kernels_and_more(can_share):
    script = (
        PRODUCTS
        + """
together, POOL.shared = products(), False
print(POOL.blas.num_threads(), max(POOL.grids), same(together, products()))
"""
    )
    assert " ".join(run(script, NUMBA_NUM_THREADS="2")) == "1 (2, 1) True"
    assert " ".join(run(script, OPENBLAS_NUM_THREADS="2")) == "1 (4, 1) True"


@pytest.mark.parametrize("variable, value", [("OMP_DYNAMIC", "true"), ("OMP_THREAD_LIMIT", "1")])
def test_fewer_threads_than_asked_for_compute_the_same(can_share, variable, value):
    script = (
        PRODUCTS
        + """
together, POOL.shared = products(), False
print(same(together, products()))
"""
    )
    assert run(script, **{variable: value}) == ["True"]


def test_a_forked_child_multiplies_on_threads_of_its_own(can_share):
    script = (
        PRODUCTS
        + """
right = products()
child = os.fork()
if child == 0:
    close = all(np.allclose(a, b, 1e-3, 1e-3) for a, b in zip(right, products()))
    os._exit(0 if close and not POOL.shared and threads.OpenBLAS().num_threads() == POOL.blas_threads else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), POOL.shared)
"""
    )
    assert run(script) == ["0", "True"]


def test_no_pool_where_blas_is_to_use_one_thread():
    script = PRODUCTS + "print(POOL.shared, POOL.blas, len(products()) > 0)"
    assert run(script, OPENBLAS_NUM_THREADS="1") == ["False", "None", "True"]


def test_the_number_of_threads_changes_no_bit_of_a_kernel():
    """The LSTM's step once did: with two or three utterances left, two threads have a row or two each."""
    script = """
from mini_pkd.fused import layer_norm
from mini_pkd.lstm import lstm
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
    for blas in ("1", "4"):  # numpy's product, and ours
        assert run(script, OPENBLAS_NUM_THREADS=blas) == ["True", "7"]


def test_it_steps_back_while_the_cores_are_crowded(can_share):
    script = """
def look(waited):
    POOL.crowding.look = lambda: waited
    POOL.next_look = 0
    return POOL.team(4 * GRAIN), POOL.team(4 * GRAIN - 1), POOL.shared

print([look(w) for w in (0.0, CROWDED, 0.9, 0.9, 0.0)])
"""
    expected = "[(4, 1, True), (4, 1, True), (1, 1, False), (1, 1, False), (1, 1, False)]"
    assert " ".join(run(script)) == expected


def test_one_spike_is_no_crowd_and_each_return_takes_longer():
    pool = threads.Pool()  # of one thread, as all in these tests
    pool.shared = True

    def looks(*waited):
        for ratio in waited:
            pool.crowding = type("", (), {"look": lambda self, ratio=ratio: ratio})()
            pool.look()
        return pool.shared

    assert looks(9, 0, 9, 0, 0, 9) and not looks(9)
    assert not looks(0, 0, 0, 9, 0, 0, 0) and looks(0)  # four in a row
    assert not looks(9, 9) and not looks(*[0] * 7) and looks(0)
    for _ in range(5):
        assert not looks(9, 9) and looks(*[0] * threads.LONGEST)
    assert not looks(9, 9) and not looks(*[0] * (threads.LONGEST - 1))


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
def test_crowding_counts_what_the_kernel_counts():
    crowding, me = threads.Crowding(), str(threading.get_native_id())
    ran, waited = crowding.read()[me]
    for _ in range(1000):  # until the kernel has counted again, which it does some hundred times a second
        np.linalg.svd(np.ones((200, 200)))
        if crowding.read()[me][0] > ran:
            break
    assert crowding.read()[me][0] > ran > 0 and waited >= 0


def crowding_of(*readings):
    """A Crowding that will read {thread: (seconds ran, seconds waited)}, one after the other."""
    crowding = threads.Crowding.__new__(threads.Crowding)
    readings = [{thread: 1e9 * np.array(pair) for thread, pair in reading.items()} for reading in readings]
    crowding.before, crowding.read = readings[0], iter(readings[1:]).__next__
    return crowding


def test_one_late_thread_of_many_is_seen():
    """One foreign process beside n threads delays one of them, and all wait for it: a mean would fall with n."""
    n = 64
    before = {str(i): (10.0, 1.0) for i in range(n)}
    after = {str(i): (11.0, 1.0) for i in range(n)} | {"7": (10.5, 1.5)}
    assert crowding_of(before, after).look() == 0.5


def test_threads_that_hardly_ran_prove_nothing():
    before = {"1": (4.0, 0.0), "2": (3.0, 0.0), "gone": (9.0, 9.0)}
    after = {"1": (5.0, 0.0), "2": (3.001, 0.02), "new": (0.001, 0.01)}
    nothing_done = after
    crowding = crowding_of(before, after, nothing_done)
    assert crowding.look() == pytest.approx(0.02) and crowding.look() == 0.0


def test_a_look_that_fails_changes_nothing(monkeypatch):
    crowding = threads.Crowding.__new__(threads.Crowding)
    crowding.before = {"1": np.array([4e9, 1e9])}
    monkeypatch.setattr(threads.os, "listdir", lambda _: (_ for _ in ()).throw(OSError("too many open files")))
    assert crowding.look() == 0.0 and crowding.before["1"].tolist() == [4e9, 1e9]


def test_one_thread_needs_no_pool():
    pool = threads.Pool()
    assert (pool.size, pool.blas, pool.shared, pool.team(10**9)) == (1, None, False, 1)


# --- how many cores are ours ----------------------------------------------------------------------


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
