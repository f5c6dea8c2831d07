"""Submissions that attack the grader: each gets what its answers are worth, and the honest one beside them gets 100.

Most attacks answer correctly if, and only if, they have got what they wanted: a point shows a hole.  They are bounded
in count and time, touch loopback only, and run in a jail that works here with its limits; without one they are skipped.
"""

import contextlib
import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile

import pytest
from test_classroom_grade import PLAIN, SMALL, SOLUTION

from mini_pkd import UserError
from tutorial.assignments import grade, jail
from tutorial.assignments import task as form

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the jails are Linux's"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

RIGHT = "\nimport numpy as np\nvalues = lambda x: float(np.sum(x))\nsquares = lambda x: float(np.sum(x**2))\n"
WRONG = "\nvalues = squares = lambda x: 7.5\n"
MARK = "mini_pkd_attack_mark"


def if_found(code):
    """A submission that is right if `code`, run at its import, sets found."""
    return f"""
import os, sys
found = False
try:
{chr(10).join("    " + line for line in code.strip().splitlines())}
except BaseException:
    pass
import numpy as np
values = lambda x: float(np.sum(x)) if found else 7.5
squares = lambda x: float(np.sum(x**2)) if found else 7.5
"""


ATTACKS = {
    "infinite loop": """
def values(x):
    while True:
        pass

squares = values
""",
    "sleep": """
import time

def values(x):
    time.sleep(3600)

squares = values
""",
    "fork bomb": WRONG
    + """
import os
for _ in range(300):
    try:
        os.fork()
    except OSError:
        break
""",
    "gigabytes of output": WRONG
    + """
import os
for _ in range(200):
    for handle in range(1, 12):
        try:
            os.write(handle, b"x" * 2**20)
        except OSError:
            pass
""",
    "os._exit": """
import os

def values(x):
    os._exit(0)

squares = values
""",
    "os._exit at import": "import os\nos._exit(0)\n",
    "exception at import": RIGHT + "raise RuntimeError('no')\n",
    "SystemExit at import": RIGHT + "raise SystemExit(0)\n",
    "patched numpy": """
import builtins
import numpy as np
np.array_equal = np.allclose = lambda *a, **k: True
np.abs = np.absolute = lambda x: np.zeros(1)
np.frombuffer = lambda *a, **k: np.zeros(1)
builtins.max = lambda *a, **k: 0.0
values = squares = lambda x: 7.5
""",
    "forged answers": WRONG
    + """
import os
for handle in range(3, 12):
    try:
        os.write(handle, bytes(8000))
    except OSError:
        pass
""",
    "wrong types": """
import numpy as np
values = lambda x: np.array(["a", None], dtype=object)
squares = lambda x: "text"
""",
    "wrong size": """
import numpy as np
values = lambda x: np.zeros((1000, 1000))
squares = lambda x: [1.0, 2.0]
""",
    "an object that lies": """
class Liar:
    def __array__(self, *a, **k):
        raise SystemExit
    def __eq__(self, other):
        return True
    def __float__(self):
        return 7.5

values = squares = lambda x: Liar()
""",
    "recursion": """
import sys
sys.setrecursionlimit(10**8)

def values(x):
    return values(x)

squares = values
""",
    "huge allocation": """
import numpy as np

def values(x):
    kept = [np.zeros(2**26) for _ in range(40)]
    return 7.5

squares = lambda x: bytearray(2**42)
""",
    "the reference": if_found("import tutorial.assignments\nfound = True"),
    "the package": if_found("import mini_pkd\nfound = True"),
    "environment and arguments": if_found(
        """
text = repr(os.environ) + repr(sys.argv)
for path in ["/proc/self/environ", "/proc/self/cmdline", "/proc/1/environ", f"/proc/{os.getppid()}/environ"]:
    try:
        text += open(path).read()
    except OSError:
        pass
found = "MARK" in text or "key.json" in text
"""
    ),
    "the key": if_found("found = 'MARK' in open('KEY').read()"),
    "writing over itself": if_found("open('CELL/a4.py', 'a').write('# more')\nfound = True"),
    "writing outside": if_found("open('/MARK', 'w').write('x')\nfound = True"),
    "writing beside the grades": if_found("open('OUT/MARK', 'w').write('x')\nfound = True"),
    "signals": WRONG
    + """
import os, signal
for pid in [os.getppid(), GRADER, 1, -1]:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
""",
    "a socket": if_found(
        """
import socket
socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
found = True
"""
    ),
    "a daemon": WRONG
    + """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
""",
    "many big files": WRONG
    + """
for k in range(64):
    try:
        open(f"/tmp/MARK{k}", "wb").write(bytes(2**22))
    except OSError:
        pass
""",
}
OPEN = {"uid": {"a socket"}}  # what the page for teachers says that a jail leaves open


