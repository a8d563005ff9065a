"""Inspect, release and limit the memory kept for outputs on a CPU; tune the system's allocator."""

from __future__ import annotations

import ctypes
import operator
import platform
from dataclasses import dataclass
from typing import NamedTuple

from batchnorm.kernels import native

_MIB = 2**20

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


class SizeClass(NamedTuple):
    """Bytes of the blocks of one size class.

    Attributes
    ----------
    largest : int
        Largest block of the class, a power of two; its blocks have more than half as many bytes.
    in_use, kept : int
        Bytes that tensors use, and bytes kept for the next outputs.
    """

    largest: int
    in_use: int
    kept: int


@dataclass(frozen=True, repr=False)
class Memory:
    """Memory of the native backend's outputs of 64 KiB and more.

    Attributes
    ----------
    in_use : int
        Bytes that living tensors use.
    kept : int
        Bytes kept for the next outputs: what `release_memory` gives back.
    limit : int
        Most bytes that may be kept.
    by_size : tuple of SizeClass
        The same by size class, smallest first; each class that holds a block.
    """

    in_use: int
    kept: int
    limit: int
    by_size: tuple[SizeClass, ...]

    def __repr__(self) -> str:
        total = f"Memory: {self.in_use / _MIB:.1f} MiB in use, {self.kept / _MIB:.1f} MiB kept"
        lines = [f"{total} (limit {self.limit / _MIB:.1f} MiB)"]
        lines += [
            f"  blocks up to {size.largest / _MIB:8g} MiB: {size.in_use / _MIB:.1f} MiB in use, "
            f"{size.kept / _MIB:.1f} MiB kept"
            for size in self.by_size
        ]
        return "\n".join(lines)


def memory() -> Memory:
    """Return the bytes in use and kept for outputs on the CPU, in total and by size class.

    The native backend keeps the memory of an output of 64 KiB and more when the tensor is deleted, and gives it to the
    next output. Bytes in use and kept together do not exceed the most that was in use at once during the last 8,192 to
    16,384 outputs of that kind. Bytes kept do not exceed `limit_kept_memory`. After a training step on one tensor of
    206 MB the output and the gradient of the input, which existed at once, are kept: 412 MB.

    Returns
    -------
    Memory

    See Also
    --------
    release_memory : Give the kept bytes back to the system.
    limit_kept_memory : Change how many bytes may be kept.

    Examples
    --------
    >>> import batchnorm
    >>> kept = batchnorm.memory().kept
    >>> batchnorm.release_memory() == kept
    True
    """
    by_size: dict[int, list[int]] = {}
    for size, used in native.blocks():
        by_size.setdefault(1 << (size - 1).bit_length(), [0, 0])[0 if used else 1] += size
    rows = tuple(SizeClass(largest, *by_size[largest]) for largest in sorted(by_size))
    return Memory(sum(row.in_use for row in rows), sum(row.kept for row in rows), native.kept_limit(), rows)


def release_memory() -> int:
    """Give the memory kept for outputs back to the system.

    Tensors are not affected. The next outputs take new memory, which is kept again when they are deleted.

    Returns
    -------
    int
        Bytes given back.
    """
    return native.release_kept_blocks()


def limit_kept_memory(limit: int) -> int:
    """Set the most bytes that are kept for outputs on the CPU.

    The default is an eighth of the machine's memory, or of the control group's limit if that is smaller. It holds for
    the whole process. What exceeds a new limit is given back at once.

    Parameters
    ----------
    limit : int
        Bytes. 0: keep nothing and let torch allocate every output. The outputs can then be resized
        (`Tensor.resize_`, `UntypedStorage.resize_`), as code that frees activations does; with any other limit torch
        raises ``RuntimeError: Trying to resize storage that is not resizable``.

    Returns
    -------
    int
        The former limit.

    Raises
    ------
    ValueError
        The limit is negative.
    TypeError
        The limit is not an integer.

    Examples
    --------
    >>> import batchnorm
    >>> former = batchnorm.limit_kept_memory(256 * 2**20)
    >>> batchnorm.memory().limit
    268435456
    >>> batchnorm.limit_kept_memory(former)
    268435456
    """
    limit = operator.index(limit)
    if limit < 0:
        raise ValueError(f"the limit of kept memory must be 0 or more bytes; got {limit}. Try 0 to keep nothing.")
    former = native.kept_limit()
    native.limit_kept_blocks(limit)
    return former
