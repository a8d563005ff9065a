"""What a probe is: it watches one training step, measures after the backward pass, and leaves everything as it was."""

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
    """One training step, as a probe finds it between the backward pass and the optimizer's step.

    Parameters
    ----------
    model : Module
        The network itself, not a wrapper that would talk to other processes: probes see one process's share.
    closure : callable
        Computes the loss of this same batch with the present weights, in training mode, with its graph. It calls
        ``model`` itself, under autocast where training does: Fabric's wrapper refuses any backward pass but its own in
        mixed precision, and one for distributed training would wait. With gradient accumulation: of the last share.
    optimizer : Optimizer
        Its gradients are ``parameter.grad``, and its step is what comes next.
    scale : float
        What the gradients are multiplied with until the optimizer steps: a ``GradScaler``'s scale, or 1 where they
        were divided by it already.
    """

    model: nn.Module
    closure: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """What a probe found at one step.

    Parameters
    ----------
    scalars : dict of str to float
        Numbers about the whole network.
    layers : dict of str to dict
        By the path of the module, in the order of the forward pass. The second call of a module in one forward is
        "path (call 2)".
    """

    scalars: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, Value]] = field(default_factory=dict)


class Probe(Protocol):
    """A measurement while training: weights, buffers, gradients, optimizer, modes, hooks, random state stay."""

    name: str
    #: A sentence for the page: what is measured, and what is not seen.
    description: str

    def watch(self) -> AbstractContextManager[None]:
        """Watch one training step, forward and backward: the block."""

    def measure(self, step: Step) -> Reading:
        """Say what was seen; called once after the backward pass and before the optimizer's step."""
