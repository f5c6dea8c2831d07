"""Keep memory that was freed: the next step of training wants it again."""

import ctypes


def keep_freed_memory():
    """Ask glibc to keep freed blocks instead of returning them to the kernel (True if it agreed).

    Every activation is a fresh array; handing its pages back and faulting them in again at the next step
    cost 1.1x to 1.55x of whole training steps here.  Elsewhere than on glibc nothing happens.
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
