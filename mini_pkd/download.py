"""The download: `python -m mini_pkd.download dev-clean test-clean --to DIR` fetches parts of LibriSpeech.

Nothing is trusted and nothing is lost.  A download that broke off continues where it was.  Size and md5 are checked
before anything is unpacked, only plain files below the target are unpacked, and a finished part appears in one step,
with a marker inside.  No more is read than an archive is long, a connection must bring PACE bytes in every PATIENCE
seconds, and https is never left for http.
"""

import hashlib
import io
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, responses
from pathlib import Path
from urllib.parse import urlsplit

from . import UserError
from .command import Parser, command, disk_errors, progress_bar
from .corpus_folder import scan
from .lock import no_follow

MIRROR = "https://www.openslr.org/resources"

# part: (folder at the mirror, bytes, md5)
ARCHIVES = {
    "dev-clean": ("12", 337926286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": ("12", 314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": ("12", 346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": ("12", 328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": ("12", 6387309499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": ("12", 23049477885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": ("12", 30593501606, "d1a0fd59409feb2c614ce4d30c387708"),
    "train-clean-5": ("31", 332954390, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": ("31", 126046265, "6d7ab67ac6a1d2c993d050e16d61080d"),
}
MARKER = ".complete"
PATIENCE, PACE = 60, 60_000  # a connection that brings fewer bytes in so many seconds is given up
DEPTH = 8  # most names in a path of an archive; LibriSpeech has five


def download(part, to, mirror=MIRROR, archives=ARCHIVES, retries=8, pause=2.0, keep_archive=False, show=True):
    """Fetch one part of LibriSpeech into <to>/LibriSpeech/<part>; returns that folder.

    It may be interrupted at any point, and the same call continues: the archive grows under a .part name, and the
    server is asked for the rest of it.  The part is unpacked into another folder, and moves into place in one step.
    """
    if part not in archives:
        raise UserError(f"there is no part {part!r}: choose from {', '.join(archives)}.")
    number, size, md5 = archives[part]
    to = Path(to)
    target = to / "LibriSpeech" / part
    if (target / MARKER).exists():
        return target
    if target.exists():
        raise UserError(
            f"{target} exists without a completion marker, so it may be half unpacked; delete it, or, if "
            f"you know that it is complete, create an empty file {target / MARKER}."
        )
    with disk_errors(to):
        to.mkdir(parents=True, exist_ok=True)
        archive = to / f"{part}.tar.gz"
        if not archive.exists():
            partial = to / f"{part}.tar.gz.part"
            _check_space(to, needed=2 * size - _size(partial))
            _fetch(f"{mirror}/{number}/{part}.tar.gz", partial, size, retries, pause, part if show else None)
            os.replace(partial, archive)
        _verify(archive, size, md5, f"{part} md5" if show else None)
        _unpack(archive, part, to, f"{part} unpack" if show else None)
        if not keep_archive:
            archive.unlink()
    return target


def _check_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free but archive and unpacked part need "
            f"{needed / 1e9:.1f} GB; free some space or choose another folder."
        )


def _size(path):
    """Bytes in a plain file, 0 if it does not exist; a link is refused, because the download would land elsewhere."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise UserError(f"{path} is not a plain file of its own; delete it and run the same command again.")
    return status.st_size


def _fetch(url, partial, size, retries, pause, label):
    """Grow `partial` to `size` bytes; a dropped connection is resumed where it broke off."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"{url} is not a web address; name a mirror that begins with https:// after --mirror.")
    failures, reason, arrived, most = 0, "", False, 0
    with progress_bar(label, total=size, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        while True:
            have = _size(partial)
            if have > size:  # left over from something else
                partial.unlink()
                have = 0
            bar.n = have
            if not arrived:
                bar.initial = have  # the ETA counts from here
            bar.refresh()
            if have == size:
                return
            # With no network at all, two more tries are enough to say so.
            if failures > (retries if arrived else min(retries, 2)):
                raise UserError(
                    f"{url} could not be downloaded ({reason}; {have} of {size} bytes are here): check the "
                    f"network, then run the same command again, it continues from there."
                )
            if failures:
                time.sleep(pause * min(failures, 15))
            try:
                _fetch_some(url, partial, have, size, bar)
                reason = "the connection broke off"
            except urllib.error.HTTPError as error:
                if error.code not in (408, 416, 425, 429) and error.code < 500:
                    raise UserError(
                        f"{url} could not be downloaded (HTTP {error.code} {responses.get(error.code, '')}): "
                        f"name another mirror with --mirror."
                    ) from None
                reason = f"HTTP {error.code} {responses.get(error.code, '')}"
            except urllib.error.URLError as error:
                reason = _printable(error.reason)
            except (HTTPException, ConnectionError) as error:
                reason = _printable(error) or type(error).__name__
            now, most = _size(partial), max(most, have)
            arrived = arrived or now > have
            # Only clearly more bytes than ever before count as progress: a server that starts again and again, or sends
            # a byte and hangs up, must not keep us for ever.
            failures = 1 if now >= min(most + PACE, size) else failures + 1
            most = max(most, now)


def _printable(error):
    """A server's words in one line: they may hold line ends and escape sequences."""
    return "".join(c if c.isprintable() else "?" for c in str(error)[:200])


class _SteadyStream(io.RawIOBase):
    """The bytes of a socket, as long as `useful` grows; a time-out alone counts per byte and would let a drip go on."""

    def __init__(self, raw):
        self.raw, self.since, self.useful = raw, time.monotonic(), 0

    def readable(self):
        return True

    def readinto(self, buffer):
        if time.monotonic() - self.since > PATIENCE:
            if self.useful < PACE:
                raise ConnectionError(f"fewer than {PACE} bytes came in {PATIENCE} s")
            self.since, self.useful = time.monotonic(), 0
        try:
            return self.raw.readinto(buffer)
        except OSError as error:  # also "no route to host": the network's fault, not the disk's
            raise ConnectionError(str(error)) from None

    def close(self):
        self.raw.close()
        super().close()


class _Response(HTTPResponse):
    """Status, headers and body through a _SteadyStream; only bytes of the body count as useful."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._stream = _SteadyStream(self.fp.detach())
        self.fp = io.BufferedReader(self._stream)

    def read1(self, n=-1):
        block = super().read1(n)
        self._stream.useful += len(block)
        return block


class _HTTP(HTTPConnection):
    response_class = _Response


class _HTTPS(HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request):
        return self.do_open(_HTTP, request)

    def https_open(self, request):
        return self.do_open(_HTTPS, request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, new_url):
        response.close()  # urllib reads the body of a redirect to its end, and it may have none
        if urlsplit(new_url).scheme not in ("https", urlsplit(request.full_url).scheme):
            raise UserError(
                f"{request.full_url} sends us on to {_printable(new_url)}, which is not https; "
                f"name another mirror with --mirror."
            )
        return super().redirect_request(request, response, code, message, headers, new_url)


def _fetch_some(url, partial, have, size, bar):
    opener = urllib.request.build_opener(_Handler, _Redirects)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mini_pkd"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        response = opener.open(request, timeout=PATIENCE)
    except (ValueError, OverflowError) as error:  # the address is malformed, in a redirect for instance
        raise HTTPException(str(error)) from None
    with response:
        promised = response.headers.get("Content-Length")
        if promised is not None and not re.fullmatch("[0-9]{1,18}", promised):
            raise HTTPException(f"the length {promised[:40]!r} is not a number")
        if response.status == 206:
            start = response.headers.get("Content-Range", "").removeprefix("bytes").strip().split("-")[0]
            if start != str(have):
                raise HTTPException(f"asked for bytes from {have}, was sent {start or 'something else'}")
        else:
            have = 0  # this server ignores ranges: from the start, then
        if promised is not None and have + int(promised) != size:
            raise UserError(
                f"{url} offers {have + int(promised)} bytes where LibriSpeech's archive has {size}: "
                f"this is another file; name another mirror with --mirror."
            )
        bar.n = have
        with open(partial, "ab" if have else "wb", opener=no_follow) as file:  # may be a link since _size looked
            # A body without a length may be endless; md5 will tell whether its first `size` bytes are the archive.
            while have < size and (block := response.read1(min(1 << 20, size - have))):
                file.write(block)
                have += len(block)
                bar.update(len(block))


def _verify(archive, size, md5, label):
    """Size and md5 of a finished download; a wrong one is deleted, so that the next run starts afresh."""
    found = archive.stat().st_size
    if found == size:
        digest = hashlib.md5(usedforsecurity=False)
        with open(archive, "rb") as file, progress_bar(label, total=size, unit="B", unit_scale=True) as bar:
            while block := file.read(1 << 22):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() == md5:
            return
        what = f"has md5 {digest.hexdigest()} where {md5} is expected"
    else:
        what = f"has {found} bytes where {size} are expected"
    archive.unlink()
    raise UserError(f"{archive} {what}, so it was damaged and is now deleted; run the same command again.")


def _check_member(member, archive):
    """Only plain files and folders, only below the folder of extraction, and not so deep that paths become too long."""
    names = member.name.replace("\\", "/").split("/")
    drive = len(member.name) > 1 and member.name[1] == ":"
    deep = len(names) > DEPTH or len(member.name) > 255
    if not (member.isfile() or member.isdir()) or names[0] == "" or ".." in names or drive or deep:
        raise UserError(
            f"{archive} holds the entry {member.name[:80]!r}, which is not a plain file inside it, a few folders deep, "
            f"so it is not LibriSpeech's archive and nothing of it was put in place; delete it."
        )


def _unpack(archive, part, to, label):
    beside = to / f".unpacking-{part}"
    shutil.rmtree(beside, ignore_errors=True)  # what an earlier, interrupted run left
    beside.mkdir()
    # Pythons that have the filter (3.10.12, 3.11.4, 3.12 and on) apply their own checks after ours.
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with tarfile.open(archive, "r:gz") as tar, progress_bar(label, unit="file") as bar:
            for member in tar:
                _check_member(member, archive)
                tar.extract(member, beside, **safely)
                bar.update()
        unpacked = beside / "LibriSpeech" / part
        if not unpacked.is_dir():
            raise UserError(f"{archive} holds no folder LibriSpeech/{part}; delete it.")
        (to / "LibriSpeech").mkdir(exist_ok=True)
        for name, path in scan(beside / "LibriSpeech")[1]:  # README.TXT, SPEAKERS.TXT, ...
            os.replace(path, to / "LibriSpeech" / name)
        (unpacked / MARKER).write_text("unpacked by mini_pkd.download\n")
        os.replace(unpacked, to / "LibriSpeech" / part)
    except Exception as error:  # tarfile, gzip and zlib fail in a dozen ways, RecursionError among them
        if isinstance(error, UserError) or getattr(error, "errno", None):  # the latter is the disk's
            raise
        raise UserError(
            f"{archive} cannot be unpacked ({_printable(error)}); delete it and run the same command again."
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@command("download")
def main(arguments=None):
    parser = Parser("download", description="Fetch parts of LibriSpeech; interrupted, it continues.")
    parser.add_argument("parts", nargs="+", metavar="PART", help=", ".join(ARCHIVES))
    parser.add_argument("--to", required=True, metavar="DIR", help="parts end up in DIR/LibriSpeech/PART")
    parser.add_argument("--mirror", default=MIRROR, help="where the archives are (default %(default)s)")
    parser.add_argument("--keep-archives", action="store_true", help="do not delete archives after unpacking")
    options = parser.parse_args(arguments)
    try:
        for part in options.parts:  # a misspelt part is found now, not after the 23 GB of the one before it
            if part not in ARCHIVES:
                raise UserError(f"there is no part {part!r}: choose from {', '.join(ARCHIVES)}.")
        for part in options.parts:
            folder = download(part, options.to, options.mirror, keep_archive=options.keep_archives)
            print(f"{part} is complete in {folder}")
    except KeyboardInterrupt:
        print("download: stopped; the same command continues where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
