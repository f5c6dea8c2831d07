"""Keep memory that was freed, because the next step of training wants it again; and how much there is."""

import contextlib
import ctypes
from pathlib import Path

STATUS = Path("/proc/self/status")


def anonymous_memory():
    """Bytes of this process's memory that are no file's (maps of the feature store do not count); None if unknown."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = STATUS.read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))
    return None


def keep_freed_memory():
    """Ask glibc to keep freed blocks instead of returning them to the kernel (True if it agreed).

    Every activation is a fresh array, and to hand its pages back and get them again at the next step costs time
    (docs/speed.md).  Nothing happens where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        largest = 2**31 - 1
        return bool(
            libc.mallopt(m_mmap_threshold, 2**30)
            and libc.mallopt(m_trim_threshold, largest)
            and libc.mallopt(m_top_pad, 64 * 2**20)
        )
    except (OSError, AttributeError):
        return False