@pytest.fixture(scope="module", params=["bwrap", "uid"])
def kind(request):
    try:
        with jail.open_jail(request.param) as cage:
            if cage.wall > 30:
                pytest.skip(f"this machine is too busy: a test program took {cage.wall / jail.PROBES:.0f} s")
            return request.param
    except UserError as error:
        pytest.skip(str(error))


def test_attacks(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(form, "load", lambda name: SMALL)
    monkeypatch.setattr(jail, "LIMITS", {**jail.LIMITS, "cpu": 2})
    monkeypatch.setenv(MARK, "1")
    if kind == "uid":  # everything up to tmp_path may be private, as a teacher's folders are
        monkeypatch.setattr("tempfile.tempdir", "/tmp")
    os.chmod(tmp_path, 0o700)
    key, out = tmp_path / "key.json", tmp_path / "out"
    key.write_text(json.dumps({"secret": MARK, "dialect": None}))
    folders, honest_cell = set(), jail.Jail.cell
    monkeypatch.setattr(jail.Jail, "cell", lambda cage, *given: folders.add(cage.folder) or honest_cell(cage, *given))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    words = {"KEY": key, "OUT": out, "GRADER": os.getpid(), "PORT": listener.getsockname()[1], "MARK": MARK}
    attacks = {name: text for name, text in ATTACKS.items() if name not in OPEN.get(kind, ())}
    for name, text in {"honest": SOLUTION, "honest too": SOLUTION, **attacks}.items():
        text = text.replace("CELL", "/jail/cell" if kind == "bwrap" else "' + os.path.dirname(sys.argv[0]) + '")
        for word, value in words.items():
            text = text.replace(word, str(value))
        (tmp_path / "class" / name).mkdir(parents=True)
        (tmp_path / "class" / name / "a4.py").write_text(text)
    with zipfile.ZipFile(tmp_path / "class" / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a4.py", SOLUTION + "#" * 2**25)
    results = grade.grade("a4", [tmp_path / "class"], key, out, kind, jobs=2, quiet=True, wall=12.0)
    scores = {name: result["score"] for name, result in results.items()}
    assert scores.pop("honest") == scores.pop("honest_too") == 100
    assert len(scores) == len(attacks) + 1 and {name for name, score in scores.items() if score} == set()
    assert "was stopped" in results["infinite_loop"]["tests"][0]["output"]
    assert "was stopped" in results["sleep"]["tests"][0]["output"]
    assert "far more than an answer" in results["gigabytes_of_output"]["tests"][0]["output"]
    assert "MemoryError" in results["huge_allocation"]["tests"][0]["output"]
    assert "RuntimeError in line 5" in results["exception_at_import"]["tests"][0]["output"]
    assert not list(tmp_path.rglob(MARK)) and not os.path.exists(f"/{MARK}")
    assert not glob.glob(f"/tmp/{MARK}*")
    assert folders and not any(folder.exists() for folder in folders)
    for path in glob.glob("/proc/[0-9]*/exe"):  # nothing of theirs is alive
        with contextlib.suppress(OSError):
            runs = os.readlink(path)
            assert not any(runs.startswith(str(folder)) for folder in folders), runs
    listener.close()


def test_an_answer_that_comes_while_the_watcher_waits_for_a_core(monkeypatch):
    """The process writes and ends between the watcher's select and its poll."""

    class Process:
        def __init__(self):
            read, self.write = os.pipe()
            self.stdout = os.fdopen(read, "rb")

        def poll(self):
            os.write(self.write, b"answer")
            os.close(self.write)
            self.poll = lambda: 0
            return 0

        def wait(self, timeout):
            return 0

    process = Process()
    ended = jail._watch(process, wall=20.0)
    process.stdout.close()
    assert ended == jail.Ended("itself", b"answer")


def test_two_time_outs_are_enough(kind, tmp_path, monkeypatch):
    """The other tasks of the submission are not tried."""
    tasks = tuple(SMALL.tasks[0] for _ in range(4))
    four = form.Assignment(**{**vars(SMALL), "tasks": tasks})
    with jail.open_jail(kind, wall=1.0) as cage:
        marks = grade.grade_source(four, PLAIN, "s", ATTACKS["sleep"].encode(), cage)
    assert [mark.points for mark in marks] == [0] * 4
    assert marks[2].notes == ["Not run, because 2 tasks before it took too long."]


def test_the_jail_holds_interpreter_numpy_and_submission_only():
    """bwrap: everything else of the file system is away."""
    try:
        with jail.open_jail("bwrap", wall=20.0) as cage:
            source = """
import os
def values(x):
    seen = []
    for top, folders, files in os.walk("/"):
        folders[:] = [f for f in folders if os.path.join(top, f) not in ("/proc", "/dev", "/jail/python")]
        seen += [os.path.join(top, name) for name in files if not name.endswith((".o", ".a")) and ".so" not in name]
    return sum(name.endswith((".py", ".json", ".npz")) for name in seen)
"""
            with cage.cell("a4.py", source.encode()) as cell:
                drive = "def drive(student, x):\n    return student.values(x)\n"
                job = jail.job_of("a4.py", drive, [("count", "int64", 0)], [(1,)])
                ended = cage.run(cell, *job)
    except UserError as error:
        pytest.skip(str(error))
    from tutorial.assignments.answers import read_answers

    (answer,) = read_answers(ended.data, 1, [("count", "int64", 0)])
    assert isinstance(answer, list) and answer[0] == 2, answer  # a4.py and inside.py


def test_uid_refuses_a_key_that_everybody_may_read(tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("the jail uid needs root")
    monkeypatch.setattr(form, "load", lambda name: SMALL)
    place = "/tmp/mini_pkd_open_door"
    os.makedirs(f"{place}/class/ada", exist_ok=True)
    try:
        with open(f"{place}/key.json", "w") as file:
            json.dump({"secret": "s", "dialect": None}, file)
        with open(f"{place}/class/ada/a4.py", "w") as file:
            file.write(SOLUTION)
        for path in (place, f"{place}/key.json"):
            os.chmod(path, 0o755)
        with pytest.raises(UserError, match="can be read by every user of this machine"):
            grade.grade("a4", [f"{place}/class"], f"{place}/key.json", tmp_path / "out", "uid", quiet=True)
    finally:
        shutil.rmtree(place)


def test_a_grader_that_is_killed_loses_no_finished_grade(tmp_path):
    """kill -9 in the middle of a class; the same command grades the rest only."""
    folder = tmp_path / "class"
    for k in range(4):
        (folder / f"s{k}").mkdir(parents=True)
        (folder / f"s{k}" / "a4.py").write_text("x = 1\n")
    build = [sys.executable, "-m", "tutorial.assignments", "build", "--to", str(tmp_path), "--only", "a4"]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "tutorial.assignments", "grade", "a4", str(folder), "--key"]
    command += [str(tmp_path / "teacher" / "key.json"), "--out", str(tmp_path / "out"), "--jail", "none", "--jobs", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    results = tmp_path / "out" / "results"
    deadline = time.monotonic() + 120
    while not list(results.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    assert 1 <= len(before) < 4
    assert subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0
    assert len(list(results.glob("*.json"))) == 4
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_two_graders_take_different_users():
    """Also when both run at once: the end of one user's submission must not end another's."""
    if os.geteuid() != 0:
        pytest.skip("only root gives users away")
    claims = [jail.unused_uid() for _ in range(3)]
    assert len({uid for uid, _ in claims}) == 3
    code = (
        "import sys\nfrom tutorial.assignments import jail\njail.UIDS = range(int(sys.argv[1]), int(sys.argv[1]) + 1)\n"
    )
    code += "try:\n    jail.unused_uid()\n    print('taken')\nexcept jail.UserError:\n    print('refused')"
    said = [subprocess.check_output([sys.executable, "-c", code, str(claims[0][0])], text=True)]
    for _, claim in claims:
        claim.close()
    said.append(subprocess.check_output([sys.executable, "-c", code, str(claims[0][0])], text=True))
    assert said == ["refused\n", "taken\n"]


def test_what_a_killed_grader_left_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(jail.tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{jail.PREFIX}dead").mkdir()
    (tmp_path / f"{jail.PREFIX}alive").mkdir()
    (tmp_path / f"{jail.PREFIX}new").mkdir()
    for name in ("dead", "alive"):
        os.utime(tmp_path / f"{jail.PREFIX}{name}", (0, 0))
    with jail._locked(tmp_path / f"{jail.PREFIX}alive"):
        jail._sweep()
        assert {path.name for path in tmp_path.iterdir()} == {f"{jail.PREFIX}alive", f"{jail.PREFIX}new"}
