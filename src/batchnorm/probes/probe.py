"""Define a probe: watch one training step, measure after the backward pass, change nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

#: A histogram is {"low": float, "high": float, "counts": list of 32 int}.
Value = float | list[float] | dict[str, float | list[int]]


@dataclass(frozen=True)
class Step:
    """One training step, between the backward pass and the optimizer's step.

    Parameters
    ----------
    model : Module
        The network itself, not a wrapper for distributed training: a probe sees the share of one process.
    closure : callable
        Compute the loss of the same batch at the present weights, with its graph, in training mode. It must call
        ``model`` itself, under autocast if training does: Fabric's wrapper refuses foreign backward passes in mixed
        precision, and a distributed wrapper would wait for other processes. With gradient accumulation, the loss of
        the last share.
    optimizer : Optimizer
        The optimizer whose step comes next. Its gradients are ``parameter.grad``.
    scale : float, default=1.0
        The factor in the gradients until the optimizer steps: a ``GradScaler``'s scale, or 1 if they are unscaled.
    """

    model: nn.Module
    closure: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """The result of one probe at one step.

    Parameters
    ----------
    scalars : dict of str to float
        Numbers about the whole network.
    layers : dict of str to dict
        Values by the path of the module, in the order of the forward pass. The second call of a module in one
        forward is "path (call 2)".
    """

    scalars: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, Value]] = field(default_factory=dict)


class Probe(Protocol):
    """A measurement of one training step that changes nothing.

    Weights, buffers, gradients, optimizer, modes, hooks and random state stay as they were. ``name`` is the name in
    `PROBES` and in records, ``description`` one sentence for reports: what is measured, and what is not seen.
    """

    name: str
    description: str

    def watch(self) -> AbstractContextManager[None]:
        """Watch the forward and backward pass inside the block."""

    def measure(self, step: Step) -> Reading:
        """Return the reading; call it once, after the backward pass and before the optimizer's step."""
