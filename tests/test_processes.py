"""Models side by side: the same bits, and whatever is killed, interrupted or orphaned."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chirps import (
    MODELS,
    SETTINGS,
    children,
    refusal,
    results_of,
    start,
    untrain,
    wait_for,
    weights,
    words_of,
)

from mini_pkd import cascade, checkpoint, processes, warm_up
from mini_pkd.feature_store import FeatureStore


@pytest.mark.slow
def test_side_by_side_gives_the_same_bits(data, finished, monkeypatch, capfd):
    monkeypatch.setattr(processes, "usable_cores", lambda: 2)  # one thread for each of two processes
    out = finished.parent / "side-by-side"
    assert cascade.main(words_of(data, out, "--jobs", 2)) == 0
    assert weights(out) == weights(finished)
    old, new = (results_of(folder)["models"] for folder in (finished, out))
    timeless = {"seconds": 0, "decoding_seconds": 0}
    assert [m | timeless for m in old] == [m | timeless for m in new]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("left", [["B2"], ["B2", "S2"]])
def test_the_last_model_has_no_more_threads_than_the_others_had(copy, data, monkeypatch, capfd, left):
    """BLAS may round differently with another number, and a resumed run must end in the same bits."""
    started = []

    class Process:
        stdin, returncode = io.BytesIO(), 1

        def __init__(self, words, env, **_):
            started.append((words[words.index("--only") + 1], env["OPENBLAS_NUM_THREADS"], env["NUMBA_NUM_THREADS"]))

        def poll(self):
            return 1

    untrain(copy, *left)
    monkeypatch.setattr(processes, "usable_cores", lambda: 6)
    monkeypatch.setattr(processes.subprocess, "Popen", Process)
    assert "ended early" in refusal(capfd, words_of(data, copy, "--jobs", 3))
    assert sorted(started) == [(name, "2", "2") for name in left]


@pytest.mark.slow
def test_a_model_that_fails_beside_another(copy, data, capfd):
    untrain(copy, "B1", "B2")
    checkpoint.save(copy / "B2" / "training.npz", {"values": np.zeros(7)}, {})
    assert cascade.main(words_of(data, copy, "--jobs", 2)) == 1
    err = capfd.readouterr().err
    assert "B2/training.npz belongs to a model of another size" in err and "Traceback" not in err
    assert "training of B2 ended early" in err and (copy / "B1" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
def test_a_process_that_is_killed_is_named(data, finished):
    out = finished.parent / "killed-child"
    process = start(words_of(data, out, "--jobs", 2, settings=[*SETTINGS, "epochs=4000"]))
    try:
        for name in ("T1", "B1"):
            wait_for(out / name / "training.npz", process)
        for pid in children(process.pid):
            with open(f"/proc/{pid}/cmdline") as file:
                os.kill(pid, signal.SIGKILL if "--only\0B1" in file.read() else signal.SIGTERM)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    sentence = text.splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in text and sentence.startswith("cascade: ")
    assert "training of B1 was ended from outside (signal 9, Killed): give the same command again, with" in sentence
    assert "training of T1 was ended from outside (signal 15, Terminated): give the same command again; " in sentence


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("jobs, where", [(1, "S1/training.npz"), (2, "B1/training.npz")])
def test_killed_it_continues_to_the_same_bits(data, finished, jobs, where):
    out = finished.parent / f"killed-{jobs}"
    process = start(words_of(data, out, "--jobs", jobs))
    try:
        wait_for(out / where, process)
        offspring = children(process.pid)
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 10
    while any(map(alive, offspring)):  # nobody may go on training what the next command trains
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not all((out / name / "result.json").exists() for name in MODELS)
    done = {p: p.stat().st_mtime_ns for p in out.glob("*/model.npz")}
    assert cascade.main(words_of(data, out, "--jobs", 1)) == 0
    assert weights(out) == weights(finished)
    assert {p: p.stat().st_mtime_ns for p in done} == done


def test_a_process_of_one_model_does_not_outlive_its_parent(data, finished):
    """An orphan would train what the next command trains too.  These 4000 epochs would take minutes."""
    out = finished.parent / "orphan"
    words = words_of(data, out, "--only", "B2", "--slot", 0, settings=[*SETTINGS, "epochs=4000"])
    process = start(words, stdin=subprocess.PIPE)
    try:
        wait_for(out / "B2" / "training.npz", process)
        process.stdin.close()  # what the death of the parent does, whatever it died of
        assert process.wait(timeout=5) == 1
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number, jobs", [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_asked_to_stop_it_saves_and_exits_130(data, finished, number, jobs):
    out = finished.parent / f"stopped-{jobs}"
    process = start(words_of(data, out, "--jobs", jobs))
    try:
        wait_for(out / "T1" / "training.npz", process)
        process.send_signal(number)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in text
    assert text.count("the same command continues") == 1
    assert not (out / "B2" / "result.json").exists()
    assert cascade.main(words_of(data, out, "--jobs", 1)) == 0
    assert weights(out) == weights(finished)


def imports(process):
    """Whether it has come as far as the package, which imports numpy early (Linux; elsewhere it surely had time)."""
    if sys.platform != "linux":
        time.sleep(0.5)
        return True
    with open(f"/proc/{process.pid}/maps") as file:
        return "numpy" in file.read()


def trains(process):
    """Whether processes that train one model each were started."""
    with contextlib.suppress(OSError):  # one has just ended
        return any("--slot" in open(f"/proc/{pid}/cmdline").read() for pid in children(process.pid))


@pytest.mark.slow
@pytest.mark.parametrize("stage, delays", [(imports, (0, 0.2, 0.7, 1.5, 3)), (trains, (0, 0.2, 0.7, 1.5, 3))])
def test_ctrl_c_at_any_time_prints_no_traceback(data, finished, stage, delays):
    """A terminal sends it to the whole process group: the command, its warm-up and the processes of its models."""
    if stage is trains and sys.platform != "linux":
        pytest.skip("asks /proc for children")
    words = words_of(data, finished.parent / "ctrl-c", "--jobs", 2, settings=[*SETTINGS, "epochs=4000"])
    for delay in delays:
        process = start(words, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            end = time.monotonic() + 120
            while not stage(process):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            text = process.communicate(timeout=60)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 130 and "Traceback" not in text and "Error" not in text, (delay, text)


def test_processes_start_with_ctrl_c_blocked(copy, data, monkeypatch, capfd):
    """From before their first instruction: even a starting interpreter prints a traceback."""
    blocked = []

    class Process:
        stdin, returncode = io.BytesIO(), 1

        def __init__(self, words, **_):
            blocked.append((words[2], signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))

        def poll(self):
            return 1

        wait = kill = poll

    untrain(copy, "B2")
    monkeypatch.setattr(warm_up, "_done", False)
    monkeypatch.setattr(subprocess, "Popen", Process)
    assert "B2 ended early" in refusal(capfd, words_of(data, copy, "--jobs", 2))
    assert blocked == [("mini_pkd.warm_up", True), ("mini_pkd.cascade", True)]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
def test_ctrl_c_while_worker_processes_start(data, finished, tmp_path):
    """... of the feature store, which import what they need."""
    script = """
import sys
from pathlib import Path
from mini_pkd import feature_workers
if __name__ == "__main__":
    sys.stdout.write("ready"), sys.stdout.flush()
    feature_workers.SMALL_PART = 0
    paths = [str(p) for p in Path(sys.argv[1]).rglob("*.wav")] * 100
    try:
        for _ in feature_workers.extract_all(paths, 2):
            pass
    except KeyboardInterrupt:
        sys.exit(130)
"""
    (tmp_path / "script.py").write_text(script)
    for delay in (0.05, 0.2, 0.5, 1):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py", data], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            assert process.stdout.read(5) == "ready"
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            err = process.communicate(timeout=60)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 130 and "Traceback" not in err, (delay, err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_features_are_made(data, tmp_path, monkeypatch, capfd, number):
    before = signal.getsignal(signal.SIGTERM)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` starts us with it ignored
    monkeypatch.setattr(FeatureStore, "build", lambda *_, **__: os.kill(os.getpid(), number) or time.sleep(5))
    try:
        assert cascade.main(words_of(data, tmp_path / "run")) == 130
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert "the same command continues" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
