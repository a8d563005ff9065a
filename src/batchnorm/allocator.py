"""What to tell the system's allocator before training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# mallopt(3), malloc.h of glibc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 << 20
_NEVER = 2**31 - 1


def tune_allocator() -> bool:
    """Keep large blocks in the process, so that tensors of a training step are not faulted in anew at each step.

    By default glibc maps each block of more than 32 MB freshly and unmaps it when it dies; clearing its pages again
    costs more than most kernels that write it. After this call such blocks come from the heap and stay there. It is for
    the whole process, holds until its end, and costs the memory that the system would have got back between steps.

    Returns
    -------
    bool
        Whether the allocator took it. False without glibc, where nothing is changed.

    Examples
    --------
    >>> import batchnorm
    >>> done = batchnorm.tune_allocator()
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(option, value) == 1 for option, value in settings)
