"""Print the mappings that lending pages takes, with enough of them and with few."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

import batchnorm
from batchnorm.kernels import native

SMALL, MIDDLE = torch.zeros(260, 64), torch.zeros(7000, 64)  # 65 KiB and 1.7 MiB


def _mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def _touched(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return an output whose first and last page are in memory: untouched mappings would be merged."""
    y: torch.Tensor = native._native.empty_like(x)
    y[0] = y[-1] = number
    return y


def main() -> None:
    """Lend 16,000 grains of 64 KiB to larger outputs; again with 3,000 mappings left of vm.max_map_count."""
    batchnorm.limit_kept_memory(2**40)
    for left in (None, 3000):
        batchnorm.release_memory()
        filling = []
        if left is not None:
            try:
                while True:
                    filling.append(mmap.mmap(-1, mmap.PAGESIZE))  # shared: never merged with its neighbour
            except OSError:
                del filling[-left:]
        before = _mappings()
        small = [_touched(SMALL, number) for number in range(16_000)]
        del small
        middle = [_touched(MIDDLE, number) for number in range(560)]
        print(_mappings() - before)  # noqa: T201
        for number, output in enumerate(middle):
            assert (output[0] == number).all(), number
            assert (output[-1] == number).all(), number
        del middle


if __name__ == "__main__":
    main()
