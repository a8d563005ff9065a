"""Measure weights and gradients layer by layer."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from math import sqrt

import torch
from torch import Tensor, nn

from batchnorm.kernels.interface import statistics_dtype
from batchnorm.probes.calls import Calls, in_forward_order
from batchnorm.probes.probe import Reading, Step, Value
from batchnorm.probes.samples import flat_sample, histogram, sorted_values


def own_parameters(model: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the trainable parameters of each module; a shared parameter belongs to the first module that holds it."""
    known: set[int] = set()
    found: dict[nn.Module, list[nn.Parameter]] = {}
    for module in model.modules():
        mine = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in known]
        known.update(map(id, mine))
        if mine:
            found[module] = mine
    return found


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the l2 norm of some tensors together; float64, since the squares of small gradients underflow float32."""
    norms = [torch.linalg.vector_norm(t.detach(), dtype=statistics_dtype(t.device)) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)).item() if norms else 0.0


class Gradients:
    """Measure norms and histograms of ``parameter.grad`` (probe "gradients").

    A layer is a module that holds parameters itself; its weight and bias count together. The numbers are of the
    unscaled gradients (``Step.scale``), and of the clipped gradients if they were clipped before.

    Parameters
    ----------
    model : Module
        The network.
    """

    name = "gradients"
    description = (
        "Weights and gradients of each module that holds parameters, weight and bias together, before the optimizer "
        "steps; the histogram is of at most 100,000 values."
    )

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls = Calls(model, own_parameters(model), lambda _: None)

    def watch(self) -> AbstractContextManager[None]:
        """Watch the forward and backward pass inside the block."""
        return self._calls.watch(lambda: None)

    def measure(self, step: Step) -> Reading:
        """Return norms of weights and gradients, and a histogram of the gradients."""
        owned = own_parameters(self._model)
        names = {module: name for name, module in self._model.named_modules()}
        layers = {}
        total = 0.0
        for module in in_forward_order(owned, self._calls.counts):
            parameters = [p for p in owned[module] if p.grad is not None]
            if parameters:
                layers[names[module]] = found = _of_layer(parameters, step.scale)
                total += float(found["gradient_norm"]) ** 2  # type: ignore[arg-type]  # a number
        return Reading({"gradient_norm": sqrt(total)}, layers)


def _of_layer(parameters: list[nn.Parameter], scale: float) -> dict[str, Value]:
    gradients = [_dense(p.grad) for p in parameters if p.grad is not None]
    gradient_norm = norm(gradients) / scale
    return {
        "weight_norm": norm(parameters),
        "gradient_norm": gradient_norm,
        "gradient_rms": gradient_norm / sqrt(sum(g.numel() for g in parameters)),
        "histogram": histogram(sorted_values(flat_sample([g.detach() for g in gradients])) / scale),
    }


def _dense(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
