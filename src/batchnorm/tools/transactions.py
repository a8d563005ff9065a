"""Hold running statistics for a while (`hold_statistics`), or update them once for several forwards (`deferred`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from batchnorm import functional
from batchnorm.kernels.interface import Running, Statistics
from batchnorm.statistics.policies import Ledger, Policy
from batchnorm.statistics.population import merge
from batchnorm.tools import preserve, swap
from batchnorm.tools.walk import normalizations, require_module


@dataclass(frozen=True)
class _Nowhere:
    """A ledger in which nothing is taken down."""

    def take(self, *_: Any) -> None:
        """Forget."""


@contextmanager
def hold_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics and counters of a model as they are, whatever is done in the block.

    For passes that a training step makes on the side: the second one of sharpness-aware minimization, a forward of
    another loss, a look at gradients. Outputs and gradients are those of training mode.

    Parameters
    ----------
    model : nn.Module
        With any batch normalization: this package's layers, fused or not, and torch's, whose buffers are put back at
        the end of the block.

    Yields
    ------
    None

    Raises
    ------
    TypeError
        ``model`` is no module.

    References
    ----------
    Foret et al. 2021, :arxiv:`2010.01412`.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(batchnorm.BatchNorm1d(3))
    >>> with batchnorm.hold_statistics(model):
    ...     y = model(torch.randn(8, 3))
    >>> model[0].running_mean, model[0].num_batches_tracked
    (tensor([0., 0., 0.]), tensor(0))
    """
    require_module(model, "hold_statistics")
    with ExitStack() as stack:
        for _, layer, _ in normalizations(model):
            if swap.is_ours(layer):
                stack.enter_context(_with_ledger(layer, _Nowhere()))
            elif isinstance(layer, _NormBase):
                stack.enter_context(preserve.buffers(layer))
        yield


class Deferred:
    """What the forwards of a model have found since the last commit; made by `deferred`."""

    def __init__(self) -> None:
        self._taken: dict[int, _Taken] = {}

    def take(
        self, policy: Policy, running: Running, statistics: Statistics, momentum: float | Tensor | None, eps: float
    ) -> None:
        """Take down one forward of one layer."""
        detached = Statistics(*(t.detach() for t in statistics if t is not None))
        taken = self._taken.get(id(running.mean))  # the buffer stays alive: it is in `running`
        if taken is None:
            self._taken[id(running.mean)] = _Taken(replace(policy, ledger=None), running, detached, momentum, eps)
        else:
            taken.statistics = _pooled(taken.statistics, detached)

    def commit(self) -> None:
        """Let everything that was found since the last commit enter the running statistics, as one batch."""
        for taken in self._taken.values():
            functional.remember(taken.policy, taken.running, taken.statistics, taken.momentum, taken.eps)
        self.roll_back()

    def roll_back(self) -> None:
        """Forget everything that was found since the last commit."""
        self._taken.clear()


@dataclass
class _Taken:
    policy: Policy
    running: Running
    statistics: Statistics
    momentum: float | Tensor | None
    eps: float


def _pooled(a: Statistics, b: Statistics) -> Statistics:
    """Return the statistics of both together; ghost batches stay apart, and follow each other."""
    if a.mean.shape[0] == b.mean.shape[0] == 1:
        return merge(a, b)
    return Statistics(*(torch.cat([of_a, of_b]) for of_a, of_b in zip(a, b, strict=True)))  # type: ignore[list-item]


@contextmanager
def deferred(model: nn.Module) -> Iterator[Deferred]:
    """Update the running statistics of a model once for all forwards in the block, and count one batch.

    With accumulated gradients a step is made of several forwards. In this block the running statistics wait until its
    end, or a ``commit``, and then move once, with the statistics of all values together: those of one large batch.

    Parameters
    ----------
    model : nn.Module
        With layers of this package; see `batchnorm.convert`.

    Yields
    ------
    Deferred
        ``commit()`` lets what was found so far enter; ``roll_back()`` forgets it, for a step that is skipped.

    Raises
    ------
    TypeError
        ``model`` is no module.
    ValueError
        A layer in training mode is not this package's, so nothing can be deferred in it.

    Notes
    -----
    If the block ends with an exception, what was not committed is forgotten. Each forward still normalizes with the
    statistics of its own batch.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(batchnorm.BatchNorm1d(2))
    >>> x = torch.randn(64, 2)
    >>> with batchnorm.deferred(model):
    ...     for part in x.split(16):
    ...         y = model(part)
    >>> torch.allclose(model[0].running_var, 0.9 + 0.1 * x.var(0)), model[0].num_batches_tracked
    (True, tensor(1))
    """
    require_module(model, "deferred")
    found = normalizations(model)
    foreign = [name for name, layer, _ in found if not swap.is_ours(layer) and _tracks(layer)]
    if foreign:
        raise ValueError(
            f"deferred updates need this package's layers; {', '.join(map(repr, foreign))} are others. "
            "Try batchnorm.convert(model)."
        )
    pending = Deferred()
    with ExitStack() as stack:
        for _, layer, _ in found:
            if swap.is_ours(layer):
                stack.enter_context(_with_ledger(layer, pending))
        yield pending
        pending.commit()


def _tracks(layer: nn.Module) -> bool:
    return isinstance(layer, _NormBase) and layer.training and layer.track_running_stats


@contextmanager
def _with_ledger(layer: Any, ledger: Ledger) -> Iterator[None]:
    former = layer.statistics
    layer.statistics = replace(former, ledger=ledger)
    try:
        yield
    finally:
        layer.statistics = former
