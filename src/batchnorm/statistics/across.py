"""Populations of which several processes have a share each: merged in the order of ranks, to the same bits for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from batchnorm.kernels.interface import Statistics
from batchnorm.statistics.population import Population


@contextmanager
def together(group: distributed.ProcessGroup, measured: Mapping[nn.Module, Population]) -> Iterator[None]:
    """Merge what the block has measured with what it has measured in the other processes of ``group``.

    Parameters
    ----------
    group : ProcessGroup
        Who takes part: all of its processes, each with the same layers.
    measured : dict of nn.Module to Population
        Filled inside the block, each process with its share, and with everything behind it.

    Yields
    ------
    None

    Raises
    ------
    RuntimeError
        The block has raised in another process. Where it raises in this one, the others are told, and do not wait.
    """
    try:
        yield
    except BaseException:
        gather(torch.zeros(_length(measured) + 1, dtype=torch.float64), group)
        raise
    mine = torch.cat([torch.ones(1, dtype=torch.float64), *(_packed(layer, p) for layer, p in measured.items())])
    shares = gather(mine, group)
    failed = [rank for rank, share in enumerate(shares) if share[0] == 0]
    if failed:
        raise RuntimeError(
            f"recalibration needs the share of every process; ranks {failed} of the group raised. Their messages say "
            "why; the model is as it was."
        )
    for population in measured.values():
        population.whole, population.calls = None, 0
    for share in shares:
        rest = share[1:]
        for layer, population in measured.items():
            size = _size(layer)
            population.merge(_unpacked(rest[:size]))
            rest = rest[size:]


def gather(mine: Tensor, group: distributed.ProcessGroup) -> list[Tensor]:
    """Return the tensor of each rank of ``group``, all of one shape, on the CPU."""
    on_device = mine.cuda() if distributed.get_backend(group) == "nccl" else mine
    shares = [torch.empty_like(on_device) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(shares, on_device, group)
    return [share.cpu() for share in shares]


def _size(layer: nn.Module) -> int:
    channels: Any = layer.num_features  # an int, in batch normalization
    return 2 + 3 * int(channels)


def _length(measured: Mapping[nn.Module, Population]) -> int:
    return sum(map(_size, measured))


def _packed(layer: nn.Module, population: Population) -> Tensor:
    """Put a share into one vector; numbers up to 2**53 are exact in float64."""
    if population.whole is None:
        return torch.zeros(_size(layer), dtype=torch.float64)
    head = torch.tensor([population.count, population.calls], dtype=torch.float64)
    of_channels = (population.whole.mean, population.whole.var, population.within)
    return torch.cat([head, *(t.double().cpu().view(-1) for t in of_channels)])


def _unpacked(share: Tensor) -> Population:
    count, calls = share[:1].view(1, 1), int(share[1])
    mean, var, within = share[2:].view(3, 1, -1)
    return Population("", Statistics(mean, var, count) if count > 0 else None, within, calls)
