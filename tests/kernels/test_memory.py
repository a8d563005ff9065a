"""Memory of large outputs: taken once, lent from one size to another, never shared by two tensors that live."""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import sys

import pytest
import torch

from batchnorm.kernels import native
from batchnorm.kernels.interface import Epilogue, Statistics

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)

#: Bytes: large pages, one that is not a multiple of them, small ones, and the last size before a large page.
SIZES = [16 << 20, 9 << 20, (5 << 20) + 4096, 300 << 10, 70 << 10, (2 << 20) - 4096]


@functools.cache
def _input(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x of so many bytes, and statistics to normalize it with."""
    return torch.ones(size // 256, 64), torch.zeros(64).double(), torch.ones(64).double()


def _output(size: int) -> torch.Tensor:
    x, mean, var = _input(size)
    y: torch.Tensor = native.normalize(x, Statistics(mean, var), None, Epilogue(), 0.0)
    return y


def test_no_two_living_tensors_share_memory() -> None:
    """In an order drawn at random, tensors of all sizes come and go; each keeps the number that it was filled with."""
    generator = torch.Generator().manual_seed(0)
    living: dict[int, torch.Tensor] = {}
    for number in range(300):
        draw = torch.randint(100, (2,), generator=generator).tolist()
        living[number] = _output(SIZES[draw[0] % len(SIZES)]).fill_(number)
        while len(living) > 6:
            gone = list(living)[draw[1] % len(living)]
            assert (living.pop(gone) == gone).all(), gone
    for number, tensor in living.items():
        assert (tensor == number).all()


def _faults_of_a_step() -> int:
    """Do what a network does: small outputs live after the forward pass, large ones after the backward pass."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    forward = [_output(size) for size in (16 << 20, 16 << 20, 4 << 20, 4 << 20, 1 << 20, 1 << 20)]
    while forward:
        gradient = _output(4 * forward[-1].numel())
        forward.pop()
        del gradient
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer faults in pages of its own")
def test_sizes_that_take_turns_fault_in_nothing_anew() -> None:
    # In a process of its own: in this one other tests may have had more in use at once.
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) < 3  # where blocks go back to the system and come again: large pages, 14


if __name__ == "__main__":
    print(*[_faults_of_a_step() for _ in range(8)][3:])  # noqa: T201
