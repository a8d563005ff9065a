"""Evaluate the loss of one step at other weights, with the same batch and dropout masks, and restore everything."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.probes.calls import replaying
from batchnorm.probes.probe import Step
from batchnorm.tools import preserve


class Replay:
    """Evaluate the loss of a step and its gradients, with the random state and buffers of the first time."""

    def __init__(self, step: Step, random: preserve.RandomState, buffers: preserve.Buffers) -> None:
        self.step, self._random, self._buffers = step, random, buffers

    def loss(self) -> Tensor:
        """Return the loss at the present weights."""
        self._random.put_back()
        self._buffers.put_back()
        return self.step.closure()

    def gradients(self, parameters: Sequence[nn.Parameter]) -> tuple[float, list[Tensor]]:
        """Return the loss at the present weights and its gradients; zeros where it does not depend on a parameter.

        They are scaled on their way, as in training, and unscaled at the end, in float32 or wider.
        """
        loss = self.loss()
        scaled = loss * self.step.scale
        found = torch.autograd.grad(scaled, parameters, allow_unused=True, materialize_grads=True)
        wide = [g.detach().to(torch.promote_types(g.dtype, torch.float32)) for g in found]
        return loss.item(), wide if self.step.scale == 1 else [g / self.step.scale for g in wide]


@contextmanager
def replay(step: Step) -> Iterator[Replay]:
    """Restore weights, buffers, modes and random state at the end of the block.

    Parameters
    ----------
    step : Step
        The step. Weights are moved by exchanging the memory of parameters (``parameter.data``), so those that
        it had are not written to.

    Yields
    ------
    Replay
        To evaluate with.
    """
    model = step.model
    with ExitStack() as stack:
        random = stack.enter_context(preserve.random_state(model))
        buffers = stack.enter_context(preserve.buffers(model))
        stack.enter_context(preserve.modes(model))
        stack.enter_context(_weights(step))
        stack.enter_context(torch.enable_grad())
        token = replaying.set(True)
        stack.callback(lambda: replaying.reset(token))
        yield Replay(step, random, buffers)


@contextmanager
def _weights(step: Step) -> Iterator[None]:
    optimized = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
    former = [(parameter, parameter.data) for parameter in (*step.model.parameters(), *optimized)]
    try:
        yield
    finally:
        for parameter, data in former:
            parameter.data = data


def stepped(step: Step) -> Mapping[nn.Parameter, Tensor]:
    """Return the parameters after the optimizer's next step, computed by a copy of the optimizer.

    Parameters
    ----------
    step : Step
        Between backward and the optimizer's step.

    Returns
    -------
    dict of Parameter to Tensor
        The new values.

    Raises
    ------
    TypeError
        The optimizer's ``step`` needs a closure, like that of LBFGS.
    """
    # Fabric's wrapper has torch's own object inside, and steps through a strategy that is no part of the arithmetic.
    optimizer: torch.optim.Optimizer = getattr(step.optimizer, "optimizer", step.optimizer)
    twin: Any = object.__new__(type(optimizer))
    hooks = {key: type(value)() for key, value in vars(optimizer).items() if "hooks" in key}  # they are other people's
    # A scheduler puts a `step` of its own on the object, which would step the original.
    others = {key: value for key, value in vars(optimizer).items() if key != "step" and key not in hooks}
    memo: dict[int, Any] = {}  # one, so that the state of a parameter is that of its copy
    twin.__dict__.update(copy.deepcopy(others, memo) | hooks)
    pairs = [
        (mine, theirs)
        for group, other in zip(optimizer.param_groups, twin.param_groups, strict=True)
        for mine, theirs in zip(group["params"], other["params"], strict=True)
    ]
    for mine, theirs in pairs:
        theirs.grad = None if mine.grad is None else mine.grad.detach() / step.scale
    with preserve.random_state(step.model):
        try:
            twin.step()
        except TypeError as error:
            raise TypeError(
                f"the probe needs an optimizer whose step() takes no closure; {type(optimizer).__name__} raised: "
                f"{error}. Leave the probe off, or take another optimizer."
            ) from error
    return {mine: theirs.detach() for mine, theirs in pairs}
