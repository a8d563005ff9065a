"""Which backend computes a tensor: the fastest that can, or the one that was asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from batchnorm.kernels import native
from batchnorm.kernels.interface import Epilogue, Kernels, Reduction

#: Backends, fastest first; each is a module of this package, imported when it is first looked at.
BACKENDS = ("native", "eager")

_forced: str | None = os.environ.get("BATCHNORM_BACKEND") or None
_loaded: dict[str, Kernels] = {}


@dataclass(frozen=True)
class Explanation:
    """What computes a tensor, and why. Prints as a line, and one more for each reason.

    Attributes
    ----------
    backend : str
        Name of the backend that runs.
    forced : bool
        Whether it was asked for by name (``BATCHNORM_BACKEND`` or `batchnorm.use_backend`).
    target : str
        Instruction set that runs; empty where torch chooses it.
    threads : int or None
        Threads that a large tensor is spread over; None on devices other than the CPU.
    copied : str or None
        Why the tensor is copied first; None when it is read in place.
    passed_over : dict of str to str
        The faster backends that do not run, each with its reason.
    subject : str
        The tensor, in words.
    """

    backend: str
    forced: bool
    target: str
    threads: int | None
    copied: str | None
    passed_over: dict[str, str]
    subject: str

    def __str__(self) -> str:
        choice = "asked for by name" if self.forced else "the fastest that can"
        details = [f"backend '{self.backend}' ({choice})"]
        details += [f"target {self.target}"] if self.target else []
        details += [f"{self.threads} thread{'' if self.threads == 1 else 's'}"] if self.threads else []
        lines = [f"{self.subject}: {', '.join(details)}"]
        lines += [f"  copied first: {self.copied}"] if self.copied else []
        lines += [f"  not '{name}': {reason}" for name, reason in self.passed_over.items()]
        return "\n".join(lines)


def select(x: Tensor, reduction: Reduction | None = None, epilogue: Epilogue | None = None) -> Kernels:
    """Return the kernels that compute a call.

    Parameters
    ----------
    x : Tensor
        The input of the layer.
    reduction : Reduction, default=None
        Which values share statistics.
    epilogue : Epilogue, default=None
        What follows.

    Returns
    -------
    Kernels
        The module of the backend.

    Raises
    ------
    ValueError
        A backend was asked for that is unknown or cannot compute the call.
    """
    if _forced is not None:
        return _require_able(_forced, x, reduction, epilogue)
    for name in BACKENDS:
        kernels = _load(name)
        if kernels.refusal(x, reduction, epilogue) is None:
            return kernels
    raise AssertionError("the last backend refuses nothing")


def explain(x: Tensor) -> Explanation:
    """Return what computes ``x``, and why.

    Parameters
    ----------
    x : Tensor
        The input of a layer.

    Returns
    -------
    Explanation
        Backend, target, threads, whether the tensor is copied first, and the backends passed over with their reasons.

    Raises
    ------
    ValueError
        A backend was asked for that is unknown or cannot compute ``x``.

    Examples
    --------
    >>> import torch, batchnorm
    >>> batchnorm.explain(torch.zeros(8, 3, 4, 4)).backend
    'native'
    """
    passed_over: dict[str, str] = {}
    if _forced is not None:
        _require_able(_forced, x)
        name = _forced
    else:
        for name in BACKENDS:
            reason = _load(name).refusal(x)
            if reason is None:
                break
            passed_over[name] = reason
    kernels = _load(name)
    threads = torch.get_num_threads() if x.device.type == "cpu" else None
    return Explanation(
        name, _forced is not None, kernels.target(), threads, kernels.copied(x), passed_over, _describe(x)
    )


def fit(x: Tensor, residual: Tensor | None, *vectors: Tensor | None) -> int | None:
    """Return the values per channel of plain tensors that go together, by the quickest check; None says nothing.

    Parameters
    ----------
    x : Tensor of shape (N, C, *)
        The input.
    residual : Tensor or None
        To have its shape and dtype.
    *vectors : Tensor or None
        To be of shape (C,), in x's dtype, or float32 for half and bfloat16.

    Returns
    -------
    int or None
    """
    return native.fit(x, residual, *vectors)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make one backend compute everything inside the block, or raise; ``BATCHNORM_BACKEND`` does so for a process.

    Parameters
    ----------
    name : str
        A name of `BACKENDS`.

    Yields
    ------
    None
        The former choice returns at the end of the block.

    Raises
    ------
    ValueError
        Unknown name.
    """
    global _forced  # a process-wide choice, like torch.set_num_threads
    _require_known(name)
    former, _forced = _forced, name
    try:
        yield
    finally:
        _forced = former


def _require_known(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(
            f"a backend must be one of {list(BACKENDS)}; '{name}' is not. "
            "Set BATCHNORM_BACKEND (read when batchnorm is imported) to one of them, or leave it unset."
        )


def _require_able(
    name: str, x: Tensor, reduction: Reduction | None = None, epilogue: Epilogue | None = None
) -> Kernels:
    _require_known(name)
    kernels = _load(name)
    reason = kernels.refusal(x, reduction, epilogue)
    if reason is not None:
        raise ValueError(
            f"the backend asked for must be able to compute {_describe(x)}; '{name}' cannot: {reason}. "
            f"Ask for another of {list(BACKENDS)}, or for none to let the fastest that can run."
        )
    return kernels


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"


def _load(name: str) -> Kernels:
    kernels = _loaded.get(name)
    if kernels is None:
        kernels = _loaded[name] = cast("Kernels", importlib.import_module(f"batchnorm.kernels.{name}"))
    return kernels
