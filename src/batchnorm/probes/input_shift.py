"""Measure internal covariate shift as a change of distributions: how one step moves the inputs of each layer."""

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchnorm.probes.gradients import own_parameters
from batchnorm.probes.probe import Reading, Step, Value
from batchnorm.probes.replay import Replay, replay, stepped
from batchnorm.probes.samples import sample
from batchnorm.tools import preserve

Array = NDArray[np.float64]


class InputShift:
    r"""Measure how the optimizer's step moves the distribution of each layer's inputs, on the same batch.

    For each unit of the input, over examples and positions, with mean :math:`\mu` and deviation :math:`\sigma` before
    the step and :math:`\mu'`, :math:`\sigma'` after it, and the values in increasing order :math:`u_{(k)}`:

    .. math:: \text{mean\_shift} = \sqrt{\overline{(\mu' - \mu)^2 / \sigma^2}}, \quad
        \text{std\_ratio} = \exp \overline{\ln(\sigma' / \sigma)}, \quad
        \text{distance} = \overline{\tfrac{1}{n} \textstyle\sum_k \lvert u'_{(k)} - u_{(k)} \rvert / \sigma}

    the bar being the mean over units that are not constant before and after. ``distance`` is the Wasserstein-1 distance
    in deviations. The batch is the same before and after, so what is measured is the step and not the sampling of
    batches; inputs of the first layer do not move. A layer is a module with a matrix of weights (dense,
    convolution); its inputs are sampled at the same 100,000 positions at most.

    It costs two forward passes, and a copy of weights and optimizer state. Compare `Shift`: the same notion measured by
    gradients.

    Parameters
    ----------
    model : Module
        The network.

    References
    ----------
    Ioffe and Szegedy 2015, :arxiv:`1502.03167`, section 2: "the change in the distribution of network activations due
    to the change in network parameters during training".
    """

    name = "input_shift"
    description = (
        "For each layer with a matrix of weights, how far the optimizer's step moves the distribution of its inputs on "
        "this batch, in deviations."
    )

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def watch(self) -> AbstractContextManager[None]:
        """Watch nothing: `measure` repeats the forward pass."""
        return nullcontext()

    def measure(self, step: Step) -> Reading:
        """Return how far the inputs of each layer move, and restore the weights."""
        after = stepped(step)
        with replay(step) as replayed:
            before = self._inputs(replayed)
            for parameter, value in after.items():
                parameter.data = value
            moved = self._inputs(replayed)
        return Reading(layers={name: _compared(x, moved[name]) for name, x in before.items() if name in moved})

    def _inputs(self, replayed: Replay) -> dict[str, Tensor]:
        """Return samples of the inputs of all layers in one forward pass, in its order."""
        found: dict[str, Tensor] = {}
        names = {module: name for name, module in self._model.named_modules()}

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input", kwargs.get("x"))
            if isinstance(x, Tensor) and x.is_floating_point():
                calls = sum(name.partition(" (call ")[0] == names[module] for name in found)
                found[names[module] + (f" (call {calls + 1})" if calls else "")] = sample(x.detach())

        with ExitStack() as stack:
            stack.enter_context(preserve.uncompiled())
            stack.enter_context(torch.no_grad())
            for module, parameters in own_parameters(self._model).items():
                if any(parameter.dim() > 1 for parameter in parameters):
                    stack.callback(module.register_forward_pre_hook(see, with_kwargs=True).remove)
            replayed.loss()
        return found


def _compared(before: Tensor, after: Tensor) -> dict[str, Value]:
    u, v = (np.sort(_units(x), axis=1) for x in (before, after))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # a network that diverges
        std, std_after = u.std(1), v.std(1)
        varies = ~((std == 0) | (std_after == 0))  # NaN stays
        if not varies.any():
            return {"mean_shift": math.nan, "std_ratio": math.nan, "distance": math.nan}
        u, v, std, std_after = u[varies], v[varies], std[varies], std_after[varies]
        return {
            "mean_shift": float(np.sqrt(np.mean(((v.mean(1) - u.mean(1)) / std) ** 2))),
            "std_ratio": float(np.exp(np.mean(np.log(std_after / std)))),
            "distance": float(np.mean(np.abs(v - u).mean(1) / std)),
        }


def _units(x: Tensor) -> Array:
    """View a sample (n, units, positions) as (units, values), in float64 on the host."""
    values: Array = x.transpose(0, 1).flatten(1).cpu().double().numpy()
    return values
