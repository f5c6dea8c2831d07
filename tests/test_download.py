"""download.py: a hostile server, broken connections, evil archives, interrupted unpacking."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import os
import socketserver
import tarfile
import threading
import time

import numpy as np
import pytest

from mini_pkd import UserError
from mini_pkd import download as download_file
from mini_pkd.corpus_folder import ROLES, read_part
from mini_pkd.download import ARCHIVES, download


class Stop(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def archive_bytes(part="dev-toy", extra=()):
    """A .tar.gz in LibriSpeech's shape; incompressible content, so that it has some size."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        files = {
            "LibriSpeech/README.TXT": b"hello",
            f"LibriSpeech/{part}/1/2/1-2-0000.flac": rng.bytes(300_000),
            f"LibriSpeech/{part}/1/2/1-2.trans.txt": b"1-2-0000 HELLO\n",
        }
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one archive. `plan` says what happens to each request: a number cuts after so many bytes."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        action = server.plan.pop(0) if server.plan else None
        if isinstance(action, str) or self.path != "/12/dev-toy.tar.gz":
            self.send_error(int(action or 404))
            return
        start = 0
        if self.headers.get("Range") and server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if action is None else body[:action])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """server(data, plan=...) -> (download with everything set, list of Range headers seen)."""
    running = []

    def start(data, plan=(), ranges=True, size=None, md5=None):
        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.data, httpd.plan, httpd.ranges, httpd.requests = data, list(plan), ranges, []
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(httpd)
        entry = ("12", len(data) if size is None else size, md5 or hashlib.md5(data).hexdigest())
        get = functools.partial(
            download,
            "dev-toy",
            mirror=f"http://127.0.0.1:{httpd.server_port}",
            archives={"dev-toy": entry},
            pause=0.0,
            show=False,
        )
        return get, httpd.requests

    yield start
    for httpd in running:
        httpd.shutdown()
        httpd.server_close()


def assert_in_place(folder, to):
    assert folder == to / "LibriSpeech" / "dev-toy"
    assert (folder / "1" / "2" / "1-2-0000.flac").stat().st_size == 300_000
    assert (folder / ".complete").exists() and (to / "LibriSpeech" / "README.TXT").read_text() == "hello"
    assert sorted(p.name for p in to.iterdir()) == ["LibriSpeech"]  # no archive, no leftovers
    utterances, problems = read_part(folder)
    assert [u.text for u in utterances] == ["HELLO"] and problems == []


def test_download_and_do_nothing_the_second_time(tmp_path, server):
    get, requests = server(archive_bytes())
    assert_in_place(get(tmp_path), tmp_path)
    assert get(tmp_path) == tmp_path / "LibriSpeech" / "dev-toy" and len(requests) == 1


def test_dropped_connections_are_resumed_where_they_broke(tmp_path, server):
    get, requests = server(archive_bytes(), plan=[100_000, "503", 50_000, 0, None])
    assert_in_place(get(tmp_path), tmp_path)
    assert requests == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_an_interrupted_run_is_continued_by_the_next(tmp_path, server):
    data = archive_bytes()
    get, requests = server(data, plan=[70_000, 0, 0, 0, 0])
    with pytest.raises(UserError, match=r"70000 of .* bytes are here.*continues"):
        get(tmp_path, retries=3)
    assert (tmp_path / "dev-toy.tar.gz.part").read_bytes() == data[:70_000]
    assert_in_place(get(tmp_path), tmp_path)
    assert requests[-1] == "bytes=70000-"


def test_a_server_that_ignores_ranges(tmp_path, server):
    get, requests = server(archive_bytes(), plan=[100_000, None], ranges=False)
    assert_in_place(get(tmp_path), tmp_path)
    assert requests == [None, "bytes=100000-"]


