"""Observe the calls of modules in the forward pass of a step, without changing what is computed.

A hook on a layer would change a model after `batchnorm.convert`: fused paths fall back when a hook is present.
Our own layers are therefore observed at the method that every call passes, fused or not, and modules that a fused
path has absorbed, which are not called, get no hook.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from batchnorm.kernels import registry, watched
from batchnorm.kernels.interface import WHOLE_BATCH, Statistics
from batchnorm.tools import preserve, swap
from batchnorm.tools.graph import blocks

#: Whether a probe is computing losses of its own: what it calls then is not part of the step.
replaying: ContextVar[bool] = ContextVar("replaying", default=False)


class Batch:
    """What a module is called with, and its statistics, which are computed once for all who ask.

    Parameters
    ----------
    x : Tensor
        The input.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach()

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and biased variance of each channel, in float64."""
        return registry.select(self.x).collect(self.x, WHOLE_BATCH)


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes
    ----------
    name : str
        Path of the module; "path (call 2)" for its second call in a forward.
    module : Module
        The module.
    batch : Batch
        Its input; the module may overwrite it.
    residual : Tensor or None
        What is added before the activation of a batch normalization with one.
    activation : str or None
        The activation in the same pass of a batch normalization of ours.
    """

    name: str
    module: nn.Module
    batch: Batch
    residual: Tensor | None = None
    activation: str | None = None

    @property
    def x(self) -> Tensor:
        """The input, detached."""
        return self.batch.x


class Calls:
    """The calls of some modules in the last forward of a model, each handed to ``see`` before it happens."""

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module], see: Callable[[Call], None]) -> None:
        self.model, self.see = model, see
        names = {module: name for name, module in model.named_modules()}
        self.names = {module: names[module] for module in modules}
        #: How often each module was called so far, in the order of the first calls.
        self.counts: dict[nn.Module, int] = {}

    @contextmanager
    def watch(self, forget: Callable[[], object]) -> Iterator[None]:
        """Watch the forwards inside the block.

        Parameters
        ----------
        forget : callable
            Called where a new forward of the model begins: with accumulated gradients, only the last one counts.

        Yields
        ------
        None
            All watching ends with the block, whatever ends it.
        """

        def begin(*_: Any) -> None:
            if self._of_the_step():
                self.counts.clear()
                forget()

        silent = _absorbed(self.model)
        self.counts.clear()
        forget()
        with ExitStack() as stack:
            stack.enter_context(preserve.uncompiled())
            stack.callback(self.model.register_forward_pre_hook(begin).remove)
            for module in self.names:
                if swap.is_ours(module):
                    stack.enter_context(_observed(module, self._note))
                elif module not in silent:
                    stack.callback(module.register_forward_pre_hook(self._hook, with_kwargs=True).remove)
            yield

    def _of_the_step(self) -> bool:
        # Inside a backward pass a forward is a recomputation (activation checkpointing).
        return not replaying.get() and not watched.in_backward()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input", kwargs.get("x"))
        self._note(module, Batch(x) if isinstance(x, Tensor) and x.is_floating_point() else None, None, None)

    def _note(self, module: nn.Module, batch: Batch | None, residual: Tensor | None, activation: str | None) -> None:
        if not self._of_the_step():
            return
        count = self.counts[module] = self.counts.get(module, 0) + 1
        if batch is not None:
            name = self.names[module] + (f" (call {count})" if count > 1 else "")
            with torch.no_grad():
                self.see(Call(name, module, batch, None if residual is None else residual.detach(), activation))


def in_forward_order(modules: Iterable[nn.Module], seen: Iterable[nn.Module]) -> list[nn.Module]:
    """Sort modules by their first call; one that was not seen follows the module defined before it."""
    places = {module: float(place) for place, module in enumerate(seen)}
    last, ranks = -1.0, {}
    for module in modules:
        last = ranks[module] = places.get(module, last)
    return sorted(ranks, key=ranks.__getitem__)


def _absorbed(model: nn.Module) -> set[nn.Module]:
    """Return the modules that fused paths depend on, of those whose conditions hold."""
    return {
        block.get_submodule(".".join(condition.path))
        for block in model.modules()
        for path in block.__dict__.get(blocks.PATHS, ())
        if all(condition.holds(block) for condition in path.conditions)
        for condition in path.conditions
        if condition.path
    }


class _Observer:
    """Observe a layer for several probes, with one `Batch` for all of them."""

    def __init__(self) -> None:
        self.notes: list[Callable[..., None]] = []
        self.stack = ExitStack()

    def __call__(self, module: nn.Module, x: Tensor, residual: Tensor | None, activation: str | None) -> None:
        batch = Batch(x) if isinstance(x, Tensor) and x.is_floating_point() else None
        for note in self.notes:
            note(module, batch, residual, activation)


_observers: WeakKeyDictionary[nn.Module, _Observer] = WeakKeyDictionary()


@contextmanager
def _observed(module: Any, note: Callable[..., None]) -> Iterator[None]:
    observer = _observers.get(module)
    if observer is None:
        observer = _observers[module] = _Observer()
        observer.stack.enter_context(module.observe(observer))
    observer.notes.append(note)
    try:
        yield
    finally:
        observer.notes.remove(note)
        if not observer.notes:
            del _observers[module]
            observer.stack.close()
