"""Keep memory that was freed: the next step of training wants it again."""

import ctypes


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
