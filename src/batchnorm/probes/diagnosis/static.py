"""Probe S: read buffers, flags, dtypes and modes of each batch normalization, without data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from batchnorm.statistics.policies import Frozen, Keyed
from batchnorm.tools import preserve
from batchnorm.tools.walk import normalizations

#: The smallest and the largest number that float16 holds; a variance beyond becomes 0 or infinity.
HALF_LOW, HALF_HIGH = 6e-8, 65504.0


@dataclass(frozen=True)
class Facts:
    """What one batch normalization holds.

    Attributes
    ----------
    name, kind : str
        Its path in the model, and its class.
    channels : int
        How many it normalizes; 0 if unknown.
    tracks : bool
        Whether it has running statistics.
    training : bool
        Its mode.
    frozen : str
        Why it normalizes with running statistics in training too; empty if it does not.
    momentum : float or None
        Weight of the new batch; None: a cumulative average, or no momentum.
    eps : float
        Added to the variance.
    counter : float or None
        ``num_batches_tracked``.
    learns : bool or None
        Whether weight or bias learn; None: there are none.
    trained : bool
        Whether weight or bias differ from 1 and 0.
    at_start : bool
        Whether mean is exactly 0 and var exactly 1 in every channel.
    bad_means, bad_vars : int
        Channels whose running mean, or variance, is not finite.
    negative : int
        Channels whose running variance is below 0.
    zero : int
        Channels whose running variance is exactly 0.
    dtype : str
        Of the running statistics.
    """

    name: str
    kind: str
    channels: int
    tracks: bool
    training: bool
    frozen: str
    momentum: float | None
    eps: float
    counter: float | None
    learns: bool | None
    trained: bool
    at_start: bool
    bad_means: int
    bad_vars: int
    negative: int
    zero: int
    dtype: str

    @property
    def half(self) -> bool:
        """Whether the running statistics are in 16 bits."""
        return self.dtype in ("float16", "bfloat16")


@dataclass(frozen=True)
class Static:
    """What the model holds, layer by layer, and how it takes ``train()`` and ``eval()``.

    Attributes
    ----------
    facts : tuple of Facts
        In the order of ``named_modules``.
    training : bool
        Mode of the model itself.
    stuck : tuple of str
        Layers in training mode after ``model.eval()``.
    undone : tuple of str
        Layers in eval mode inside a model in training mode, which ``model.train()`` puts into training mode.
    missing : tuple of str
        Buffers of running statistics that the checkpoint lacks, if one was given.
    average : str
        Class of a wrapper that averages weights without buffers; empty if there is none.
    finite : bool
        Whether all parameters are finite.
    """

    facts: tuple[Facts, ...]
    training: bool
    stuck: tuple[str, ...]
    undone: tuple[str, ...]
    missing: tuple[str, ...]
    average: str
    finite: bool


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return name and module of each batch normalization, frozen variants too; no instance normalization."""
    return [(name, layer) for name, layer, _ in normalizations(model) if not isinstance(layer, _InstanceNorm)]


@contextmanager
def untouched(model: nn.Module) -> Iterator[preserve.Buffers]:
    """Restore modes, buffers, random state and which parameters learn.

    Parameters
    ----------
    model : Module
        Any.

    Yields
    ------
    Buffers
        To restore them earlier, too.
    """
    learning = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with preserve.random_state(model), preserve.buffers(model) as buffers, preserve.modes(model):
            yield buffers
    finally:
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


def look(model: nn.Module, state_dict: Mapping[str, Any] | None = None) -> Static:
    """Read all that can be known without data.

    Parameters
    ----------
    model : Module
        With batch normalization.
    state_dict : mapping, optional
        The checkpoint that was loaded.

    Returns
    -------
    Static
    """
    found = layers_of(model)
    frozen = {name: _frozen(model, layer) for name, layer in found}
    with untouched(model):
        undone: tuple[str, ...] = ()
        if model.training:
            still = [(name, layer) for name, layer in found if not layer.training]
            model.train()
            undone = tuple(name for name, layer in still if layer.training)
    with untouched(model):
        model.eval()
        stuck = tuple(name for name, layer in found if layer.training)
    return Static(
        tuple(_facts(name, layer, frozen[name]) for name, layer in found),
        model.training,
        stuck,
        undone,
        _missing(found, state_dict),
        _average(model),
        all(bool(p.isfinite().all()) for p in model.parameters() if p.is_floating_point()),
    )


def _frozen(model: nn.Module, layer: nn.Module) -> str:
    policy = getattr(layer, "statistics", None)
    policy = policy.each if isinstance(policy, Keyed) else policy
    if isinstance(policy, Frozen):
        return "its policy is Frozen()"
    if "frozen" in type(layer).__name__.lower():
        return f"its class is {type(layer).__name__}"
    if model.training and not layer.training:
        return "it is in eval mode, in a model in training mode"
    return ""


def _facts(name: str, layer: Any, frozen: str) -> Facts:
    mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    tracks = isinstance(mean, Tensor) and isinstance(var, Tensor)
    counter = getattr(layer, "num_batches_tracked", None)
    affine = [t for t in (getattr(layer, "weight", None), getattr(layer, "bias", None)) if isinstance(t, Tensor)]
    parameters = [t for t in affine if isinstance(t, nn.Parameter)]
    plain = [torch.ones_like(t) if i == 0 else torch.zeros_like(t) for i, t in enumerate(affine)]
    return Facts(
        name,
        type(layer).__name__,
        int(mean.numel()) if isinstance(mean, Tensor) else int(getattr(layer, "num_features", 0)),
        tracks,
        layer.training,
        frozen,
        getattr(layer, "momentum", None),
        float(getattr(layer, "eps", 0.0)),
        None if not isinstance(counter, Tensor) else float(counter),
        any(p.requires_grad for p in parameters) if parameters else None,
        any(not torch.equal(t, p) for t, p in zip(affine, plain, strict=True)),
        tracks and not bool(mean.any()) and bool((var == 1).all()),  # type: ignore[union-attr]
        _count(~mean.isfinite()) if isinstance(mean, Tensor) else 0,
        _count(~var.isfinite()) if isinstance(var, Tensor) else 0,
        _count(var < 0) if isinstance(var, Tensor) else 0,
        _count(var == 0) if isinstance(var, Tensor) else 0,
        str(var.dtype).removeprefix("torch.") if isinstance(var, Tensor) else "",
    )


def _count(marked: Tensor) -> int:
    return int(marked.sum())


def _missing(found: Iterable[tuple[str, nn.Module]], state_dict: Mapping[str, Any] | None) -> tuple[str, ...]:
    if state_dict is None:
        return ()
    names = [
        f"{name}.{buffer}" if name else buffer
        for name, layer in found
        for buffer in ("running_mean", "running_var")
        if isinstance(getattr(layer, buffer, None), Tensor)
    ]
    ends = {key.removeprefix("module.") for key in state_dict}
    return tuple(name for name in names if name not in ends)


def _average(model: nn.Module) -> str:
    if isinstance(model, torch.optim.swa_utils.AveragedModel):
        return ""  # it copies the buffers of the last model
    name = type(model).__name__
    return name if re.search(r"(?i:average|teacher)|EMA|Ema|(?:^|_)ema", name) else ""
