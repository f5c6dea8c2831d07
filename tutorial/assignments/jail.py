"""Where students' code runs: without files, network, other processes, and without time or memory to waste.

    bwrap   Linux namespaces through bubblewrap: sees the interpreter, numpy and the submission, and nothing else
    uid     for root only: an unused user for each submission; sees what every user of the machine may read
    docker  a container for each task, on request (--jail docker); the only one for macOS and Windows
    none    only when typed, and stamped into every result: for a submission that you have written yourself

`auto` takes bwrap where a probe shows that it works, else uid for root, else refuses.  In each jail inside.py sets the
limits of `resource` before it imports the submission; wall clock and bytes of output are watched from outside.

What the jail holds is a copy: interpreter, standard library and numpy are copied once for each run of the grader, to a
place that every user can read, without site-packages.  So it does not matter where they are installed.
"""

import contextlib
import fcntl
import glob
import json
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_pkd import UserError

from . import inside

MiB = 2**20


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LIMITS = {"cpu": 3, "file": MiB, "files": 64, "processes": 32}  # seconds, bytes, open files, processes
WALL = 4.0  # seconds, or so many times what the probe took, whichever is longer
PROBES = 10
ANSWERS = 16 * MiB  # bytes of all answers to one task
WHERE = "/jail"  # inside bwrap and docker
IMAGE = "mini-pkd-jail"
PREFIX = "mini_pkd_cage_"
NAMES = ("auto", "bwrap", "uid", "docker", "none")


class Ended(NamedTuple):
    """How a jailed process ended, and what it had sent."""

    how: str  # "itself", "time" or "output" (too much of it)
    data: bytes


# --- a copy of interpreter and numpy --------------------------------------------------------------------------------


def _mapped_libraries():
    """Shared libraries of this process, which has numpy: the jailed one will want the same."""
    import ctypes  # noqa: F401  and so will inside.py's

    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        names = {line.split(maxsplit=5)[5].rstrip("\n") for line in file if ".so" in line and "/" in line}
    return {Path(name) for name in names if os.path.exists(name)}


def copy_runtime(to):
    """Interpreter, standard library and numpy; returns the interpreter's path below `to`."""
    prefix = Path(sys.base_prefix).resolve()
    unwanted = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "config-*"
    )

    def place(path):
        path = path.resolve()
        return to / (path.relative_to(prefix) if path.is_relative_to(prefix) else f"lib/{path.name}")

    standard = Path(os.__file__).resolve().parent
    shutil.copytree(standard, place(standard), ignore=unwanted)
    for entry in map(Path, sys.path):
        if entry.name == "lib-dynload" and not entry.resolve().is_relative_to(standard):
            shutil.copytree(entry, place(entry), dirs_exist_ok=True)
    interpreter = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    (to / "bin").mkdir(exist_ok=True)
    shutil.copy2(interpreter, to / "bin" / interpreter.name)
    (to / "lib").mkdir(exist_ok=True)
    for library in _mapped_libraries():
        if library.resolve().parent == prefix / "lib":  # libpython, or conda's
            shutil.copy2(library, to / "lib" / library.name)
    package = Path(np.__file__).resolve().parent
    shutil.copytree(package, to / "packages" / "numpy", ignore=unwanted)
    if (package.parent / "numpy.libs").exists():
        shutil.copytree(package.parent / "numpy.libs", to / "packages" / "numpy.libs")
    return to / "bin" / interpreter.name


