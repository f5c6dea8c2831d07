"""download.py: a hostile server, broken connections, evil archives, interrupted unpacking."""

import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading

import numpy as np
import pytest

from mini_pkd import UserError
from mini_pkd import download as download_file
from mini_pkd.corpus import ROLES, read_part
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


def test_archive_table_is_the_published_one():
    assert len(ARCHIVES) == 9
    assert sum(ARCHIVES[p][1] for p in ROLES["train"] if p in ARCHIVES) == 60363243380
    assert all(len(md5) == 32 and number in ("12", "31") for number, _, md5 in ARCHIVES.values())


def test_commands_refuse_in_one_sentence(tmp_path, capsys):
    assert download_file.main(["dev-clean", "dev-cleam", "--to", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("download: ") and "dev-cleam" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
