"""Batch normalization in C++ for CPUs (``csrc/``): statistics, scaling, residual and activation in one pass each way.

The compiled module takes tensors as they are, and returns None for what it cannot walk: a tensor made neither of
contiguous planes nor of contiguous rows (channels last), another one laid out unlike ``x``, a subclass. That is copied
once, here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels.interface import Epilogue, Gradients, Reduction, Running, Statistics, Sums

try:
    from batchnorm.kernels import _native
except ImportError as error:  # built without a compiler (BATCHNORM_NATIVE=0), or for another Python
    _native = None  # type: ignore[assignment]  # asked about in `refusal`
    _missing = f"this installation has no compiled kernels ({error})"

_threads = torch.get_num_threads


def refusal(x: Tensor, reduction: Reduction | None = None, epilogue: Epilogue | None = None) -> str | None:  # noqa: ARG001
    """Return why these kernels cannot compute the call, or None when they can."""
    if _native is not None and _native.computes(x):
        return None
    if x.device.type != "cpu":
        return f"it computes on CPUs; the tensor is on {x.device}"
    if _native is None:
        return _missing
    if str(x.dtype).removeprefix("torch.") not in _native.dtypes():
        return f"it has no kernel for {x.dtype}"
    if type(x) is not Tensor and not isinstance(x, torch.nn.Parameter):
        return f"it needs the memory of a plain tensor; this is a {type(x).__name__}"
    return "it reads at most 16 dimensions" if x.dim() > 16 else None


def targets() -> list[str]:
    """Return the instruction-set targets that this processor runs, best first; empty without compiled kernels."""
    return [] if _native is None else list(_native.targets())


def target() -> str:
    """Return the target that runs: the best, or the one that ``BATCHNORM_TARGET`` or `set_target` names."""
    return str(_native.target())


def copied(x: Tensor) -> str | None:
    """Return why ``x`` is copied before it is computed, or None when it is read in place."""
    if x.numel() == 0 or _native.walkable(x):
        return None
    return "it consists neither of contiguous planes nor of contiguous rows (channels_last)"


def set_target(name: str) -> None:
    """Make one target run from now on.

    Parameters
    ----------
    name : str
        One of `targets`.

    Raises
    ------
    ValueError
        This processor does not run it, or it does not exist.
    """
    if name not in targets():
        raise ValueError(
            f"a target must be one that this processor runs, {targets()}; got '{name}'. "
            "Set BATCHNORM_TARGET (read when the kernels are first used) to one of them, or leave it unset."
        )
    _native.set_target(name)


if _native is not None and os.environ.get("BATCHNORM_TARGET"):
    set_target(os.environ["BATCHNORM_TARGET"])


def _on_copies(kernel: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
    """Call a kernel with copies of what it cannot walk, and lay out what it returns like ``x``."""
    plain = _plain(x)
    walked = plain if _native.walkable(plain) else plain.contiguous()

    def like_x(tensor: Tensor) -> Tensor:
        if tensor is x:
            return walked
        return tensor if _native.walkable_like(tensor, walked) else torch.empty_like(walked).copy_(tensor)

    def contiguous(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else _plain(tensor).contiguous()

    def stand_in(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return like_x(argument)
        if isinstance(argument, Statistics | Sums):
            return type(argument)(*map(contiguous, argument))  # type: ignore[arg-type]  # None only where it was
        if isinstance(argument, Reduction):
            return argument._replace(mask=contiguous(argument.mask))
        if isinstance(argument, Epilogue):
            residual = None if argument.residual is None else like_x(argument.residual)
            weight, bias, mask = map(contiguous, (argument.weight, argument.bias, argument.mask))
            return Epilogue(weight, bias, residual, argument.activation, mask)
        return argument

    def laid_out(result: Any) -> Any:
        return torch.empty_like(x).copy_(result) if isinstance(result, Tensor) and result.shape == x.shape else result

    done = kernel(*map(stand_in, arguments))
    assert done is not None
    if walked is x:
        return done
    return tuple(map(laid_out, done)) if isinstance(done, tuple) else laid_out(done)


def _plain(tensor: Tensor) -> Tensor:
    """Return the values as the memory of a plain tensor holds them."""
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def _filled(x: Tensor, reduction: Reduction | None, value: float) -> tuple[Tensor, Tensor]:
    """Return two (G, C) tensors for an input without values."""
    groups = 1 if reduction is None else reduction.groups(x.shape[0])
    first = torch.full((groups, x.shape[1]), value, dtype=torch.float64)
    return first, first.clone()


def _no_statistics(x: Tensor, reduction: Reduction) -> Statistics:
    mean, var = _filled(x, reduction, torch.nan)
    return Statistics(mean, var, torch.zeros(mean.shape[0], 1, dtype=torch.float64))


def collect(x: Tensor, reduction: Reduction) -> Statistics:
    """Return the statistics of ``x``."""
    if x.numel() == 0:
        return _no_statistics(x, reduction)
    arguments = (x, reduction, _threads())
    found = _native.collect(*arguments)
    return Statistics(*_on_copies(_native.collect, x, *arguments)) if found is None else found


def normalize(
    x: Tensor,
    statistics: Statistics,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in ``out`` if given."""
    arguments = (x, statistics, reduction, epilogue, eps, _threads())
    if out is not None and _native.normalize_into(out, *arguments):
        torch.autograd.graph.increment_version(out)  # a graph that has saved `out` must know
        return out
    y: Tensor | None = _native.normalize(*arguments)
    if y is None:
        y = torch.empty_like(x) if x.numel() == 0 else _on_copies(_native.normalize, x, *arguments)
    return y if out is None else out.copy_(y)


