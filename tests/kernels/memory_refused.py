"""Take and free outputs while the system refuses mappings (refuse.c is preloaded); every tensor must stay whole."""

from __future__ import annotations

import ctypes
import sys

import torch

from batchnorm.kernels import native

MIB = 2**20
FOREVER = 2**40
#: Bytes of outputs that are freed, then of outputs assembled from their pages, of which two are freed, then the rest.
FIRST = [6 * MIB, 4 * MIB, 4 * MIB, 640 << 10, 320 << 10, 128 << 10]
SECOND = [10 * MIB, 960 << 10, 2 * MIB, 64 << 10]
THIRD = [8 * MIB, 3 * MIB, 512 << 10, 192 << 10]
INPUTS = {size: torch.zeros(size // 256, 64) for size in {*FIRST, *SECOND, *THIRD}}


def _take(sizes: list[int]) -> list[torch.Tensor]:
    """Return one value of each page of new outputs, filled with their numbers."""
    return [native._native.empty_like(INPUTS[size]).view(-1)[::1024].fill_(i) for i, size in enumerate(sizes)]


def _look(tensors: list[torch.Tensor], numbers: list[int]) -> None:
    for tensor, number in zip(tensors, numbers, strict=True):
        assert (tensor == number).all(), number


def _come_and_go() -> None:
    first = _take(FIRST)
    _look(first, [*range(len(FIRST))])
    del first
    second = _take(SECOND)
    _look(second, [*range(len(SECOND))])
    del second[:2]
    third = _take(THIRD)
    _look(second, [2, 3])
    _look(third, [*range(len(THIRD))])


def main() -> None:
    """Refuse one call, every other or all, from each call on that `_come_and_go` makes; print the number of cases."""
    refuse = ctypes.CDLL(sys.argv[1]).refuse
    refuse.argtypes = [ctypes.c_long] * 3
    refuse.restype = ctypes.c_long
    cases = 0
    for length, every in ((1, 1), (FOREVER, 2), (FOREVER, 1)):
        start = made = 0
        while start <= made:
            native.release_kept_blocks()
            refuse(start, start + length, every)
            _come_and_go()
            made = refuse(FOREVER, FOREVER, 1)
            assert not any(used for _, used in native.blocks())
            _come_and_go()  # on what is kept now
            start += 1
            cases += 1
    native.release_kept_blocks()
    assert native.blocks() == []
    print(cases)  # noqa: T201


if __name__ == "__main__":
    main()
