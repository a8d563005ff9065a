"""Which backend computes a tensor: the fastest that can, or the one that was asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from batchnorm.kernels import native
from batchnorm.kernels.interface import Epilogue, Kernels, Reduction

#: Backends, fastest first; each is a module of this package, imported when it is first looked at.
BACKENDS = ("native", "eager")

_forced: str | None = os.environ.get("BATCHNORM_BACKEND") or None
_loaded: dict[str, Kernels] = {}


@dataclass(frozen=True)
class Explanation:
    """Which backend computes a tensor, and why.

    Attributes
    ----------
    backend : str
        Name of the backend that runs.
    forced : bool
        Whether it was asked for by name (``BATCHNORM_BACKEND`` or `use_backend`).
    passed_over : dict of str to str
        The faster backends that do not run, each with its reason.
    subject : str
        The tensor, in words.
    """

    backend: str
    forced: bool
    passed_over: dict[str, str]
    subject: str

    def __str__(self) -> str:
        choice = "asked for by name" if self.forced else "the fastest that can"
        lines = [f"{self.subject}: backend '{self.backend}' ({choice})"]
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
    """Say which backend computes ``x``, and why not a faster one.

    Parameters
    ----------
    x : Tensor
        The input of a layer.

    Returns
    -------
    Explanation
        Prints as one line, and one more per backend passed over.

    Raises
    ------
    ValueError
        A backend was asked for that is unknown or cannot compute ``x``.

    Examples
    --------
    >>> import torch, batchnorm
    >>> print(batchnorm.explain(torch.zeros(8, 3, 4, 4)))
    (8, 3, 4, 4) torch.float32 on cpu: backend 'native' (the fastest that can)
    """
    if _forced is not None:
        _require_able(_forced, x)
        return Explanation(_forced, True, {}, _describe(x))
    reasons = {name: _load(name).refusal(x) for name in BACKENDS}
    chosen = next(name for name, reason in reasons.items() if reason is None)
    faster = BACKENDS[: BACKENDS.index(chosen)]
    return Explanation(chosen, False, {name: str(reasons[name]) for name in faster}, _describe(x))


def fit(x: Tensor, residual: Tensor | None, *vectors: Tensor | None) -> bool:
    """Whether these are plain tensors that go together, by the quickest check there is; False says nothing.

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
    bool
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