def forward(x: Tensor, reduction: Reduction, epilogue: Epilogue, eps: float) -> tuple[Tensor, Statistics]:
    """Return the result of `normalize` with the statistics of ``x``, and these."""
    arguments = (x, reduction, epilogue, eps, _threads())
    done: tuple[Tensor, Statistics] | None = _native.forward(*arguments)
    if done is not None:
        return done
    if x.numel() == 0:
        return torch.empty_like(x), _no_statistics(x, reduction)
    y, statistics = _on_copies(_native.forward, x, *arguments)
    return y, statistics


def reduce(
    dy: Tensor, x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float
) -> Sums:
    """Return the two sums of the backward pass."""
    if x.numel() == 0:
        return Sums(*_filled(x, reduction, 0.0))
    arguments = (dy, x, statistics, reduction, epilogue, eps, _threads())
    sums = _native.reduce(*arguments)
    return Sums(*_on_copies(_native.reduce, x, *arguments)) if sums is None else sums


def apply(
    dy: Tensor,
    x: Tensor,
    statistics: Statistics,
    sums: Sums,
    reduction: Reduction | None,
    epilogue: Epilogue,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """Return dx and dresidual (None without a residual), given the sums over all values that share statistics."""
    if x.numel() == 0:
        return torch.empty_like(x), None if epilogue.residual is None else torch.empty_like(x)
    arguments = (dy, x, statistics, sums, reduction, epilogue, eps, _threads())
    done: tuple[Tensor, Tensor | None] = _native.apply(*arguments) or _on_copies(_native.apply, x, *arguments)
    return done


def backward(
    dy: Tensor, x: Tensor, statistics: Statistics, reduction: Reduction | None, epilogue: Epilogue, eps: float
) -> Gradients:
    """Return the gradients of all inputs."""
    arguments = (dy, x, statistics, reduction, epilogue, eps, _threads())
    gradients: Gradients | None = _native.backward(*arguments)
    if gradients is not None:
        return gradients
    if x.numel() == 0:
        inputs = (x, epilogue.residual, epilogue.weight, epilogue.bias)
        return Gradients(*(None if t is None else torch.zeros_like(t) for t in inputs))  # type: ignore[arg-type]  # x
    return Gradients(*_on_copies(_native.backward, x, *arguments))


def update(running: Running, statistics: Statistics, factor: float | Tensor, finite_only: bool) -> None:
    """Move running statistics towards those of each group in turn, and count, in place."""
    factors = factor.flatten().tolist() if isinstance(factor, Tensor) else [factor]
    if not _native.update(running, statistics, factors, finite_only):
        copies = Running(
            *(None if t is None else _plain(t).clone(memory_format=torch.contiguous_format) for t in running)
        )
        plain = Statistics(*(None if t is None else _plain(t).contiguous() for t in statistics))  # type: ignore[arg-type]
        done = _native.update(copies, plain, factors, finite_only)
        assert done
        for buffer, copy in zip(running, copies, strict=True):
            if buffer is not None and copy is not None:
                buffer.detach().copy_(copy)


def fit(x: Tensor, residual: Tensor | None, *vectors: Tensor | None) -> int | None:
    """Return the values per channel of plain tensors that go together in shape, dtype and device; None says nothing.

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
    return None if _native is None else _native.fit(x, residual, vectors)


def blocks() -> list[tuple[int, bool]]:
    """Return the bytes of each block of memory for outputs, and whether a tensor uses it."""
    return [] if _native is None else _native.blocks()


def release_kept_blocks() -> int:
    """Give every kept block back to the system; return their bytes."""
    return 0 if _native is None else _native.release_kept_blocks()


def kept_limit() -> int:
    """Return the most bytes that are kept; 0 without compiled kernels."""
    return 0 if _native is None else _native.kept_limit()


def limit_kept_blocks(limit: int) -> None:
    """Keep at most so many bytes; with 0 torch allocates the outputs."""
    if _native is not None:
        _native.limit_kept_blocks(limit)