def test_wrong_md5_is_noticed_and_not_kept(tmp_path, server):
    get, _ = server(archive_bytes(), md5="0" * 32)
    with pytest.raises(UserError, match="md5 .* where 0000"):
        get(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing that a second run would trust


def test_wrong_size_missing_file_and_no_network(tmp_path, server):
    data = archive_bytes()
    get, _ = server(data, size=len(data) + 5)
    with pytest.raises(UserError, match="another file"):
        get(tmp_path)
    get, requests = server(data, plan=["404"])
    with pytest.raises(UserError, match="404"):
        get(tmp_path)
    assert len(requests) == 1  # what is not there is not asked for again
    with pytest.raises(UserError, match="check the network"):
        download("dev-toy", tmp_path, "http://127.0.0.1:9", {"dev-toy": ("12", 9, "")}, pause=0.0, show=False)
    with pytest.raises(UserError, match="no part 'dev-cleam'.*dev-clean"):
        download("dev-cleam", tmp_path)


def test_a_full_disk_is_noticed_before_the_download(tmp_path, server):
    get, requests = server(archive_bytes(), size=10**18)
    with pytest.raises(UserError, match="GB free"):
        get(tmp_path)
    assert requests == []


def test_an_existing_archive_is_used_and_kept_if_asked(tmp_path, server):
    data = archive_bytes()
    get, requests = server(data)
    (tmp_path / "dev-toy.tar.gz").write_bytes(data)
    get(tmp_path, keep_archive=True)
    assert requests == [] and (tmp_path / "dev-toy.tar.gz").read_bytes() == data


def test_a_folder_without_marker_is_not_trusted(tmp_path, server):
    get, requests = server(archive_bytes())
    (tmp_path / "LibriSpeech" / "dev-toy").mkdir(parents=True)
    with pytest.raises(UserError, match="without a completion marker"):
        get(tmp_path)
    (tmp_path / "LibriSpeech" / "dev-toy" / ".complete").touch()
    get(tmp_path)
    assert requests == []


def evil_members():
    def member(name, **fields):
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        return info

    yield member("../evil.txt", size=3)
    yield member("LibriSpeech/../../evil.txt", size=3)
    yield member("/evil.txt", size=3)
    yield member("LibriSpeech\\..\\..\\evil.txt", size=3)
    yield member("LibriSpeech/link", type=tarfile.SYMTYPE, linkname="../../..")
    yield member("LibriSpeech/hard", type=tarfile.LNKTYPE, linkname="/etc/hostname")
    yield member("LibriSpeech/pipe", type=tarfile.FIFOTYPE)


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
@pytest.mark.parametrize("with_filter", [True, False])
@pytest.mark.parametrize("member", list(evil_members()), ids=lambda m: m.name)
def test_malicious_archives_put_nothing_in_place(tmp_path, server, monkeypatch, member, with_filter):
    if not with_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)  # as on early 3.10 and 3.11
    get, _ = server(archive_bytes(extra=[member]))
    to = tmp_path / "deep" / "to"
    with pytest.raises(UserError, match="not a plain file inside it"):
        get(to)
    assert [p.name for p in to.iterdir()] == ["dev-toy.tar.gz"]
    assert not list(tmp_path.rglob("evil*")) and not os.path.exists("/evil.txt")


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_good_archives_unpack_without_the_filter_too(tmp_path, server, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    get, _ = server(archive_bytes())
    assert_in_place(get(tmp_path), tmp_path)


def test_an_archive_of_something_else_and_one_cut_short(tmp_path, server):
    get, _ = server(archive_bytes(part="other"))
    with pytest.raises(UserError, match="no folder LibriSpeech/dev-toy"):
        get(tmp_path / "a")
    get, _ = server(archive_bytes()[:200_000])  # the md5 matches: damaged before it was published
    with pytest.raises(UserError, match="cannot be unpacked"):
        get(tmp_path / "b")
    assert not (tmp_path / "b" / "LibriSpeech").exists()


def test_an_interrupted_unpacking_starts_again(tmp_path, server, monkeypatch):
    get, _ = server(archive_bytes())
    real = tarfile.TarFile.extract

    def extract_two(self, member, *rest, **options):
        if member.name.endswith(".trans.txt"):
            raise Stop
        return real(self, member, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", extract_two)
        with pytest.raises(Stop):
            get(tmp_path)
    assert not (tmp_path / "LibriSpeech").exists()
    assert_in_place(get(tmp_path), tmp_path)


# --- a server that means harm ----------------------------------------------------------------------------------


@pytest.fixture
def hostile(monkeypatch):
    """hostile(act) -> (get, seen): a server that calls act(send, number of the request), `send` taking bytes.

    seen is {"requests", "sent"}; a test bounds both.  When act returns, the connection is closed.
    """
    monkeypatch.setattr(download_file, "PATIENCE", 0.4)
    monkeypatch.setattr(download_file, "PACE", 1000)
    running = []

    def start(act, data=b"x" * 100_000, scheme="http"):
        seen = {"requests": 0, "sent": 0}

        class Raw(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.settimeout(5)
                while b"\r\n\r\n" not in self.request.recv(10_000):
                    pass
                seen["requests"] += 1

                def send(data):
                    self.request.sendall(data)
                    seen["sent"] += len(data)

                with contextlib.suppress(OSError):  # the client has had enough
                    if seen["requests"] <= 50:  # otherwise what should end and does not would keep the tests for ever
                        act(send, seen["requests"])
                    else:
                        send(b"HTTP/1.1 404 Enough\r\n\r\n")

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Raw)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        seen["address"] = f"127.0.0.1:{server.server_address[1]}"
        archives = {"dev-toy": ("12", len(data), hashlib.md5(data).hexdigest())}
        get = functools.partial(
            download, "dev-toy", mirror=f"{scheme}://{seen['address']}", archives=archives, pause=0.0, show=False
        )
        return get, seen

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


OK = b"HTTP/1.1 200 OK\r\n"


def until_closed(send, data, most=50_000_000):
    for _ in range(most // len(data)):
        send(data)


def in_one_line(get, to, sentence, seconds=15):
    """The download ends in one sentence, soon, and leaves no more on the disk than the archive is long."""
    start = time.monotonic()
    with pytest.raises(UserError, match=sentence) as caught:
        get(to)
    assert time.monotonic() - start < seconds
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert sum(path.stat().st_size for path in to.rglob("*") if path.is_file()) <= 100_000


def test_an_endless_body_ends_at_the_known_size(tmp_path, hostile):
    get, seen = hostile(lambda send, _: (send(OK + b"\r\n"), until_closed(send, b"y" * 50_000)))
    in_one_line(get, tmp_path, "md5 .* damaged and is now deleted")
    assert seen["requests"] == 1 and seen["sent"] < 40_000_000  # what the kernel's buffers take
    assert list(tmp_path.iterdir()) == []


def test_a_good_archive_with_something_behind_it_is_taken(tmp_path, hostile):
    """Without a length it came too long, and was asked for again and again."""
    data = archive_bytes()
    get, seen = hostile(lambda send, _: send(OK + b"\r\n" + data + b"more"), data)
    assert_in_place(get(tmp_path), tmp_path)
    assert seen["requests"] == 1


def test_an_endless_body_of_chunks(tmp_path, hostile):
    def act(send, _):
        send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        until_closed(send, b"ffff\r\n" + b"y" * 65535 + b"\r\n")

    get, seen = hostile(act)
    in_one_line(get, tmp_path, "md5")
    assert seen["requests"] == 1


@pytest.mark.parametrize("length", ["abc", "-5", "1e5", "", "100000, 100000", "9" * 5000, "0x10", "\u0661"])
def test_lengths_that_are_none(tmp_path, hostile, length):
    get, seen = hostile(lambda send, _: send(OK + f"Content-Length: {length}\r\n\r\n".encode() + b"y" * 100))
    in_one_line(get, tmp_path, "the length .* is not a number")
    assert seen["requests"] <= 4


def test_a_range_that_is_none(tmp_path, hostile):
    answer = b"HTTP/1.1 206 Partial Content\r\nContent-Range: \x1b[2Jbytes\r\n\r\n" + b"y" * 100
    get, seen = hostile(lambda send, _: send(answer))
    in_one_line(get, tmp_path, "asked for bytes from 0")
    assert seen["requests"] <= 4


@pytest.mark.parametrize("beginning", [
    b"", OK, OK + b"\r\n", OK + b"Content-Length: 100000\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n",
])  # fmt: skip
def test_a_server_that_drips_is_given_up(tmp_path, hostile, beginning):
    """A byte now and then, in the status, the headers, the body, or a chunk's length: no read ever times out."""

    def act(send, _):
        send(beginning)
        for _ in range(200):
            send(b"0")
            time.sleep(0.1)

    get, seen = hostile(act)
    in_one_line(functools.partial(get, retries=2), tmp_path, "fewer than 1000 bytes came in 0.4 s")
    assert seen["requests"] <= 4


def test_a_server_that_says_nothing_and_one_that_never_comes_to_the_point(tmp_path, hostile):
    get, seen = hostile(lambda send, _: time.sleep(8))
    in_one_line(get, tmp_path, "timed out")
    get, seen = hostile(lambda send, _: until_closed(send, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000))
    in_one_line(get, tmp_path, "could not be downloaded")
    assert seen["requests"] <= 4


def test_a_steady_server_may_take_longer_than_our_patience(tmp_path, hostile):
    data = archive_bytes()

    def act(send, _):
        send(OK + b"\r\n")
        for start in range(0, len(data), 20_000):
            send(data[start : start + 20_000])
            time.sleep(0.1)

    get, seen = hostile(act, data)
    assert_in_place(get(tmp_path), tmp_path)
    assert seen["requests"] == 1


def test_a_server_that_begins_again_and_again_is_given_up(tmp_path, hostile):
    """It ignores ranges and breaks off, now sooner, now later; or sends a byte and breaks off."""
    get, seen = hostile(lambda send, n: send(OK + b"\r\n" + b"y" * (50_000 if n % 2 else 20_000)))
    in_one_line(get, tmp_path / "a", "broke off")
    assert seen["requests"] <= 10

    def a_byte(send, n):
        send(f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {n - 1}-99999/100000\r\n\r\ny".encode())

    get, seen = hostile(a_byte)
    in_one_line(get, tmp_path / "b", "broke off")
    assert seen["requests"] <= 10


@pytest.mark.parametrize("location", [
    "http://[::1", "http://[x]/", "http://127.0.0.1:99999/", "http://127.0.0.1:-5/", "http://127.0.0.1:x/", "http:///",
    "http://" + "a" * 70 + ".invalid/", "http://\u00e9.\u00e9..x/", "http://[v1.a]/", "ftp://127.0.0.1/x",
    "file:///etc/passwd", "//", "", "http://127.0.0.1:1/\x01",
])  # fmt: skip
def test_redirects_that_lead_nowhere(tmp_path, hostile, location):
    answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    get, seen = hostile(lambda send, _: send(answer))
    in_one_line(get, tmp_path, "could not be downloaded|not https")
    assert seen["requests"] <= 12


def test_redirects_in_circles_and_with_an_endless_body(tmp_path, hostile):
    def circle(send, n):
        send(f"HTTP/1.1 302 F\x1b[2J\r\nLocation: /{n}\r\n\r\n".encode())
        until_closed(send, b"y" * 10_000, most=100_000_000)

    get, seen = hostile(circle)
    in_one_line(get, tmp_path, "HTTP 302 Found")
    assert seen["requests"] <= 12 and seen["sent"] < 12 * 8_000_000


def test_a_redirect_is_followed_but_https_never_becomes_http(tmp_path, hostile, monkeypatch):
    data = archive_bytes()
    to, whole = hostile(lambda send, _: send(OK + b"\r\n" + data), data)
    location = f"Location: http://{whole['address']}/x\r\n\r\n".encode()
    get, _ = hostile(lambda send, _: send(b"HTTP/1.1 301 Moved\r\n" + location), data)
    assert_in_place(get(tmp_path / "a"), tmp_path / "a")
    assert whole["requests"] == 1

    monkeypatch.setattr(download_file, "_HTTPS", download_file._HTTP)  # TLS would need a certificate
    get, seen = hostile(lambda send, _: send(b"HTTP/1.1 301 Moved\r\n" + location), data, scheme="https")
    in_one_line(get, tmp_path / "b", "not https")
    assert (whole["requests"], seen["requests"]) == (1, 1)


@pytest.mark.parametrize("mirror", ["ftp://127.0.0.1", "file:///etc", "", "/tmp", "http://[::1", "http://"])
def test_mirrors_that_are_none(tmp_path, mirror):
    archives = {"dev-toy": ("12", 9, "")}
    get = functools.partial(download, "dev-toy", mirror=mirror, archives=archives, pause=0.0, show=False)
    in_one_line(get, tmp_path, "mirror|could not be downloaded")


@pytest.mark.parametrize("trap", ["symlink_to", "hardlink_to", "dangling", "pipe"])
def test_what_stands_in_place_of_the_partial_file_is_not_written_through(tmp_path, server, monkeypatch, trap):
    get, requests = server(archive_bytes())
    partial, victim = tmp_path / "dev-toy.tar.gz.part", tmp_path / "victim"
    victim.write_text("precious")
    if trap == "pipe":
        os.mkfifo(partial)
        reader = os.open(partial, os.O_RDONLY | os.O_NONBLOCK)  # without the mend: a failure, and no waiting for ever
    elif trap == "dangling":
        partial.symlink_to(tmp_path / "born by a download")
    else:
        getattr(partial, trap)(victim)
    with pytest.raises(UserError, match="part is not a plain file of its own; delete it"):
        get(tmp_path)
    assert victim.read_text() == "precious" and requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev-toy.tar.gz.part", "victim"]
    if trap == "pipe":
        os.close(reader)
    elif trap == "symlink_to":  # ... and a link that appears after the look
        monkeypatch.setattr(download_file, "_size", lambda path: 0)
        with pytest.raises(UserError, match="symbolic link"):
            get(tmp_path)
        assert victim.read_text() == "precious"


def test_archives_with_paths_too_deep_and_too_long(tmp_path, server):
    for name in ("LibriSpeech/" + "d/" * 3000 + "f", "d/" * 9 + "f", "LibriSpeech/" + "n" * 300):
        get, _ = server(archive_bytes(extra=[tarfile.TarInfo(name)]))
        with pytest.raises(UserError, match="a few folders deep") as caught:
            get(tmp_path)
        assert len(str(caught.value)) < 600
        assert [path.name for path in tmp_path.iterdir()] == ["dev-toy.tar.gz"]
        (tmp_path / "dev-toy.tar.gz").unlink()


def test_archives_that_break_tarfile(tmp_path, server):
    """Long names in long names in ... (RecursionError), a date beyond the clock, a broken deflate stream."""
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 1
    nested = gzip.compress((link.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 3000)
    late = tarfile.TarInfo("LibriSpeech/dev-toy/late")
    late.mtime = 2**80
    long = tarfile.TarInfo("LibriSpeech/dev-toy/long")
    long.size = 10**6
    broken = bytearray(archive_bytes(extra=[long]))
    broken[-300:-100] = b"\xff" * 200
    for i, data in enumerate((nested, archive_bytes(extra=[late]), bytes(broken))):
        get, _ = server(data)
        with pytest.raises(UserError, match="cannot be unpacked"):
            get(tmp_path / str(i))


def test_archive_table_is_the_published_one():
    assert len(ARCHIVES) == 9
    assert sum(ARCHIVES[p][1] for p in ROLES["train"] if p in ARCHIVES) == 60363243380
    assert all(len(md5) == 32 and number in ("12", "31") for number, _, md5 in ARCHIVES.values())


def test_commands_refuse_in_one_sentence(tmp_path, capsys):
    assert download_file.main(["dev-clean", "dev-cleam", "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("download: ") and "dev-cleam" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
