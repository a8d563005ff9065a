"""Memory of large outputs: taken once, lent from one size to another, never shared by two tensors that live."""

from __future__ import annotations

import functools
import resource

import pytest
import torch

from batchnorm.kernels import native

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
    y: torch.Tensor = native.normalize(x, None, mean, var, None, None, 0.0, None)
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


def test_sizes_that_take_turns_fault_in_nothing_anew() -> None:
    """As in a network: small outputs live after the forward pass, large ones after the backward pass."""

    def step() -> None:
        forward = [_output(size) for size in (16 << 20, 16 << 20, 4 << 20, 4 << 20, 1 << 20, 1 << 20)]
        while forward:
            gradient = _output(4 * forward[-1].numel())
            forward.pop()
            del gradient
        again = [_output(16 << 20) for _ in range(2)]
        del again

    for _ in range(3):
        step()
    faults = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) < 3  # of large pages, where blocks go back to the system and come again: a dozen
