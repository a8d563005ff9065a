"""Probe W: watch one training step, or one validation pass, of the user's own code; and compare ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

from batchnorm.kernels import watched
from batchnorm.probes.diagnosis import batches as of
from batchnorm.probes.diagnosis.static import layers_of, untouched
from batchnorm.statistics import across
from batchnorm.tools import swap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Share of the largest gradient with respect to a logarithmic scale that is none.
SILENT = 1e-3
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class Watched:
    """What one call of the user's code did.

    Attributes
    ----------
    steps : int
        Steps of optimizers that hold parameters of the model.
    calls : dict of str to int
        Calls of each layer, recomputations in a backward pass included.
    recomputed : dict of str to int
        Of them, those in a backward pass.
    updates : dict of str to float
        By how much each counter grew.
    changed : tuple of str
        Layers whose statistics changed.
    modes : dict of str to bool
        Mode of each layer when it was first called.
    before : dict of str to bool
        Mode of each layer before.
    samples : list of int
        Samples of each call of the first layer.
    given : int
        Samples of the batch.
    valid : float
        Share of positions of the batch that are not padding.
    silent : tuple of str
        Matrices of weights before a batch normalization with all but no gradient.
    """

    steps: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    recomputed: dict[str, int] = field(default_factory=dict)
    updates: dict[str, float] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    modes: dict[str, bool] = field(default_factory=dict)
    before: dict[str, bool] = field(default_factory=dict)
    samples: list[int] = field(default_factory=list)
    given: int = 0
    valid: float = 1.0
    silent: tuple[str, ...] = ()


def watch_call(model: nn.Module, run: Callable[[], object], batch: Any = None) -> Watched:
    """Run the user's code once, and restore weights, gradients, buffers, modes, random state and optimizers.

    Parameters
    ----------
    model : Module
        The user's own: an optimizer holds its parameters.
    run : callable
        A training step or a validation pass.
    batch : object, optional
        What it is given.

    Returns
    -------
    Watched
    """
    found = Watched(given=of.size_of(batch), valid=1.0 if batch is None else of.valid_share(batch))
    layers = dict(layers_of(model))
    found.before = {name: layer.training for name, layer in layers.items()}

    def note(name: str, layer: nn.Module, x: Any) -> None:
        first = name not in found.calls
        found.calls[name] = found.calls.get(name, 0) + 1
        if first:
            found.modes[name] = layer.training
        if watched.in_backward():
            found.recomputed[name] = found.recomputed.get(name, 0) + 1
        elif name == next(iter(found.calls)) and isinstance(x, Tensor) and x.dim():
            found.samples.append(len(x))

    own = set(model.parameters())

    def stepped(optimizer: Any, *_: Any) -> None:
        found.steps += any(p in own for group in optimizer.param_groups for p in group["params"])

    with _restored(model), ExitStack() as stack:
        for name, layer in layers.items():
            if swap.is_ours(layer):
                observed: Any = layer
                stack.enter_context(observed.observe(lambda m, x, *_, name=name: note(name, m, x)))
            else:
                hook = layer.register_forward_pre_hook(lambda m, args, name=name: note(name, m, args[0] if args else 0))
                stack.callback(hook.remove)
        stack.callback(optimizers.register_optimizer_step_post_hook(stepped).remove)
        former = {name: _values(layer) for name, layer in layers.items()}
        run()
        for name, layer in layers.items():
            values = _values(layer)
            if any(not torch.equal(a, b) for a, b in zip(former[name], values, strict=True)):
                found.changed += (name,)
            counter = getattr(layer, "num_batches_tracked", None)
            if isinstance(counter, Tensor):
                found.updates[name] = float(counter - former[name][-1])
        found.silent = _silent(model, layers.values())
    return found


def _silent(model: nn.Module, layers: Iterable[nn.Module]) -> tuple[str, ...]:
    """Return matrices whose relative change the loss feels a thousandth as much as that of normalized scales."""

    def felt(p: Tensor) -> float:
        return 0.0 if p.grad is None else float(p.grad.norm()) * float(p.detach().norm())

    scales = [felt(w) for layer in layers if isinstance(w := getattr(layer, "weight", None), nn.Parameter)]
    if not any(scales):
        return ()
    return tuple(
        name
        for name, p in model.named_parameters()
        if p.dim() > 1 and p.grad is not None and felt(p) < SILENT * max(scales)
    )


def _values(layer: nn.Module) -> list[Tensor]:
    found = (getattr(layer, name, None) for name in _STATISTICS)
    return [t.detach().clone() for t in found if isinstance(t, Tensor)]


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore what a training step changes: parameters, gradients, the model's state, optimizers that step."""
    parameters = [(p, p.data, p.detach().clone(), p.grad, None if p.grad is None else p.grad.clone())
                  for p in model.parameters()]  # fmt: skip
    own = {p for p, *_ in parameters}
    kept: dict[int, tuple[Any, dict[Any, Any], list[dict[str, Any]]]] = {}

    def remember(optimizer: Any, *_: Any) -> None:
        if id(optimizer) not in kept and any(p in own for group in optimizer.param_groups for p in group["params"]):
            state = {p: {k: (v, v.clone() if isinstance(v, Tensor) else v) for k, v in s.items()}
                     for p, s in optimizer.state.items()}  # fmt: skip
            kept[id(optimizer)] = (optimizer, state, [dict(group) for group in optimizer.param_groups])

    handle = optimizers.register_optimizer_step_pre_hook(remember)
    try:
        with untouched(model):
            yield
    finally:
        handle.remove()
        with torch.no_grad():
            for parameter, data, value, grad, of_grad in parameters:
                parameter.data = data
                data.copy_(value)
                parameter.grad = grad
                if grad is not None and of_grad is not None:
                    grad.copy_(of_grad)
            for optimizer, state, groups in kept.values():
                optimizer.state.clear()
                for p, entries in state.items():
                    for tensor, value in entries.values():
                        if isinstance(tensor, Tensor):
                            tensor.copy_(value)
                    optimizer.state[p] = {k: v for k, (v, _) in entries.items()}
                for group, former in zip(optimizer.param_groups, groups, strict=True):
                    group.clear()
                    group.update(former)


@dataclass(frozen=True)
class Ranks:
    """Whether the processes of a group hold the same statistics.

    Attributes
    ----------
    number : int
        How many processes.
    differ : tuple of str
        Layers whose statistics differ between them.
    apart : float
        The largest standard deviation of the running mean between ranks, in running deviations.
    """

    number: int
    differ: tuple[str, ...]
    apart: float


def compare_ranks(model: nn.Module, group: ProcessGroup) -> Ranks:
    """Gather hashes and means of the statistics over the processes of a group; all of them must call this."""
    hashes, means, names = [], [], []
    for name, layer in layers_of(model):
        values = _values(layer)
        if len(values) < 2:
            continue
        digest = hashlib.sha256(b"".join(v.cpu().contiguous().numpy().tobytes() for v in values[:2])).digest()
        hashes.append(int.from_bytes(digest[:6], "big"))
        means.append((values[0] / (values[1].clamp_min(0) + 1e-12).sqrt()).cpu().double())
        names.append(name)
    gathered = torch.stack(across.gather(torch.tensor(hashes, dtype=torch.float64), group))
    differ = tuple(name for i, name in enumerate(names) if bool((gathered[:, i] != gathered[0, i]).any()))
    all_means = torch.stack(across.gather(torch.cat(means) if means else torch.zeros(1).double(), group))
    return Ranks(len(gathered), differ, float(all_means.std(0).max()) if len(all_means) > 1 else 0.0)
