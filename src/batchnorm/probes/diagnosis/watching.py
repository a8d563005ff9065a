"""``watch``: the cheap part of the diagnosis during training, as warnings."""

from __future__ import annotations

import math
import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

from batchnorm.probes.diagnosis.static import layers_of
from batchnorm.statistics.policies import Batch, Exponential
from batchnorm.tools.walk import require_module, require_normalization

#: Deviations by which the mean of a batch may differ from the running one, root mean square over channels, and in how
#: many looks one after the other it must differ by more.
FAR, LOOKS = 1.0, 3
#: Updates of the statistics in an optimizer step that are more than one.
OFTEN = 1.5


class StatisticsWarning(UserWarning):
    """The running statistics of a model in training will not serve in evaluation."""


class Watch:
    """Look at the running statistics of a model every so many forwards in training mode; made by `watch`.

    Parameters
    ----------
    model : Module
        The network.
    every : int
        Forwards between looks.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self._every = every
        self._layers: list[tuple[str, Any]] = [
            (name, layer)
            for name, layer in layers_of(model)
            if isinstance(getattr(layer, "running_mean", None), Tensor)
        ]
        self._own = set(model.parameters())
        self._forwards = self._steps = 0
        self._before: dict[str, list[Tensor]] | None = None
        self._counted: tuple[int, dict[str, int]] | None = None
        self._far: dict[str, int] = {}
        self._said: set[str] = set()
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
            optimizers.register_optimizer_step_post_hook(self._stepped),
        ]

    def close(self) -> None:
        """Stop looking, and remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        self._steps += any(p in self._own for group in optimizer.param_groups for p in group["params"])

    def _begin(self, model: nn.Module, *_: Any) -> None:
        if not model.training:
            return
        self._forwards += 1
        if self._forwards % self._every == 1 % self._every:
            self._before = {name: self._values(layer) for name, layer in self._layers}

    def _end(self, *_: Any) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        calls = {}
        for name, layer in self._layers:
            old, new = before[name], self._values(layer)
            if len(new) > 2:
                calls[name] = int(new[2]) - int(old[2])
            self._look(name or "(the model)", layer, old, new, calls.get(name, 1))
        self._count(calls)

    def _values(self, layer: Any) -> list[Tensor]:
        tensors = (layer.running_mean, layer.running_var, getattr(layer, "num_batches_tracked", None))
        return [t.detach().clone() for t in tensors if isinstance(t, Tensor)]

    def _look(self, name: str, layer: Any, old: list[Tensor], new: list[Tensor], calls: int) -> None:
        if not bool(new[0].isfinite().all() & new[1].isfinite().all()):
            self._say(
                "nonfinite-batch",
                f"the running statistics of {name} are not finite after forward {self._forwards}: one batch has "
                "overflowed. Look at the inputs of this layer; batchnorm.convert makes layers that skip such batches.",
            )
            return
        moved = not torch.equal(old[0], new[0]) or not torch.equal(old[1], new[1])
        affine = list(layer.parameters(recurse=False))
        if moved and affine and not any(p.requires_grad for p in affine) and any(p.requires_grad for p in self._own):
            self._say(
                "frozen-by-requires-grad",
                f"weight and bias of {name} do not learn, but its running statistics move. Try "
                "batchnorm.freeze(model, affine=True).",
            )
        if getattr(layer, "momentum", None) == 0 and calls:
            self._say(
                "momentum-zero",
                f"momentum of {name} is 0: batches do not enter its running statistics. It is the weight of the new "
                "batch; try 0.1.",
            )
        if moved and calls == 1:
            self._drift(name, layer, old, new)

    def _drift(self, name: str, layer: Any, old: list[Tensor], new: list[Tensor]) -> None:
        policy = getattr(layer, "statistics", None)
        factor = layer.momentum if layer.momentum is not None else 1 / float(new[2]) if len(new) > 2 else None
        if not factor or not (policy is None or type(policy) in (Batch, Exponential)):
            return
        if len(new) > 2 and (1 - factor) ** float(new[2]) > 0.5:
            return  # the start values still weigh
        batch = (new[0] - (1 - factor) * old[0]) / factor
        apart = float(((batch - old[0]).square() / (old[1].clamp_min(0) + layer.eps)).mean().sqrt())
        self._far[name] = self._far.get(name, 0) + 1 if apart > FAR or math.isnan(apart) else 0
        if self._far[name] == LOOKS:
            self._say(
                "drift",
                f"the mean of a batch in {name} was more than {FAR:g} running deviations from the running mean in "
                f"{LOOKS} looks one after the other ({apart:.3g} in the last). Evaluation will not normalize as "
                "training does; batchnorm.diagnose tells the cause.",
            )

    def _count(self, calls: dict[str, int]) -> None:
        """Compare how far counters came since the last look with the optimizer's steps."""
        now = {
            name: int(layer.num_batches_tracked)
            for name, layer in self._layers
            if isinstance(getattr(layer, "num_batches_tracked", None), Tensor)
        }
        former, self._counted = self._counted, (self._steps, now)
        if former is None or self._steps <= former[0]:
            return
        for name, counter in now.items():
            often = (counter - former[1][name]) / (self._steps - former[0]) / max(1, calls.get(name, 1))
            if often > OFTEN:
                self._say(
                    "several-updates",
                    f"the running statistics of {name or '(the model)'} move {often:.3g} times in an optimizer step: "
                    "accumulated gradients (batchnorm.deferred), a second forward (batchnorm.hold_statistics), or "
                    "activation checkpointing (batchnorm.convert).",
                )

    def _say(self, cause: str, sentence: str) -> None:
        if cause not in self._said:
            self._said.add(cause)
            warnings.warn(f"batchnorm.watch: {cause}: {sentence}", StatisticsWarning, stacklevel=2)


def watch(model: nn.Module, *, every: int = 100) -> Watch:
    """Warn during training when running statistics will not serve in evaluation, once for each cause.

    Every so many forwards in training mode it looks whether the running statistics are finite, move although their
    layer is frozen by ``requires_grad`` alone, do not move because momentum is 0, move more than once in an optimizer
    step, or are far from those of the batch. Nothing is hooked to the layers: statistics of a batch are computed from
    the running ones before and after it.

    Parameters
    ----------
    model : torch.nn.Module
        The network itself, not wrapped for distributed training.
    every : int, default=100
        Forwards between looks.

    Returns
    -------
    Watch
        A context manager; ``close()`` ends it too.

    Raises
    ------
    TypeError
        ``model`` is no module.
    ValueError
        ``model`` has no batch normalization, or ``every`` is not positive.

    Warns
    -----
    StatisticsWarning
        A cause was seen. The sentence begins with its name, as `diagnose` has it.

    Examples
    --------
    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> with batchnorm.watch(model):
    ...     for _ in range(3):
    ...         y = model(torch.randn(8, 4))
    """
    require_module(model, "watch")
    require_normalization(model, "watch")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a positive number of forwards; got {every!r}. Try 100.")
    return Watch(model, every)
