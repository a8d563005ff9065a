"""Compare running with batch statistics: the gap between training and evaluation."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.kernels.interface import Statistics, statistics_dtype
from batchnorm.probes.calls import Call, Calls
from batchnorm.probes.probe import Reading, Step
from batchnorm.statistics.population import merge


@dataclass
class _Seen:
    layer: Any
    running_mean: Tensor
    running_var: Tensor
    batch: Statistics

    @property
    def several(self) -> bool:
        """Whether there is a variance."""
        return self.batch.count is not None and bool(self.batch.count > 1)


class Running:
    r"""Compare the statistics of this batch with the running ones that evaluation uses (probe "running").

    ``mean_gap`` is the root mean square over channels of :math:`(\mu - \mu_{run}) / \sqrt{v_{run} + \epsilon}`, in
    units of what the layer divides by; ``var_ratio`` is the median over channels of
    :math:`(v + \epsilon) / (v_{run} + \epsilon)` with the unbiased :math:`v`, and ``var_ratio_low``, ``var_ratio_high``
    its 10th and 90th percentile. Gap 0 and ratio 1: evaluation computes what training computes. The running statistics
    are taken before this batch enters them. The values of several calls of a layer in one forward are merged.

    Parameters
    ----------
    model : Module
        The network.
    """

    name = "running"
    description = (
        "Batch statistics against the running statistics before this batch, for every batch normalization that keeps "
        "them, frozen ones too."
    )

    def __init__(self, model: nn.Module) -> None:
        modules = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self._calls = Calls(model, modules, self._see)
        self._seen: dict[nn.Module, _Seen] = {}

    def watch(self) -> AbstractContextManager[None]:
        """Watch the forward and backward pass inside the block."""
        return self._calls.watch(self._seen.clear)

    def measure(self, step: Step) -> Reading:  # noqa: ARG002  # the protocol's signature
        """Return the gaps of the last forward."""
        layers = {self._calls.names[layer]: _gap(seen) for layer, seen in self._seen.items() if seen.several}
        self._seen.clear()
        return Reading(layers=layers)

    def _see(self, call: Call) -> None:
        layer: Any = call.module
        x = call.x
        if layer.running_mean is None or layer.running_var is None or x.dim() < 2:
            return
        if x.shape[1] != layer.num_features or x.numel() == 0:
            return  # for the layer to complain about, or nothing
        batch = call.batch.statistics
        known = self._seen.get(layer)
        if known is None:
            wide = statistics_dtype(x.device)
            running = (layer.running_mean.to(wide, copy=True), layer.running_var.to(wide, copy=True))
            self._seen[layer] = _Seen(layer, *running, batch)
        else:
            known.batch = merge(known.batch, batch)


def _gap(seen: _Seen) -> dict[str, Any]:
    eps = seen.layer.eps
    gap = (seen.batch.mean - seen.running_mean) * (seen.running_var + eps).rsqrt()
    ratio = (seen.batch.unbiased_var + eps) / (seen.running_var + eps)
    with np.errstate(invalid="ignore"):  # a network that diverges
        low, median, high = np.percentile(ratio.double().cpu().numpy(), (10, 50, 90)).tolist()
    return {
        "mean_gap": gap.square().mean().sqrt().item(),
        "var_ratio": median,
        "var_ratio_low": low,
        "var_ratio_high": high,
    }
