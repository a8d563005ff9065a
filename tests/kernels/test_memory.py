"""Memory of large outputs: taken once, lent from one size to another, never shared by two tensors that live."""

from __future__ import annotations

import resource

import pytest
import torch

from batchnorm.kernels import native

pytestmark = pytest.mark.skipif(
    native.refusal(torch.zeros(1, 1)) is not None, reason=str(native.refusal(torch.zeros(1, 1)))
)

#: Bytes: large pages, one that is not a multiple of them, small ones, and the last size before a large page.
SIZES = [16 << 20, 9 << 20, (5 << 20) + 4096, 300 << 10, 70 << 10, (2 << 20) - 4096]


def _output(size: int) -> torch.Tensor:
    y: torch.Tensor = native.normalize(torch.ones(2, size // 8), None, *_statistics(size // 8), None, None, 0.0, None)
    return y


def _statistics(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)


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
    assert min(faults) < 8  # a small block that had gone back to the system would be hundreds, a large one several
