"""What a pass through a model may change besides what it is for, put back at the end of a block, whatever ends it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def modes(model: nn.Module) -> Iterator[None]:
    """Put back whether each module is in training mode; its ``train`` is not called, which may do more than that.

    Parameters
    ----------
    model : nn.Module
        With its submodules.

    Yields
    ------
    None
    """
    former = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in former:
            module.training = training


class Buffers:
    """The buffers of a model as they are now: the tensors, and the values in them."""

    def __init__(self, model: nn.Module) -> None:
        self._former: list[tuple[nn.Module, dict[str, Tensor | None]]] = [
            (module, dict(module._buffers))  # noqa: SLF001  # a forward may exchange the tensor, which only this shows
            for module in model.modules()
        ]
        tensors = {id(b): b for _, buffers in self._former for b in buffers.values() if b is not None}
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]

    def put_back(self) -> None:
        """Make the buffers what they were, bit for bit."""
        for module, buffers in self._former:
            module._buffers.clear()  # noqa: SLF001  # as above
            module._buffers.update(buffers)  # noqa: SLF001
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)


@contextmanager
def buffers(model: nn.Module) -> Iterator[Buffers]:
    """Put back the buffers of a model.

    Parameters
    ----------
    model : nn.Module
        With its submodules.

    Yields
    ------
    Buffers
        To put them back earlier, too.
    """
    former = Buffers(model)
    try:
        yield former
    finally:
        former.put_back()


class RandomState:
    """The state of every generator that a model or a data loader draws from by default: torch's, NumPy's, Python's."""

    def __init__(self, model: nn.Module) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()  # noqa: NPY002  # what users draw from
        self._torch = torch.get_rng_state()
        tensors = (*model.parameters(), *model.buffers())
        devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
        self._devices = [(device, torch.get_device_module(device)) for device in devices]
        self._states = [m.get_rng_state(*_index(device)) for device, m in self._devices]

    def put_back(self) -> None:
        """Make the generators what they were."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002  # as above
        torch.set_rng_state(self._torch)
        for (device, module), state in zip(self._devices, self._states, strict=True):
            module.set_rng_state(state, *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one of these, and its functions take no device


@contextmanager
def random_state(model: nn.Module) -> Iterator[RandomState]:
    """Put back the state of the random generators.

    Parameters
    ----------
    model : nn.Module
        The generators of its devices are among them.

    Yields
    ------
    RandomState
        To put it back earlier, too.
    """
    former = RandomState(model)
    try:
        yield former
    finally:
        former.put_back()


_blocks_open = 0
_stance = ExitStack()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what ``torch.compile`` has compiled as it was written, so that hooks are called and modes are looked at.

    Blocks may end in any order: the first to begin changes torch's setting, which holds for the process, and the last
    to end puts it back.

    Yields
    ------
    None
    """
    global _blocks_open
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and looking would import the compiler
        yield
        return
    if _blocks_open == 0:
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    _blocks_open += 1
    try:
        yield
    finally:
        _blocks_open -= 1
        if _blocks_open == 0:
            _stance.close()