def _system_libraries():
    """Arguments for bwrap: the folders of the system's shared libraries, without the packages that may lie in them."""
    prefix = Path(sys.base_prefix).resolve()
    packages = Path(np.__file__).resolve().parent.parent
    folders = {path.resolve().parent for path in _mapped_libraries()}
    folders |= {Path(name).resolve() for name in ("/lib64", "/usr/lib64") if os.path.isdir(name)}
    folders = {
        f for f in folders if not f.is_relative_to(packages) and (str(prefix) == "/usr" or prefix not in f.parents)
    }
    folders = {f for f in folders if "python3" not in f.as_posix()}
    found = []
    for folder in sorted(folders):
        found += ["--ro-bind", str(folder), str(folder)]
        for name in glob.glob(f"{folder}/python3*"):
            found += ["--tmpfs", name]
    for name in ("/lib", "/lib64"):
        if os.path.islink(name):
            found += ["--symlink", os.readlink(name), name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        found += ["--ro-bind-try", name, name]
    return found


# --- users that nobody is -------------------------------------------------------------------------------------------

UIDS = range(40_000, 60_000)


def unused_uid():
    """A user id in no list of users and without a process, and a socket that says so to other graders until closed.

    The kernel gives a name of an abstract socket once, and takes it back when its owner ends, in whatever way.
    """
    busy = {_owner(path) for path in glob.glob("/proc/[0-9]*")}
    first = secrets.randbelow(len(UIDS))
    for uid in (*UIDS[first:], *UIDS[:first]):
        with contextlib.suppress(KeyError):
            pwd.getpwuid(uid)
            continue
        if uid in busy:
            continue
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0mini_pkd-uid-{uid}")
        except OSError:
            claim.close()
            continue
        return uid, claim
    raise UserError("all user ids from 40000 to 59999 are in use; grade fewer submissions at a time.")


def _user(uid):
    return {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}


def end_user(uid, python):
    """Kill every process of this user, and remove what it has left where everybody may write.

    Its own kill(-1) does it, because one signal to all of them leaves no fork behind.
    """
    code = "import os, signal\nos.kill(-1, signal.SIGKILL)"
    for _ in range(5):
        with contextlib.suppress(OSError):
            subprocess.run([python, "-I", "-S", "-c", code], stderr=subprocess.DEVNULL, timeout=10, **_user(uid))
        alive = [path for path in glob.glob("/proc/[0-9]*") if _owner(path) == uid and _state(path) != "Z"]
        if not alive:
            break
    for folder in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if entry.stat(follow_symlinks=False).st_uid == uid:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def _owner(path):
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def _state(path):
    try:
        with open(f"{path}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def readable_by_others(path):
    """May every user of the machine read this file or folder?"""
    path = Path(path).resolve()
    wanted = 0o005 if path.is_dir() else 0o004
    return path.stat().st_mode & wanted == wanted and all(parent.stat().st_mode & 0o001 for parent in path.parents)


# --- jails ----------------------------------------------------------------------------------------------------------


class Jail:
    """One kind of jail, with its copy of the runtime; `with open_jail("auto") as jail`."""

    def __init__(self, kind, folder, wall=WALL):
        self.kind, self.folder, self.wall = kind, Path(folder), wall
        if kind != "docker":
            os.chmod(folder, 0o711)  # users may enter, but see no names
            self.python = copy_runtime(self.folder / "python")
            self.libraries = _system_libraries() if kind == "bwrap" else []

    @contextlib.contextmanager
    def cell(self, name, source):
        """A place for one submission: (folder, uid).  All that runs in it has ended when the block ends."""
        folder = Path(tempfile.mkdtemp(prefix="cell-", dir=self.folder))
        shutil.copyfile(inside.__file__, folder / "inside.py")
        (folder / name).write_bytes(source)
        os.chmod(folder, 0o755)
        uid, claim = None, contextlib.nullcontext()
        if os.geteuid() == 0 and self.kind in ("bwrap", "uid"):
            uid, claim = unused_uid()
        with claim:
            try:
                yield folder, uid
            finally:
                if uid is not None:
                    end_user(uid, self.python)
                shutil.rmtree(folder, ignore_errors=True)

    def run(self, cell, job, blobs):
        """Run one job of inside.py; the process is dead when this returns."""
        folder, uid = cell
        packages = {"bwrap": f"{WHERE}/python/packages", "docker": None}.get(
            self.kind, f"{self.folder}/python/packages"
        )
        name = f"mini-pkd-{folder.name}-{time.monotonic_ns()}"
        with tempfile.TemporaryFile() as inputs:
            inputs.write(json.dumps({**job, "numpy": packages}).encode() + b"\n" + b"".join(blobs))
            inputs.seek(0)
            process = subprocess.Popen(
                self._command(folder, name),
                stdin=inputs,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment() if self.kind != "docker" else None,
                cwd="/",
                start_new_session=True,
                **_user(uid),
            )
            try:
                return _watch(process, self.wall + (10.0 if self.kind == "docker" else 0.0))
            finally:
                if self.kind == "docker":
                    subprocess.run(["docker", "kill", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process.stdout.close()
                if self.kind == "uid":
                    end_user(uid, self.python)

    def _environment(self):
        library = f"{WHERE}/python/lib" if self.kind == "bwrap" else f"{self.folder}/python/lib"
        return {"LD_LIBRARY_PATH": library, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}

    def _command(self, folder, name):
        switches = ["-I", "-S", "-B"]
        if self.kind in ("uid", "none"):
            return [str(self.python), *switches, str(folder / "inside.py")]
        if self.kind == "docker":
            walls = ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
            walls += ["--pids-limit", "64", "--memory", "3g", "--user", "59999:59999", "--tmpfs", "/tmp:size=16m"]
            walls += ["--env", "OPENBLAS_NUM_THREADS=1", "--volume", f"{folder}:{WHERE}/cell:ro"]
            return [
                "docker",
                "run",
                "--rm",
                "-i",
                "--name",
                name,
                *walls,
                IMAGE,
                "python3",
                "-I",
                "-B",
                f"{WHERE}/cell/inside.py",
            ]
        walls = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
        for variable, value in self._environment().items():
            walls += ["--setenv", variable, value]
        walls += self.libraries
        walls += [
            "--ro-bind",
            str(self.folder / "python"),
            f"{WHERE}/python",
            "--ro-bind",
            str(folder),
            f"{WHERE}/cell",
        ]
        walls += ["--proc", "/proc", "--dev", "/dev", "--size", str(16 * MiB), "--tmpfs", "/tmp", "--chdir", "/tmp"]
        walls += ["--remount-ro", "/dev", "--remount-ro", "/"]
        return ["bwrap", *walls, f"{WHERE}/python/bin/{self.python.name}", *switches, f"{WHERE}/cell/inside.py"]


def _watch(process, wall):
    """What the process sends until it ends, or until it has taken too long or sent too much."""
    data, deadline, pipe = bytearray(), time.monotonic() + wall, process.stdout.fileno()
    while time.monotonic() < deadline:
        if select.select([pipe], [], [], 0.05)[0]:
            chunk = os.read(pipe, 1 << 16)
            data += chunk
            if len(data) > ANSWERS:
                return Ended("output", bytes(data[:ANSWERS]))
            if not chunk:
                break
        elif process.poll() is not None and not select.select([pipe], [], [], 0)[0]:
            # Something else holds the pipe open: a daemon.  It is asked twice, because the process may have answered
            # and ended while this thread waited for a core between the first select and poll.
            break
    else:
        return Ended("time", bytes(data))
    try:
        code = process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return Ended("itself", bytes(data))  # it has closed the pipe, and no answer can come any more
    out_of_time = code in (-signal.SIGXCPU, 128 + signal.SIGXCPU)
    return Ended("time" if out_of_time else "itself", bytes(data))


# --- which jail works here ------------------------------------------------------------------------------------------

PROBE = b"import numpy as np\n\ndef double(x):\n    return 2 * x\n"


def job_of(file, drive, outputs, cases, memory=2048 * MiB):
    """The job and its blobs that Jail.run takes."""
    blobs = []
    encoded = [inside.encode(tuple(case), blobs) for case in cases]
    limits = {**LIMITS, "memory": memory}
    return {"file": file, "drive": drive, "outputs": outputs, "cases": encoded, "limits": limits}, blobs


def probe(jail):
    """Does a small job come back from this jail?  None, or what went wrong in a few words."""
    from .answers import read_answers

    drive = "def drive(student, *inputs):\n    return student.double(*inputs)\n"
    outputs = [("twice", "float64", 1)]
    try:
        with jail.cell("probe.py", PROBE) as cell:
            ended = jail.run(cell, *job_of("probe.py", drive, outputs, [(np.arange(3.0),)]))
    except OSError as error:
        return error.strerror or str(error)
    (answer,) = read_answers(ended.data, 1, outputs)
    if isinstance(answer, list) and np.array_equal(answer[0], [0.0, 2.0, 4.0]):
        return None
    return "a test program gave no answer"


def _why_no_bwrap():
    """What is missing, as far as it is known."""
    if shutil.which("bwrap") is None:
        return "bwrap is not installed (package bubblewrap)"
    try:
        restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text("ascii").strip() == "1"
    except OSError:
        restricted = False
    if restricted:
        return (
            "AppArmor forbids bwrap to make a user namespace, as Ubuntu 24.04 does, because no profile allows it: copy "
            "/usr/share/apparmor/extra-profiles/bwrap-userns-restrict (package apparmor-profiles) to /etc/apparmor.d/ "
            "and load it with apparmor_parser -r"
        )
    return "bwrap is installed but cannot make its namespaces here (a container forbids it, or the kernel does)"


def _sweep():
    """Remove what graders that were killed have left; those that are alive hold the locks of their folders."""
    for name in glob.glob(f"{tempfile.gettempdir()}/{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(name):
            if time.time() - os.stat(name).st_mtime > 60:
                shutil.rmtree(name, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder):
    """Hold the lock of a folder; OSError if somebody else does."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def open_jail(kind="auto", wall=WALL):
    """The jail of this kind, tried out; UserError if it does not work here."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder, _locked(folder):
        reasons = []
        for choice in [kind] if kind != "auto" else ["bwrap", "uid"]:
            if choice == "bwrap" and shutil.which("bwrap") is None:
                reasons.append(_why_no_bwrap())
                continue
            if choice == "uid" and os.geteuid() != 0:
                reasons.append("another user for each submission needs root")
                continue
            if choice == "docker" and shutil.which("docker") is None:
                reasons.append("docker is not installed")
                continue
            if not sys.platform.startswith("linux") and choice in ("bwrap", "uid", "none"):
                reasons.append(f"jail {choice} needs Linux")
                continue
            place = Path(folder) / choice
            place.mkdir()
            os.chmod(folder, 0o711)
            jail = Jail(choice, place, max(wall, 30.0))
            start = time.monotonic()
            trouble = probe(jail)
            if trouble is None:
                jail.wall = max(wall, PROBES * (time.monotonic() - start))  # on a crowded machine all clocks are slow
                yield jail
                return
            reasons.append(_why_no_bwrap() if choice == "bwrap" else f"jail {choice} does not work here: {trouble}")
        if kind != "auto":
            raise UserError(f"{reasons[0]}; mend this, or choose another --jail.")
        advice = "install bubblewrap, or run the grader as root, or give --jail docker"
        raise UserError(f"no jail works here: {'; '.join(reasons)}; {advice}.")
