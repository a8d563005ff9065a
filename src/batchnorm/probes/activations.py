"""Measure the inputs of nonlinearities: figure 1 of the paper for any network, with saturated and dead units."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.kernels.interface import channel_shape, statistics_dtype
from batchnorm.probes.calls import Call, Calls
from batchnorm.probes.probe import Reading, Step
from batchnorm.probes.samples import by_unit, sample, sorted_values, spread
from batchnorm.probes.saturation import NONLINEARITIES, Rule, rule_named, rule_of
from batchnorm.tools import swap


@dataclass(frozen=True)
class _Seen:
    values: Tensor
    saturated: Tensor  # how many of the values
    dead: float


class Activations:
    """Measure the inputs of nonlinearities (probe "activations").

    Nonlinearities are found by type: torch's modules, and this package's layers with an activation, given or fused into
    their call by ``convert``, under the name of the layer. The input of a fused one never exists; it is computed again
    from the layer's input and statistics. A channel is a unit. Channels are axis 1; or the last axis, as in a
    transformer, where the layer defined before the nonlinearity acts on that one and makes as many.

    ``saturated`` is the share of values at which a unit hardly learns: its output is within 5% of an end of its range
    (sigmoid, tanh, softsign), or its slope is under 0.05; never for leaky ReLUs. ``dead`` is the share of units that
    are saturated for every example at every position. All numbers but ``dead`` are of at most 1e5 values per call, at
    fixed positions; ``dead`` looks at every value of the units whose sample is all saturated.

    Parameters
    ----------
    model : Module
        The network.
    """

    name = "activations"
    description = (
        "Inputs of each nonlinearity in one batch, of at most 100,000 values. Nonlinearities are modules of torch and "
        "layers of batchnorm with an activation; calls of functions like torch.relu are not seen."
    )

    def __init__(self, model: nn.Module) -> None:
        modules = [m for m in model.modules() if isinstance(m, NONLINEARITIES) or swap.is_ours(m)]
        self._calls = Calls(model, modules, self._see)
        self._seen: dict[str, _Seen] = {}
        self._widths = _widths(model)

    def watch(self) -> AbstractContextManager[None]:
        """Watch the forward and backward pass inside the block."""
        return self._calls.watch(self._seen.clear)

    def measure(self, step: Step) -> Reading:  # noqa: ARG002  # the protocol's signature
        """Return the distribution of the inputs of each nonlinearity in the last forward."""
        layers = {}
        for name, seen in self._seen.items():
            found = spread(sorted_values(seen.values))
            layers[name] = found | {"saturated": int(seen.saturated) / seen.values.numel(), "dead": seen.dead}
        self._seen.clear()
        return Reading(layers=layers)

    def _see(self, call: Call) -> None:
        if swap.is_ours(call.module):
            if call.activation is None or call.x.dim() < 2:
                return
            before: _Before = _Normalized(call)
            rule = rule_named(call.activation)
        else:
            before, rule = _Before(call, self._widths.get(call.module)), rule_of(call.module)
        values = before.sample()
        if values.numel() == 0:
            return
        saturated = rule(values)
        self._seen[call.name] = _Seen(values, saturated.sum(), _dead(before, saturated, rule))


def _dead(before: "_Before", saturated: Tensor, rule: Rule) -> float:
    """Return the share of units that are saturated for every example at every position."""
    suspects = saturated.all(dim=2).all(dim=0).nonzero().flatten()  # the others have a value that is not
    if len(suspects) == 0:
        return 0.0
    dead = rule(before.units(suspects)).flatten(2).all(dim=2).all(dim=0)
    return int(dead.sum()) / saturated.shape[1]


def _widths(model: nn.Module) -> dict[nn.Module, int]:
    """Return the sizes of the last axis for the nonlinearities whose units may be there."""
    widths, width = {}, None
    for module in model.modules():
        if isinstance(module, nn.Linear):
            width = module.out_features
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            width = module.normalized_shape[-1]
        elif isinstance(module, NONLINEARITIES):
            if width is not None:
                widths[module] = width
        elif next(module.parameters(recurse=False), None) is not None:
            width = None
    return widths


class _Before:
    """The input of a nonlinearity that is a module, with the units in axis 1."""

    def __init__(self, call: Call, width: int | None = None) -> None:
        self.call = call
        self.x = call.x.movedim(-1, 1) if call.x.dim() > 2 and call.x.shape[-1] == width else call.x

    def sample(self) -> Tensor:
        """Return some of each unit's values, of shape (n, units, positions)."""
        return sample(self.x)

    def units(self, which: Tensor) -> Tensor:
        """Return all values of some units, of shape (N, units, positions)."""
        return by_unit(self.x)[:, which]


class _Normalized(_Before):
    """The input of an activation that runs in the pass of a layer: computed from the layer's input, as it does."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        layer: Any = call.module
        wide = statistics_dtype(call.x.device)
        if layer.training or layer.running_mean is None:
            mean, var, _ = call.batch.statistics
            self.mean, self.var = mean[0], var[0]
        else:
            self.mean, self.var = layer.running_mean.to(wide), layer.running_var.to(wide)
        self.scale = (self.var + layer.eps).rsqrt()
        self.bias = torch.zeros_like(self.scale)
        if layer.weight is not None:
            self.scale = self.scale * layer.weight.detach()
        if layer.bias is not None:
            self.bias = layer.bias.detach().to(wide)

    def sample(self) -> Tensor:
        residual = self.call.residual
        return self._apply(sample(self.call.x), None if residual is None else sample(residual), slice(None))

    def units(self, which: Tensor) -> Tensor:
        residual = self.call.residual
        x = by_unit(self.call.x)[:, which]
        return self._apply(x, None if residual is None else by_unit(residual)[:, which], which)

    def _apply(self, x: Tensor, residual: Tensor | None, which: Any) -> Tensor:
        shape = channel_shape(x)
        mean, scale, bias = (t[which].reshape(shape) for t in (self.mean, self.scale, self.bias))
        z = (x.to(mean.dtype) - mean) * scale + bias
        return (z if residual is None else z + residual).to(self.call.x.dtype)
